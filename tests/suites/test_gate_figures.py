"""Figures that are none: impossible ones, generations that are not what was asked for, paths that did not run."""

from __future__ import annotations

import json
import re

import pytest
from gated import SIM
from inner import Suite


@pytest.mark.parametrize(("metric", "peak"), [("ttft", ("flops", 1e3)), ("tpot", ("bandwidth", 1e7))])
@pytest.mark.parametrize("whole", [False, True], ids=["itself", "latency"])
def test_an_impossible_figure_fails(suite: Suite, metric: str, peak: tuple[str, float], whole: bool) -> None:
    suite.backends(extra=f'PEAKS["{peak[0]}"] = {peak[1]}')
    suite.test(f"def test_it(llm_perf):\n    llm_perf.gate('{'latency' if whole else metric}')")
    result = suite.run("test_it.py", "--llm-backends=sim")
    assert result.ret == 1
    result.stdout.fnmatch_lines(f"tiny/{SIM}/{metric}: impossible figure *: *the measured roof of this machine*")


@pytest.mark.parametrize("update", [(), ("--llm-update-baselines",)], ids=["gate", "update"])
def test_an_impossible_figure_is_never_recorded(suite: Suite, update: tuple[str, ...]) -> None:
    suite.backends(extra='PEAKS["bandwidth"] = 1e3')
    assert suite.decode(*update).ret == 1
    assert not suite.baseline.exists()


SHORT = """
class Short(Simulated):
    def generate(self, prompts, max_new_tokens, on_token):
        super().generate(prompts, max_new_tokens - 1, on_token)
"""
SILENT = """
class Silent(Simulated):
    def generate(self, prompts, max_new_tokens, on_token):
        super().generate(prompts[:-1], max_new_tokens, on_token)
"""
BACKWARDS = """
class Backwards(Simulated):
    def generate(self, prompts, max_new_tokens, on_token):
        self.tpot = -0.001
        super().generate(prompts, max_new_tokens, on_token)
"""
ALL_AT_ONCE = """
class AllAtOnce(Simulated):
    def generate(self, prompts, max_new_tokens, on_token):
        self.tpot = 0.0
        super().generate(prompts, max_new_tokens, on_token)
"""


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (SHORT, "TokenError: sim: on_token was called 7 times for request 0 until *, and 8 tokens were asked for*"),
        (SILENT, "TokenError: sim: on_token was called 0 times for request 0 until *, and 8 tokens were asked for*"),
        (BACKWARDS, "request 0: token times do not run forward*"),
        (ALL_AT_ONCE, "request 0: all 8 tokens came at one instant*"),
    ],
    ids=["short", "silent", "backwards", "all at once"],
)
def test_a_generation_that_is_not_what_was_asked_is_no_figure(suite: Suite, engine: str, said: str) -> None:
    name = re.search(r"class (\w+)", engine)[1]  # type: ignore[index]
    suite.backends(sim=f"{name}()", extra=engine)
    result = suite.decode()
    assert result.ret == 1
    result.stdout.fnmatch_lines(said)
    result.stdout.no_fnmatch_line("tpot b1-p16-n8 sim*")


def test_an_optimization_that_did_not_engage_is_no_figure(suite: Suite) -> None:
    fallback = 'Engagement(False, "a paged kernel", {"kernel": "math"})'
    suite.backends(sim=f"Simulated(tpot=0.001, evidence={fallback})")
    result = suite.decode("--llm-update-baselines", "--llm-results=raw.json")
    assert result.ret == 1
    result.stdout.fnmatch_lines("*did not engage: expected a paged kernel; seen: kernel=math")
    result.stdout.no_fnmatch_line("*1.000 ms*")
    assert not suite.baseline.exists()
    assert json.loads((suite.path / "raw.json").read_text())["results"] == []
