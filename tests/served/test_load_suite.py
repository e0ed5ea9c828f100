"""The load suite: a scripted server, everything else real."""

from __future__ import annotations

import json

import pytest
from inner import Suite, usage_error

from pytest_llmperf.models import Model
from pytest_llmperf.prompts import Prompts

SERVER = """
from pytest_llmperf.backends.base import CLIENT

class Server(Simulated):
    # Answers one request after the other, in 100 ms and 10 ms a token; each fourth one fails if asked to.
    failing = {failing}

    def serve(self, prompts, max_new_tokens, observer, due, concurrency):
        start = self.now
        assert len(set(map(tuple, prompts))) == len(prompts)
        for request in range(len(prompts)):
            if due is not None:
                self.now = max(self.now, start + due[request])
            observer.submitted(request)
            if self.failing and request % 4 == 3:
                observer.failed(request, "cut the stream")
                continue
            self.now += 0.1
            for position in range(max_new_tokens):
                self.now += 0.01 if position else 0.0
                observer(request, 5)

class Ends(Server):
    # As many requests as asked for end after two tokens.
    early = {early}

    def ended(self):
        return []

    def serve(self, prompts, max_new_tokens, observer, due, concurrency):
        start = self.now
        for request in range(len(prompts)):
            if not observer.more:
                break
            self.now = max(self.now, start + due[request]) if due else self.now
            observer.submitted(request)
            self.now += 0.1
            for position in range(2 if request < self.early else max_new_tokens):
                self.now += 0.01 if position else 0.0
                observer(request, 5)
            if request < self.early:
                observer.ended(request)

def load_server(spec):
    print("BATCH", spec.batch_size)
    return Ends() if Ends.early else Server()
"""


def served(suite: Suite, *arguments: str, failing: bool = False, early: int | None = None) -> pytest.RunResult:
    (suite.path / "tiny" / "tokenizer.json").unlink()  # it has three words, and a load has no prompt twice
    suite.backends(
        extra=SERVER.format(failing=failing, early=early),
        backends='[Backend("ref", load_ref), Backend("srv", load_server, boundary=CLIENT)]',
    )
    return suite.run("suites/test_serving.py", "--llm-backends=ref,srv", "--llm-results=out.json", *arguments)


def loads(suite: Suite) -> dict[str, dict[str, object]]:
    found = json.loads((suite.path / "out.json").read_text())["load"]
    return {one["traffic"]: one["result"] for one in found}


def test_every_kind_of_traffic_is_a_test_and_is_reported(suite: Suite) -> None:
    result = served(suite, "--llm-concurrency=1", "--llm-request-rates=2", "--llm-requests=8", "--llm-report=out.md")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["srv * b1-p16-n8 * c1 * 0 of 8 * 100 / 100 / 100 ms * 10.0 / 10.0 / 10.0 ms *"])
    figures = loads(suite)["c1"]["percentiles"]
    for name, seconds in {"ttft": 0.1, "itl": 0.01, "latency": 0.17}.items():
        assert figures[name] == pytest.approx([seconds] * 3)  # type: ignore[index]
    assert loads(suite)["r2"]["percentiles"]["ttft"][2] > 0.1, "two a second, at random, wait for each other"  # type: ignore[index]
    assert "Under load" in (suite.path / "out.md").read_text()


def test_an_objective_that_is_missed_fails_with_what_was_seen(suite: Suite) -> None:
    result = served(suite, "--llm-concurrency=2", "--llm-requests=8", "--llm-slo=ttft=90ms,itl=50ms")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*srv b1-p16-n8 c2: 0.0% of the requests met ttft 90 ms, itl 50 ms, and 99% must; p99: ttft 100.0 ms*"]
    )
    assert loads(suite)["c2"]["goodput"] == 0


def test_requests_that_fail_fail_the_test_and_the_others_count(suite: Suite) -> None:
    result = served(suite, "--llm-concurrency=1", "--llm-requests=8", failing=True)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*srv b1-p16-n8 c1: 2 of 8 requests failed: cut the stream*"])
    assert loads(suite)["c1"]["failed"] == 2
    assert loads(suite)["c1"]["percentiles"]["ttft"] == pytest.approx([0.1] * 3)  # type: ignore[index]


def test_requests_that_end_early_are_replaced_and_give_no_figure(suite: Suite) -> None:
    arguments = ("--llm-concurrency=1", "--llm-request-rates=2", "--llm-requests=8", "--llm-report=out.md")
    result = served(suite, *arguments, early=3)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["srv * c1 * 0 of 8 (+3 ended early) * 170 / 170 / 170 ms *"])
    assert "(+3 ended early)" in (suite.path / "out.md").read_text()
    for one in loads(suite).values():
        assert (one["requests"], one["failed"], one["early"], one["tokens"]) == (8, 0, 3, 64)


def test_where_too_many_end_early_one_line_says_so(suite: Suite) -> None:
    result = served(suite, "--llm-concurrency=1", "--llm-requests=8", early=9)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*srv b1-p16-n8 c1: 9 of 16 requests ended with an end-of-sequence token before they had 8 tokens; lower *"]
    )


def test_without_a_server_it_is_one_skip_with_the_reason(suite: Suite) -> None:
    result = suite.run("suites/test_serving.py", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*none of --llm-backends is a server, and load is for servers*"])


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--llm-slo=ttft=200", "is not a list of objectives"),
        ("--llm-slo=tpot=20ms", "is not a list of objectives"),
        ("--llm-slo=ttft=0ms", "an objective must be above 0 s"),
        ("--llm-request-rates=0", "is not a list of requests per second"),
        ("--llm-request-rates=inf", "is not a list of requests per second"),
        ("--llm-concurrency=0", "0 is not a positive whole number"),
        ("--llm-requests=none", "none"),
    ],
)
def test_malformed_options_are_one_line(suite: Suite, argument: str, said: str) -> None:
    assert said in usage_error(suite.run("suites", argument))


def test_no_two_prompts_of_a_load_begin_alike(bundled_model: Model) -> None:
    """Or a prefix cache would answer some of them."""
    made = Prompts(49152, bundled_model.tokenizer_file).many(200, 64)
    assert {len(prompt) for prompt in made} == {64}
    assert len({tuple(prompt[:4]) for prompt in made}) > 195
    drawn = Prompts(1000, None).many(50, 64)
    assert len({tuple(prompt[:4]) for prompt in drawn}) == 50
