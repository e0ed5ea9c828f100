"""What a red test says got slower, and that other kernels are said, end to end with scripted profiles."""

from __future__ import annotations

import json

import pytest
from inner import Suite

PROFILED = """
def profiled(host=0.1, **operators):
    share = (1 - host) / sum(operators.values())
    rows = {f"aten::{name}": [30.0, took * share, took * share] for name, took in operators.items()}
    phase = {"seconds": 0.1, "kernels": False, "host": host, "rows": rows, "counts": {}}
    return Engagement(True, "scripted", profile={"prefill": phase, "decode": phase})
"""


def with_profile(suite: Suite, tpot: float, operators: str) -> None:
    suite.backends(sim=f"Simulated(tpot={tpot}, evidence=profiled({operators}))", extra=PROFILED)


def said(result: pytest.RunResult) -> str:
    return " ".join(result.stdout.str().split())


def test_beside_base_a_red_test_says_what_got_slower(suite: Suite) -> None:
    with_profile(suite, 0.005, "mm=80, add=10")
    suite.commit()
    with_profile(suite, 0.0055, "host=0.1 / 1.1, mm=80, add=10, copy_=10")
    result = suite.decode("--llm-base=HEAD", "--llm-results=raw.json", "--llm-report=r.md,r.html,r.json")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*regression: decode latency*", "  +10.0% copy_: new, 30 calls a step"])
    for form in ("md", "html"):
        assert "+10.0% copy" in (suite.path / f"r.{form}").read_text(), form
    (row,) = json.loads((suite.path / "r.json").read_text())["results"]
    assert row["slower"] == ["+10.0% copy_: new, 30 calls a step"]
    assert row["profile"]["decode"]["rows"]["aten::copy_"][0] == 30
    raw = json.loads((suite.path / "raw.json").read_text())
    profiles = raw["comparisons"][0]["pairs"][0]["profiles"]
    assert "aten::copy_" in profiles["head"]["decode"]["rows"]
    assert "aten::copy_" not in profiles["base"]["decode"]["rows"]


def test_against_a_stored_profile(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    with_profile(suite, 0.005, "mm=80, flash=10")
    assert suite.decode("--llm-update-baselines").ret == 0
    key = "bfloat16/sim/b1-p16-n8"
    (stored,) = suite.stored()["profiles"][key]
    assert stored["decode"] == "5 ms; 10% host; 80% 30 mm; 10% 30 flash; 0% 0 other operators "

    # The same figures by other kernels: said, and a failure where the user is strict, until it is accepted.
    with_profile(suite, 0.005, "mm=80, math=10")
    changed = "kernels changed: flash -> math"
    passed = suite.decode()
    assert passed.ret == 0
    assert changed in said(passed)
    strict = suite.decode("--llm-strict", "--llm-max-regression=0.5")
    assert strict.ret == 1
    assert f"ok, but {changed}; accept them with --llm-update-baselines" in said(strict)
    assert suite.decode("--llm-update-baselines").ret == 0
    accepted = suite.decode("--llm-strict", "--llm-max-regression=0.5")
    assert accepted.ret == 0
    assert "kernels changed" not in said(accepted)

    # A slowdown that fresh processes find is explained by the stored profile and by what has changed around it.
    monkeypatch.setenv("VLLM_SETTING", "1")
    monkeypatch.setenv("VLLM_API_KEY", "hidden-value")
    with_profile(suite, 0.010, "host=0.05, mm=80, math=10, copy_=100")
    slower = suite.decode()
    assert slower.ret == 1
    slower.stdout.fnmatch_lines(["  +100.0% copy_: new, 30 calls a step", "  changed: *VLLM_SETTING missing -> 1*"])
    assert "hidden-value" not in slower.stdout.str()
    monkeypatch.setenv("VLLM_SETTING", "/home/somebody")
    assert suite.decode("--llm-update-baselines").ret == 0
    text = suite.baseline.read_text()
    assert "hidden-value" not in text
    assert "somebody" not in text


def test_without_a_profile_a_red_test_says_so(suite: Suite) -> None:
    suite.backends(sim="Simulated(tpot=0.005)")
    assert suite.decode("--llm-update-baselines").ret == 0
    assert "profiles" not in suite.stored()
    with_profile(suite, 0.010, "mm=1")
    result = suite.decode()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["  what got slower is not known: the baseline has no profile"])


def test_kernels_that_were_accepted_hold_beside_a_base_too(suite: Suite) -> None:
    with_profile(suite, 0.005, "mm=80, math=10")
    suite.commit()
    with_profile(suite, 0.005, "mm=80, flash=10")
    beside = suite.decode("--llm-strict", "--llm-base=HEAD")
    assert beside.ret == 1
    assert "kernels changed: math -> flash" in said(beside)
    assert suite.decode("--llm-update-baselines").ret == 0
    assert suite.decode("--llm-strict", "--llm-base=HEAD").ret == 0
