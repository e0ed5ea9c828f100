"""The summary at the end of a run: what it says, where, and that it fits a screen."""

from __future__ import annotations

import shlex
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import document, parity, row

from pytest_llmperf.ending import _commands
from pytest_llmperf.gate.rule import Outcome
from pytest_llmperf.gate.update import Change
from pytest_llmperf.report import reasons, tables
from pytest_llmperf.report.document import Document, Row
from pytest_llmperf.report.progress import position
from pytest_llmperf.report.terminal import SCREEN, Ending, command, counts, summary

BACKENDS = ("eager", "sdpa", "compile", "compile-static", "max-autotune")
WORKLOADS = ("b1-p256-n32", "b4-p256-n32")
STATE = (
    "this machine is not in the state in which the baseline was recorded: its memory bandwidth is {}% below what it "
    "was; code and versions are those of the baseline: it is the machine; a slowdown of {}% cannot be excluded"
)
SITTING = "record another sitting of the baseline's code, with --llm-update-baselines at its revision"
COMMANDS = {
    "to measure that alone again": ["pytest", "suites/", "--lf", "--lfnf=none", "--llm-compare=always"],
    "to accept it": ["pytest", "suites/", "--lf", "--lfnf=none", "--llm-update-baselines=slower"],
}


def thirty(failing: bool = True) -> Document:
    """Five backends, two workloads, three metrics; of the failing ones two regressions and five open cases."""
    rows = []
    for number, (metric, workload, backend) in enumerate(
        (metric, workload, backend)
        for metric in ("ttft", "tpot", "latency")
        for workload in WORKLOADS
        for backend in BACKENDS
    ):
        found: dict[str, object] = {"not_excluded": 0.043}
        if failing and number in (7, 12):
            said = f"{number + 10}.4% slower than base in 4 pairs of fresh processes"
            found = {
                "outcome": "regression",
                "reason": said,
                "ratio": 1.174,
                "low": 1.13,
                "high": 1.21,
                "basis": "base",
            }
            found["not_excluded"] = 0.2
        elif failing and number % 6 == 3:
            said = STATE.format(number, number + 20)
            found = {"outcome": "inconclusive", "reason": said, "remedy": SITTING, "not_excluded": (number + 20) / 100}
        elif number == 4:
            found = {"outcome": "faster", "reason": "17.3% faster than the baseline in 1 process", "ratio": 0.83}
        rows.append(
            row(
                backend,
                metric,
                0.1234 if metric == "ttft" else 0.0363 if metric == "tpot" else 1.2345,
                workload,
                "reference" if backend == "eager" else "in parity",
                speedup=1.27,
                name=None if metric == "latency" else "MBU",
                fraction=0.34,
                load=12.3,
                compile_time=9.0 if "compile" in backend else 0.1,
                contamination=0.2 if number in (1, 2) else 0.0,
                discarded=3,
                culprit="another process (make) used 1.8 cores and the hypervisor took 0.4 of them away",
                **found,
            )
        )
    checked = [
        parity(name, workload, exact_match=0.984, largest_regret=0.124, first_divergence=9)
        for name in BACKENDS
        for workload in WORKLOADS
    ]
    return document(*rows, parities=tuple(checked), model="smollm2-135m", reference="eager")


def texts(document: Document, ending: Ending | None = None, width: int = 100) -> list[str]:
    return [line.text for line in summary(document, ending or Ending(), width)]


@pytest.mark.parametrize("failing", [False, True])
def test_thirty_cases_fit_one_screen_of_100_columns(failing: bool) -> None:
    said = texts(thirty(failing), Ending(commands=COMMANDS if failing else {}, notes=["report written to report.html"]))
    assert len(said) <= SCREEN
    assert max(map(len, said)) <= 100
    assert sum(line.startswith(("ttft b", "tpot b", "latency b")) for line in said) == 30
    assert sum(line.startswith(BACKENDS) and "in parity" in line for line in said) == 4
    assert sum(line.startswith("disturbed: ") for line in said) == 1
    assert sum(line.startswith("to settle it: ") for line in said) == failing
    verdict = (
        "30 cases gated: 2 regression, 22 ok, 1 faster, 5 inconclusive"
        if failing
        else "30 cases gated: 29 ok, 1 faster"
    )
    assert said[0 if failing else -1] == verdict


@given(st.integers(60, 220), st.booleans())
def test_no_line_is_wider_than_the_terminal(width: int, failing: bool) -> None:
    said = texts(thirty(failing), Ending(commands=COMMANDS), width)
    words = {len(word) for line in said for word in line.split()}
    assert max(map(len, said)) <= max(width, 68, max(words))


def test_a_wide_terminal_shows_quartiles_and_intervals_and_a_narrow_one_does_not() -> None:
    wide, usual, narrow = (texts(thirty(), width=width) for width in (140, 100, 80))
    (line,) = (line for line in wide if line.startswith("tpot b1-p256-n32 sdpa "))
    assert all(said in line for said in ("36.3 ms [", "1.27x", "MBU 34%", "+1.0% [-3.0%, +4.0%]", "+4.3%", "ok"))
    (line,) = (line for line in usual if line.startswith("tpot b1-p256-n32 sdpa "))
    assert all(said in line for said in ("36.3 ms   1.27x", "MBU 34%", "+1.0%", "+4.3%", "ok"))
    assert "tpot b1-p256-n32" in narrow
    assert sum(line.startswith("  compile ") for line in narrow) == 6


def test_a_long_name_fits_80_columns() -> None:
    found = row(
        "compile-static+max-autotune",
        "latency",
        123.45,
        "b32-p2048-n128",
        outcome="inconclusive",
        ratio=1.5,
        not_excluded=0.9,
        speedup=12.5,
        name="MBU",
        fraction=0.35,
    )
    said = texts(document(found), width=80)
    assert max(map(len, said)) <= 80
    at = said.index("latency b32-p2048-n128")
    assert said[at + 1].split() == [
        "compile-static+max-autotune",
        "123.45",
        "s",
        "12.50x",
        "+50.0%",
        "+90%",
        "inconclusive",
    ]


def test_columns_without_content_are_left_out() -> None:
    header = texts(document(row(ratio=None, low=None, high=None, not_excluded=None, outcome="no baseline")))[1]
    assert header.split() == ["case", "median", "[q1,", "q3]", "verdict"]


# Reasons


def test_reasons_that_differ_in_figures_alone_are_one_with_the_worst_case_first() -> None:
    many = [
        row(name, outcome="inconclusive", reason=f"{share}% slower in 1 process; {share}% cannot be excluded",
            not_excluded=share / 100, remedy="do it again")
        for name, share in (("a", 3.5), ("b", 12.0), ("c", 7.25))
    ]  # fmt: skip
    (found,) = reasons.of(many)
    assert found.said == "12.0% slower in 1 process; 12.0% cannot be excluded"
    assert found.cases == "tpot b1-p16-n8 b and 2 more"
    assert reasons.remedies([found]) == ["do it again"]
    said = texts(document(*many))
    assert said[-3:-1] == [f"inconclusive: {found.said} ({found.cases})", "to settle it: do it again"]


def reasoned(count: int) -> Document:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return document(
        *(
            row(letter, outcome="inconclusive", reason=f"{letter * 5} " * 60, remedy="wait")
            for letter in letters[:count]
        )
    )


def test_a_long_reason_is_shortened_and_many_are_counted() -> None:
    said = texts(reasoned(26))
    assert SCREEN - 1 <= len(said) <= SCREEN
    (more,) = (line for line in said if line.startswith("and "))
    shown = sum(line.startswith("inconclusive: ") for line in said)
    assert more.startswith(f"and {26 - shown} more reasons: ")
    assert sum(" ... (tpot b1-p16-n8" in line for line in said) == shown
    assert said[-2] == "to settle it: wait"


def test_every_reason_is_said_in_full_where_that_is_asked_for() -> None:
    said = texts(reasoned(26), Ending(verbose=True))
    assert sum(line.startswith("inconclusive: ") for line in said) == 26
    assert not [line for line in said if "..." in line]
    assert max(map(len, said)) <= 100


# What failed comes first


def test_what_is_not_in_parity_is_said_first_and_in_its_backend_s_line() -> None:
    wrong = parity("odd", reason="a token is 3 logits worse", exact_match=0.5, largest_regret=3.0)
    right = parity("odd", "b4-p16-n8")
    lines = summary(document(row("odd", parity="not in parity"), parities=(right, wrong)), Ending())
    assert [line.text for line in lines[:2]] == [
        "1 cases gated: 1 ok",
        "odd b1-p16-n8: not in parity with ref: a token is 3 logits worse",
    ]
    (line,) = (line for line in lines if line.text.startswith("odd  "))
    assert "NOT IN PARITY (b1-p16-n8)  50.0%  3 of 0.25  1.00" in line.text
    assert lines[1].style == line.style == {"red": True}


def test_errors_come_first_and_commands_last() -> None:
    ending = Ending(errors=["it could not be written"], notes=["a note"], commands={"to go on": ["pytest", "a b"]})
    said = texts(document(row()), ending)
    assert said[:2] == ["1 cases gated: 1 ok", "ERROR: it could not be written"]
    assert said[-2:] == ["a note", "to go on: pytest 'a b'"]


@pytest.mark.parametrize(
    ("outcome", "ratio", "strict", "first"),
    [
        ("regression", 1.2, False, True),
        ("inconclusive", 1.0, False, False),
        ("inconclusive", 1.0, True, True),
        ("no baseline", None, True, True),
        ("faster", 0.9, True, False),
        ("faster", 0.7, True, True),
        ("ok", 1.0, True, False),
    ],
)
def test_the_verdict_comes_first_where_something_failed(
    outcome: str, ratio: float | None, strict: bool, first: bool
) -> None:
    said = texts(document(row(outcome=outcome, ratio=ratio)), Ending(strict=strict))
    assert [index for index, line in enumerate(said) if "cases gated: " in line] == [0 if first else len(said) - 1]


def test_what_was_compared_is_counted() -> None:
    lost = row(outcome="inconclusive", ratio=None)
    assert (
        counts([row(), lost, row(outcome="new", ratio=None)], 2)
        == "1 cases gated: 1 ok, 1 inconclusive, 1 new, 2 skipped"
    )
    assert counts([], 0) == "0 cases gated: nothing was measured"


# An update


def accepted(one: Row, **other: object) -> Change:
    values = {"old": 0.02, "new": 0.025, "sittings": 2, "not_excluded": 0.08, "tolerance": 0.1, "slower": True}
    return Change(**{"case": one.case, "beyond_noise": True} | values | other)  # type: ignore[arg-type]


def test_what_was_accepted_is_in_one_table_and_loading_is_with_its_backend() -> None:
    gated, taken = row("ref", load=3.0), row(accepted=True, speedup=2.0, load=4.0)
    ending = Ending(accepting={taken.case}, changes=[accepted(taken)], written="1 entries written to tiny.json")
    said = texts(document(gated, taken), ending)
    assert [line for line in said if line.startswith("tpot b1-p16-n8 sim")] == [
        "tpot b1-p16-n8 sim  20.0 ms  25.0 ms  +25.0%*  2         8.0%          2.00x"
    ]
    assert [line.split() for line in said if line.startswith("sim ")] == [["sim", "4.00", "s"]]
    assert said[-2:] == ["1 entries written to tiny.json", "1 cases gated: 1 ok"]


def test_what_is_odd_about_accepted_figures_is_said() -> None:
    found = accepted(row(), old=0.05, doubt="its GEMM rate was 20% lower")
    said = tables.about_changes([found])
    assert said[2].startswith("faster by more than 20%: tpot b1-p16-n8 sim")
    assert said[3].endswith("its GEMM rate was 20% lower")


# Parts


def test_a_long_command_is_one_to_a_shell() -> None:
    argv = ["pytest", *(f"suites/test_decode.py::test_decode[backend {number}]" for number in range(4)), "--llm-x"]
    lines = command("to measure that alone again", argv, 100)
    assert len(lines) > 2
    assert max(map(len, lines)) <= 100
    assert shlex.split("\n".join(lines[1:]).replace("\\\n", "")) == argv


def test_progress_says_which_of_how_many_and_how_long_the_others_take() -> None:
    assert position(0, 0, 500) == ""
    assert position(0, 9, 500) == "  1/9"
    assert position(3, 9, 10) == "  4/9"
    assert position(3, 9, 75) == "  4/9, 2 min to go"
    assert position(8, 9, 80) == "  9/9, 10 s to go"


@pytest.mark.parametrize("keeps", [True, False])
def test_many_failures_are_named_where_pytest_keeps_no_list_of_them(keeps: bool) -> None:
    config = Mock(rootpath=Path("/r"), invocation_params=Mock(args=[], dir=Path("/r")), option=Mock(file_or_dir=["s"]))
    config.pluginmanager.hasplugin.return_value = keeps
    names = [f"s/test_it.py::test_it[{number}]" for number in range(5)]
    slower = Mock(verdict=Mock(outcome=Outcome.REGRESSION))
    found = _commands(
        Mock(config=config, judged=dict.fromkeys(names, slower)),
        Mock(accepts=lambda case: False, plan=Mock(base="main")),
    )
    assert found == {
        "to measure that alone again": [
            "pytest",
            *(["s", "--lf", "--lfnf=none"] if keeps else names),
            "--llm-compare=always",
        ]
    }
