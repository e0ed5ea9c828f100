"""What the trials of the gate make of a repository, and what they count."""

from __future__ import annotations

import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gate import memory
from benchmarks.gate.flow import KEPT, KINDS, changed, decisions, holds
from benchmarks.gate.repository import NOTHING, by_workload, slowed, tpots_of
from pytest_llmperf.cases import LATENCIES

TPOTS = {(1, 64): 0.020, (2, 96): 0.030}


def result(case: str, median: float = 0.02, outcome: str = "ok") -> dict[str, Any]:
    verdict = dict.fromkeys(KEPT) | {"outcome": outcome, "remedy": "none"}
    return {"case": f"float32/{case}", "spread": {"median": median}, "verdict": verdict}


RAW = {
    "results": [
        result("sdpa/b1-p64-n16/tpot", 0.5),
        result("slowed/b1-p64-n16/ttft", 0.1),
        result("slowed/b1-p64-n16/tpot", 0.020, "regression"),
        result("slowed/b2-p96-n16/tpot", 0.030),
    ]
}


def seconds_of(text: str, calls: int) -> list[float]:
    """What so many steps of an ``extra.py`` sleep, at batch size 1 and a prompt length of 64."""
    slept: list[float] = []
    names: dict[str, Any] = {}
    exec(text, names)
    if "time" in names:
        names["time"] = type("Clock", (), {"sleep": staticmethod(slept.append)})
    for _ in range(calls):
        names["do"](1, 64)
    return slept


def test_only_the_backend_under_trial_is_judged() -> None:
    assert {workload: list(found) for workload, found in by_workload(RAW).items()} == {
        "b1-p64-n16": ["ttft", "tpot"],
        "b2-p96-n16": ["tpot"],
    }
    assert tpots_of(RAW) == TPOTS


def test_of_a_run_its_decisions_are_kept_of_the_metrics_that_a_kind_shows_in() -> None:
    found = decisions(RAW, ("tpot",))
    assert {case: one["outcome"] for case, one in found.items()} == {
        "b1-p64-n16/tpot": "regression",
        "b2-p96-n16/tpot": "ok",
    }
    assert all(tuple(one) == KEPT for one in found.values())
    assert len(decisions(RAW, LATENCIES)) == 3


def test_unchanged_code_does_nothing_more() -> None:
    for text in (slowed("same", TPOTS), changed("same", TPOTS)):
        assert text != NOTHING, "base that is head would not be compared"
        assert seconds_of(text, 3) == []


def test_a_slowdown_is_a_share_of_the_step() -> None:
    assert seconds_of(slowed("sleep-5", TPOTS), 2) == pytest.approx([0.05 * 0.020] * 2)


def test_every_seventh_step_sleeps_in_one_layer() -> None:
    slept: list[float] = []
    names: dict[str, Any] = {}
    exec(changed("seventh", TPOTS), names)
    names["time"] = type("Clock", (), {"sleep": staticmethod(slept.append)})
    layers = [torch.nn.Identity() for _ in range(3)]
    names["prepare"](SimpleNamespace(model=SimpleNamespace(model=SimpleNamespace(layers=layers))))
    for step in range(22):
        for layer in layers:
            layer(torch.zeros(1, 64 if step == 0 else 1, 4))  # a prefill, and 21 steps
    assert slept == pytest.approx([0.49 * 0.020] * 3)


def test_a_spin_takes_a_tenth_of_the_step() -> None:
    names: dict[str, Any] = {}
    exec(changed("spin-10", TPOTS), names)
    names["begin"](None, (), {})
    time.sleep(0.020)
    began = time.perf_counter()
    names["do"](1, 64)
    assert 0.10 * 0.020 <= time.perf_counter() - began < 10


@pytest.mark.parametrize(
    ("kind", "outcomes", "expected"),
    [
        ("same", {"ok": 9, "inconclusive": 9}, True),
        ("same", {"ok": 99, "regression": 1}, False),
        ("spin-10", {"regression": 9, "inconclusive": 1}, True),
        ("spin-10", {"regression": 8, "inconclusive": 2}, False),
        ("spin-10", {"regression": 99, "ok": 1}, False),
        ("seventh", {}, False),
    ],
)
def test_a_kind_holds_if_its_outcomes_are_as_they_have_to_be(
    kind: str, outcomes: dict[str, int], expected: bool
) -> None:
    assert kind in KINDS
    assert holds(kind, Counter(outcomes)) is expected


def test_of_memory_a_part_of_the_cache_is_kept_as_large_as_asked_for() -> None:
    """The cache of 2 layers has 4 parts of 512 bytes; a tenth of 11,264 bytes are 3 of them."""
    text = memory.changed("twice", {"b1-p64-n4": 11264.0}, 0.10)
    names: dict[str, Any] = {}
    exec(text, names)

    def after(length: int) -> int:
        layer = SimpleNamespace(keys=torch.ones(1, 1, length, 2), values=torch.ones(1, 1, length, 2))
        names["keep"](None, (), {}, SimpleNamespace(past_key_values=SimpleNamespace(layers=[layer, layer])))
        return sum(part.numel() * part.element_size() for part in names["KEPT"])

    assert (after(64), after(65), after(64)) == (1536, 1536, 1536)


@pytest.mark.parametrize(
    ("same", "twice", "right"),
    [
        ({"ok": 59, "inconclusive": 1}, {"regression": 20}, True),
        ({"ok": 59, "regression": 1}, {"regression": 20}, False),
        ({"ok": 60}, {"regression": 19, "inconclusive": 1}, False),
    ],
)
def test_of_memory_unchanged_code_may_never_fail_and_more_always_has_to(
    same: dict[str, int], twice: dict[str, int], right: bool
) -> None:
    assert memory.holds({"same": same, "twice": twice}) is right
