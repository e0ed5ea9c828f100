"""``pytest-llmperf prune``: which baselines no test has any more, by the results of complete runs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from pytest_llmperf.cases import Case
from pytest_llmperf.gate import baseline as store
from pytest_llmperf.gate.baseline import Baseline
from pytest_llmperf.machine.fingerprint import Fingerprint


@dataclass(frozen=True)
class Used:
    """What complete runs on one machine measured, all of one device, model and dtype.

    Attributes:
        device, model, dtype: theirs.
        machine: on which they ran.
        keys: of the baselines that their tests have, by `Case.key`.
    """

    device: str
    model: str
    dtype: str
    machine: Fingerprint
    keys: frozenset[str]


def used(results: Mapping[str, Any]) -> Used:
    """What the run of a results file measured.

    Raises:
        KeyError, TypeError, AttributeError: it is no results file.
        ValueError: it is not of a complete run, or no results file; the message is a clause that says why.
    """
    if unmeasured := results["unmeasured"]:
        raise ValueError(f"{len(unmeasured)} of its tests have no figure, such as {unmeasured[0]}")
    if narrowed := results["narrowed"]:
        raise ValueError(f"its run did not have every test: {narrowed[0]}")
    cases = [Case.parse(results["model"], one["case"]) for one in results["results"]]
    return Used(
        device=str(results["device"]),
        model=str(results["model"]),
        dtype=str(results["dtype"]),
        machine=Fingerprint.from_dict(results["environment"]["fingerprint"]),
        keys=frozenset(key for case in cases for key in case.kept),
    )


def together(runs: Iterable[Used]) -> Used:
    """What several runs measured.

    Raises:
        ValueError: they are of different devices, models, dtypes or machines.
    """
    return reduce(_both, runs)


def _both(one: Used, other: Used) -> Used:
    for name in ("device", "model", "dtype"):
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine != theirs:
            raise ValueError(f"the results are of two {name}s, {mine} and {theirs}; prune one after the other")
    if apart := one.machine.difference(other.machine):
        raise ValueError(f"the results are of two machines ({apart[0]}); prune one after the other")
    return replace(one, keys=one.keys | other.keys)


def unused(baseline: Baseline, runs: Used) -> list[str]:
    """Keys of the machine's entries of the dtype that no test has.

    Raises:
        ValueError: that would be all of them.
    """
    own = [key for key in baseline.entries if key.startswith(f"{runs.dtype}/") and baseline.own(key, runs.machine)]
    found = [key for key in store.unused(baseline, runs.keys) if key in own]
    if found and len(found) == len(own):
        raise ValueError(
            f"the results use none of this machine's {runs.dtype} baselines ({len(own)} entries), and removing all of "
            "them is refused; are these the right files?"
        )
    return found
