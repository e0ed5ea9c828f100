"""Calls of ``on_token``: a wrong one is one line with the backend's name, and other libraries' integers are taken."""

from __future__ import annotations

import json

import pytest
from inner import Suite

#: An engine whose calls are changed on their way; ``late`` come after it has returned.
ENGINE = """
import threading


class Odd(Simulated):
    def generate(self, prompts, max_new_tokens, on_token):
        import numpy

        calls = []
        super().generate(prompts, max_new_tokens, lambda *call: calls.append((self.now, *call)))
        late = []
        for number, (self.now, request, token) in enumerate(calls):
            {body}
        for call in late:
            threading.Timer(0.2, on_token, call).start()
"""


def odd(suite: Suite, body: str, *arguments: str) -> pytest.RunResult:
    suite.backends(sim="Odd(tpot=0.005)", extra=ENGINE.format(body=body))
    return suite.decode("--llm-batch-sizes=2", *arguments)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("on_token(request, 1000)", "on_token got the token 1000; the model's vocabulary has the ids 0 to 999"),
        ("on_token(request, -1)", "on_token got the token -1 for request 0; ids begin at 0"),
        ("on_token(request, float(token))", "on_token got the token 1.0, a float; it takes an int"),
        ("on_token(request == 1, token)", "on_token got the request False, a bool; it takes an int"),
        ("on_token(request + 1, token)", "on_token got the request 2; the batch has the requests 0 to 1"),
        ("on_token(token, request)", "on_token got the request *; the batch has the requests 0 to 1"),
        ("pass", "on_token was called 0 times for request 0 until generate returned, and 8 tokens were asked for*"),
        (
            "number > 1 and on_token(request, token)",
            "on_token was called 7 times for request 0 until generate returned, and 8 tokens were asked for*",
        ),
        (
            "number or on_token(request, token); on_token(request, token)",
            "on_token was called 9 times for request 0 until generate returned, and 8 tokens were asked for*",
        ),
        (
            "late.append((request, token)) if number > 9 else on_token(request, token)",
            "on_token was called 5 times for request 0 until generate returned, and 8 tokens were asked for*",
        ),
    ],
)
def test_a_wrong_call_is_one_line(suite: Suite, body: str, said: str) -> None:
    result = odd(suite, body)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(f"TokenError: sim: {said}")
    assert "Traceback" not in result.stdout.str()
    assert "traceback:" not in result.stdout.str()


def test_numpy_s_integers_are_taken(suite: Suite) -> None:
    result = odd(suite, "on_token(numpy.int32(request), numpy.array([token])[0])", "--llm-results=raw.json")
    result.assert_outcomes(passed=1)
    (measured,) = json.loads((suite.path / "raw.json").read_text())["measurements"]
    assert measured["samples"][0]["trace"]["tokens"][0][:2] == [1, 9]


def test_numpy_s_numbers_are_evidence_and_statistics(suite: Suite) -> None:
    extra = """
class Counted(Simulated):
    def evidence(self):
        import numpy

        return Engagement(True, "steps", {"steps": numpy.int64(8), "by layer": numpy.arange(2)})

    def statistics(self):
        import numpy
        from pytest_llmperf import RequestStatistics

        return [RequestStatistics(numpy.float64(0.1), numpy.float32(0.005))]
"""
    suite.backends(sim="Counted(tpot=0.005, cold=0)", extra=extra)
    suite.decode("--llm-results=raw.json").assert_outcomes(passed=1)
    (measured,) = json.loads((suite.path / "raw.json").read_text())["measurements"]
    assert measured["engagement"]["seen"] == {"steps": 8, "by layer": [0, 1]}
