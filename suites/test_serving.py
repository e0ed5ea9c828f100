"""Under load, so many requests at a time or arriving at random: every one answered, and in time if that is asked."""

from __future__ import annotations

from pytest_llmperf.fixtures import Load


def test_serving(llm_load: Load) -> None:
    llm_load.check()
