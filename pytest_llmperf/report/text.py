"""Figures as a reader sees them, said the same way in every report. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pytest_llmperf.backends.base import IN_PROCESS
from pytest_llmperf.cases import METRICS
from pytest_llmperf.gate.rule import Outcome

if TYPE_CHECKING:
    from pytest_llmperf.result import Result


def figure(value: float, metric: str) -> str:
    """A figure in a unit that a reader compares with: milliseconds, but seconds for whole latencies; MiB or GiB."""
    scale, unit, digits = _unit(value, metric)
    return f"{value * scale:.{digits}f} {unit}"


def spread(median: float, q1: float, q3: float, metric: str, mark: str = "") -> str:
    """Median and quartiles in one unit, and what stands beside the median."""
    scale, unit, digits = _unit(median, metric)
    return f"{median * scale:.{digits}f} {unit}{mark} [{q1 * scale:.{digits}f}, {q3 * scale:.{digits}f}]"


def _unit(value: float, metric: str) -> tuple[float, str, int]:
    if not METRICS[metric].timed:
        return (2**-30, "GiB", 3) if value >= 2**30 - 2**15 else (2**-20, "MiB", 1)
    if metric in ("ttft", "tpot"):
        return 1e3, "ms", 1 if value >= 0.01 else 3
    return 1.0, "s", 2


def change(ratio: float | None, low: float | None, high: float | None) -> str:
    """The change that a ratio to the baseline means, with its 99 % interval; a dash where there is none."""
    if ratio is None or low is None or high is None or math.isnan(ratio):
        return "-"
    return f"{ratio - 1:+.1%} [{low - 1:+.1%}, {high - 1:+.1%}]"


def slowdown(fraction: float | None) -> str:
    """A slowdown that could not be excluded, such as ``+14%``; a dash where nothing was compared."""
    if fraction is None:
        return "-"
    return f"+{fraction:.1%}" if fraction < 0.0995 else f"+{fraction:.0%}" if fraction < 10 else "any"


def speedup(value: float | None) -> str:
    """How many times the reference's speed; a dash without a reference."""
    return f"{value:.2f}x" if value else "-"


def percentiles(values: Sequence[float | None]) -> str:
    """Durations (s) in milliseconds, one after the other; a dash where nothing was answered."""
    digits = 0 if all(one is None or one > 0.0995 for one in values) else 1
    return " / ".join("-" if one is None else f"{one * 1e3:.{digits}f}" for one in values) + " ms"


def share(value: float | None) -> str:
    """A fraction in per cent; a dash where it is not known."""
    return "-" if value is None else f"{value:.0%}"


def roof(name: str | None, fraction: float | None) -> str:
    """Which utilization, and how much of the roof; a dash where it has no meaning."""
    return "-" if name is None or fraction is None else f"{name} {fraction:.0%}"


def far(name: str | None, fraction: float | None, limit: str | None) -> str:
    """How much of a roof is used, and which roof binds."""
    return roof(name, fraction) if limit is None else f"{roof(name, fraction)}, {limit} bound"


def boundaries(found: Iterable[tuple[str, str]]) -> str:
    """Where latencies were seen, from backends and the boundary of each: ``in process``, and which were not."""
    others: dict[str, list[str]] = {}
    inside = False
    for backend, boundary in dict.fromkeys(found):
        if boundary == IN_PROCESS:
            inside = True
        else:
            others.setdefault(boundary, []).append(backend)
    said = [f"{', '.join(backends)}: {boundary}" for boundary, backends in others.items()]
    return "; ".join([IN_PROCESS] * (inside or not said) + said)


def seconds(value: float | None) -> str:
    """A duration in seconds; a dash where it is not known."""
    return "-" if value is None else f"{value:.2f} s"


def memory(size: int | None) -> str:
    """Bytes in MiB or GiB; a dash where that is not known."""
    return "-" if not size else figure(size, "memory")


def outcome(name: str, metric: str) -> str:
    """An outcome as a reader of this metric's figures sees it: less memory is not ``faster``."""
    return METRICS[metric].less if name == Outcome.FASTER else name


def verdict_line(result: Result) -> str:
    """One line for a person whose test failed: which case, how much, how sure, what to do."""
    case, found = result.case, result.verdict
    metric, ended = METRICS[case.metric], outcome(found.outcome.value, case.metric)
    remedy = f". To settle it: {found.remedy}" if found.remedy else ""
    if math.isnan(found.ratio):
        return f"{case}: {ended}: {found.reason}{remedy}"
    against = "base" if found.basis == "base" else "baseline"
    figures = f"{figure(found.head, case.metric)}, {against} {figure(found.baseline, case.metric)}"
    if found.outcome is Outcome.REGRESSION:
        remedy = ". If it is intended, accept it with --llm-update-baselines, or allow this case more (llm_tolerances)"
    reason = f"; {found.reason}" if found.reason else ""
    grown = abs(found.head - found.baseline)
    by = "" if metric.timed else f"{figure(grown, case.metric)} {'more' if found.ratio >= 1 else 'less'}, "
    return (
        f"{case}: {ended}: {metric.title} {figures}, "
        f"{change(found.ratio, found.low, found.high)} at 99 %, {by}"
        f"allowed {found.tolerance:.0%} ({result.tolerance_source}){reason}{remedy}"
    )


def kernels_line(result: Result) -> str:
    """One line for a person whose test passed by its figures, with other kernels than before."""
    ended = outcome(result.verdict.outcome.value, result.case.metric)
    return (
        f"{result.case}: {ended}, but kernels changed: {result.kernels_changed}; "
        "accept them with --llm-update-baselines"
    )
