"""``pytest-llmperf bisect``: runs the tests on one candidate after another, each beside the good one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pytest_llmperf import files, folders
from pytest_llmperf.cases import METRICS
from pytest_llmperf.gate import checkout
from pytest_llmperf.gate.bisection import Found, bounds, following, judged
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.output import end_of, last_lines

#: pytest's exit codes of a run whose tests ran.
RAN = {0, 1}
#: Of one that was interrupted, or whose tests could not be collected; and what it prints only of the former.
INTERRUPTED, INTERRUPTION = 2, "KeyboardInterrupt"
#: Of a command that Ctrl-C ended, by the shell's convention.
STOPPED = 130
#: The file of what was found so far.
STEPS = "steps.json"


class BisectError(ValueError):
    """Nothing can be bisected: one line with what, why and what to do."""


class Candidates(ABC):
    """A row of things to compare, the good one first.

    Attributes:
        names: of each, for people.
        kind: what they are.
    """

    names: tuple[str, ...]
    kind: str

    @abstractmethod
    def options(self, one: int, base: int) -> list[str]:
        """Pytest's options that measure a candidate beside another one, by their indices."""

    @property
    @abstractmethod
    def identity(self) -> list[str]:
        """What the row is made of. The same row goes on where it was stopped."""


class Revisions(Candidates):
    """The commits from GOOD to BAD. Only first parents count, so a merge is one step.

    Raises:
        BisectError: git does not have them, or not in this order.
    """

    kind = "revision"

    def __init__(self, good: str, bad: str) -> None:
        try:
            found = checkout.line(good, bad, Path.cwd())
        except checkout.BaseError as error:
            raise BisectError(str(error)) from None
        self._commits = [commit for commit, _ in found]
        self.names = tuple(f"{commit[:12]} {subject}" for commit, subject in found)

    def options(self, one: int, base: int) -> list[str]:
        return [f"--llm-base={self._commits[base]}", f"--llm-head={self._commits[one]}"]

    @property
    def identity(self) -> list[str]:
        return self._commits


class Environments(Candidates):
    """Python interpreters, in order. The code under test is the same in all of them.

    Raises:
        BisectError: one of them cannot be run.
    """

    kind = "environment"

    def __init__(self, pythons: Sequence[str]) -> None:
        try:
            for python in pythons:
                Interpreter(python).python_version()
        except ValueError as error:
            raise BisectError(str(error)) from None
        self.names = tuple(pythons)

    def options(self, one: int, base: int) -> list[str]:
        return [f"--llm-base-python={self.names[base]}", f"--llm-python={self.names[one]}"]

    @property
    def identity(self) -> list[str]:
        return list(self.names)


@dataclass(frozen=True)
class Step:
    """A comparison of two candidates.

    Attributes:
        candidate, base: which, by their index.
        found: what came of it; of the one with its parent, None.
        said: it, as a clause.
        seconds: how long it took.
        verdicts: of its cases, as in the results file, with what got slower.
    """

    candidate: int
    base: int
    found: Found | None
    said: str
    seconds: float
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)


class Bisection:
    """A row of candidates, the tests that compare them, and what was found so far.

    Args:
        candidates: what is compared.
        tests: pytest's arguments.
        folder: in which steps are kept, so that a stopped bisection goes on.
        say: takes each line for people.
    """

    def __init__(
        self, candidates: Candidates, tests: Sequence[str], folder: Path, say: Callable[[str], None] = print
    ) -> None:
        self._candidates = candidates
        self._tests = list(tests)
        self._folder = folder
        self._say = say
        self._last = len(candidates.names) - 1
        self._steps = _kept(folder / STEPS)

    def run(self) -> int:
        """Find the first slower candidate and say which it is.

        Returns:
            0; 1 if more than one candidate is left.

        Raises:
            BisectError: the last one is not slower than the first, or one of these cannot run.
        """
        if self._steps:
            self._say(f"goes on after {len(self._steps)} comparisons that were made before")
            for step in self._steps:
                self._say(self._line(step))
        cases = self._slower()
        while (one := following(self._last, self._decided)) is not None:
            self._compare(one, 0, cases)
        good, bad = bounds(self._last, self._decided)
        if bad - good == 1 and good:
            self._compare(bad, good, cases)
        self._conclude(good, bad, cases)
        return int(bad - good > 1)

    @property
    def _decided(self) -> dict[int, Found]:
        return {one.candidate: one.found for one in self._steps if one.found is not None}

    def _slower(self) -> list[str]:
        """The cases in which the last candidate is slower than the first."""
        names, kind = self._candidates.names, self._candidates.kind
        first = next((one for one in self._steps if one.candidate == self._last and one.base == 0), None)
        step = first or self._compare(self._last, 0, ())
        slower = [case for case, one in step.verdicts.items() if one["outcome"] == "regression"]
        if slower:
            return slower
        self._forget()
        unable = [one["reason"] for one in step.verdicts.values() if one["outcome"] == "new"]
        if unable or not step.verdicts:
            raise BisectError(unable[0] if unable else f"{names[-1]}: {step.said}")
        raise BisectError(
            f"nothing to find: beside the first {kind} the last one, {names[-1]}, is {step.said}; name tests in which "
            "it is slower or takes more memory, or allow less (--llm-max-regression, or llm_tolerances of memory)"
        )

    def _compare(self, one: int, base: int, cases: Sequence[str]) -> Step:
        """Measure a candidate beside another one, and keep what came of it."""
        self._say(f"comparing {self._candidates.names[one]}")
        results, log = self._folder / "results.json", self._folder / f"{len(self._steps) + 1}.log"
        results.unlink(missing_ok=True)
        began = time.monotonic()
        code = self._pytest(self._candidates.options(one, base), results, log)
        if code == INTERRUPTED and INTERRUPTION in _end(log):
            raise KeyboardInterrupt
        raw = json.loads(results.read_text(encoding="utf-8")) if code in RAN and results.exists() else {"results": []}
        verdicts = {one["case"]: one["verdict"] | {"slower": one["slower"]} for one in raw["results"]}
        against = cases or [case for case, said in verdicts.items() if said["outcome"] == "regression"] or verdicts
        found = judged(verdicts, list(against) or [""])
        said = _worst(verdicts, against)
        if found is Found.UNABLE:
            said = _why(log)
        step = Step(one, base, None if base else found, said, time.monotonic() - began, verdicts)
        self._steps.append(step)
        files.replace(self._folder / STEPS, json.dumps([asdict(one) for one in self._steps], indent=1))
        self._say(self._line(step))
        return step

    def _pytest(self, options: list[str], results: Path, log: Path) -> int:
        own = ["--llm-compare=always", f"--llm-baseline-dir={self._folder / 'none'}", f"--llm-results={results}"]
        command = [sys.executable, "-m", "pytest", *self._tests, *options, *own]
        with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
            try:
                return process.wait()
            except KeyboardInterrupt:
                process.wait()  # Ctrl-C has reached it too, and it removes what it made
                raise

    def _line(self, step: Step) -> str:
        names = self._candidates.names
        what = f"{step.found}: " if step.found else f"beside {names[step.base]}: "
        return f"  {names[step.candidate]}: {what}{step.said} ({step.seconds:.0f} s)"

    def _conclude(self, good: int, bad: int, cases: Sequence[str]) -> None:
        names, kind = self._candidates.names, self._candidates.kind
        spent = sum(one.seconds for one in self._steps)
        timed = any(METRICS[one.rpartition("/")[2]].timed for one in cases)
        first = f"the first slower {kind}" if timed else f"the first {kind} that takes more memory"
        if bad - good == 1:
            step = next(one for one in reversed(self._steps) if (one.candidate, one.base) == (bad, good))
            self._say(f"{first} is {names[bad]}")
            self._say(f"  beside the {kind} before it: {step.said}")
            for case, verdict in step.verdicts.items():
                for line in verdict["slower"]:
                    self._say(f"  {_named(case)}: {line}")
        else:
            self._say(f"{first} is one of these {bad - good}, which cannot be told apart:")
            for one in range(good + 1, bad + 1):
                self._say(f"  {names[one]}: {self._decided[one]}")
        self._say(
            f"{len(self._steps)} comparisons in {spent / 60:.1f} min; {sum(map(_pairs, self._steps))} pairs in all"
        )
        self._forget()

    def _forget(self) -> None:
        (self._folder / STEPS).unlink(missing_ok=True)


def _step(kept: dict[str, Any]) -> Step:
    return Step(**kept | {"found": None if kept["found"] is None else Found(kept["found"])})


def _kept(file: Path) -> list[Step]:
    """What an earlier command found. A file that cannot be read costs that, and no more."""
    try:
        return [_step(one) for one in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _end(log: Path) -> str:
    with log.open("rb") as file:
        return end_of(file)


def _why(log: Path) -> str:
    """The error that pytest's output ends with."""
    lines = [line.strip() for line in last_lines(_end(log)) if line.strip(" =")]
    return next((line for line in reversed(lines) if "error: " in line.lower()), (lines or ["no output"])[-1])


def _pairs(step: Step) -> int:
    return max((one["count"] for one in step.verdicts.values() if one["basis"] == "base"), default=0)


def _named(case: str) -> str:
    """A case as the summary of a run names it."""
    backend, workload, metric = case.rsplit("/", 3)[1:]
    return f"{metric} {workload} {backend}"


def _worst(verdicts: dict[str, dict[str, Any]], cases: Sequence[str] | dict[str, Any]) -> str:
    """The largest slowdown among the cases, as a clause."""
    known = [(case, one) for case, one in verdicts.items() if case in cases and one["ratio"] is not None]
    if not known:
        return next((one["reason"] for one in verdicts.values()), "nothing was measured")
    case, worst = max(known, key=lambda pair: float(pair[1]["ratio"]))
    low, high = (f"{worst[end] - 1:+.1%}" for end in ("low", "high"))
    outcome = "" if worst["outcome"] == "regression" else f"{worst['outcome']}, "
    return f"{outcome}{_named(case)} {worst['ratio'] - 1:+.1%} [{low}, {high}] in {worst['count']} pairs"


@contextmanager
def _own(identity: Sequence[str]) -> Iterator[Path]:
    """The folder of a bisection, which no other process has meanwhile.

    Raises:
        BisectError: one has, or no folder can be written.
    """
    name = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]
    try:
        folder = folders.cache().folder / "bisect" / name
    except folders.FolderError as error:
        raise BisectError(str(error)) from None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = files.lock(folder, patience=0)
    except OSError as error:
        raise BisectError(f"another process bisects the same: {error}") from None
    try:
        yield folder
    finally:
        os.close(held)


def bisect(candidates: Candidates, tests: Sequence[str], again: bool = False) -> int:
    """Find the first slower candidate; a bisection that was stopped goes on.

    Args:
        candidates: what is compared.
        tests: pytest's arguments.
        again: whether what was found before is forgotten.

    Returns:
        0 if it was found, 1 if several are left, 130 after Ctrl-C.

    Raises:
        BisectError: nothing can be bisected.
    """
    if len(candidates.names) < 2:
        raise BisectError(f"there is nothing between the first {candidates.kind} and the last")
    with _own([str(Path.cwd()), candidates.kind, *candidates.identity, *tests]) as folder:
        if again:
            (folder / STEPS).unlink(missing_ok=True)
        print(f"{len(candidates.names) - 1} {candidates.kind}s after {candidates.names[0]}; output is kept in {folder}")
        try:
            return Bisection(candidates, tests, folder).run()
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here")
            return STOPPED
