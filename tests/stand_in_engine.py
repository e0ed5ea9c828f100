"""An engine such as users bring, for the example in the documentation: its tests install it as the package ``stack``.

It steps all requests together, counts what it computes, and keeps no prefix.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM


class Engine:
    """Takes requests, and computes a token of each at every step."""

    def __init__(self, model: str, dtype: str, threads: int, requests: int, tokens: int, prefix_cache: bool) -> None:
        assert not prefix_cache
        assert min(requests, tokens) > 0
        torch.set_num_threads(threads)
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.reset()

    def reset(self) -> None:
        """Forget every request, and begin to count anew."""
        self.rows: dict[int, list[int]] = {}
        self.caches: dict[int, Any] = {}
        self.prompt_tokens = self.steps = 0

    def add(self, request: int, prompt: list[int]) -> None:
        """Take a request."""
        self.rows[request] = prompt

    def step(self) -> list[tuple[int, Any, Any]]:
        """Request, token and logits of each, as numpy's scalars and arrays."""
        self.steps += 1
        found = []
        for request, row in self.rows.items():
            self.prompt_tokens += len(row) if request not in self.caches else 0
            with torch.inference_mode():
                out = self.model(torch.tensor([row]), past_key_values=self.caches.get(request), use_cache=True)
            logits = out.logits[0, -1].float().numpy()
            self.caches[request], token = out.past_key_values, logits.argmax()
            found.append((request, token, logits))
        self.rows = {request: [int(token)] for request, token, _ in found}
        return found
