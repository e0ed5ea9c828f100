"""transformers-paged: transformers' continuous batching, over its paged cache of keys and values."""

from __future__ import annotations

from pytest_llmperf.backends import arguments
from pytest_llmperf.backends.base import Backend

BACKEND = Backend(
    name="transformers-paged",
    load="pytest_llmperf.backends.transformers_paged_engine:TransformersPagedEngine",
    optimizes="decode",
    at_least=("transformers", "5.19"),
    arguments=arguments.of_transformers_paged,
    held=arguments.TRANSFORMERS_HELD,
    proof="keys and values written to a paged cache in every layer, and pages given to every request",
)
