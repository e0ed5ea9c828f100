"""Baseline files of older versions, in this version's layout. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from pytest_llmperf.gate.canonical import canonical, digest
from pytest_llmperf.gate.stored import centre
from pytest_llmperf.machine.fingerprint import PACKAGES, Fingerprint

#: The schemas that are read.
READABLE = (2, 3, 4)


def migrated(old: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a file of schema 5.

    Of each case and machine the newest set stays, as one sitting: nothing says that an older set was of the same code.
    The revision is unknown. Of each process its median stays.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: the old content is not valid.
    """
    new: dict[str, Any] = {"schema": 5, "device": old["device"], "model": old["model"]}
    new |= {"entries": {}, "sittings": {}, "machines": {}, "versions": {}}
    for key, rows in old["entries"].items():
        machines: list[Fingerprint] = []
        new["entries"][key] = []
        for row in rows:  # of each machine the newest comes first
            environment = old["environments"][row["environment"]]
            machine = Fingerprint.from_dict(environment["fingerprint"])
            if all(map(machine.difference, machines)):
                machines.append(machine)
                new["entries"][key].append(_entry(row, environment, new))
    return new


def _entry(row: Mapping[str, Any], environment: Mapping[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """An entry, its sitting noted in the new content."""
    packages = {"python", *PACKAGES}
    sitting = {
        "recorded": row["recorded"],
        "revision": None,
        "machine": environment["fingerprint"],
        "versions": {name: value for name, value in environment["versions"].items() if name in packages},
        "system": {name: value for name, value in environment["versions"].items() if name not in packages},
        "rates": environment["peaks"],
    }
    name = digest(sitting)
    machine, versions = digest(sitting["machine"]), digest(sitting["versions"])
    new["machines"][machine], new["versions"][versions] = sitting["machine"], sitting["versions"]
    new["sittings"][name] = sitting | {"machine": machine, "versions": versions}
    processes = canonical([median(samples) for samples in row["invocations"]])
    met = row.get("barrier")
    barrier = {"barrier": met["seconds"], "threads": met["threads"]} if met else {}
    return {"figure": centre(processes), "sitting": name, "unit": row["unit"], "processes": processes, **barrier}
