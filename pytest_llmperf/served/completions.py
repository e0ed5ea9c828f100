"""An OpenAI-compatible server as an engine: vLLM, SGLang, llama.cpp's, by ``/v1/completions``."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.served.client import ServerError
from pytest_llmperf.served.engine import ServedEngine
from pytest_llmperf.served.process import listening
from pytest_llmperf.served.reply import CompletionReply

LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class CompletionsEngine(ServedEngine):
    """A server that runs already, or that a subclass starts."""

    path = "/v1/completions"
    metrics_path = "/metrics"
    histograms: Mapping[str, str] = {
        "queue time": "vllm:request_queue_time_seconds",
        "inference time": "vllm:request_inference_time_seconds",
        "time to first token": "vllm:time_to_first_token_seconds",
        "inter-token latency": "vllm:inter_token_latency_seconds",
    }
    counters = ("vllm:prefix_cache_hits_total", "vllm:num_preemptions_total", "vllm:generation_tokens_total")
    reply = CompletionReply

    def __init__(self, spec: EngineSpec) -> None:
        self.model = ""
        super().__init__(spec)

    def prepare(self) -> None:
        """The model's name, and that its context is long enough where the server says."""
        models = self.ask("/v1/models")
        try:
            model = models["data"][0]
            self.model = model["id"]
            context = model.get("max_model_len")
        except (LookupError, TypeError, AttributeError):
            raise self.client.failure("/v1/models", "names no model") from None
        if context is not None and context < self.spec.sequence_length:
            raise ServerError(
                f"{self.address} holds {context} tokens a request, and this run needs {self.spec.sequence_length}; "
                "lower --llm-prompt-lengths or --llm-max-new-tokens"
            )

    def body(self, prompt: list[int], max_new_tokens: int) -> dict[str, Any]:
        """Greedy, past end-of-sequence, exactly so many tokens; a prompt that was sent before is computed again."""
        return {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,  # vLLM from 0.10.2
            "cache_salt": uuid.uuid4().hex,  # vLLM: no other request's prefix is its own
            "cache_prompt": False,  # llama.cpp
        }

    def seen(self) -> dict[str, Any]:
        """The model, and what the server counted."""
        counted = self.grown("vllm:generation_tokens_total")
        return {"model": self.client.shown(str(self.model))} | (
            {"tokens counted": int(counted)} if counted is not None else {}
        )

    def processes(self) -> list[int]:
        """Of a server on this machine, whoever listens on its port."""
        parts = urlsplit(self.address.base)
        if parts.hostname not in LOOPBACK:
            return []
        return listening(parts.port or {"http": 80, "https": 443}[parts.scheme])

    def peak_memory(self) -> int:
        """Not known of a server: 0."""
        return 0
