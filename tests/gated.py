"""Runs of a `Suite` that gate: a baseline of several sittings, and what the gate said, from the results file."""

from __future__ import annotations

import json
from typing import Any

import pytest
from inner import Suite

TPOT = 0.005
SIM, REF = "bfloat16/sim/b1-p16-n8", "bfloat16/ref/b1-p16-n8"
#: Slower by 15 %, which fresh processes call a regression if the baseline has several sittings.
SLOWER = "Simulated(tpot=0.005 * 1.15)"
SLOW_ONCE = "Simulated(tpot=0.005 * (1.15 if process == 1 else 1))"
FIGURES = {"sim/tpot": TPOT, "ref/tpot": 0.010}


def record(suite: Suite, figures: dict[str, float] = FIGURES, sittings: int = 5, **what: Any) -> None:
    """Write a baseline of sittings that agree: the more there are, the more one process excludes."""
    for day in range(1, sittings + 1):
        suite.record(figures, recorded=f"2026-01-{day:02}", add=True, **what)


def decode(suite: Suite, *arguments: str, backends: str = "sim") -> tuple[pytest.RunResult, dict[str, Any]]:
    """Gate TPOT of the backends; with what was said of the last one."""
    return gate(suite, "suites/test_decode.py", f"--llm-backends={backends}", *arguments)


def gate(suite: Suite, *arguments: str) -> tuple[pytest.RunResult, dict[str, Any]]:
    """Run these tests; with what was said of the last case."""
    result = suite.run("--llm-results=raw.json", *arguments)
    return result, list(verdicts(suite).values())[-1]


def verdicts(suite: Suite) -> dict[str, dict[str, Any]]:
    """What the last run said of each case, by its key."""
    raw = json.loads((suite.path / "raw.json").read_text())
    return {one["case"]: one["verdict"] for one in raw["results"]}


def looking(looks: str) -> str:
    """For the conftest.py: what each measurement of the machine's rates finds; ``rates.pids`` counts them."""
    return f"""
def pytest_sessionstart():
    from pytest_llmperf.runtime import Runtime

    looks = iter({looks})
    Runtime.measure_rates = lambda run: started("rates") and next(looks)
"""


def failures(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if line.startswith("FAILED")]
