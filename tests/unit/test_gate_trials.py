"""What the trials of the gate count."""

from __future__ import annotations

import pytest

from benchmarks.gate.repository import moved, quiet, untold
from pytest_llmperf.gate.judge import HIDDEN, MOVED_MEANWHILE


@pytest.mark.parametrize(
    ("outcome", "reason", "counted"),
    [
        ("inconclusive", f"flagged: 14.2% slower in one process, but {MOVED_MEANWHILE}", 1),
        ("inconclusive", "9.0% slower in 3 fresh processes, but too few samples of 1 of 3 were undisturbed", 1),
        ("inconclusive", f"eager is 6.0% faster than its baseline: {HIDDEN}", 1),
        ("inconclusive", "9.0% slower in 2 fresh processes, but eager is 4.0% slower than its baseline too", 1),
        ("inconclusive", "flagged: 9.0% slower, but this machine's GEMM rate is 20% below what it was with it", 1),
        ("inconclusive", "give or take 4.1%: too little to tell 3%; 1 of 7 pairs had too few undisturbed turns", 0),
        ("inconclusive", "11.0% slower in 2 fresh processes, but one process was 1.0% slower, not above 1.7%", 0),
        ("ok", MOVED_MEANWHILE, 0),
    ],
)
def test_what_a_disturbed_machine_left_open_is_told_from_what_the_figures_did(
    outcome: str, reason: str, counted: int
) -> None:
    assert untold([{"outcome": outcome, "reason": reason}]) == counted


def test_moved_is_what_is_not_in_the_state_of_most_looks_of_recording_and_run() -> None:
    together, apart = [3e-6, 3.1e-6, 3.3e-6], [4.5e-6]
    assert moved(together * 6) == 0
    assert moved([*together * 3, *apart * 3]) == 0.25
    assert moved([*apart * 3, *together * 3]) == 0.25


def test_a_run_of_which_nobody_knows_whether_cpus_were_moved_is_not_quiet() -> None:
    rows: list[dict[str, object]] = [{"moved": 0.02}, {"moved": 0.4}, {}]
    assert quiet(rows) == [{"moved": 0.02}]
