"""What a whole run says of a server: which model it measured, and that tokens came together."""

from __future__ import annotations

import csv
import io
import json

import pytest
from inner import Suite
from loopback import serving
from scripted import Scripted

GATED = """
def test_prefill(llm_perf):
    llm_perf.gate("ttft")

def test_decode(llm_perf):
    llm_perf.gate("tpot")
"""
REPORTS = ("--llm-results=r.json", "--llm-report=r.md,r.csv,r.html,all.json")


def run(suite: Suite, script: Scripted, *arguments: str, tests: str = "test_it.py") -> pytest.RunResult:
    suite.test(GATED)
    with serving(script.scripts) as server:
        return suite.run(tests, "--llm-backends=server", f"--llm-server={server.url}", "--llm-timeout=20", *arguments)


def written(suite: Suite) -> dict[str, str]:
    return {name: (suite.path / name).read_text() for name in ("r.json", "r.md", "r.csv", "r.html", "all.json")}


def test_every_report_names_the_model(suite: Suite) -> None:
    done = run(suite, Scripted("twomodels"), "--llm-served-model=TINY", *REPORTS)
    done.assert_outcomes(passed=2)
    done.stdout.fnmatch_lines(["server: model tiny at http://127.0.0.1:*"])
    for name, said in written(suite).items():
        assert "tiny at http://127.0.0.1" in said or '"served model": "tiny"' in said, name


def test_a_model_of_another_name_is_said_to_be_the_only_one(suite: Suite) -> None:
    script = Scripted("nomodels")
    done = run(suite, script, "--llm-served-model=other")
    done.stdout.fnmatch_lines(["server: model other (the server has no /v1/models) at http://*"])


def test_several_models_of_other_names_are_listed_once(suite: Suite) -> None:
    done = run(suite, Scripted("twomodels"), "--llm-served-model=70b")
    done.assert_outcomes(failed=2)
    done.stdout.fnmatch_lines(["*serves bge-embed, tiny; none of them would be 70b: name one by --llm-served-model=*"])


def test_figures_of_tokens_that_came_together_say_so_on_their_lines_and_in_every_report(suite: Suite) -> None:
    done = run(suite, Scripted(together=4), *REPORTS)
    done.assert_outcomes(passed=2)
    done.stdout.fnmatch_lines(["ttft b1-p16-n8 server *ms ICL*", "tpot b1-p16-n8 server *ms ICL*"])
    done.stdout.fnmatch_lines(["ICL: server b1-p16-n8: * tokens came in * reads of the socket*"])
    made = written(suite)
    for name in ("r.md", "r.html"):
        assert "gaps are between chunks, and TTFT is when the first 4 tokens came" in made[name], name
    for name in ("r.json", "all.json"):
        (first, *_) = json.loads(made[name])["results"]
        assert first["arrivals"]["tokens"] == 4 * first["arrivals"]["reads"]
        assert first["arrivals"]["first"] == 4
    (line, *_) = csv.DictReader(io.StringIO(made["r.csv"]))
    assert line["arrivals_first"] == "4.0"


def test_a_proxy_that_holds_everything_back_fails_the_test(suite: Suite) -> None:
    done = run(suite, Scripted("buffered"))
    done.assert_outcomes(failed=2)
    done.stdout.fnmatch_lines(["*request 0: all 8 tokens came at one instant, so TPOT would be 0*"])


LOAD = ("--llm-concurrency=2", "--llm-requests=4")


def test_under_load_chunks_are_said_beside_their_percentiles(suite: Suite) -> None:
    done = run(suite, Scripted(together=4), *LOAD, *REPORTS, tests="suites/test_serving.py")
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines(["server: model tiny at http://127.0.0.1:*", "server *b1-p16-n8 * c2 *ms ICL*"])
    assert "ICL: server b1-p16-n8 c2: 32 tokens came in 8 reads" in written(suite)["r.md"].replace("\\", "")


def test_under_load_an_objective_for_gaps_is_not_met_by_chunks(suite: Suite) -> None:
    done = run(suite, Scripted(together=4), *LOAD, "--llm-slo=itl=50ms", tests="suites/test_serving.py")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*0.0% of the requests met itl 50 ms, and 99% must*"])


def test_under_load_a_proxy_that_holds_everything_back_fails_the_test(suite: Suite) -> None:
    done = run(suite, Scripted("buffered"), *LOAD, tests="suites/test_serving.py")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*4 of 4 requests failed: all 8 tokens came at one instant*"])
