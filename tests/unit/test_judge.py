"""The judge, with fakes for all that it asks: which path a case takes, what is said, and what would settle it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llmperf.cases import Case, Workload
from pytest_llmperf.gate import checkout, rule
from pytest_llmperf.gate import judge as judging
from pytest_llmperf.gate.baseline import Baseline, Entry, Sitting
from pytest_llmperf.gate.checkout import Base, BaseError
from pytest_llmperf.gate.judge import ANOTHER, COMPARE, RECORD, SITTING, Judge
from pytest_llmperf.gate.priors import ACCELERATOR_DECODE, CPU, CPU_MEMORY, Prior
from pytest_llmperf.gate.rule import Interval, Outcome, Verdict
from pytest_llmperf.installed import changes
from pytest_llmperf.machine.fingerprint import take
from pytest_llmperf.machine.fitness import Barrier
from pytest_llmperf.machine.rates import Machine
from pytest_llmperf.measure.process import disturbed
from pytest_llmperf.measure.worker_process import SameCodeError
from pytest_llmperf.plan import Allowed

CASE = Case("tiny", "bfloat16", "sim", Workload(1, 16, 8), "tpot")
REFERENCE = replace(CASE, backend="ref")
MEMORY = replace(CASE, metric="memory")
ALLOWED = Allowed((0.10, "default of cpu"), (0.03, "default with a base"), named_base=False)
RATES = {"flops": 1e12, "interpreter cpython-311": 1e7}
GPU_RATES = {"launches": 2e5, "to host": 5e4, "interpreter cpython-311": 1e7}
REVISION = "0123456789abcdef0123456789abcdef01234567"
BASE = Base(Path("/repository"), REVISION, "the baseline's revision", None)
#: A figure that looks slower, and one that one sitting says is ok.
SLOW, SAME = 1.15, 1.0
WHY_NOT = "base cannot be had: "
UNCHANGED = "code and versions are those of the baseline: it is the machine"


@dataclass
class Process:
    """What one process measured."""

    figure: float = SAME
    barrier: Barrier | None = None
    settled: bool = True
    clean: bool = True
    culprit: str = "others used 2.0 cores"
    backend: str = "sim"
    threads: int | None = None
    over_quota: str | None = None

    def figures(self, metric: str) -> list[float]:
        assert metric in (CASE.metric, MEMORY.metric)
        return [0.9 * self.figure, self.figure, 1.1 * self.figure]


@dataclass
class World:
    """A run as far as a judge sees it; every attribute is what a test may choose.

    Attributes:
        sittings: of the baseline, newest first: the processes of each case.
        revision: that recorded them.
        recorded: the machine's rates then.
        rates: the machine's rates now.
        later: its rates after the fresh processes; None if they are the same.
        apart: whether the reference's interpreter, and so its sitting of the same moment, is another one.
        versions, installed: then and now.
        system: what else the sittings were recorded with, such as the engine's threads.
        same_variables: whether the backend has the variables that it had then.
        compare, budget, base: options.
        attached: the server, if one runs already.
        at: whether the tree is at the revision.
        base_is_head: whether the base that somebody named is head.
        other_cases: how the cases of this run differ from those of the baseline.
        has: whether git has the revision.
        pairs: the verdict beside base, or the error.
        head, reference: what fresh processes measure.
        spent: seconds that pairs have taken.
        begun: whether pairs of the case were measured already.
        asked: what the judge asked of others, in order.
    """

    sittings: Sequence[Mapping[Case, Sequence[float]]] = ({CASE: [SAME] * 5},)
    revision: str | None = REVISION
    barrier: Barrier | None = None
    recorded: Mapping[str, float] = field(default_factory=lambda: RATES)
    rates: Mapping[str, float] = field(default_factory=lambda: RATES)
    later: Mapping[str, float] | None = None
    apart: bool = False
    versions: Mapping[str, str] = field(default_factory=lambda: {"torch": "2.13"})
    installed: Mapping[str, str] = field(default_factory=lambda: {"torch": "2.13"})
    system: Mapping[str, Any] = field(default_factory=dict)
    same_variables: bool = True
    elsewhere: bool = False
    compare: str = "flagged"
    budget: float = 900.0
    base: Base | None = None
    attached: Mapping[str, str] = field(default_factory=dict)
    at: bool = False
    base_is_head: bool = False
    other_cases: str | None = None
    has: bool = True
    pairs: Verdict | Exception | None = None
    head: Sequence[Process] = (Process(SLOW),) * 3
    reference: Sequence[Process] = (Process(),) * 3
    prior: Prior = CPU
    spent: float = 0.0
    begun: bool = False
    asked: list[str] = field(default_factory=list)

    @property
    def stored(self) -> Baseline | None:
        if not self.sittings:
            return None
        machine = take().as_dict() | ({"cpu": "a faster one"} if self.elsewhere else {})
        sittings, entries = {}, {}
        for number, rows in enumerate(self.sittings):
            day = f"2026-01-{31 - number}"
            for case, row in rows.items():
                versions = self.versions | ({"python": "3.12"} if self.apart and case == REFERENCE else {})
                one = Sitting(day, self.revision, machine, versions, self.system, self.recorded)
                sittings[one.id] = one
                entry = Entry(one.id, "s/token", tuple(row), self.barrier)
                entries[case.key] = (*entries.get(case.key, ()), entry)
        return Baseline("cpu", "tiny", sittings, entries)

    def judge(self, monkeypatch: pytest.MonkeyPatch) -> Judge:
        stored = self.stored
        plan = SimpleNamespace(
            settings=SimpleNamespace(compare=self.compare, budget=self.budget, reference="ref"),
            stored=stored,
            shown_path="baselines/cpu/tiny.json",
            base=self.base,
            base_is_head=self.base_is_head,
            is_at=lambda _revision: self.at,
            registry={"sim": "sim", "ref": "ref"},
            root=Path("/repository"),
            sitting=lambda entry: stored.sitting(entry) if stored else None,
            own=lambda case: stored.own(case.key, take()) if stored else [],
            prior=lambda _case: self.prior,
            attached=lambda _backend: self.attached,
            changed=lambda _backend, sitting: changes(sitting.versions, self.installed),
            other_cases=lambda _backend, _sitting: self.other_cases,
            same_variables=lambda _backend, sitting: self.same_variables,
        )

        def recorded(revision: str, folder: Path) -> Base | None:
            self.asked.append("git")
            return replace(BASE, revision=revision) if self.has else None

        def in_turns(
            backend: str, workload: Workload, reference: str | None, count: int, start: str
        ) -> tuple[Any, Any]:
            assert count == 3
            self.asked.append(f"{count} fresh processes" + (f" in turns with {reference}" if reference else ""))
            self.rates = self.rates if self.later is None else self.later
            return list(self.head), list(self.reference) if reference else []

        def as_sitting(backend: str, workload: Workload, count: int) -> Any:
            self.asked.append(f"{count} fresh processes as in a sitting")
            return list(self.head)

        def compared(case: Case, base: Base, tolerance: float) -> Verdict:
            self.asked.append(f"pairs with {base} at {tolerance:.0%}")
            assert self.pairs is not None
            if isinstance(self.pairs, Exception):
                raise self.pairs
            return self.pairs

        monkeypatch.setattr(checkout, "recorded", recorded)
        machine = Machine(take(), lambda: self.rates)
        beside: Any = SimpleNamespace(spent=self.spent, compare=compared, begun=lambda *_: self.begun)
        measurements: Any = SimpleNamespace(in_turns=in_turns, as_sitting=as_sitting)
        return Judge(plan, machine, measurements, beside)  # type: ignore[arg-type]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Verdict]:
    """Judge a first process, by default one that looks slower, in a world with some changes."""

    def judged(world: World, first: float | Process = SLOW, allowed: Allowed = ALLOWED, case: Case = CASE) -> Verdict:
        process: Any = first if isinstance(first, Process) else Process(first)
        return world.judge(monkeypatch).judge(case, process, allowed)

    return judged


def beside_base(ratio: float, reach: float = 0.01, count: int = 4) -> Verdict:
    """What a comparison in pairs says."""
    low, high = ratio / (1 + reach), ratio * (1 + reach)
    return rule.decide(Interval(ratio, low, high, high, ratio, 1.0, count, "base", enough=True), 0.10)


# The screen


@pytest.mark.parametrize(
    ("first", "outcome", "suspicious"),
    [(1.0, Outcome.OK, False), (1.02, Outcome.INCONCLUSIVE, False), (1.05, Outcome.INCONCLUSIVE, True)],
)
def test_one_process_is_screened(judge: Any, first: float, outcome: Outcome, suspicious: bool) -> None:
    found = judge(World(compare="never"), first)
    assert (found.outcome, found.basis, found.count) == (outcome, "stored", 1)
    assert found.suspicious == suspicious
    assert found.remedy == (COMPARE if outcome is Outcome.INCONCLUSIVE else "")


@pytest.mark.parametrize("sittings", [1, 2, 5])
@pytest.mark.parametrize("first", [1.2, 2.0, 10.0])
def test_a_screening_is_never_a_regression(judge: Any, sittings: int, first: float) -> None:
    world = World(compare="never", sittings=[{CASE: [SAME] * 5}] * sittings)
    found = judge(world, first)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.reason.startswith(f"{first - 1:.1%} slower than the baseline in 1 process; a slowdown of ")
    assert world.asked == []


def test_the_tolerance_is_that_of_the_baseline_unless_a_base_was_named(judge: Any) -> None:
    assert judge(World(compare="never")).tolerance == 0.10
    assert judge(World(compare="never"), allowed=replace(ALLOWED, named_base=True)).tolerance == 0.03


def test_what_is_ok_costs_nothing_more(judge: Any) -> None:
    world = World()
    assert judge(world, SAME).outcome is Outcome.OK
    assert world.asked == []


def test_what_is_open_but_does_not_look_slower_costs_nothing_more(judge: Any) -> None:
    world = World()
    found = judge(world, 1.02)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert world.asked == []


def test_an_improvement_is_not_compared_unless_it_is_large(judge: Any) -> None:
    world = World(sittings=[{CASE: [SAME] * 5}] * 5, pairs=beside_base(0.7))
    assert judge(world, 0.85).outcome is Outcome.FASTER
    assert world.asked == []
    assert judge(world, 0.7).outcome is Outcome.FASTER
    assert "git" in world.asked


@pytest.mark.parametrize(
    ("process", "doubt"),
    [
        (Process(0.85, clean=False), "too few samples of the process were undisturbed: others used 2.0 cores"),
        (Process(0.85, settled=False), "the figures of 1 of 1 processes never settled"),
    ],
    ids=["disturbed", "unsettled"],
)
def test_an_improvement_of_a_process_that_tells_too_little_is_open(judge: Any, process: Process, doubt: str) -> None:
    found = judge(World(sittings=[{CASE: [SAME] * 5}] * 5), process)
    assert (found.outcome, found.reason) == (
        Outcome.INCONCLUSIVE,
        f"15.0% faster than the baseline in 1 process, but {doubt}",
    )
    assert found.remedy


def test_a_disturbed_process_that_excludes_a_slowdown_is_ok(judge: Any) -> None:
    assert judge(World(), Process(SAME, clean=False)).outcome is Outcome.OK


# Bytes


def of_memory(**changes: Any) -> World:
    """A world whose baseline has 1 GiB."""
    return World(
        **{"sittings": [{MEMORY: [GIB] * 5}], "head": (Process(SLOW * GIB),) * 3, "prior": CPU_MEMORY, **changes}
    )


MIB, GIB = 2.0**20, 2.0**30


def test_more_memory_is_judged_by_fresh_processes_though_base_could_be_had(judge: Any) -> None:
    world = of_memory()
    found = judge(world, SLOW * GIB, case=MEMORY)
    assert (found.outcome, found.basis, found.count) == (Outcome.REGRESSION, "stored", 3)
    assert found.reason == "15.0% more memory than the baseline in 3 fresh processes"
    assert world.asked == ["git", "3 fresh processes as in a sitting"]


def test_more_memory_of_one_process_alone_is_ok(judge: Any) -> None:
    assert judge(of_memory(head=[Process(GIB)] * 3), SLOW * GIB, case=MEMORY).outcome is Outcome.OK


def test_where_processes_do_not_agree_on_memory_base_decides(judge: Any) -> None:
    head = [Process(ratio * GIB) for ratio in (1.0, 1.1, 1.25)]
    world = of_memory(head=head, pairs=beside_base(1.2))
    assert judge(world, SLOW * GIB, case=MEMORY).basis == "base"
    assert len(world.asked) == 3
    world = of_memory(head=head, has=False)
    found = judge(world, SLOW * GIB, case=MEMORY)
    assert (found.outcome, found.remedy) == (Outcome.INCONCLUSIVE, SITTING)
    assert "an increase of " in found.reason
    assert "base" not in found.reason.replace("baseline", "")


def test_where_base_breaks_memory_is_judged_by_itself(judge: Any) -> None:
    """A difference within the floor is none, though base was lost."""
    lost = rule.nothing(Outcome.INCONCLUSIVE, "base, main, was lost: killed by signal 9")
    few = {"sittings": [{MEMORY: [2 * MIB] * 5}], "head": (Process(4.0 * MIB),) * 3}
    found = judge(of_memory(base=BASE, compare="always", pairs=lost, **few), 4.0 * MIB, case=MEMORY)
    assert (found.outcome, found.reason) == (Outcome.OK, f"{WHY_NOT}{lost.reason}")
    world = of_memory(base=BASE, pairs=BaseError("its checkout failed"), later={"flops": 1.0})
    found = judge(world, SLOW * GIB, case=MEMORY)
    assert (found.outcome, world.asked[-1]) == (Outcome.REGRESSION, "3 fresh processes as in a sitting")
    assert found.reason == (f"15.0% more memory than the baseline in 3 fresh processes; {WHY_NOT}its checkout failed")


def test_memory_of_processes_with_other_limits_is_open(judge: Any) -> None:
    head = (*[Process(SLOW * GIB, threads=4)] * 2, Process(SLOW * GIB, threads=2))
    found = judge(of_memory(system={"threads": 4}, head=head, has=False), head[0], case=MEMORY)
    assert (found.outcome, found.reason) == (Outcome.INCONCLUSIVE, judging.CHANGED)


def test_a_named_base_is_what_memory_is_compared_with(judge: Any) -> None:
    world = of_memory(base=replace(BASE, stated="main"), pairs=beside_base(1.2))
    judge(world, SLOW * GIB, case=MEMORY)
    assert world.asked == ["pairs with main (0123456789ab) at 10%"]


@pytest.mark.parametrize("changes", [{"rates": {"flops": 1e11}}, {"barrier": Barrier(1e-6, 2)}])
def test_how_fast_the_machine_is_says_nothing_of_memory(judge: Any, changes: dict[str, Any]) -> None:
    assert judge(of_memory(**changes), Process(GIB, Barrier(9e-6, 2), clean=False), case=MEMORY).outcome is Outcome.OK


@pytest.mark.parametrize("changes", [{"other_cases": "other room"}, {"system": {"threads": 4}}])
def test_other_limits_and_other_cases_tell_nothing_of_memory(judge: Any, changes: dict[str, Any]) -> None:
    found = judge(of_memory(**changes, compare="never"), Process(SLOW * GIB, threads=2), case=MEMORY)
    assert (found.outcome, found.other_state) == (Outcome.INCONCLUSIVE, True)
    world = of_memory(**changes, pairs=beside_base(1.0))
    assert judge(world, Process(SLOW * GIB, threads=2), case=MEMORY).outcome is Outcome.OK
    assert world.asked[-1].startswith("pairs with")


def test_time_that_is_up_leaves_memory_open(judge: Any) -> None:
    world = of_memory(budget=10, spent=10)
    assert judge(world, SLOW * GIB, case=MEMORY).outcome is Outcome.INCONCLUSIVE
    assert world.asked == ["git"]


# No baseline


@pytest.mark.parametrize(
    ("world", "said"),
    [
        (World(sittings=()), "baselines/cpu/tiny.json does not exist"),
        (World(sittings=({REFERENCE: [SAME]},)), "this case is new to the baseline"),
        (World(elsewhere=True), "the baseline is of another machine; here CPU: "),
    ],
    ids=["no file", "a new case", "another machine"],
)
def test_without_a_baseline_of_this_machine_the_figures_are_to_be_accepted(judge: Any, world: World, said: str) -> None:
    found = judge(world)
    assert (found.outcome, found.remedy) == (Outcome.NO_BASELINE, RECORD)
    assert found.reason.startswith(said)
    assert world.asked == []


def test_a_machine_of_another_kind_is_named_with_its_own_value_first(judge: Any) -> None:
    said = f"the baseline is of another machine; here CPU: {take().cpu}, not a faster one"
    assert judge(World(elsewhere=True)).reason == said


@pytest.mark.parametrize("compare", ["flagged", "unresolved", "always"])
def test_without_a_baseline_a_named_base_is_compared(judge: Any, compare: str) -> None:
    named = replace(BASE, stated="main")
    world = World(sittings=(), base=named, compare=compare, pairs=beside_base(1.2))
    assert judge(world, allowed=replace(ALLOWED, named_base=True)).outcome is Outcome.REGRESSION
    assert world.asked == ["pairs with main (0123456789ab) at 3%"]


def test_without_a_baseline_or_a_base_nothing_can_be_compared(judge: Any) -> None:
    found = judge(World(sittings=(), compare="unresolved"))
    assert found.outcome is Outcome.NO_BASELINE
    assert found.reason.endswith(f"; {WHY_NOT}no baseline names a revision")


def test_another_machine_s_baseline_names_the_base_of_what_is_unresolved(judge: Any) -> None:
    world = World(elsewhere=True, compare="unresolved", pairs=beside_base(1.2))
    assert judge(world).outcome is Outcome.REGRESSION
    assert "pairs with the baseline's revision (0123456789ab) at 10%" in world.asked


def test_a_new_case_of_unchanged_code_stays_without_a_baseline(judge: Any) -> None:
    found = judge(World(elsewhere=True, compare="unresolved", at=True))
    assert (found.outcome, found.remedy) == (Outcome.NO_BASELINE, RECORD)


def test_a_new_case_whose_base_is_lost_is_open(judge: Any) -> None:
    lost = rule.nothing(Outcome.INCONCLUSIVE, "base, main, was lost: killed by signal 9")
    world = World(sittings=(), base=BASE, pairs=lost)
    found = judge(world)
    assert (found.outcome, found.reason) == (Outcome.INCONCLUSIVE, lost.reason)
    assert found.remedy


# The machine's state


IN_ANOTHER_STATE = "this machine is not in the state in which the baseline was recorded: "


@pytest.mark.parametrize("first", [SAME, SLOW, 0.5])
@pytest.mark.parametrize(
    ("rates", "barrier", "said"),
    [
        ({"flops": 0.5e12}, None, "its GEMM rate is 50% below the recorded one"),
        ({"interpreter cpython-311": 2e7}, None, "its interpreter is 100% above the recorded one"),
        ({}, Barrier(4.5e-6, 2), "its threads take 1.5 times as long to meet as recorded"),
    ],
    ids=["slower cores", "a faster host", "CPUs that were moved"],
)
def test_in_another_state_nothing_can_be_told(
    judge: Any, first: float, rates: Mapping[str, float], barrier: Barrier | None, said: str
) -> None:
    world = World(rates=RATES | rates, barrier=Barrier(3e-6, 2), compare="never")
    found = judge(world, Process(first, barrier))
    assert (found.outcome, found.remedy, found.other_state) == (Outcome.INCONCLUSIVE, COMPARE, True)
    assert found.reason.startswith(IN_ANOTHER_STATE + said)
    assert found.ratio == pytest.approx(first)


def test_a_sitting_of_this_state_counts_alone_beside_one_of_another(
    judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(sittings=[{CASE: [SAME] * 5}, {CASE: [2.0] * 5}], compare="never")
    states = {1.0: Barrier(3e-6, 2), 2.0: Barrier(4.5e-6, 2)}
    held = world.stored
    assert held is not None
    rows = tuple(replace(one, barrier=states[one.processes[0]]) for one in held.entries[CASE.key])
    monkeypatch.setattr(World, "stored", replace(held, entries={CASE.key: rows}))
    for figure, barrier in states.items():
        found = judge(world, Process(figure, barrier))
        assert (found.outcome, found.baseline) == (Outcome.OK, pytest.approx(figure))


@pytest.mark.parametrize("first", [SAME, SLOW, 0.9])
def test_in_another_state_a_case_is_compared_beside_base_whatever_its_figure(judge: Any, first: float) -> None:
    world = World(rates=RATES | {"flops": 0.5e12}, pairs=beside_base(1.0))
    found = judge(world, first)
    assert (found.outcome, found.basis, found.other_state) == (Outcome.OK, "base", False)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"has": False}, WHY_NOT + "git does not have 0123456789ab"),
        ({"at": True}, UNCHANGED),
    ],
    ids=["no base", "unchanged code"],
)
def test_in_another_state_without_a_base_nothing_is_measured_again(
    judge: Any, changed: dict[str, bool], said: str
) -> None:
    world = World(rates=RATES | {"flops": 0.5e12}, **changed)
    found = judge(world)
    assert (found.outcome, found.remedy) == (Outcome.INCONCLUSIVE, SITTING)
    assert found.reason.startswith(IN_ANOTHER_STATE)
    assert said in found.reason
    assert not any("fresh" in one for one in world.asked)


@pytest.mark.parametrize(("recorded", "now"), [(1, 2), (8, 4), (2, 1)])
def test_an_engine_with_other_threads_is_in_another_state(judge: Any, recorded: int, now: int) -> None:
    world = World(system={"threads": recorded}, pairs=beside_base(1.0))
    for first in (SAME, SLOW, 0.67):
        found = judge(replace(world, compare="never"), Process(first, threads=now))
        assert (found.outcome, found.remedy, found.other_state) == (Outcome.INCONCLUSIVE, COMPARE, True)
        there, here = (f"{count} thread{'s' * (count > 1)}" for count in (recorded, now))
        said = f"recorded with {there}, and this run has {here}"
        assert found.reason == IN_ANOTHER_STATE + said
        assert judge(world, Process(first, threads=now)).basis == "base"


@pytest.mark.parametrize(("system", "now"), [({}, 2), ({"threads": 2}, None), ({"threads": 2}, 2)])
def test_threads_that_are_unknown_or_the_same_say_nothing(judge: Any, system: dict[str, int], now: int | None) -> None:
    assert judge(World(system=system, compare="never"), Process(SAME, threads=now)).outcome is Outcome.OK


def test_a_stopped_container_is_told_of_its_quota_and_not_of_its_host(judge: Any) -> None:
    stopped = "the CPU quota of its control group stopped it 9 times"
    world = World(barrier=Barrier(3e-6, 2), recorded={"meetings 2": 3e5}, rates={"meetings 2": 1e5}, compare="never")
    found = judge(world, Process(SLOW, barrier=Barrier(5e-6, 2), over_quota=stopped))
    assert (found.outcome, found.reason) == (Outcome.INCONCLUSIVE, IN_ANOTHER_STATE + stopped)


def test_threads_that_follow_from_the_backend_s_own_variables_are_its_code(judge: Any) -> None:
    world = World(
        sittings=[WITH_REFERENCE],
        system={"threads": 2},
        same_variables=False,
        installed={"torch": "2.13", "OMP_NUM_THREADS": "1"},
        head=[Process(2.0, threads=1)] * 3,
        reference=[Process(2.0)] * 3,
    )
    found = judge(world, Process(2.0, threads=1))
    assert found.outcome is Outcome.REGRESSION
    assert "versions differ from the baseline's (OMP_NUM_THREADS missing -> 1)" in found.reason


# What is compared


@pytest.mark.parametrize(
    ("compare", "first", "compared"),
    [
        ("flagged", SAME, False),
        ("flagged", 1.02, False),
        ("flagged", SLOW, True),
        ("flagged", 0.7, True),
        ("unresolved", SAME, False),
        ("unresolved", 1.02, True),
        ("unresolved", SLOW, True),
        ("unresolved", 0.7, True),
        ("always", SAME, True),
        ("always", 1.02, True),
        ("never", SLOW, False),
        ("never", 0.7, False),
    ],
)
def test_the_option_says_what_is_compared(judge: Any, compare: str, first: float, compared: bool) -> None:
    world = World(compare=compare, pairs=beside_base(1.0))
    assert judge(world, first).basis == ("base" if compared else "stored")
    assert bool(world.asked) == compared


@pytest.mark.parametrize("first", [1.02, SLOW])
def test_the_printed_remedy_of_a_screening_compares(judge: Any, first: float) -> None:
    screened = judge(World(compare="never"), first)
    option, value = screened.remedy.split()[-1].split("=")
    assert (screened.outcome, option) == (Outcome.INCONCLUSIVE, "--llm-compare")
    assert judge(World(compare=value, pairs=beside_base(1.0)), first).basis == "base"


@pytest.mark.parametrize("first", [SAME, SLOW])
def test_the_printed_remedy_of_another_state_compares(judge: Any, first: float) -> None:
    slower = RATES | {"flops": 0.5e12}
    value = judge(World(compare="never", rates=slower), first).remedy.split("=")[-1]
    assert judge(World(compare=value, rates=slower, pairs=beside_base(1.0)), first).basis == "base"


@pytest.mark.parametrize(("first", "compared"), [(SAME, False), (0.85, False), (0.7, True), (1.02, True), (SLOW, True)])
def test_with_a_named_base_all_is_compared_that_is_not_ok_or_faster(judge: Any, first: float, compared: bool) -> None:
    sittings = [{CASE: [SAME] * 5}] * (5 if first < 1 else 1)  # one does not tell a gain of 15 % from none
    world = World(sittings=sittings, base=replace(BASE, stated="main"), pairs=beside_base(1.0))
    assert judge(world, first).basis == ("base" if compared else "stored")
    assert bool(world.asked) == compared


def test_a_sitting_that_names_a_revision_comes_before_a_newer_one_that_names_none(
    judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(sittings=[{CASE: [SAME] * 5}] * 2, pairs=beside_base(1.2))
    held = world.stored
    assert held is not None
    newest, oldest = (held.sitting(one) for one in held.entries[CASE.key])
    assert newest.recorded > oldest.recorded
    unnamed = replace(newest, revision=None)
    rows = tuple(
        replace(one, sitting=unnamed.id if one.sitting == newest.id else one.sitting) for one in held.entries[CASE.key]
    )
    sittings = {one.id: one for one in (unnamed, oldest)}
    monkeypatch.setattr(World, "stored", replace(held, sittings=sittings, entries={CASE.key: rows}))
    assert judge(world).outcome is Outcome.REGRESSION
    assert world.asked == ["git", f"pairs with {BASE} at 10%"]


def test_a_named_base_comes_before_that_revision(judge: Any) -> None:
    world = World(base=replace(BASE, stated="main"), versions={"torch": "2.12"}, at=True, pairs=beside_base(1.2))
    assert judge(world).outcome is Outcome.REGRESSION
    assert world.asked == ["pairs with main (0123456789ab) at 10%"]


@pytest.mark.parametrize("compare", ["flagged", "unresolved", "always"])
@pytest.mark.parametrize(("first", "outcome"), [(SAME, Outcome.OK), (SLOW, Outcome.INCONCLUSIVE)])
def test_with_a_named_base_that_is_head_nothing_is_compared(
    judge: Any, first: float, outcome: Outcome, compare: str
) -> None:
    """Code that has not changed cannot have regressed."""
    world = World(base=replace(BASE, stated="main"), base_is_head=True, compare=compare)
    found = judge(world, first)
    assert (found.outcome, found.basis, world.asked) == (outcome, "stored", [])
    if first == SLOW:
        assert found.reason.startswith("base, main (0123456789ab), is head, so nothing is compared with it; a slowdown")
        assert found.remedy == ANOTHER


def test_with_a_named_base_that_is_head_and_no_baseline_there_is_nothing_to_compare(judge: Any) -> None:
    world = World(base=BASE, base_is_head=True, sittings=())
    assert (judge(world).outcome, world.asked) == (Outcome.NO_BASELINE, [])


@pytest.mark.parametrize(
    ("pairs", "outcome", "reason"),
    [
        (beside_base(1.0), Outcome.OK, "15.0% slower than the baseline, but not than base: the machine is slower"),
        (beside_base(1.2), Outcome.REGRESSION, f"20.0% slower than base in 4 pairs of fresh processes; base is {BASE}"),
        (beside_base(0.85), Outcome.FASTER, "15.0% faster than base in 4 pairs of fresh processes"),
    ],
)
def test_what_pairs_say_counts(judge: Any, pairs: Verdict, outcome: Outcome, reason: str) -> None:
    found = judge(World(pairs=pairs))
    assert (found.outcome, found.reason, found.remedy) == (outcome, reason, "")


def test_pairs_that_leave_it_open_say_what_would_settle_it(judge: Any) -> None:
    found = judge(World(pairs=beside_base(1.05, reach=0.2)))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.remedy == "run this test alone on a quieter machine, with --llm-compare=always"


# Unchanged code


@pytest.mark.parametrize("first", [SLOW, 2.0, 0.5])
def test_code_that_has_not_changed_cannot_have_regressed(judge: Any, first: float) -> None:
    world = World(at=True)
    found = judge(world, first)
    assert (found.outcome, found.remedy) == (Outcome.INCONCLUSIVE, SITTING)
    assert found.reason.startswith(UNCHANGED)
    assert ("cannot be excluded" in found.reason) == (first > 1)
    assert world.asked == [], "nothing is measured"


def test_unchanged_code_that_is_ok_stays_so_though_everything_is_compared(judge: Any) -> None:
    assert judge(World(at=True, compare="always"), SAME).outcome is Outcome.OK


OF_ELSEWHERE = (
    "the worker imports nothing of this repository, and versions are those of the baseline: it is the machine"
)


@pytest.mark.parametrize("first", [SLOW, 2.0, 0.5])
def test_code_of_elsewhere_whose_version_has_not_changed_cannot_have_regressed(judge: Any, first: float) -> None:
    world = World(pairs=SameCodeError("it imported nothing of /repository"))
    found = judge(world, first)
    assert (found.outcome, found.remedy, found.basis) == (Outcome.INCONCLUSIVE, SITTING, "stored")
    excluded = f"; a slowdown of {found.not_excluded:.1%} cannot be excluded" if first > 1 else ""
    assert found.reason == OF_ELSEWHERE + excluded
    assert not any("fresh" in one for one in world.asked)


def test_code_of_elsewhere_in_another_state_says_both(judge: Any) -> None:
    world = World(rates=RATES | {"flops": 0.5e12}, pairs=SameCodeError("it imported nothing of /repository"))
    found = judge(world)
    assert (found.outcome, found.remedy) == (Outcome.INCONCLUSIVE, SITTING)
    assert found.reason.startswith(IN_ANOTHER_STATE)
    assert OF_ELSEWHERE in found.reason


@pytest.mark.parametrize("elsewhere", [False, True], ids=["ok", "no baseline"])
def test_code_of_elsewhere_that_is_not_slower_stays_as_it_is(judge: Any, elsewhere: bool) -> None:
    pairs = SameCodeError("it imported nothing of /repository")
    found = judge(World(compare="always", pairs=pairs, elsewhere=elsewhere), SAME)
    assert found.outcome is (Outcome.NO_BASELINE if elsewhere else Outcome.OK)


def test_of_unchanged_code_with_other_versions_fresh_processes_decide(judge: Any) -> None:
    world = World(at=True, versions={"torch": "2.12"})
    found = judge(world)
    assert f"{WHY_NOT}versions differ from the baseline's (torch 2.12 -> 2.13)" in found.reason
    assert world.asked == ["3 fresh processes"]


# Where base cannot be had


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"attached": {"server": "http://a"}}, "a server that runs already answers both base and head"),
        (
            {"revision": None},
            "the baseline names no revision: files were changed when it was recorded, or its file is old",
        ),
        ({"versions": {"torch": "2.12"}}, "versions differ from the baseline's (torch 2.12 -> 2.13)"),
        ({"has": False}, "git does not have 0123456789ab, which recorded the baseline (a shallow clone?)"),
        (
            {"pairs": rule.nothing(Outcome.INCONCLUSIVE, "base, main (0123), was lost: killed")},
            "base, main (0123), was lost: killed",
        ),
        (
            {"pairs": rule.nothing(Outcome.NEW, "base, main (0123), cannot run it: no room")},
            "base, main (0123), cannot",
        ),
    ],
    ids=["a server", "no revision", "versions", "a shallow clone", "base is lost", "base cannot"],
)
def test_fresh_processes_decide_where_base_cannot_be_had(judge: Any, changed: dict[str, Any], said: str) -> None:
    for first, outcome in ((SLOW, Outcome.INCONCLUSIVE), (2.0, Outcome.REGRESSION)):
        world = World(head=[Process(first)] * 3, **changed)
        found = judge(world, first)
        assert (found.outcome, found.basis, found.count) == (outcome, "stored", 3)
        assert found.reason.startswith(f"{first - 1:.1%} slower than the baseline in 3 fresh processes")
        assert WHY_NOT + said in found.reason
        assert world.asked[-1] == "3 fresh processes"


def test_a_server_that_runs_already_is_no_base_even_if_one_is_named(judge: Any) -> None:
    world = World(base=BASE, attached={"server": "http://a"})
    judge(world)
    assert world.asked == ["3 fresh processes"]


def test_the_tolerance_of_fresh_processes_is_that_of_the_baseline(judge: Any) -> None:
    lost = rule.nothing(Outcome.INCONCLUSIVE, "base was lost")
    found = judge(World(base=BASE, pairs=lost), allowed=replace(ALLOWED, named_base=True))
    assert found.tolerance == 0.10


@pytest.mark.parametrize(
    ("head", "outcome", "remedy"),
    [
        (2.0, Outcome.REGRESSION, ""),
        (SLOW, Outcome.INCONCLUSIVE, SITTING),
        (SAME, Outcome.OK, ""),
        (0.5, Outcome.FASTER, ""),
    ],
)
def test_what_is_settled_by_fresh_processes_needs_no_remedy(
    judge: Any, head: float, outcome: Outcome, remedy: str
) -> None:
    found = judge(World(has=False, head=[Process(head)] * 3))
    assert (found.outcome, found.remedy) == (outcome, remedy)


WITH_REFERENCE = {CASE: [SAME] * 5, REFERENCE: [2.0] * 5}


@pytest.mark.parametrize(
    ("head", "reference", "outcome", "ratio"),
    [
        (2.0, 2.0, Outcome.REGRESSION, 2.0),
        (2.0, 1.8, Outcome.REGRESSION, 2.0),  # slower than the reference alone cannot explain it
        (2.0, 4.0, Outcome.INCONCLUSIVE, 2.0),  # the machine is twice as slow, or the code of both
        (2.0, 3.6, Outcome.INCONCLUSIVE, 2 / 1.8),  # it may be 11 % slower than the machine explains
        (3.0, 3.0, Outcome.REGRESSION, 2.0),  # half of it is the machine's
        (1.0, 2.0, Outcome.OK, 1.0),
        (1.0, 1.0, Outcome.INCONCLUSIVE, 1.0),  # as it was, on a machine that is twice as fast
        (0.5, 1.0, Outcome.OK, 1.0),  # the machine is twice as fast
        (0.5, 2.0, Outcome.FASTER, 0.5),
        (0.5, 1.5, Outcome.FASTER, 0.5 / 0.75),
        (0.5, 0.5, Outcome.INCONCLUSIVE, 2.0),  # twice as fast, and half as fast as the machine allows
        (2.0, 8.0, Outcome.INCONCLUSIVE, 2.0),  # twice as slow, and twice as fast as the machine allows
    ],
)
def test_the_reference_in_turns_tells_slow_code_from_a_slow_machine(
    judge: Any, head: float, reference: float, outcome: Outcome, ratio: float
) -> None:
    """The smaller change counts; where one of the two is ok and the other is not, neither does."""
    measured: dict[str, Any] = {"head": [Process(head)] * 3, "reference": [Process(reference)] * 3}
    world = World(sittings=[WITH_REFERENCE], has=False, compare="always", **measured)
    found = judge(world, head)
    assert (found.outcome, found.ratio) == (outcome, pytest.approx(ratio))
    assert f"beside ref; {WHY_NOT}" in found.reason
    assert world.asked[-1] == "3 fresh processes in turns with ref"


@pytest.mark.parametrize(
    ("head", "reference", "said"),
    [
        (2.0, 4.0, "100.0% slower than the baseline, and so is the reference: the machine, or both"),
        (1.15, 2.3, "15.0% slower than the baseline, and so is the reference: the machine, or both"),
        (1.0, 1.0, "0.0% slower than the baseline, but the reference is faster: the machine, or both"),
    ],
)
def test_where_one_of_two_changes_is_ok_both_are_said(judge: Any, head: float, reference: float, said: str) -> None:
    """A slow machine slows both, and so does code that both share."""
    world = World(sittings=[WITH_REFERENCE], has=False, head=[Process(head)] * 3, reference=[Process(reference)] * 3)
    found = judge(world)
    assert (found.outcome, found.remedy) == (Outcome.INCONCLUSIVE, SITTING)
    assert found.reason.startswith(f"{said}; beside ref; {WHY_NOT}")
    assert found.ratio == pytest.approx(head)


def test_the_reference_has_a_sitting_of_its_own_if_its_interpreter_is_another(judge: Any) -> None:
    """It was recorded by the same run, and so at the same moment."""
    slow: dict[str, Any] = {"head": [Process(2.0)] * 3, "reference": [Process(4.0)] * 3}
    world = World(sittings=[WITH_REFERENCE] * 2, apart=True, has=False, **slow)
    held = world.stored
    assert held is not None
    assert len(held.sittings) == 4
    found = judge(world, 2.0)
    assert world.asked[-1] == "3 fresh processes in turns with ref"
    assert (found.outcome, found.ratio) == (Outcome.INCONCLUSIVE, pytest.approx(2.0))


def test_a_reference_of_another_moment_is_not_asked(judge: Any) -> None:
    world = World(sittings=[{CASE: [SAME] * 5}, {REFERENCE: [2.0] * 5}], has=False)
    judge(world)
    assert world.asked[-1] == "3 fresh processes"


def test_figures_over_the_reference_are_shown_in_seconds(judge: Any) -> None:
    world = World(sittings=[WITH_REFERENCE], has=False, head=[Process(3.0)] * 3, reference=[Process(3.0)] * 3)
    found = judge(world)
    assert (found.head, found.baseline) == (pytest.approx(3.0), pytest.approx(1.5))


def test_the_reference_is_compared_alone(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(sittings=[WITH_REFERENCE], has=False, head=[Process(4.0)] * 3)
    found = world.judge(monkeypatch).judge(REFERENCE, Process(4.0), ALLOWED)  # type: ignore[arg-type]
    assert found.outcome is Outcome.REGRESSION
    assert world.asked[-1] == "3 fresh processes"


def test_a_reference_that_a_sitting_lacks_is_not_asked(judge: Any) -> None:
    """Their figures over the reference have no baseline."""
    world = World(sittings=[WITH_REFERENCE, {CASE: [SAME] * 5}], has=False)
    judge(world)
    assert world.asked[-1] == "3 fresh processes"


@pytest.mark.parametrize("who", ["head", "reference"])
@pytest.mark.parametrize(
    ("spoiled", "doubt"),
    [
        (Process(2.0, clean=False), "too few samples of 1 of 6 processes were undisturbed: others used 2.0 cores"),
        (Process(2.0, settled=False), "the figures of 1 of 6 processes never settled"),
    ],
    ids=["disturbed", "unsettled"],
)
def test_fresh_processes_that_were_disturbed_decide_nothing(judge: Any, who: str, spoiled: Process, doubt: str) -> None:
    world = World(sittings=[WITH_REFERENCE], has=False, head=[Process(2.0)] * 3, reference=[Process(2.0)] * 3)
    setattr(world, who, [spoiled, *[Process(2.0)] * 2])
    found = judge(world, 2.0)
    assert (found.outcome, found.count) == (Outcome.INCONCLUSIVE, 1)
    assert found.reason.endswith(
        f"; {WHY_NOT}git does not have 0123456789ab, which recorded the baseline (a shallow clone?); {doubt}"
    )
    assert found.remedy


def test_fresh_processes_whose_cpus_were_moved_decide_nothing(judge: Any) -> None:
    near, far = Barrier(3e-6, 2), Barrier(4.5e-6, 2)
    world = World(barrier=near, has=False, head=[Process(2.0, near), Process(2.0, near), Process(2.0, far)])
    found = judge(world, Process(2.0, near))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.reason.endswith("; the machine changed meanwhile")


@pytest.mark.parametrize("rate", sorted(RATES))
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_fresh_processes_of_a_machine_that_changed_meanwhile_decide_nothing(
    judge: Any, rate: str, factor: float
) -> None:
    """The rates are those of the start of the run, so they are measured once more."""
    world = World(has=False, head=[Process(2.0)] * 3, later=RATES | {rate: RATES[rate] * factor})
    found = judge(world, 2.0)
    assert world.asked[-1] == "3 fresh processes"
    assert (found.outcome, found.count) == (Outcome.INCONCLUSIVE, 1)
    assert found.reason.endswith("; the machine changed meanwhile")
    assert found.remedy


def test_fresh_processes_of_a_machine_that_hardly_changed_decide(judge: Any) -> None:
    world = World(has=False, head=[Process(2.0)] * 3, later={name: 0.9 * rate for name, rate in RATES.items()})
    assert judge(world, 2.0).outcome is Outcome.REGRESSION


# How long comparing may take


OUT_OF_TIME = "not compared: comparing has taken --llm-budget=10 s in this run"


@pytest.mark.parametrize("changed", [{}, {"has": False}], ids=["pairs", "fresh processes"])
def test_when_the_budget_is_used_up_nothing_more_is_compared(judge: Any, changed: dict[str, Any]) -> None:
    world = World(budget=10, spent=10, **changed)
    found = judge(world)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.reason.endswith(OUT_OF_TIME)
    assert found.reason.startswith("15.0% slower than the baseline in 1 process; a slowdown of ")
    assert found.remedy == "raise --llm-budget, or run this test alone"
    assert world.asked == ["git"]


def test_what_is_ok_stays_so_when_the_budget_is_used_up(judge: Any) -> None:
    found = judge(World(budget=10, spent=10, compare="always"), SAME)
    assert (found.outcome, found.reason, found.remedy) == (Outcome.OK, "", "")


def test_a_comparison_that_was_begun_goes_on(judge: Any) -> None:
    world = World(budget=10, spent=10, begun=True, pairs=beside_base(1.2))
    assert judge(world).outcome is Outcome.REGRESSION


def test_fresh_processes_take_of_the_budget_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 11.0])
    monkeypatch.setattr(judging, "monotonic", lambda: next(clock))
    one = World(budget=10, has=False).judge(monkeypatch)
    assert not one.time_is_up
    first: Any = Process(SLOW)
    assert "3 fresh processes" in one.judge(CASE, first, ALLOWED).reason
    assert one.time_is_up
    assert one.judge(CASE, first, ALLOWED).reason.endswith(OUT_OF_TIME)


def test_unchanged_code_takes_none_of_it(judge: Any) -> None:
    assert judge(World(budget=10, spent=10, at=True)).reason.startswith(UNCHANGED)


# What is said of versions and of disturbed processes


@pytest.mark.parametrize(
    ("recorded", "now", "said"),
    [
        ({"torch": "2.13"}, {"torch": "2.13"}, ""),
        ({"torch": "2.12"}, {"torch": "2.13"}, "torch 2.12 -> 2.13"),
        ({}, {"vllm": "0.32"}, "vllm missing -> 0.32"),
        ({"vllm": "0.32"}, {}, "vllm 0.32 -> missing"),
        ({"ours": "1 (abc)"}, {"ours": "1 (abd)"}, "ours 1 (abc) -> 1 (abd)"),
        ({"ours": "1 (abc+)"}, {"ours": "1 (abc+)"}, "ours 1 (abc+), whose files differ from that revision"),
        (dict.fromkeys("abcde", "1"), dict.fromkeys("abcde", "2"), "a 1 -> 2, b 1 -> 2, c 1 -> 2 and 2 more"),
    ],
)
def test_the_versions_that_differ_are_named(recorded: dict[str, str], now: dict[str, str], said: str) -> None:
    assert changes(recorded, now) == said


def test_the_backend_s_own_packages_are_named_first() -> None:
    recorded, now = dict.fromkeys("abcde", "1"), dict.fromkeys("abcde", "2")
    assert changes(recorded, now, {"e", "z"}) == "e 1 -> 2, a 1 -> 2, b 1 -> 2 and 2 more"


def test_undisturbed_processes_are_in_no_doubt() -> None:
    measured: Any = [Process()] * 3
    assert disturbed(measured) is None


# A host slowed under an accelerator


def decoding(rng: random.Random, host: float, busy: bool) -> float:
    """Milliseconds a token: a step of the device, always the same, and the host's work, which a neighbour doubles."""
    step = 15.0
    return step + (2 if busy else 1) * host * rng.lognormvariate(0, 0.03)


@pytest.mark.parametrize("compare", ["never", "flagged"])
@pytest.mark.parametrize("host", [2.0, 4.0, 8.0, 15.0])
@pytest.mark.parametrize("known", [True, False], ids=["rates recorded", "rates not recorded"])
@pytest.mark.parametrize("sittings", [1, 2])
def test_a_busy_host_under_an_accelerator_is_no_regression_by_stored_figures(
    judge: Any, sittings: int, known: bool, host: float, compare: str
) -> None:
    """The code is the same; git does not have the revision, so that stored figures alone decide."""
    rng = random.Random(7)
    for _ in range(50):
        rows = [{CASE: [decoding(rng, host, busy=False) for _ in range(5)]} for _ in range(sittings)]
        world = World(
            sittings=rows,
            has=False,
            compare=compare,
            prior=ACCELERATOR_DECODE,
            recorded=GPU_RATES if known else {},
            rates={name: rate / 2 for name, rate in GPU_RATES.items()},
            head=[Process(decoding(rng, host, busy=True)) for _ in range(3)],
        )
        found = judge(world, decoding(rng, host, busy=True), replace(ALLOWED, by_baseline=(0.05, "default")))
        assert found.outcome is Outcome.INCONCLUSIVE
        assert found.other_state == known
        if known:
            assert "is 50% below the recorded one" in found.reason
        elif compare == "flagged" and found.count == 3:
            assert found.reason.endswith("the baseline has nothing that tells slow code from a slow machine")


def test_without_rates_fresh_processes_are_no_regression_unless_the_reference_is_there(judge: Any) -> None:
    """Of the two, each tells slow code from a slow machine."""
    slow = {"has": False, "head": [Process(2.0)] * 3, "reference": [Process(2.0)] * 3}
    nothing = judge(World(recorded={"bandwidth": 4.8e12}, **slow), 2.0)
    assert (nothing.outcome, nothing.remedy) == (Outcome.INCONCLUSIVE, SITTING)
    assert judge(World(recorded=RATES, **slow), 2.0).outcome is Outcome.REGRESSION
    assert judge(World(recorded={}, sittings=[WITH_REFERENCE], **slow), 2.0).outcome is Outcome.REGRESSION


@pytest.mark.parametrize("rate", sorted(GPU_RATES))
def test_each_rate_of_the_host_tells_that_it_is_slower(judge: Any, rate: str) -> None:
    world = World(recorded=GPU_RATES, rates=GPU_RATES | {rate: GPU_RATES[rate] / 2}, prior=ACCELERATOR_DECODE)
    found = judge(replace(world, has=False), 23.0 / 19.0)
    assert (found.outcome, found.other_state) == (Outcome.INCONCLUSIVE, True)


def test_with_the_reference_a_busy_host_is_told_though_its_rates_were_not_recorded(judge: Any) -> None:
    """Five sittings that agree make the interval narrow; the reference, which waits for the same host, says why."""
    rng = random.Random(8)
    for _ in range(50):
        rows = [
            {
                CASE: [decoding(rng, 4.0, busy=False) for _ in range(5)],
                REFERENCE: [decoding(rng, 5.0, busy=False) for _ in range(5)],
            }
            for _ in range(5)
        ]
        world = World(
            sittings=rows,
            has=False,
            prior=ACCELERATOR_DECODE,
            recorded={},
            head=[Process(decoding(rng, 4.0, busy=True)) for _ in range(3)],
            reference=[Process(decoding(rng, 5.0, busy=True)) for _ in range(3)],
        )
        assert judge(world, world.head[0].figure).outcome is not Outcome.REGRESSION
