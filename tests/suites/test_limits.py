"""A backend that takes few requests at a time, or short ones: larger cases are skipped, and the others run."""

from __future__ import annotations

import pytest
from inner import Suite

from pytest_llmperf import Backend
from pytest_llmperf.backends.registry import Registry
from pytest_llmperf.cases import Workload

#: An engine that refuses to be loaded for more than it takes, and says for what it was.
ENGINE = """
class Small(Simulated):
    def __init__(self, spec, **most):
        super().__init__(tpot=0.005)
        (HERE / "spec").write_text(f"{spec.batch_size} {spec.sequence_length}")
        for name, limit in most.items():
            if getattr(spec, name) > limit:
                raise ValueError(f"no room for a {name} of {getattr(spec, name)}")
"""


def limited(suite: Suite, engine: str, backend: str) -> None:
    suite.backends(
        sim=f"Small(spec, {engine})",
        extra=ENGINE,
        backends=f"[Backend('ref', load_ref), Backend('sim', load_sim, {backend})]",
    )


@pytest.mark.parametrize(
    ("engine", "backend", "cases", "reason", "loaded_for"),
    [
        (
            "batch_size=1",
            "max_batch_size=1",
            "--llm-batch-sizes=1,4",
            "sim: it takes at most 1 request at a time, and this batch has 4",
            "1 24",
        ),
        (
            "batch_size=2",
            "max_batch_size=2",
            "--llm-batch-sizes=2,3",
            "sim: it takes at most 2 requests at a time, and this batch has 3",
            "2 24",
        ),
        (
            "sequence_length=24",
            "max_sequence_length=24",
            "--llm-prompt-lengths=16,17",
            "sim: it takes at most 24 tokens a request, and these requests have 25",
            "1 24",
        ),
    ],
)
def test_cases_beyond_what_it_takes_are_skipped_and_the_others_run(
    suite: Suite, engine: str, backend: str, cases: str, reason: str, loaded_for: str
) -> None:
    limited(suite, engine, backend)
    result = suite.run("suites/test_decode.py", "suites/test_greedy_parity.py", cases, "-rs")
    result.assert_outcomes(passed=6, skipped=2)
    result.stdout.fnmatch_lines(f"SKIPPED *: {reason}")
    assert (suite.path / "spec").read_text() == loaded_for


def test_strictness_does_not_ask_for_more_than_a_backend_takes(suite: Suite) -> None:
    limited(suite, "batch_size=1", "max_batch_size=1")
    result = suite.run("suites/test_greedy_parity.py", "--llm-batch-sizes=1,4", "--llm-strict")
    result.assert_outcomes(passed=3, skipped=1)


def test_parity_is_skipped_where_the_reference_cannot_judge(suite: Suite) -> None:
    suite.backends(backends="[Backend('ref', load_ref, max_batch_size=1), Backend('sim', load_sim)]")
    result = suite.run("suites/test_decode.py", "suites/test_greedy_parity.py", "--llm-batch-sizes=1,4", "-rs")
    result.assert_outcomes(passed=5, skipped=3)
    result.stdout.fnmatch_lines("SKIPPED *: ref: it takes at most 1 request at a time, and this batch has 4")


def test_a_combination_takes_what_each_part_takes() -> None:
    registry = Registry(
        [
            Backend("engine-of-ours", "ours:Engine", max_batch_size=8, max_sequence_length=512),
            Backend("cache-of-ours", "ours:extend", slot="weights", engines=("engine-of-ours",), max_batch_size=2),
        ]
    )
    combined = registry["engine-of-ours+cache-of-ours"]
    assert combined.limits == {"batch_size": 2, "sequence_length": 512}
    assert combined.beyond(Workload(2, 500, 12)) is None
    assert combined.beyond(Workload(2, 500, 13)) is not None


@pytest.mark.parametrize("most", [0, -1])
def test_a_limit_is_at_least_one(most: int) -> None:
    with pytest.raises(ValueError, match=f"max_batch_size is {most}; it is at least 1, or None for any"):
        Registry([Backend("mine", "ours:Engine", max_batch_size=most)])
