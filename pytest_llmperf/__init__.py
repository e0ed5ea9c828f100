"""pytest-llmperf: measure LLM inference optimizations, gate latency regressions, check that the tokens are right.

What a suite's ``conftest.py`` needs to add a backend is here; what its tests need comes as fixtures.
"""

from __future__ import annotations

from pytest_llmperf.backends.base import (
    Backend,
    Engagement,
    EngineSpec,
    NotEngagedError,
    Observation,
    RequestStatistics,
    Score,
)
from pytest_llmperf.variants import Variant

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "Engagement",
    "EngineSpec",
    "NotEngagedError",
    "Observation",
    "RequestStatistics",
    "Score",
    "Variant",
    "__version__",
]
