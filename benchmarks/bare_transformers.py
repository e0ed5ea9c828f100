"""The script that `fidelity.py` compares with: transformers and torch alone, no line of this project.

Usage: python bare_transformers.py REQUEST.json. The request has the model's folder, its dtype, token ids and the
number of new tokens. Each line on standard input, ``generate`` or ``forward``, makes one generation that way. The
script then prints a JSON object with its TTFT and TPOT (s).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig


class Streamer:
    """Notes the time of every put. The first put is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def by_generate(model: Any, prompts: list[list[int]], new: int) -> list[float]:
    """Generate through ``model.generate``; return each token's time since the submission."""
    streamer = Streamer()
    start = time.perf_counter()
    ids = torch.tensor(prompts)
    config = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
    with torch.inference_mode():
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=streamer)
    return [stamp - start for stamp in streamer.times[1:]]


def by_forward(model: Any, prompts: list[list[int]], new: int) -> list[float]:
    """Generate through ``model.forward`` and an argmax; return each token's time since the submission."""
    times = []
    start = time.perf_counter()
    ids, cache = torch.tensor(prompts), None
    with torch.inference_mode():
        for _ in range(new):
            output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = output.logits[:, -1].argmax(dim=-1, keepdim=True), output.past_key_values
            ids.cpu()
            times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Load the model, then make one generation per line of standard input."""
    request = json.loads(Path(sys.argv[1]).read_text())
    model = AutoModelForCausalLM.from_pretrained(
        request["folder"], dtype=getattr(torch, request["dtype"]), attn_implementation="sdpa"
    ).eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    for line in sys.stdin:
        times = {"generate": by_generate, "forward": by_forward}[line.strip()](
            model, request["prompts"], request["new"]
        )
        print(json.dumps({"ttft": times[0], "tpot": (times[-1] - times[0]) / (len(times) - 1)}), flush=True)


if __name__ == "__main__":
    main()
