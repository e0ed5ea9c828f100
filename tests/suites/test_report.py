"""Reports: every form says the same of a run, whatever things are called."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inner import PLUGINS, Suite
from reports import document, full, parity, row

from pytest_llmperf.cases import Workload
from pytest_llmperf.cli import main
from pytest_llmperf.gate.rule import Outcome
from pytest_llmperf.report import cells, markdown, text, write
from pytest_llmperf.report.document import ReportError, Row, advice, of

HOSTILE = "<script>alert(1)</script>|`*_$x^2$\n\U0001f600&\"'@all"


class Page(HTMLParser):
    """The text of each table's cells, the keys that they are sorted by, and the tags seen."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.keys: list[str] = []
        self.tags: list[str] = []
        self._cell: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []
            self.keys += [value for name, value in attrs if name == "data-key" and value is not None]

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append("".join(self._cell))
            self._cell = None


figures = st.floats(1e-5, 100)
rows = st.builds(
    row,
    backend=st.text(min_size=1, max_size=8),
    metric=st.sampled_from(["ttft", "tpot", "latency"]),
    median=figures,
    ratio=st.none() | st.floats(0.1, 10),
    speedup=st.none() | st.floats(0.1, 50),
    outcome=st.sampled_from([outcome.value for outcome in Outcome]),
    peak_memory=st.none() | st.integers(1, 2**45),
    compile_time=st.none() | figures,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(rows, min_size=1, max_size=6))
def test_every_form_has_the_same_numbers(found: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_llmperf.report.figures.all_of", lambda _: [])  # they are drawn of the same rows
    made = document(*found)
    (as_json, as_csv, as_markdown, as_html) = (write.FORMS[form](made) for form in (".json", ".csv", ".md", ".html"))
    assert of(json.loads(as_json)) == made
    lines = list(csv.DictReader(io.StringIO(as_csv)))
    page = Page(as_html)
    (found_cases,) = (table for table in page.tables if len(table[0]) == len(cells.CASES) + len(cells.COSTS))
    folded = as_markdown.partition("<details><summary>Every case")[2]
    for one, line, shown_cells in zip(made.rows, lines, found_cases[1:], strict=True):
        assert [float(line[name]) for name in ("median", "q1", "q3")] == [one.median, *one.quartiles]
        assert line["ratio"] == ("" if one.change[0] is None else str(one.change[0]))
        shown = [cell.shown for cell in cells.of_case(one)]
        assert [" ".join(cell.split()) for cell in shown_cells[: len(shown)]] == [
            " ".join(cell.split()) for cell in shown
        ]
        assert " | ".join(map(markdown.plain, shown)) in folded
        assert text.figure(one.median, one.metric).split()[0] in shown[3]
    assert [float(key) for key in page.keys if float(key) in {one.median for one in found}]


def test_the_terminal_says_the_same_numbers(suite: Suite) -> None:
    result = suite.run("suites", "--llm-report=r.md,r.json", "--llm-backends=ref,sim")
    made = of(json.loads((suite.path / "r.json").read_text()))
    assert len(made.rows) == 6
    for one in made.rows:
        shown = text.spread(one.median, *one.quartiles, one.metric)
        result.stdout.fnmatch_lines(f"{one.label} *{shown.replace('[', '[[]')}*")
        assert markdown.plain(shown) in (suite.path / "r.md").read_text()


@given(st.builds(Workload, *[st.integers(1, 10**6)] * 3))
def test_a_workload_is_read_from_what_it_is_called(workload: Workload) -> None:
    assert Workload.parse(str(workload)) == workload


@pytest.mark.parametrize("form", [".html", ".md"])
def test_hostile_names_are_text(form: str) -> None:
    shown = write.FORMS[form](
        document(row(HOSTILE, said=HOSTILE, outcome="regression"), model=HOSTILE, reference=HOSTILE)
    )
    assert "<script>alert" not in shown
    assert "@all" not in shown or form == ".html"
    if form == ".md":
        (line,) = (line for line in shown.splitlines() if line.startswith("| tpot"))
        assert len(re.findall(r"(?<!\\)\|", line)) == len(cells.CASES) + 1
    else:
        assert Page(shown).tags.count("script") == 1
        assert html.escape(HOSTILE.split("|")[0], quote=False) in shown


def test_every_figure_is_drawn_of_what_there_is() -> None:
    from pytest_llmperf.report.figures import all_of

    drawn = all_of(full(2))
    titles = [one.title for one in drawn]
    assert len(titles) == 9
    assert all("<svg" in one.svg and one.table and "tiny, float32, cpu" in one.caption for one in drawn)
    ids = [name for one in drawn for name in re.findall(r'\bid="([^"]*)"', one.svg)]
    assert len(ids) == len(set(ids))
    assert not [one for one in drawn if "#010203" in one.svg or "mathdefault" in one.svg]
    assert all_of(document()) == []


def test_the_fastest_in_parity_is_advised_and_a_faster_unproven_one_is_named() -> None:
    found = advice(
        [row("ref", parity="reference"), row("good", median=0.015, parity="in parity"), row("odd", median=0.01)]
    )
    assert [(one.row.backend, one.unproven and one.unproven.backend) for one in found] == [("good", "odd")]
    wrong = row("wrong", median=0.001, parity="not in parity")
    assert advice([row("ref", parity="reference"), wrong])[0].unproven is None
    assert advice([row("odd"), row("wrong", parity="not in parity")]) == []


def test_a_long_report_fits_a_comment_and_keeps_what_matters() -> None:
    many = [row(f"backend-{number}", ratio=1.0 + number / 10_000) for number in range(3000)]
    left = [
        f"suites/test_decode.py::test_decode[backend-{number}]: " + "is not installed " * 9 for number in range(999)
    ]
    said = write.FORMS[".md"](document(*many, row("slow", outcome="regression"), unmeasured=tuple(left)))
    assert len(said) < 65_536
    assert "| slow |" in said
    assert "more, in the other forms" in said
    assert "and 979 more" in said


def test_wrong_tokens_are_said_though_no_latency_was_measured() -> None:
    wrong = parity("odd", reason="a token is 3 logits worse")
    made = document(parities=(wrong,))
    assert made.headline == "0 cases: not in parity: odd"
    for form in (".md", ".html"):
        assert "odd b1-p16-n8: not in parity with ref: a token is 3 logits worse" in write.FORMS[form](made)


def test_a_regression_beyond_twice_is_drawn_too() -> None:
    from pytest_llmperf.report.figures import all_of

    (drawn,) = (one for one in all_of(document(row(ratio=3.5, low=3.2, high=3.8))) if one.title.startswith("Change"))
    assert re.search(r">\s*200\s*<", drawn.svg)  # on its axis


@pytest.mark.parametrize(
    ("rates", "said"), [({"flops": 1e12}, "measured here"), ({"launches": 1e5}, "of the data sheet")]
)
def test_the_roofline_says_whether_its_roof_was_measured(rates: dict[str, float], said: str) -> None:
    from pytest_llmperf.report.figures import _roofline

    made = full()
    (drawn,) = _roofline(replace(made, device="nvidia-rtx-a6000", environment={**made.environment, "rates": rates}))
    assert f"The line is the roof, {said}: 1 TFLOP/s" in drawn.caption


def test_what_is_no_results_file_is_said() -> None:
    odd = json.loads(write.FORMS[".json"](document(row())))
    odd["results"][0]["verdict"]["outcome"] = "excellent"
    lacking = {
        "schema": 2,
        "parity": [],
        "measurements": [],
        "reference": "",
        "dtype": "",
        "results": [{"case": "tpot"}],
    }
    for data in ({}, {"schema": 1}, {"schema": 2, "parity": []}, {"schema": 2, "parity": 3}, odd, lacking):
        with pytest.raises(ReportError, match=r"schema|no results file|excellent"):
            of(data)


# In a run


def test_reports_are_written_at_the_end_and_say_what_was_not_measured(suite: Suite) -> None:
    suite.test("def test_it(llm_perf):\n    raise ValueError\n")
    result = suite.run("suites/test_decode.py", "test_it.py", "--llm-report=a.html,b.md", "--llm-report=c.csv")
    assert {"a.html", "b.md", "c.csv"} <= {path.name for path in suite.path.iterdir()}
    result.stdout.fnmatch_lines(["report written to *a.html", "report written to *b.md", "report written to *c.csv"])
    assert markdown.plain("test_it.py::test_it") in (suite.path / "b.md").read_text()


def test_what_was_accepted_is_said_to_be(suite: Suite) -> None:
    suite.run("suites/test_decode.py", "--llm-update-baselines", "--llm-report=r.json", "--llm-results=raw.json")
    moments = set()
    for name in ("r.json", "raw.json"):
        made = of(json.loads((suite.path / name).read_text()))
        assert made.headline == "2 cases: 2 accepted"
        moments.add(made.when)
    assert len(moments) == 1  # so that they count as one run where both are given to a report


def test_a_report_that_cannot_be_drawn_fails_the_run_and_the_summary_is_still_shown(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_llmperf.report.html.render", lambda document: 1 / 0)
    result = suite.run("suites/test_decode.py", "--llm-report=a.html,b.csv")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["ERROR: *a.html was not written: ZeroDivisionError*", "tpot b1-p16-n8 sim *", "report written to *b.csv"]
    )


def test_one_file_is_not_both_results_and_report(suite: Suite) -> None:
    result = suite.run("suites/test_decode.py", "--llm-results=r.json", "--llm-report=r.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("*are the same file*choose two*")


def test_an_interrupted_run_reports_what_it_has(suite: Suite) -> None:
    suite.test("def test_it(llm_perf):\n    raise KeyboardInterrupt\n")
    command = ("suites/test_decode.py", "test_it.py", "--llm-report=r.json")
    result = suite.pytester.runpytest_subprocess(*PLUGINS, *command)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    made = of(json.loads((suite.path / "r.json").read_text()))
    assert {one.backend for one in made.rows} == {"ref"}
    assert [name.partition("[")[0] for name in made.unmeasured] == [
        "test_it.py::test_it",
        "suites/test_decode.py::test_decode",
        "test_it.py::test_it",
    ]


def test_a_summary_that_nobody_asked_for_fails_nothing(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(suite.path / "missing" / "summary.md"))
    result = suite.run("suites/test_decode.py", "--llm-backends=sim")
    assert result.ret == 0
    result.stdout.fnmatch_lines("the step summary was not written: *")


def test_github_s_step_summary_gets_markdown(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(suite.path / "summary.md"))
    (suite.path / "summary.md").write_text("before\n")
    suite.run("suites/test_decode.py", "--llm-backends=sim")
    said = (suite.path / "summary.md").read_text()
    assert said.startswith("before\n\n### ")
    assert "### llmperf: 1 case: 1 no baseline" in said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("r.txt", "*'r.txt' has none of the suffixes of a report: .html, .md, .json, .csv*"),
        (",", "*at least one file*"),
    ],
)
def test_a_form_that_is_not_known_is_refused(suite: Suite, value: str, said: str) -> None:
    result = suite.run(f"--llm-report={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(said)


# Of earlier runs


def saved(folder: Path, name: str, median: float, when: str, **other: object) -> Path:
    made = document(row(median=median), row("old" if when < "2026-02" else "new"), when=when, **other)
    path = folder / name
    path.write_text(write.FORMS[".json"](made))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """The newest one first, and one of another machine."""
    return [
        saved(tmp_path, "c.json", 0.03, "2026-03-01T00:00:00+00:00", commit="c" * 40),
        saved(tmp_path, "a.json", 0.02, "2026-01-01T00:00:00+00:00", commit="a" * 40),
        saved(tmp_path, "b.json", 0.01, "2026-02-01T00:00:00+00:00", commit="b" * 40),
        saved(tmp_path, "d.json", 0.5, "2025-01-01T00:00:00+00:00", environment={"fingerprint": {"cpu": "other"}}),
    ]


def test_many_runs_become_one_report_of_the_newest(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = [f"--output={tmp_path / name}" for name in ("t.html", "t.md", "t.csv", "t.json")]
    assert main(["report", *map(str, runs), *outputs]) == 0
    assert "1 of another machine" in capsys.readouterr().err
    (line,) = (line for line in (tmp_path / "t.md").read_text().splitlines() if line.endswith("+50.0% |"))
    assert line == r"| tpot | b1-p16-n8 | sim | 3 | 20.0 ms | 30.0 ms | +50.0% |"
    lines = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [line["median"] for line in lines if line["backend"] == "sim"] == ["0.02", "0.01", "0.03"]
    again = of(json.loads((tmp_path / "t.json").read_text()))
    assert [one.commit for one in again.earlier] == ["a" * 40, "b" * 40]
    page = (tmp_path / "t.html").read_text()
    assert "Decode latency (mean TPOT) over runs" in page
    assert all(name in page for name in ("aaaaaaaaa", "bbbbbbbbb", "ccccccccc"))


def test_a_report_of_reports_goes_on_and_a_run_counts_once(runs: list[Path], tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert main(["report", str(runs[1]), str(runs[2]), f"--output={first}"]) == 0
    assert main(["report", str(first), str(runs[0]), str(runs[1]), f"--output={second}"]) == 0
    again = of(json.loads(second.read_text()))
    assert [one.commit for one in (*again.earlier, again)] == [letter * 40 for letter in "abc"]


def test_a_kernel_that_keeps_more_memory_is_the_same_machine(tmp_path: Path) -> None:
    machines = [{"fingerprint": {"cpu": "one", "memory_gib": size}} for size in (31, 32)]
    made = [saved(tmp_path, f"{n}.json", 0.02, f"2026-0{n}", environment=one) for n, one in enumerate(machines, 1)]
    assert main(["report", *map(str, made), f"--output={tmp_path / 't.json'}"]) == 0
    assert len(of(json.loads((tmp_path / "t.json").read_text())).earlier) == 1


def test_a_report_without_an_output_is_printed(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs[0])]) == 0
    assert capsys.readouterr().out.startswith("### llmperf: 2 cases: 2 ok")


def test_two_runs_side_by_side(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs[1]), str(runs[0])]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("A: tiny, float32, cpu, aaaaaaa")
    assert said[3].split("  ")[-1] == "+50.0%"
    assert said[4:6] == ["only in A: float32/old/b1-p16-n8/tpot", "only in B: float32/new/b1-p16-n8/tpot"]
    assert "noise" in said[-1]
    assert main(["compare", str(runs[3]), str(runs[0])]) == 0
    assert "of two machines: the change may be theirs" in capsys.readouterr().out


def test_a_results_file_of_a_run_is_read_too(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    suite.run("suites/test_decode.py", "--llm-results=raw.json", "--llm-report=r.md")
    capsys.readouterr()
    assert main(["report", str(suite.path / "raw.json")]) == 0
    assert capsys.readouterr().out == (suite.path / "r.md").read_text()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 9, "kind": "report"}'])
def test_a_file_that_is_none_of_ours_is_one_line(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text(text)
    assert main(["report", str(tmp_path / "x.json")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"pytest-llmperf: {tmp_path / 'x.json'}: ")
    assert main(["report", str(tmp_path / "missing.json")]) == 2
