"""tgi: Text Generation Inference; +gptq: its weights of 4 bits."""

from __future__ import annotations

from pytest_llmperf.backends.base import CLIENT, Backend

BACKENDS = (
    Backend(
        name="tgi",
        load="pytest_llmperf.served.tgi:TgiEngine",
        optimizes="decode",
        proof="TGI streams the tokens asked for, by its own count",
        distributions=("aiohttp",),
        boundary=CLIENT,
        attaches=True,
        launcher="text-generation-launcher",
    ),
    Backend(
        name="gptq",
        load="pytest_llmperf.served.tgi:gptq",
        slot="weights",
        engines=("tgi",),
        optimizes="decode",
        proof="it was started with --quantize gptq",
        weight_bytes=0.5,
    ),
)
