"""``pytest-llmperf accept``: baselines from the results of a run elsewhere, or of one that was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from inner import BUSY, Suite

from pytest_llmperf.cli import main

UPDATE = ("--llm-update-baselines", "--llm-invocations=3", "--llm-results=raw.json")
#: A test that accepts a metric of ``sim`` before what is formatted in.
GATED = "def test_it(llm_perf):\n    llm_perf.gate('tpot')\n    {}\n"


def accept(suite: Suite, folder: str = "mine") -> int:
    return main(["accept", str(suite.path / "raw.json"), f"--baseline-dir={suite.path / folder}"])


def written(suite: Suite, folder: str = "mine") -> dict[str, object]:
    entries = json.loads((suite.path / folder / "cpu" / "tiny.json").read_text())["entries"]
    assert isinstance(entries, dict)
    return entries


def test_what_an_update_wrote_follows_from_its_results_byte_for_byte(
    suite: Suite, capsys: pytest.CaptureFixture[str]
) -> None:
    suite.decode(*UPDATE, backends="ref,sim").assert_outcomes(passed=2)
    capsys.readouterr()
    assert accept(suite) == 0
    assert (suite.path / "mine" / "cpu" / "tiny.json").read_bytes() == suite.baseline.read_bytes()
    said = capsys.readouterr().out
    assert "tpot b1-p16-n8 sim" in said
    assert "4 entries of" in said  # two of them cold starts
    before = suite.baseline.read_bytes()
    assert accept(suite, "baselines") == 0
    assert suite.baseline.read_bytes() == before, "the same set twice is one set"


def test_a_run_that_was_stopped_is_accepted_as_far_as_it_came(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    suite.test(GATED.format("raise KeyboardInterrupt"))
    suite.run("test_it.py", "--llm-backends=sim", *UPDATE, no_reraise_ctrlc=True)
    assert not suite.baseline.exists()
    assert accept(suite) == 0
    assert set(written(suite)) == {"bfloat16/sim/b1-p16-n8/tpot", "bfloat16/sim/b1-p16-n8/cold-start"}


@pytest.mark.parametrize(
    ("sim", "options", "why"),
    [
        ("Simulated(tpot=0.005)", (), "1 undisturbed process, and 3 are needed: *"),
        ("Simulated(tpot=0.007)", (), "a regression: *"),
        ("Simulated(tpot=0.003)", (), "further processes were started because the first one was slow or fast"),
        ("Simulated(tpot=0.007 if process == 1 else 0.005)", (), "2 undisturbed processes, and 3 are needed*"),
        ("Simulated(tpot=0.007 if process < 3 else 0.0048)", (), "further processes were started*"),
        ("Busy(0.005)", UPDATE, "0 undisturbed processes, and 3 are needed*"),
        ("Simulated(tpot=0.005, wrong_from=3)", UPDATE, "not in parity"),
    ],
    ids=["one process", "slower", "faster", "cleared", "flagged", "disturbed", "wrong"],
)
def test_what_no_baseline_is_made_of_is_left_out(
    suite: Suite, capsys: pytest.CaptureFixture[str], sim: str, options: tuple[str, ...], why: str
) -> None:
    suite.record({"sim/tpot": 0.005})
    before = suite.baseline.read_bytes()
    suite.backends(sim=sim, extra=BUSY)
    suites = ("suites/test_decode.py", "suites/test_greedy_parity.py")
    suite.run(*suites, "--llm-backends=ref,sim", "-k", "sim", "--llm-results=raw.json", *options)
    capsys.readouterr()
    assert accept(suite, "baselines") == 1
    assert suite.baseline.read_bytes() == before
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    pytest.LineMatcher(lines).fnmatch_lines([f"left out: bfloat16/sim/b1-p16-n8/tpot: {why}"])


def test_a_change_is_told_as_an_update_tells_it(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    suite.record({"sim/tpot": 0.004})
    suite.decode(*UPDATE, "--llm-baseline-dir=elsewhere")
    capsys.readouterr()
    assert accept(suite, "baselines") == 0
    assert "+25.0%*" in capsys.readouterr().out
    assert len(suite.stored()["entries"]["bfloat16/sim/b1-p16-n8/tpot"]) == 2, "the old set is history"


def test_what_cannot_be_accepted_is_one_line(suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite.decode(*UPDATE, "--llm-report=report.json")
    capsys.readouterr()
    assert main(["accept", str(suite.path / "report.json")]) == 2
    assert capsys.readouterr().err.endswith("a report has no samples; give the file of --llm-results\n")
    suite.baseline.write_text("{")
    assert accept(suite, "baselines") == 2
    assert "is not JSON" in capsys.readouterr().err
    assert suite.baseline.read_text() == "{"
    (tmp_path / "taken").write_text("")
    assert accept(suite, str(tmp_path / "taken")) == 2
    assert "cannot be" in capsys.readouterr().err
