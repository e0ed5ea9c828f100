"""What a run covers: device, model, backends, workloads, tests, and what becomes of each case's figures.

Everything is settled before any model is loaded: the settings when a `Plan` is made, the tests when collection ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from pytest_llmperf import known, models
from pytest_llmperf.availability import (
    UnusableError,
    check_interpreters,
    check_servers,
    chosen_device,
    interpreter_of,
    torch_of,
    why_not,
)
from pytest_llmperf.backends.registry import DEFAULT_ATTENTION, Combination, Registry
from pytest_llmperf.backends.tensor_parallel import why_not_sharded
from pytest_llmperf.cases import LATENCIES, METRICS, STARTS, Case, Workload
from pytest_llmperf.explain.profiles import Profile
from pytest_llmperf.gate import baseline as store
from pytest_llmperf.gate import checkout
from pytest_llmperf.gate.baseline import Baseline, Entry, Sitting
from pytest_llmperf.gate.checkout import Base
from pytest_llmperf.gate.priors import Prior, prior_of
from pytest_llmperf.gate.rule import Verdict
from pytest_llmperf.installed import changes, normal
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.load import Traffic
from pytest_llmperf.machine import detect, facts, fingerprint, placement, topology
from pytest_llmperf.machine.doctor import Need
from pytest_llmperf.machine.topology import Choice, TopologyError
from pytest_llmperf.measure.sampling import Bounds
from pytest_llmperf.settings import Settings


@dataclass(frozen=True)
class Defaults:
    """What a kind of device is measured with where the user does not say."""

    batch_sizes: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    max_new_tokens: int
    samples: Bounds


#: The slowdown allowed where base is measured beside head: what both suffer cancels, so less of it must be allowed.
BASE_TOLERANCE = 0.03
#: Engines that are transformers, and which of their attentions ignore a cap of the scores without a word.
UNCAPPED = {
    "transformers": {"sdpa", "sdpa-flash", "xformers"},
    "transformers-paged": {"eager", "sdpa"},
}
IN_TRANSFORMERS = UNCAPPED.keys()
#: Requests that a server answers at a time where nobody says.
CONCURRENCY = (1, 8)
#: Instruction sets that multiply bfloat16. Without one a CPU takes ten times as long as for float32.
NATIVE_BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16"}

DEFAULTS = {
    "cpu": Defaults((1, 4), (256,), 32, Bounds(minimum=3, maximum=10, budget=6.0)),
    "accelerator": Defaults((1, 2, 4, 8, 16, 32), (2048,), 128, Bounds(minimum=3, maximum=20, budget=2.0)),
}


def cpu_dtype() -> str:
    """What this machine's CPU is measured in where nobody says: bfloat16 if it multiplies it natively, else float32."""
    return "bfloat16" if NATIVE_BFLOAT16.intersection(fingerprint.take().isa) else "float32"


@dataclass(frozen=True)
class Allowed:
    """The slowdown that a case is allowed, and where that was stated.

    Attributes:
        by_baseline: against the stored baseline, and beside the code that recorded it.
        beside_base: beside a base that somebody named. Both arms suffer alike, so the default is stricter.
        named_base: whether somebody named one, and it is not head.
    """

    by_baseline: tuple[float, str]
    beside_base: tuple[float, str]
    named_base: bool

    @property
    def stored(self) -> float:
        """The fraction against the stored baseline."""
        return self.by_baseline[0]

    @property
    def usual(self) -> float:
        """The fraction that a case is judged by, unless a named base cannot be had."""
        return (self.beside_base if self.named_base else self.by_baseline)[0]

    def of(self, verdict: Verdict) -> tuple[float, str]:
        """What a verdict was judged by."""
        usual = self.beside_base if self.named_base else self.by_baseline
        return self.by_baseline if verdict.tolerance == self.by_baseline[0] else usual


class Plan:
    """The settings, with what the device and the model decide where the user did not.

    Args:
        settings: what the user asked for.
        registry: every backend known.
        cache: the user's cache folder.
        root: pytest's rootdir, in the repository under test.

    Raises:
        UnusableError: the device, the model, the dtype or a backend rules the run out.
    """

    def __init__(self, settings: Settings, registry: Registry, cache: Path, root: Path) -> None:
        self.settings = settings
        self.registry = registry
        self.cache = cache
        self.root = root
        try:
            self.device = chosen_device(settings, registry)
            self.model = models.resolve(settings.model, settings.random_weights, cache)
            self.backends = self._backends()
            check_interpreters(settings.python, registry)
            self._check_devices()
            self.servers = dict(settings.server)
            check_servers(self.servers, registry)
            for name in self.backends:
                self.named(name)
            self.base = self._base(root)
            #: The revision that is measured instead of the tree; None for the tree.
            self.head = self._head(root)
        except (KeyError, ValueError) as error:
            raise UnusableError(str(error.args[0] if error.args else error)) from None
        self.defaults = DEFAULTS["cpu" if self.device.kind == "cpu" else "accelerator"]
        self.dtype = self._dtype()
        self._largest = Workload(1, 1, 1)
        self._choices: dict[int, Choice] = {}
        #: The baseline file's content; None where there is none.
        self.stored: Baseline | None = None
        self._gated: dict[str, tuple[Workload, ...]] = {}
        self._at: dict[str, bool] = {}
        why = self.model.unloadable() or self.model.weightless()
        missing = list(map(self.missing, self.backends)) if why else []
        if why in missing and all(missing):
            raise UnusableError(f"model {self.model.name}: {why}; no backend of this run can load it")

    @property
    def passed_over(self) -> str:
        """Why the accelerators that are here are not measured, though nobody asked for the CPU; empty if none is."""
        if self.settings.device is not None or self.device.kind != "cpu" or not detect.found():
            return ""
        version = torch_of(self.settings, self.registry)
        return f"torch {version or '(which is not installed)'} cannot use {', '.join(detect.found())}"

    def _backends(self) -> tuple[str, ...]:
        everything = self.settings.backends == ("all",)
        asked = self.registry.everything() if everything else self.settings.backends
        names = tuple(dict.fromkeys(self._parallel(asked, everything)))
        reference = self.registry[self.settings.reference]
        if reference.name != self.settings.reference:
            raise UnusableError(
                f"--llm-reference={self.settings.reference}: this backend is called {reference.name}; write that"
            )
        if reference.tp > 1:
            raise UnusableError(
                f"--llm-reference={reference.name}: the reference is always one process; leave out tp{reference.tp}"
            )
        # The reference comes first: every speedup needs its figures.
        return tuple(sorted(names, key=lambda name: name != self.settings.reference))

    def named(self, name: str) -> str:
        """The own name of a backend or combination, whose variant has been looked at.

        Raises:
            KeyError, ValueError: it is not known, or its engine does not take what its variant gives it.
        """
        found = self.registry[name]
        if (variant := found.variant) is not None:
            given = variant.arguments or variant.environment
            running = f"the server of --llm-server={found.engine.name}=... runs already, with arguments of its own"
            why = running if given and self.attached(found) else found.refuses(self.interpreter(found))
            if why is not None:
                raise UnusableError(f"variant {variant.name}: {why}")
        return found.name

    def _check_devices(self) -> None:
        """Options of several devices have something to act on."""
        settings = self.settings
        if settings.executor and not any(self.registry[name].own_ranks for name in self.backends):
            raise UnusableError(
                f"--llm-executor={settings.executor} starts the ranks of vLLM, and no backend of this run is vLLM; "
                "leave the option out, or add vllm to --llm-backends"
            )
        if self.device.kind == "cpu" and (settings.visible_devices or settings.topology):
            option = "--llm-visible-devices" if settings.visible_devices else "--llm-topology"
            raise UnusableError(
                f"{option}: the CPU is one device; leave it out, or name an accelerator with --llm-device"
            )

    def _parallel(self, asked: Iterable[str], everything: bool) -> Iterator[str]:
        """The name of each backend asked for, at each degree of ``--llm-tp``; of ``all``, those that can be shared."""
        for degree, name in product(self.settings.tp, asked):
            one = self.registry[name]
            if degree == 1 or one.tp > 1:
                yield one.name
                continue
            try:
                yield self.registry[f"{name}+tp{degree}"].name
            except ValueError:
                if not everything:
                    raise

    def _base(self, root: Path) -> Base | None:
        settings = self.settings
        found = checkout.resolve(settings.base, settings.base_python, root)
        if found is not None and settings.accepts_all:
            raise UnusableError("--llm-update-baselines stores figures and --llm-base compares them; choose one")
        if settings.self_test and (found is not None or settings.update_baselines):
            options = "--llm-base, --llm-base-python and --llm-update-baselines"
            raise UnusableError(f"--llm-self-test gates nothing and accepts nothing; leave out {options}")
        if found is not None and found.python is not None:
            Interpreter(found.python).python_version()
        return found

    def _head(self, root: Path) -> Base | None:
        stated = self.settings.head
        if stated is not None and self.settings.base is None:
            raise UnusableError(f"--llm-head={stated}: it is compared with another revision; name that with --llm-base")
        return checkout.resolve(stated, None, root, "--llm-head")

    @cached_property
    def base_is_head(self) -> bool:
        """Whether the base that somebody named is the code under test, in the same interpreter."""
        base = self.base
        return base is not None and base.python is None and base.revision is not None and self.is_at(base.revision)

    @cached_property
    def commit(self) -> tuple[str | None, str | None]:
        """The revision under test, with a plus sign where files differ from it; or None, and why."""
        return checkout.head(self.root) if self.head is None else (self.head.revision, None)

    @cached_property
    def fits_twice(self) -> bool:
        """Whether the device's memory holds the reference, idle, beside another engine.

        That is the reference with its more exact twin (three times the weights), another engine, and as much again for
        caches and activations. Not where the size of the weights or of the memory is unknown.
        """
        memory = self.device.memory_bytes
        if self.device.kind == "cpu":
            import psutil

            memory = int(psutil.virtual_memory().total)
        weights = self.model.architecture.weight_bytes(self.dtype)
        return weights is not None and memory is not None and memory >= 5 * weights

    # The tests

    def complete(self, tests: Iterable[tuple[str, Workload]]) -> None:
        """Say which tests gate a case of which backend and workload, in their order, when collection has ended."""
        for backend, workload in tests:
            name = self.registry[backend].name
            self._gated[name] = tuple(dict.fromkeys([*self._gated.get(name, ()), workload]))

    def gated(self, backend: str) -> tuple[Workload, ...]:
        """The workloads of a backend that tests gate. One engine, or one pair of processes, serves them all."""
        return self._gated.get(backend, ())

    def accepted(self, backend: str) -> list[Workload]:
        """Those of them whose figures are accepted, whatever they are."""
        return [one for one in self.gated(backend) if all(map(self.accepts, self._cases(backend, one)))]

    def compared(self, backend: str) -> list[Workload]:
        """Those of them that are compared in pairs, whatever their figures are."""
        always = self.settings.self_test or self.settings.compare == "always"
        with_base = self.base is not None and not self.base_is_head and self.settings.compare != "never"
        accepted = self.accepted(backend)
        return [
            one
            for one in self.gated(backend)
            if (always and not (self.base is None and one in accepted))
            or (with_base and not any(map(self.own, self._cases(backend, one))))
        ]

    def _cases(self, backend: str, workload: Workload) -> list[Case]:
        """Every case that a test may gate of a workload: a test names its metric only when it runs."""
        return [self.case(backend, workload, metric) for metric in METRICS if metric not in STARTS]

    # The gate

    def case(self, backend: str, workload: Workload, metric: str) -> Case:
        """The case of this run's model and dtype."""
        return Case(self.model.name, self.dtype, backend, workload, metric)

    @property
    def baseline_path(self) -> Path:
        """Of the baseline file."""
        return store.path_for(self.settings.baseline_dir, self.device.name, self.model.name)

    @property
    def shown_path(self) -> Path:
        """That path, relative where it is below the working directory: results are shared."""
        path, here = self.baseline_path, Path.cwd()
        return path.relative_to(here) if path.is_relative_to(here) else path

    def read_baseline(self) -> None:
        """Read the baseline file, and try whether what is to be written can be.

        Raises:
            UnusableError: it cannot be used, or a file cannot be written.
        """
        settings = self.settings
        try:
            self.stored = store.load(self.baseline_path, self.device.name, self.model.name)
            if settings.update_baselines:
                store.check_writable(self.baseline_path)
            for file in (settings.results, *settings.report):
                if file is not None:
                    store.check_writable(file)
        except store.BaselineError as error:
            raise UnusableError(str(error)) from None

    def sitting(self, entry: Entry) -> Sitting:
        """The sitting that recorded an entry of the stored baseline."""
        assert self.stored is not None
        return self.stored.sitting(entry)

    def own(self, case: Case) -> list[Entry]:
        """What this machine recorded of a case, newest first."""
        return self.stored.own(case.key, fingerprint.take()) if self.stored else []

    def accepts(self, case: Case) -> bool:
        """Whether this run accepts a case's figures instead of gating them."""
        which = self.settings.update_baselines
        return which is not None and (which != "new" or not self.own(case))

    def prior(self, case: Case) -> Prior:
        """How much sittings of a case differ, where few are known."""
        return prior_of(self.device.kind, case.metric)

    @property
    def apart(self) -> list[Path]:
        """What is written by runs, and so does not tell whether the code is the same."""
        settings = self.settings
        return [settings.baseline_dir, *filter(None, (settings.results, *settings.report))]

    @cached_property
    def clean_revision(self) -> str | None:
        """The revision under test; None if files differ from it, or outside a repository."""
        if self.head is not None:
            return self.head.revision
        return checkout.clean_revision(self.root, self.apart)

    def is_at(self, revision: str) -> bool:
        """Whether the code under test is the same as at a revision. Git is asked once."""
        if self.head is not None:
            return self.head.revision == revision
        if revision not in self._at:
            self._at[revision] = checkout.is_at(revision, self.root, self.apart)
        return self._at[revision]

    @cached_property
    def _repository(self) -> Path:
        return checkout.top(self.root)

    def installed(self, backend: str) -> dict[str, str]:
        """The version of everything that a backend's interpreter has installed, but for the code under test."""
        return fingerprint.everything_installed(self.interpreter(self.registry[backend]), self._repository)

    def engine(self, backend: Combination) -> dict[str, Any]:
        """What the figures of a backend depend on beside the code: versions, variables, the type of its products."""
        return {
            "versions": fingerprint.packages(self.interpreter(backend), backend.distributions),
            "environment": backend.shown_environment,
            "compute_dtype": backend.compute_dtype or self.dtype,
            "variant": backend.variant.said if backend.variant else "",
        }

    def changed(self, backend: str, sitting: Sitting) -> str:
        """The versions and variables of a backend that are not a sitting's, its own packages first; empty if none."""
        registered = self.registry[backend]
        then, now, first = dict(sitting.versions), self.installed(backend), map(normal, registered.distributions)
        variables = sitting.system.get("environment")  # an older sitting does not say
        if variables is not None:
            then, now = then | variables, now | registered.shown_environment
        return changes(then, now, {*first, *(variables or ()), *registered.shown_environment})

    def changed_around(self, backend: str, sitting: Sitting) -> str:
        """As `changed`, and the variables of the environment, the kernel and the drivers that are not a sitting's."""
        recorded, drivers = sitting.system, fingerprint.system()
        variables = {"libraries": fingerprint.libraries(os.environ), "variables": fingerprint.limits()["variables"]}
        then, now = dict[str, str](), dict[str, str]()
        for name in variables.keys() & recorded.keys():  # an older sitting does not say
            then, now = then | recorded[name], now | variables[name]
        for name in drivers.keys() & recorded.keys():
            then, now = then | {name: recorded[name]}, now | {name: drivers[name]}
        around = changes(then, now)
        return ", ".join(filter(None, [self.changed(backend, sitting), around]))

    def changed_from_base(self, backend: str) -> str:
        """The versions of a backend's interpreter that are not those of ``--llm-base-python``; empty if none."""
        if self.base is None or self.base.python is None:
            return ""
        then = fingerprint.everything_installed(Interpreter(self.base.python), self._repository)
        return changes(then, self.installed(backend), set(map(normal, self.registry[backend].distributions)))

    def profile(self, case: Case) -> Profile:
        """What this machine recorded last of what a case's steps spend their time on; empty if nothing."""
        return self.stored.profile(case.profile_key, fingerprint.take()) if self.stored else {}

    @property
    def room(self) -> list[int]:
        """What engines have room for: requests, and tokens of one request."""
        return [self.largest.batch_size, self.largest.prompt_length + self.largest.max_new_tokens]

    def cases_of(self, backend: str) -> dict[str, Any]:
        """What the memory of a backend's processes depends on: their room, and the workloads that each measures."""
        return {"room": self.room, "workloads": list(map(str, self.gated(backend)))}

    def other_cases(self, backend: str, sitting: Sitting) -> str | None:
        """How `cases_of` a backend differ from those of a sitting, in a clause; None if not, or not known."""
        now = self.cases_of(backend)
        room, workloads = (sitting.system.get(name, now[name]) for name in now)
        if room != now["room"]:
            then, here = (f"{requests} requests of {tokens} tokens" for requests, tokens in (room, now["room"]))
            return f"recorded with room for {then}, and this run has room for {here}"
        if workloads != now["workloads"]:
            then, here = (", ".join(each) or "none" for each in (workloads, now["workloads"]))
            return f"recorded by processes that measured {then}, and those of this run measure {here}"
        return None

    def same_variables(self, backend: str, sitting: Sitting) -> bool:
        """Whether a backend has the variables that it had in a sitting, as far as that is known."""
        now = self.registry[backend].shown_environment
        return bool(sitting.system.get("environment", now) == now)

    # Backends

    def interpreter(self, backend: Combination) -> Interpreter:
        """The Python that the backend's worker runs in."""
        return interpreter_of(backend, self.settings.python)

    def _dtype(self) -> str:
        dtype = self.settings.dtype or (cpu_dtype() if self.device.kind == "cpu" else self.model.half_type)
        if dtype not in self.device.dtypes:
            raise UnusableError(
                f"--llm-dtype={dtype}: {self.device.name} has no fast {dtype}; it has {', '.join(self.device.dtypes)}"
            )
        return dtype

    def workloads(
        self,
        batch_sizes: Sequence[int] | None = None,
        prompt_lengths: Sequence[int] | None = None,
        max_new_tokens: int | None = None,
    ) -> list[Workload]:
        """Every combination of batch size and prompt length: the arguments, else the settings, else the device's.

        Raises:
            UnusableError: a prompt and its new tokens do not fit the model's context.
        """
        settings, defaults = self.settings, self.defaults
        tokens = max_new_tokens or settings.max_new_tokens or defaults.max_new_tokens
        found = [
            Workload(batch, length, tokens)
            for length in prompt_lengths or settings.prompt_lengths or defaults.prompt_lengths
            for batch in batch_sizes or settings.batch_sizes or defaults.batch_sizes
        ]
        context = self.model.architecture.context_length
        for workload in found:
            if workload.prompt_length + workload.max_new_tokens > context:
                raise UnusableError(
                    f"a prompt of {workload.prompt_length} tokens and {workload.max_new_tokens} new tokens do not fit "
                    f"the context of {self.model.name}, which is {context} tokens; "
                    "lower --llm-prompt-lengths or --llm-max-new-tokens"
                )
        self.cover([self._largest, *found])
        return found

    @property
    def traffic(self) -> list[Traffic]:
        """What servers are put under: every concurrency and every rate that was asked for."""
        settings = self.settings
        closed = settings.concurrency or (() if settings.request_rates else CONCURRENCY)
        return [*(Traffic(concurrency=one) for one in closed), *(Traffic(rate=one) for one in settings.request_rates)]

    def cover(self, workloads: Sequence[Workload]) -> None:
        """These are what is measured, so what engines must have room for."""
        self._largest = Workload(*map(max, zip(*map(astuple, [Workload(1, 1, 1), *workloads]), strict=True)))

    @property
    def largest(self) -> Workload:
        """The most requests, prompt tokens and new tokens of any test so far; of the settings, where none has said."""
        if self._largest.batch_size * self._largest.prompt_length == 1:
            self.workloads()
        return self._largest

    @property
    def uncounted(self) -> str | None:
        """Why nobody knows how many parameters the model has, or how many bytes; None where that is known."""
        if self.model.architecture.parameters is None:
            return f"the sizes of the model type {self.model.config.get('model_type')!r} are not known here"
        if self.model.architecture.quantized:
            return f"{self.model.name} has quantized weights"
        return None

    @property
    def need(self) -> Need:
        """Bytes that the model, the largest workload and parity need."""
        # The reference, which judges the others, is one process on one device.
        alone = self.device.kind == "cpu" or not self.model.random_weights
        shared = 1 if alone else min(self.registry[name].tp for name in self.backends)
        found = facts.need(self.model.architecture, self.dtype, self.largest, self.model.name, shared)
        return replace(found, parity=0) if self.model.random_weights else found

    def missing(self, backend: str) -> str | None:
        """Why the backend cannot run here, or None."""
        combination = self.registry[backend]
        return (
            why_not(combination, self.device, self.interpreter(combination), self.servers)
            or self._unsupported_dtype(combination)
            or self._not_loadable(combination)
            or self._not_in_transformers(combination)
            or why_not_sharded(self.model.architecture, combination.tp, combination.own_ranks)
            or self._too_few(combination)
            or self._unplaced(combination)
        )

    def _unsupported_dtype(self, backend: Combination) -> str | None:
        part = next((part for part in backend.all if part.dtypes and self.dtype not in part.dtypes), None)
        if part is None or self.attached(backend):  # a server that runs already has its own type
            return None
        usable = [f"--llm-dtype={dtype}" for dtype in part.dtypes if dtype in self.device.dtypes]
        return f"{part.name} does not support {self.dtype}" + (f"; choose {' or '.join(usable)}" if usable else "")

    def _not_loadable(self, backend: Combination) -> str | None:
        """Why an engine of ours cannot load this model, or None where nothing is known against it."""
        ours = backend.engine.name in IN_TRANSFORMERS
        if not (ours or backend.own_ranks) or self.attached(backend):
            return None
        # Another interpreter has another transformers, and TGI has models of its own.
        reads = self.interpreter(backend).own and backend.engine.name != "tgi"
        return (self.model.unloadable(configured=not ours) if reads else None) or self.model.weightless(not ours)

    def _not_in_transformers(self, backend: Combination) -> str | None:
        """Why transformers has not the attention that the backend needs, or None where nothing is known against it."""
        engine = backend.engine.name
        if engine not in IN_TRANSFORMERS or not self.interpreter(backend).own:
            return None
        attention = next((part.name for part in backend.all if part.slot == "attention"), DEFAULT_ATTENTION)
        remedy = "+".join(["eager", *(part.name for part in backend.parts if part.slot != "attention")])
        if attention in ("sdpa", "sdpa-flash") and known.supports_sdpa(self.model.kind) is False:
            return f"transformers has no sdpa attention for the model type {self.model.kind!r}; {remedy} may run"
        if attention in UNCAPPED[engine] and (cap := known.score_cap(self.model.config)) is not None:
            found = f"{self.model.kind} caps its attention scores (attn_logit_softcapping is {cap:g}), which "
            return f"{found}{attention} leaves out, so its tokens would be wrong" + (
                f"; {remedy} may run" if engine == "transformers" else ""
            )
        return None

    def devices(self, backend: Combination) -> Choice | None:
        """The devices that the backend's ranks use, and why; None where that is not this project's to say.

        One device is the first that torch sees unless somebody names another, and executors place their ranks.

        Raises:
            TopologyError: there are too few, or their links cannot be told.
        """
        settings = self.settings
        if self.device.kind == "cpu" or self.attached(backend) or self._elsewhere(backend):
            return None
        if backend.tp == 1 and settings.visible_devices is None:
            return None
        if backend.tp not in self._choices:
            self._choices[backend.tp] = placement.choose(
                backend.tp, self.device, settings.visible_devices, settings.topology
            )
        return self._choices[backend.tp]

    def device_variables(self, backend: Combination) -> dict[str, str]:
        """What a worker is told of the devices that it may use."""
        if self.device.kind == "cpu" and backend.ranks > 1:
            # transformers shards over the accelerator that torch sees, if there is one.
            return {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
        chosen = self.devices(backend)
        return {} if chosen is None else topology.environment(chosen, self.device.kind, os.environ)

    def _unplaced(self, backend: Combination) -> str | None:
        """Why no devices can be chosen for the backend's ranks, or None."""
        try:
            self.device_variables(backend)
        except TopologyError as error:
            return str(error)
        return None

    def _elsewhere(self, backend: Combination) -> bool:
        """Whether an executor places the backend's ranks, on other hosts perhaps."""
        return bool(self.settings.executor and backend.own_ranks)

    def _too_few(self, backend: Combination) -> str | None:
        """Why there are not enough devices, or is not enough of their memory, for the model's weights and its cache."""
        degree = backend.tp
        if self.settings.executor == "ray" and backend.own_ranks and self.device.kind == "cpu":
            return "vLLM does not run over Ray on a CPU"  # 0.32: "current platform cpu does not support ray"
        if degree > 1 and self.attached(backend):
            return f"the server of --llm-server already runs, with a degree of its own; leave out tp{degree}"
        if degree == 1 or self.device.kind == "cpu" or self._elsewhere(backend):
            return None
        if (here := detect.count(self.device)) < degree:
            return f"{degree} ranks need {degree} {self.device.name} dies, and this machine has {here}"
        model, largest = self.model.architecture, self.largest
        tokens = largest.batch_size * (largest.prompt_length + largest.max_new_tokens)
        weights, memory = model.weight_bytes(self.dtype), self.device.memory_bytes
        if weights is None or memory is None:
            return None
        share = (weights + tokens * model.kv_bytes_per_token(self.dtype)) / degree
        if share > memory:
            return (
                f"each rank's share of the weights and the KV cache is {share / 2**30:.0f} GiB, and a "
                f"{self.device.name} die has {memory / 2**30:.0f} GiB; use more ranks"
            )
        return None

    def attached(self, backend: Combination) -> dict[str, Any]:
        """What the backend is told of the server that it is a client of; nothing where that is no affair of ours."""
        if backend.engine.name not in self.servers:
            return {}
        folder = self.model.folder
        return {
            "server": self.servers[backend.engine.name],
            "headers": dict(self.settings.server_header),
            "names": [self.model.name, self.settings.model, "" if folder is None else folder.name],
            "served_model": self.settings.served_model,
        }

    def matching(self, case: Case) -> list[tuple[str, float]]:
        """The lines of ``llm_tolerances`` whose pattern matches a case's key."""
        return [(pattern, value) for pattern, value in self.settings.tolerances if fnmatchcase(case.key, pattern)]

    def idle(self, cases: Iterable[Case]) -> list[str]:
        """The patterns of ``llm_tolerances`` that match none of the cases."""
        matched = {pattern for case in cases for pattern, _ in self.matching(case)}
        return [pattern for pattern, _ in self.settings.tolerances if pattern not in matched]

    def allowed(self, case: Case, stated: float | None) -> Allowed:
        """The slowdown that a case is allowed and where that was stated; the strictest of the stated ones.

        ``--llm-max-regression`` is for latencies. Other metrics have a default of their own.

        Args:
            case: which.
            stated: by its test's marker; None without one.
        """
        option = "--llm-max-regression" if "max_regression" in self.settings.typed else "llm_max_regression"
        candidates = [
            (value, source)
            for value, source in (
                (stated, "marker"),
                (self.settings.max_regression if case.metric in LATENCIES else None, option),
                *((value, f"llm_tolerances: {pattern}") for pattern, value in self.matching(case)),
            )
            if value is not None
        ]
        usual = (self.device.max_regression, f"default of {self.device.name}")
        with_base = (BASE_TOLERANCE, "default with a base")
        if (own := METRICS[case.metric].allowed) is not None:
            usual = with_base = (own[self.device.kind != "cpu"], f"default of {case.metric} on {self.device.name}")
        return Allowed(
            by_baseline=min(candidates, default=usual),
            beside_base=min(candidates, default=with_base),
            named_base=self.base is not None and not self.base_is_head,
        )
