"""Which baselines may be removed: those that no test has, which only an unnarrowed collection of the project knows."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from pytest_llmperf.settings import Settings

#: Options of pytest and its plugins that hide tests: where pytest keeps them, and what the user wrote.
NARROWING = {
    "keyword": "-k",
    "markexpr": "-m",
    "deselect": "--deselect",
    "ignore": "--ignore",
    "ignore_glob": "--ignore-glob",
    "lf": "--last-failed",
    "stepwise": "--stepwise",
    "noconftest": "--noconftest",
    "confcutdir": "--confcutdir",
    "override_ini": "--override-ini",
    "numprocesses": "-n",
}
#: Options of ours that decide what a test runs with. In ini they belong to the project.
SCOPE = ("--llm-backends", "--llm-tp", "--llm-batch-sizes", "--llm-prompt-lengths", "--llm-max-new-tokens")


def narrowed(config: pytest.Config, settings: Settings) -> str | None:
    """What on the command line hides which baselines are used, and what to do; None if nothing does."""
    for name, option in NARROWING.items():
        if config.getoption(name, None):
            return f"{option} hides tests; leave it out"
    for option in SCOPE:
        if config.getoption(option) is not None:
            return f"{option} hides what the tests run with by default; leave it out, or put it into ini"
    root = config.rootpath.resolve()
    collected = [(config.invocation_params.dir / argument).resolve() for argument in config.args]
    if not any(root.is_relative_to(path) for path in collected):
        return f"tests outside of {', '.join(config.args)} are hidden; collect the whole project, {root}"
    if not settings.baseline_dir.resolve().is_relative_to(root):
        return f"{settings.baseline_dir} is outside of {root}, so tests of another project may use it"
    return None


class Watch:
    """Sees what a collection leaves out; a plugin of its own, since these hooks are not told of their run.

    Attributes:
        hidden: a readable clause for each.
    """

    def __init__(self) -> None:
        self.hidden: list[str] = []

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.hidden += [f"{item.nodeid} was deselected" for item in items]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self.hidden.append(f"{report.nodeid} was not collected")

    def incomplete(self, gates: bool) -> str | None:
        """Why the collection does not say which baselines are used, or None if it does.

        Args:
            gates: whether any test collected gates a case.
        """
        return next(iter(self.hidden), None if gates else "no test gates a case")


def is_stale(key: str, dtype: str, used: Collection[str], unmeasured: Collection[tuple[str, str]]) -> bool:
    """Whether no test has the baseline of a case any more.

    It is of this run's dtype, this run did not measure it, and no test of its backend and workload is unmeasured: there
    is none, or each has measured another metric. What was skipped, or failed before it measured, might have used it.

    Args:
        key: of the baseline.
        dtype: of this run.
        used: keys that this run measured.
        unmeasured: backend and workload of every gating test collected that did not measure.
    """
    own, _, rest = key.partition("/")
    return own == dtype and key not in used and tuple(rest.rsplit("/", 2)[:2]) not in unmeasured
