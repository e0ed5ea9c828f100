"""What a run says on the terminal, from its own figures."""

from __future__ import annotations

import html
import json
from itertools import takewhile
from pathlib import Path

import pytest
from inner import Suite

from pytest_llmperf.report.document import of

#: For the conftest.py: others used the machine in some generations.
BUSY = """
from pytest_llmperf.machine.fitness import Fitness

def busy(*numbers):
    return lambda number: Fitness(others=0.8) if number in numbers else Fitness()
"""


def section(result: pytest.RunResult) -> list[str]:
    """The lines of the summary."""
    lines = iter(result.outlines)
    next(line for line in lines if line.strip("=") == " llmperf ")
    return list(takewhile(bool, lines))


def test_a_log_has_lines_of_100_columns(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    suite.record({"sim/tpot": 0.005, "ref/tpot": 0.010}, rates={"flops": 2e15, "bandwidth": 2e15})
    said = section(suite.run("suites", "--llm-backends=ref,sim"))
    assert max(map(len, said)) <= 100
    assert [line for line in said if line.startswith("inconclusive: this machine is not in the state")]
    assert [line for line in said if line.startswith("to settle it: ")]
    assert said[-1] == "2 cases gated: 2 inconclusive, 4 no baseline"


def test_columns_may_be_asked_for(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert max(map(len, section(suite.decode()))) <= 70


def test_every_case_backend_and_parity_is_in_its_table(suite: Suite) -> None:
    said = section(suite.run("suites", "--llm-backends=ref,sim"))
    cases = [line.split()[:3] for line in said if line.startswith(("ttft", "tpot", "latency"))]
    assert cases == [[metric, "b1-p16-n8", name] for metric in ("ttft", "tpot", "latency") for name in ("ref", "sim")]
    backends = [line.split() for line in said if line.startswith(("backend ", "ref ", "sim "))]
    assert [line[0] for line in backends] == ["backend", "ref", "sim"]
    assert "reference" in backends[1]
    assert "100.0%" in backends[2]


def test_what_a_first_generation_compiles_is_told_apart_from_loading(suite: Suite) -> None:
    suite.backends(sim="Simulated(cold=20.0, evidence=Engagement(True, 'scripted', {'graphs': 1}))")
    result = suite.decode("--llm-results=raw.json", "--llm-report=r.json,r.csv,r.md")
    raw = json.loads((suite.path / "raw.json").read_text())["results"][0]
    assert raw["compile_time"] == pytest.approx(20.0)
    assert 0 < raw["load"] < raw["compile_time"]
    result.stdout.fnmatch_lines(["backend  load    warm-up", "sim * s * 20.00 s"])
    assert json.loads((suite.path / "r.json").read_text())["results"][0]["compile_time"] == raw["compile_time"]
    assert "compile_time" in (suite.path / "r.csv").read_text().splitlines()[0]
    assert "first generation" not in result.stdout.str()


def test_a_slow_first_generation_that_nothing_explains_is_said(suite: Suite) -> None:
    suite.backends(sim="Simulated(cold=20.0)")
    result = suite.decode("--llm-results=raw.json", "--llm-report=r.md,r.html")
    result.stdout.fnmatch_lines(["the first generation took * nothing is known to be compiled: *(tpot b1-p16-n8 sim)"])
    for form in ("md", "html"):
        assert "the first generation took " in (suite.path / f"r.{form}").read_text()


@pytest.mark.parametrize(
    "engine",
    [
        "Simulated(cold=4.0)",  # as a library that is loaded
        "Simulated(cold=20.0, ttft=10.0)",  # 3 times as long
        "Simulated(cold=20.0, evidence=Engagement(True, 'scripted', {'graphs': 1}))",
    ],
)
def test_what_is_usual_of_a_first_generation_is_not(suite: Suite, engine: str) -> None:
    suite.backends(sim=engine)
    suite.decode().stdout.no_fnmatch_line("*first generation*")


def test_progress_is_a_line_per_step_in_a_log(suite: Suite) -> None:
    result = suite.run("suites/test_decode.py", "--llm-backends=ref,sim,xformers")
    result.stdout.fnmatch_lines(["llmperf *s  1/2  ref: loading*", "llmperf *s  2/2  sim: loading*"])


# Nothing is lost


def test_what_the_terminal_shortens_is_in_the_results_and_in_the_reports(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.005}, rates={"flops": 2e15, "bandwidth": 2e15})
    disturbed = "Simulated(tpot=lambda n: 0.005, fitness=busy(2, 3), wrong_from=3)"
    suite.backends(sim=disturbed, extra=BUSY)
    suite.run("suites", "--llm-results=raw.json", "--llm-report=r.md,r.html,r.json")
    raw = json.loads((suite.path / "raw.json").read_text())
    found = next(one for one in raw["results"] if one["case"].endswith("sim/b1-p16-n8/tpot"))
    parity = next(one for one in raw["parity"] if one["backend"] == "sim")
    shown = {name: " ".join(plain(suite.path / name).split()) for name in ("r.md", "r.html")}
    said = [found["verdict"]["reason"], found["verdict"]["remedy"], found["culprit"], parity["reason"]]
    said += [
        f"{parity['exact_match']:.1%}",
        f"{parity['informative']} of {parity['tokens']}",
        f"{found['contamination']:.0%}",
    ]
    for text in shown.values():
        assert [one for one in said if one not in text] == []
    made = of(json.loads((suite.path / "r.json").read_text()))
    assert [one.as_dict() for one in made.parities] == raw["parity"]
    assert {json.dumps(row.result, sort_keys=True) for row in made.rows} == {
        json.dumps(one, sort_keys=True) for one in raw["results"]
    }


def plain(path: Path) -> str:
    """A report's text as a reader sees it, near enough."""
    return html.unescape(path.read_text()).replace("\\", "")


def test_a_speedup_over_a_reference_that_others_disturbed_all_the_time_is_marked(suite: Suite) -> None:
    suite.backends(ref="Simulated(fitness=busy(*range(99)))", extra=BUSY)
    result = suite.run("suites/test_decode.py")
    result.stdout.fnmatch_lines(["tpot b1-p16-n8 ref *1.00x *", "tpot b1-p16-n8 sim *2.00x[?] *"])
    result.stdout.fnmatch_lines("[?]: ref was disturbed throughout, so a speedup over it tells little: others used *")
