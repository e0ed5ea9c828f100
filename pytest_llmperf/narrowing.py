"""What hid tests from a run, so that its results do not show every case that its project has."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

#: Options that hide whole files without telling anybody: where pytest keeps them, and what the user wrote.
OPTIONS = {"lf": "--last-failed", "ignore": "--ignore", "ignore_glob": "--ignore-glob"}


class Narrowing:
    """Sees what a collection leaves out; a plugin of its own, since its hooks are not told of their run.

    Args:
        config: of the run.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._deselected = 0
        self._uncollected: list[str] = []

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self._deselected += sum("llm_perf" in getattr(item, "fixturenames", ()) for item in items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self._uncollected.append(report.nodeid)

    @property
    def reasons(self) -> list[str]:
        """A clause for each; none for a run of all tests in its folders."""
        found = [f"{self._deselected} tests that gate a case were deselected"] if self._deselected else []
        found += [f"{name} was not collected" for name in self._uncollected]
        found += [f"{option} was given" for name, option in OPTIONS.items() if self._config.getoption(name, None)]
        here = self._config.invocation_params.dir
        return found + [f"it ran {name} alone" for name in self._config.args if not (here / name).is_dir()]
