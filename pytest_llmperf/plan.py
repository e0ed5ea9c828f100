"""What a run covers: device, model, dtype, backends, workloads, tolerances. Settled before any model is loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from pytest_llmperf import models
from pytest_llmperf.backends.registry import Combination, Registry
from pytest_llmperf.backends.tensor_parallel import why_not_sharded
from pytest_llmperf.cases import Case, Workload
from pytest_llmperf.gate import checkout
from pytest_llmperf.gate.checkout import Base
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.load import Traffic
from pytest_llmperf.machine import detect, facts, fingerprint, placement, topology
from pytest_llmperf.machine.doctor import Need
from pytest_llmperf.machine.table import Device
from pytest_llmperf.machine.topology import Choice, TopologyError
from pytest_llmperf.measure.sampling import Plan
from pytest_llmperf.secret import Secret
from pytest_llmperf.settings import Settings


class UnusableError(ValueError):
    """The run cannot begin; one line says what was asked, why it cannot be, and what to do."""


@dataclass(frozen=True)
class Defaults:
    """What a kind of device is measured with where the user does not say."""

    batch_sizes: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    max_new_tokens: int
    plan: Plan


#: The slowdown allowed where base is measured beside head: what both suffer cancels, so less of it must be allowed.
BASE_TOLERANCE = 0.03
#: Requests that a server answers at a time where nobody says.
CONCURRENCY = (1, 8)
#: Instruction sets that multiply bfloat16. Without one a CPU takes ten times as long as for float32.
NATIVE_BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16"}

DEFAULTS = {
    "cpu": Defaults((1, 4), (256,), 32, Plan(minimum=3, maximum=10, budget=6.0)),
    "accelerator": Defaults((1, 2, 4, 8, 16, 32), (2048,), 128, Plan(minimum=3, maximum=20, budget=2.0)),
}


def cpu_dtype() -> str:
    """What this machine's CPU is measured in where nobody says: bfloat16 if it multiplies it natively, else float32."""
    return "bfloat16" if NATIVE_BFLOAT16.intersection(fingerprint.take().isa) else "float32"


def interpreter_of(backend: Combination, stated: Sequence[tuple[str, str]]) -> Interpreter:
    """The Python that a backend runs in: the one stated for it or for a part of it, else pytest's own.

    Raises:
        UnusableError: two are stated.
    """
    paths = dict(stated)
    found = {paths[name]: name for name in (backend.name, *(part.name for part in backend.all)) if name in paths}
    if len(found) > 1:
        what = ",".join(f"{name}={path}" for path, name in found.items())
        raise UnusableError(f"--llm-python={what}: {backend.name} can run in one interpreter alone")
    return Interpreter(next(iter(found))) if found else Interpreter()


def check_interpreters(stated: Sequence[tuple[str, str]], registry: Registry) -> None:
    """Every one is for a backend that is known, under its own name, and can be asked what is installed there.

    Raises:
        KeyError, ValueError: one is not.
    """
    for name, path in stated:
        if "+" not in name:
            registry.part(name)
        elif registry[name].name != name:
            raise UnusableError(f"--llm-python={name}: that is {registry[name].name}, under its own name")
        Interpreter(path).python_version()


def check_servers(named: Mapping[str, Secret], registry: Registry) -> None:
    """Every one is for a backend that can be the client of a server that runs already.

    Raises:
        KeyError, ValueError: one is not.
    """
    for name in named:
        if not registry.part(name).attaches:
            can = ", ".join(one for one in registry.names() if registry.part(one).attaches)
            raise UnusableError(
                f"--llm-server={name}=...: {name} is no client of a server that runs already; {can} are"
            )


def why_not(backend: Combination, device: Device, interpreter: Interpreter, servers: Container[str] = ()) -> str | None:
    """The reason why a backend cannot run on a device in an interpreter, or None.

    Args:
        backend: what is to run.
        device: where.
        interpreter: in which Python.
        servers: the backends for which a server is named that runs already.
    """
    if reason := backend.requires(device):
        return reason
    engine = backend.engine
    if engine.attaches and engine.name not in servers:
        prefix = "" if engine.name == "server" else f"{engine.name}="
        remedy = f"name one that runs, as in --llm-server={prefix}http://127.0.0.1:8000"
        if not engine.launcher:
            return f"no server is named; {remedy}"
        if shutil.which(engine.launcher) is None:
            return f"{engine.launcher} is not on PATH; {remedy}"
    for part in backend.all:
        if part.distributions and interpreter.found(part.distributions) is None:
            where = "" if interpreter.own else f" in {interpreter.path}"
            return f"{' or '.join(part.distributions)} is not installed{where}"
    return None


class Scope:
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
        self._root = root
        try:
            self.device = detect.resolve(settings.device)
            self.model = models.resolve(settings.model, settings.random_weights, cache)
            self.backends = self._backends()
            check_interpreters(settings.python, registry)
            self._check_devices()
            self.servers = dict(settings.server)
            check_servers(self.servers, registry)
            self.base = self._base(root)
        except (KeyError, ValueError) as error:
            raise UnusableError(str(error.args[0] if error.args else error)) from None
        self.defaults = DEFAULTS["cpu" if self.device.kind == "cpu" else "accelerator"]
        self.dtype = self._dtype()
        self._largest = Workload(1, 1, 1)
        self._choices: dict[int, Choice] = {}

    @property
    def passed_over(self) -> tuple[str, ...]:
        """Accelerators that are here and not in the table, so that the CPU is measured, for which nobody asked."""
        return detect.found() if self.settings.device is None and self.device.kind == "cpu" else ()

    def _backends(self) -> tuple[str, ...]:
        everything = self.settings.backends == ("all",)
        asked = self.registry.everything() if everything else self.settings.backends
        names = tuple(dict.fromkeys(self._parallel(asked, everything)))
        reference = self.registry[self.settings.reference]
        if reference.name != self.settings.reference:
            raise UnusableError(
                f"--llm-reference={self.settings.reference}: that is {reference.name}, under its own name"
            )
        if reference.tp > 1:
            raise UnusableError(
                f"--llm-reference={reference.name}: the reference is one process; leave out tp{reference.tp}"
            )
        # The reference comes first: every speedup needs its figures.
        return tuple(sorted(names, key=lambda name: name != self.settings.reference))

    def _check_devices(self) -> None:
        """Options of several devices have something to act on."""
        settings = self.settings
        if settings.executor and not any(self.registry[name].own_ranks for name in self.backends):
            raise UnusableError(
                f"--llm-executor={settings.executor}: it starts vLLM's ranks, and no backend here is vLLM"
            )
        if self.device.kind == "cpu" and (settings.visible_devices or settings.topology):
            option = "--llm-visible-devices" if settings.visible_devices else "--llm-topology"
            raise UnusableError(f"{option}: the CPU is one device; leave it out, or name another with --llm-device")

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
            raise UnusableError("--llm-self-test gates nothing and accepts nothing; leave out the base and the update")
        if found is not None and found.python is not None:
            Interpreter(found.python).python_version()
        return found

    @cached_property
    def commit(self) -> str | None:
        """The revision under test, with a plus sign where files differ from it; None outside a repository."""
        return checkout.head(self._root)

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
                    f"prompt of {workload.prompt_length} tokens + {workload.max_new_tokens} new ones do not fit the "
                    f"context of {self.model.name}, {context}; lower --llm-prompt-lengths or --llm-max-new-tokens"
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
            return "the server that --llm-server names runs already, with a degree of its own"
        if degree == 1 or self.device.memory_bytes is None or self._elsewhere(backend):
            return None
        if (here := detect.count(self.device)) < degree:
            return (
                f"{degree} ranks need as many {self.device.name} dies, and {here} {'is' if here == 1 else 'are'} here"
            )
        model, largest = self.model.architecture, self.largest
        tokens = largest.batch_size * (largest.prompt_length + largest.max_new_tokens)
        share = (model.weight_bytes(self.dtype) + tokens * model.kv_bytes_per_token(self.dtype)) / degree
        if share > self.device.memory_bytes:
            return (
                f"a rank's share of weights and cache is {share / 2**30:.0f} GiB, and a {self.device.name} die has "
                f"{self.device.memory_bytes / 2**30:.0f}"
            )
        return None

    def attached(self, backend: Combination) -> dict[str, Any]:
        """What the backend is told of the server that it is a client of; nothing where that is no affair of ours."""
        if backend.engine.name not in self.servers:
            return {}
        return {"server": self.servers[backend.engine.name], "headers": dict(self.settings.server_header)}

    def matching(self, case: Case) -> list[tuple[str, float]]:
        """The lines of ``llm_tolerances`` whose pattern matches a case's key."""
        return [(pattern, value) for pattern, value in self.settings.tolerances if fnmatchcase(case.key, pattern)]

    def idle(self, cases: Iterable[Case]) -> list[str]:
        """The patterns of ``llm_tolerances`` that match none of the cases."""
        matched = {pattern for case in cases for pattern, _ in self.matching(case)}
        return [pattern for pattern, _ in self.settings.tolerances if pattern not in matched]

    def tolerance(self, case: Case, stated: float | None, beside_base: bool = False) -> tuple[float, str]:
        """The slowdown that a case is allowed and where that was stated; the strictest of the stated ones.

        Args:
            case: which.
            stated: by its test's marker.
            beside_base: whether it is compared with base rather than with a baseline; that has a default of its own.
        """
        option = "--llm-max-regression" if "max_regression" in self.settings.typed else "llm_max_regression"
        candidates = [
            (value, source)
            for value, source in (
                (stated, "marker"),
                (self.settings.max_regression, option),
                *((value, f"llm_tolerances: {pattern}") for pattern, value in self.matching(case)),
            )
            if value is not None
        ]
        if beside_base:
            return min(candidates, default=(BASE_TOLERANCE, "default with a base"))
        return min(candidates, default=(self.device.max_regression, f"default of {self.device.name}"))
