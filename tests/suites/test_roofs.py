"""The roof of a case is of the type that its backend declares. Where nobody knows that, the run says so."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from inner import Suite

from pytest_llmperf.machine import detect
from pytest_llmperf.machine.table import DEVICES

#: So low that a prefill of 100 ms is far above it.
LOW = 'PEAKS["flops"] = 1e3'


def declared(suite: Suite, what: str) -> None:
    suite.backends(
        sim="Simulated(ttft=0.1)", extra=LOW, backends=f"[Backend('ref', load_ref), Backend('sim', load_sim, {what})]"
    )


def prefill(suite: Suite) -> tuple[pytest.RunResult, dict[str, Any]]:
    result = suite.run("suites/test_prefill.py", "--llm-backends=sim", "--llm-results=raw.json")
    return result, json.loads((suite.path / "raw.json").read_text())


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float | None]]:
    """What the next measurements of a type's GEMM rate find, in order; the last one stays."""
    looks: list[tuple[str, float | None]] = []

    def measure(_run: Any, dtype: str) -> float | None:
        asked, found = looks.pop(0) if len(looks) > 1 else looks[0]
        assert dtype == asked
        return found

    monkeypatch.setattr("pytest_llmperf.runtime.Runtime.measure_peak", measure)
    return looks


@pytest.mark.parametrize("dtype", ["int8", "fp8", "float32"])
def test_the_roof_is_of_the_type_in_which_the_engine_computes(
    suite: Suite, measured: list[tuple[str, float | None]], dtype: str
) -> None:
    measured.append((dtype, 1e12))
    declared(suite, f"compute_dtype={dtype!r}")
    result, raw = prefill(suite)
    assert result.ret == 0
    (one,) = raw["results"]
    assert one["utilization"]["name"] == "MFU"
    assert 0 < one["utilization"]["fraction"] < 0.01


def test_the_run_s_own_type_needs_no_further_measurement(suite: Suite) -> None:
    declared(suite, "compute_dtype='bfloat16'")
    result, _ = prefill(suite)
    result.stdout.fnmatch_lines("*impossible figure*the backend does not say its compute_dtype*")


def test_a_type_whose_peak_nobody_knows_has_no_roof_and_is_never_impossible(
    suite: Suite, measured: list[tuple[str, float | None]]
) -> None:
    measured.append(("fp8", None))
    declared(suite, "compute_dtype='fp8'")
    result, raw = prefill(suite)
    assert result.ret == 0
    assert raw["results"][0]["utilization"] is None
    said = "no MFU of sim: it computes in fp8, whose peak on cpu is not known"
    assert raw["results"][0]["roofless"] == said
    result.stdout.fnmatch_lines(f"{said} (ttft b1-p16-n8 sim)")


def test_what_passes_the_roof_of_its_type_twice_is_impossible(
    suite: Suite, measured: list[tuple[str, float | None]]
) -> None:
    measured += [("int8", 1e3), ("int8", 2e3)]
    declared(suite, "compute_dtype='int8'")
    assert prefill(suite)[0].ret == 1
    measured[:] = [("int8", 1e3), ("int8", 1e12)]  # the first look was disturbed
    assert prefill(suite)[0].ret == 0


def test_a_card_that_may_clock_higher_than_its_data_sheet_may_pass_its_peak_a_little(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(**peaks: Any) -> tuple[pytest.RunResult, float | None]:
        monkeypatch.setitem(DEVICES, "rtx-4090", replace(listed, **peaks))
        result = suite.decode("--llm-device=rtx-4090", "--llm-results=raw.json")
        found = json.loads((suite.path / "raw.json").read_text())["results"]
        return result, found[0]["utilization"]["fraction"] if found else None

    monkeypatch.setattr(detect, "found", lambda: ("NVIDIA GeForce RTX 4090",))
    listed = DEVICES["rtx-4090"]
    _, fraction = decode(peak_bandwidth=1e12)
    assert fraction is not None
    result, passed = decode(peak_bandwidth=fraction * 1e12 / 1.1)
    assert result.ret == 0
    assert passed == pytest.approx(1.1, rel=0.01)
    result, _ = decode(peak_bandwidth=fraction * 1e12 / 1.1, strict=True)
    assert result.ret == 1
    result.stdout.fnmatch_lines("*impossible figure *: MBU is 110% of the device's data-sheet roof*")


@pytest.mark.parametrize(
    ("what", "standing"),
    [
        ("weight_bytes=0.5", "bounded"),
        ("weight_bytes=0.5, approximate=False", "in parity"),
        ("approximate=True", "bounded"),
        ("compute_dtype='float32'", "in parity"),
    ],
)
def test_parity_is_of_what_is_declared(suite: Suite, what: str, standing: str) -> None:
    suite.backends(backends=f"[Backend('ref', load_ref), Backend('sim', load_sim, {what})]")
    result = suite.run("suites/test_greedy_parity.py")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(f"sim *{standing} *")
