"""What a run covers: types, names and sizes that the device, the registry and the tests decide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inner import Suite

from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.cases import Case, Workload
from pytest_llmperf.devices import fingerprint
from pytest_llmperf.scope import Scope, UnusableError

REGISTRY = Registry(BUILT_IN)


@pytest.fixture
def make(suite: Suite, tmp_path: Path) -> Any:
    """A scope of the command line's settings and these."""
    from pytest_llmperf import plugin

    def scope(*arguments: str, **changes: Any) -> Scope:
        suite.ini(llm_dtype="", llm_backends="", llm_reference="", llm_batch_sizes="", llm_max_new_tokens="")
        config = suite.pytester.parseconfigure("-p", "benchmark", "-p", "llmperf", *arguments)
        return Scope(replace(config.stash[plugin.KEY].settings, **changes), REGISTRY, tmp_path, tmp_path)

    return scope


@pytest.mark.parametrize(
    ("isa", "dtype"),
    [(("avx2",), "float32"), (("avx2", "avx512_bf16"), "bfloat16"), (("amx_bf16",), "bfloat16"), ((), "float32")],
)
def test_a_cpu_is_measured_in_the_type_that_it_multiplies(
    make: Any, isa: tuple[str, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(fingerprint.take(), isa=isa)
    monkeypatch.setattr(fingerprint, "take", lambda: here)
    assert make().dtype == dtype
    assert make("--llm-dtype=bfloat16").dtype == "bfloat16"


def test_one_combination_is_measured_once_under_its_own_name(make: Any) -> None:
    scope = make("--llm-backends=int8+compile-static,compile-static+int8,sdpa+compile,eager")
    assert scope.backends == ("eager", "compile-static+int8", "compile")


def test_the_reference_goes_by_its_own_name(make: Any) -> None:
    with pytest.raises(UnusableError, match=r"--llm-reference=sdpa\+compile: that is compile, under its own name"):
        make("--llm-reference=sdpa+compile")


def test_the_largest_workload_is_that_of_all_tests_so_far(make: Any) -> None:
    scope = make("--llm-batch-sizes=1,4", "--llm-prompt-lengths=16,64", "--llm-max-new-tokens=8")
    assert scope.largest == Workload(4, 64, 8)
    scope.workloads(batch_sizes=[8], prompt_lengths=[32])
    assert scope.largest == Workload(8, 64, 8)


CASE = Case("m", "bfloat16", "compile-static+int8", Workload(32, 256, 64), "tpot")


@pytest.mark.parametrize(
    ("lines", "marker", "option", "tolerance"),
    [
        ((), None, None, (0.10, "default of cpu")),
        ((("*/b32-*", 0.2),), None, None, (0.2, "llm_tolerances: */b32-*")),
        ((("*/b3-*", 0.2), ("*/ttft", 0.01), ("float32/*", 0.01)), None, None, (0.10, "default of cpu")),
        ((("*int8*/tpot", 0.03), ("*", 0.05)), 0.04, "--llm-max-regression=6%", (0.03, "llm_tolerances: *int8*/tpot")),
        ((("*", 0.05),), 0.04, "--llm-max-regression=6%", (0.04, "marker")),
        ((("*", 0.05),), None, "--llm-max-regression=2%", (0.02, "--llm-max-regression")),
    ],
)
def test_the_strictest_tolerance_stated_counts_and_says_where_it_was(
    make: Any, lines: Any, marker: float | None, option: str | None, tolerance: tuple[float, str]
) -> None:
    assert make(*filter(None, [option]), tolerances=lines).tolerance(CASE, marker) == tolerance


def test_a_line_of_the_table_that_matches_nothing_is_known(make: Any) -> None:
    scope = make(tolerances=(("*/tpot", 0.1), ("tpot/*", 0.1)))
    assert scope.idle([CASE]) == ["tpot/*"]


def test_without_a_test_that_says_so_the_largest_workload_is_the_default(make: Any) -> None:
    assert make("--llm-prompt-lengths=32").largest == Workload(4, 32, 32)
