"""The backends of a run: the built-in ones, those that a suite's ``conftest.py`` registers, and their combinations."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING

from pytest_llmperf.backends import (
    arguments,
    compile,  # noqa: A004  the optimization's name
    compile_static,
    eager,
    flash_attention,
    int8,
    max_autotune,
    sdpa,
    sdpa_flash,
    server,
    tensor_parallel,
    tgi,
    transformers_paged,
    tunableop,
    vllm,
    vllm_serve,
    xformers,
)
from pytest_llmperf.backends.base import APPLIED, CLIENT, SLOTS, Backend
from pytest_llmperf.variants import ENVIRONMENT, SECRET_NAME, Variant

if TYPE_CHECKING:
    from pytest_llmperf.cases import Workload
    from pytest_llmperf.interpreter import Interpreter
    from pytest_llmperf.machine.table import Device

#: What runs a combination that names no engine.
TRANSFORMERS = Backend(
    "transformers",
    "pytest_llmperf.backends.transformers_engine:TransformersEngine",
    arguments=arguments.of_transformers,
    held=arguments.TRANSFORMERS_HELD,
)

BUILT_IN: tuple[Backend, ...] = (
    eager.BACKEND,
    sdpa.BACKEND,
    sdpa_flash.BACKEND,
    *flash_attention.BACKENDS,
    xformers.BACKEND,
    compile.BACKEND,
    compile_static.BACKEND,
    max_autotune.BACKEND,
    int8.BACKEND,
    tunableop.BACKEND,
    transformers_paged.BACKEND,
    *vllm.BACKENDS,
    vllm_serve.BACKEND,
    server.BACKEND,
    *tgi.BACKENDS,
)
#: Those that only change another, in the combinations that ``--llm-backends=all`` measures.
COMBINED = (
    "compile-static+max-autotune",
    "compile-static+int8",
    "eager+tunableop",
    "flash-attention-2+tunableop",
    "vllm+tunableop",
)
#: Arguments that an error lists, at most.
MANY = 20
#: What transformers' attention is where a combination does not say, so saying it changes nothing.
DEFAULT_ATTENTION = "sdpa"


@dataclass(frozen=True)
class Combination:
    """What is measured under one name: an engine, and what changes it.

    Attributes:
        name: the parts' names joined by plus signs, in the order of `SLOTS`, so that one thing has one name. A variant
            has its id instead of the names of what it is a variant of.
        engine: what generates.
        parts: what changes it, in the order in which they are applied.
        variant: whose arguments, variables and proofs it has; None without one.
    """

    name: str
    engine: Backend
    parts: tuple[Backend, ...]
    variant: Variant | None = None

    @property
    def all(self) -> tuple[Backend, ...]:
        return (self.engine, *self.parts)

    def reference(self) -> list[dict[str, str]]:
        """Where the worker finds the engine and, in order, what changes it."""
        return [part.reference() for part in self.all]

    @property
    def built_in(self) -> bool:
        """Whether it needs nothing of the suite's: every part of it belongs to this package."""
        return all(part["module"].partition(".")[0] == "pytest_llmperf" for part in self.reference())

    @cached_property
    def environment(self) -> dict[str, str]:
        """Variables of the worker."""
        own = self.variant.environment if self.variant else {}
        return {name: value for part in self.all for name, value in part.environment.items()} | dict(own)

    @property
    def shown_environment(self) -> dict[str, str]:
        """Of these, the variables that may be stored and shown: no name says that it holds a secret."""
        return {name: value for name, value in self.environment.items() if not SECRET_NAME.search(name)}

    @property
    def distributions(self) -> tuple[str, ...]:
        """Every package that a part names."""
        return tuple(dict.fromkeys(name for part in self.all for name in part.distributions))

    @property
    def weight_bytes(self) -> float | None:
        """Bytes of a weight where they are not those of the run's dtype, else None."""
        return next((part.weight_bytes for part in self.all if part.weight_bytes is not None), None)

    @property
    def compute_dtype(self) -> str | None:
        """The type in which it multiplies where that is not the run's dtype, else None."""
        return next((part.compute_dtype for part in self.all if part.compute_dtype is not None), None)

    def approximates(self, dtype: str) -> bool:
        """Whether a part's weights or activations are coarser than the reference's by design."""
        return any(part.approximates(dtype) for part in self.all)

    @property
    def limits(self) -> dict[str, int]:
        """The most that each part takes, by the names of an `EngineSpec`: ``batch_size`` and ``sequence_length``."""
        found = {
            "batch_size": [part.max_batch_size for part in self.all],
            "sequence_length": [part.max_sequence_length for part in self.all],
        }
        return {name: min(filter(None, stated)) for name, stated in found.items() if any(stated)}

    def beyond(self, workload: Workload) -> str | None:
        """Why a workload is more than the backend takes, or None."""
        limits, length = self.limits, workload.prompt_length + workload.max_new_tokens
        if workload.batch_size > (most := limits.get("batch_size", workload.batch_size)):
            plural = "s" * (most > 1)
            return f"it takes at most {most} request{plural} at a time, and this batch has {workload.batch_size}"
        if length > (most := limits.get("sequence_length", length)):
            return f"it takes at most {most} tokens a request, and these requests have {length}"
        return None

    @property
    def tp(self) -> int:
        """Tensor-parallel degree."""
        return max(part.degree for part in self.all)

    @property
    def served(self) -> bool:
        """Whether it answers requests as they come, so that it can be put under load."""
        return self.boundary == CLIENT

    @property
    def own_ranks(self) -> bool:
        """Whether the engine starts its ranks itself."""
        return self.engine.name in tensor_parallel.OWN_RANKS

    @property
    def ranks(self) -> int:
        """Worker processes that run it together."""
        return 1 if self.own_ranks else self.tp

    @property
    def boundary(self) -> str:
        """Where its latencies are seen."""
        return self.engine.boundary

    @property
    def proof(self) -> str:
        own = [f"{what} that matches {one!r}" for what, one in (self.variant.proofs if self.variant else {}).items()]
        return "; ".join([*(part.proof for part in self.all if part.proof), *own])

    @property
    def optimizes(self) -> str:
        kinds = {part.optimizes for part in self.all} - {"none"}
        return "both" if len(kinds) > 1 else next(iter(kinds), "none")

    def requires(self, device: Device) -> str | None:
        """The first part's reason why it cannot run on the device, or None."""
        return next((reason for part in self.all if (reason := part.requires(device))), None)

    def refuses(self, interpreter: Interpreter) -> str | None:
        """Why the engine does not take what its variant gives it, or None where nothing is known against it.

        Args:
            interpreter: in which it runs, whose packages say what arguments there are. Nothing is imported.
        """
        if self.variant is None:
            return None
        given = [*self.variant.arguments, *(ENVIRONMENT + name for name in self.variant.environment)]
        set_by = {ENVIRONMENT + name: f"{part.name} sets it" for part in self.all for name in part.environment}
        held = {name: why for part in self.all for name, why in part.held.items()} | set_by
        for name in given:
            if name in held:
                return f"it cannot give {name.removeprefix(ENVIRONMENT)} to {self.engine.name}: {held[name]}"
        stated = self.engine.arguments
        known = stated(interpreter) if callable(stated) else stated
        unknown = [name for name in self.variant.arguments if known is not None and name not in known]
        if not unknown or known is None:
            return None
        found = interpreter.found(self.engine.distributions)
        whose = " ".join(found) if found else self.engine.name
        if near := difflib.get_close_matches(unknown[0], known, 1):
            meant = f", did you mean {near[0]!r}?"
        elif known:
            meant = f"; it takes {', '.join(sorted(known))}" if len(known) < MANY else ""
        else:
            meant = "; a backend names those that it takes in Backend(arguments=...)"
        return f"{whose} takes no argument {unknown[0]!r} of a variant{meant}"


class Registry:
    """The backends of this run, by name, in order of registration."""

    def __init__(self, backends: Sequence[Backend] = ()) -> None:
        self._backends: dict[str, Backend] = {}
        #: By name and by id.
        self._variants: dict[str, Variant] = {}
        self._combinations: dict[str, Combination] = {}
        for backend in backends:
            self.add(backend)

    def add(self, backend: Backend) -> None:
        """Register a backend. Raises ValueError if its name or slot will not do, or its loader cannot be passed on."""
        if backend.name in self._backends or backend.name == TRANSFORMERS.name:
            raise ValueError(f"backend {backend.name!r} is registered twice; choose another name")
        if not backend.name or set(backend.name) & set("+,/= "):
            raise ValueError(f"backend {backend.name!r}: a name has no plus sign, comma, slash, equals sign or space")
        if tensor_parallel.part(backend.name):
            raise ValueError(f"backend {backend.name!r}: tp and a number is tensor parallelism; choose another name")
        if backend.slot not in SLOTS:
            raise ValueError(f"backend {backend.name!r}: unknown slot {backend.slot!r}; known: {', '.join(SLOTS)}")
        for name, most in (("batch_size", backend.max_batch_size), ("sequence_length", backend.max_sequence_length)):
            if most is not None and most < 1:
                raise ValueError(f"backend {backend.name!r}: max_{name} is {most}; it is at least 1, or None for any")
        backend.reference()
        self._backends[backend.name] = backend

    def add_variant(self, variant: Variant) -> None:
        """Register a variant of a backend that is known. Raises ValueError, or KeyError for the backend."""
        variant.check()
        if variant.name in (*self._backends, *self._variants, TRANSFORMERS.name) or tensor_parallel.part(variant.name):
            raise ValueError(f"variant {variant.name}: there is a backend or variant of that name; choose another name")
        try:
            _ = self[variant.backend]
        except (KeyError, ValueError) as error:
            raise type(error)(f"variant {variant.name}: {error.args[0]}") from None
        if self.variants_of(variant.backend):
            raise ValueError(f"variant {variant.name}: {variant.backend} is a variant itself; name a backend")
        self._variants |= {variant.name: variant, variant.id: variant}

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Every variant, in order of registration."""
        return tuple(one for name, one in self._variants.items() if name == one.name)

    def variants_of(self, name: str) -> list[Variant]:
        """The variants that a name consists of, by their names or ids."""
        return [self._variants[one] for one in name.split("+") if one in self._variants]

    def names(self) -> tuple[str, ...]:
        """Every backend's name, the ones that only change another included."""
        return tuple(self._backends)

    def part(self, name: str) -> Backend:
        """A backend by itself, though it may only change another. Raises KeyError, with the known names."""
        if (parallel := tensor_parallel.part(name)) is not None:
            return parallel
        if name not in self._backends:
            known = [*self._backends, *(one.name for one in self.variants)]
            near = difflib.get_close_matches(name.partition("@")[0], known, 1)
            meant = f", did you mean {near[0]!r}?" if near else ""
            raise KeyError(f"unknown backend {name!r}{meant}; known: {', '.join(known)}, combined as in a+b")
        return self._backends[name]

    def completed(self, name: str) -> list[Combination]:
        """The smallest combinations with a backend: alone if it changes transformers, else with what it changes."""
        part = self.part(name)
        if not part.needs and (not part.engines or TRANSFORMERS.name in part.engines):
            return [self[name]]
        return [self[f"{one}+{name}"] for one in part.needs or part.engines if one in self._backends]

    def everything(self) -> tuple[str, ...]:
        """What ``all`` means: every backend that is something by itself, combinations worth measuring, variants."""
        whole = [name for name, one in self._backends.items() if _is_whole(one)]
        combined = [name for name in COMBINED if set(name.split("+")) <= self._backends.keys()]
        return (*whole, *combined, *(one.id for one in self.variants))

    def __getitem__(self, name: str) -> Combination:
        """The backend or combination of that name.

        Raises:
            KeyError: a part is not known; the message lists those that are.
            ValueError: the parts make no sense together; the message says why.
        """
        if name not in self._combinations:
            self._combinations[name] = self._combine(name)
        return self._combinations[name]

    def _combine(self, name: str) -> Combination:
        if variants := self.variants_of(name):
            return self._varied(name, variants)
        parts = [self.part(part) for part in name.split("+")]
        engine = next((part for part in parts if part.slot == "engine"), TRANSFORMERS)
        reason = _nonsense(parts, engine)
        if reason is not None:
            raise ValueError(f"backend {name!r}: {reason}")
        if engine.name.startswith("transformers"):
            more = [part for part in parts if part.name != DEFAULT_ATTENTION]
            if any(part.slot != "parallelism" for part in more):
                parts = more
            elif len(more) == len(parts):  # a degree alone is that of what everybody runs
                parts = [self.part(DEFAULT_ATTENTION), *parts]
        changing = [part for part in parts if part is not engine]
        return Combination(
            "+".join(part.name for part in sorted(parts, key=lambda part: SLOTS.index(part.slot))),
            engine,
            tuple(sorted(changing, key=lambda part: APPLIED.index(part.slot))),
        )

    def _varied(self, name: str, variants: Sequence[Variant]) -> Combination:
        """What a variant is a variant of, and the parts that are joined to it."""
        if len(variants) > 1:
            raise ValueError(f"backend {name!r}: {' and '.join(one.name for one in variants)} are variants; keep one")
        (variant,) = variants
        joined = [one for one in name.split("+") if one not in self._variants]
        own, whole = self[variant.backend], self["+".join([variant.backend, *joined])]
        more = sorted((part for part in whole.all if part not in own.all), key=lambda part: SLOTS.index(part.slot))
        return replace(whole, name="+".join([variant.id, *(part.name for part in more)]), variant=variant)


def _is_whole(backend: Backend) -> bool:
    """Whether a backend is something by itself: an engine, or what changes transformers' without needing more."""
    alone = not backend.engines or TRANSFORMERS.name in backend.engines
    return not backend.needs and (
        backend.slot == "engine" or (alone and backend.slot not in ("gemm", "weights", "parallelism"))
    )


def _nonsense(parts: Sequence[Backend], engine: Backend) -> str | None:
    """Why the parts cannot be combined, or None."""
    names = {part.name for part in parts}
    for one, other in combinations(parts, 2):
        if one.slot == other.slot:
            what = {
                "engine": "are engines",
                "gemm": "tune matrix products",
                "parallelism": "are degrees",
            }.get(one.slot, f"decide the {one.slot}")
            return f"{one.name} and {other.name} both {what}; keep one"
    for part in parts:
        if part is not engine and part.engines and engine.name not in part.engines:
            return f"{part.name} changes {' or '.join(part.engines)}, and {engine.name} has its own {part.slot}"
        if part is not engine and not part.engines and engine.boundary == CLIENT:
            return f"{part.name} changes what the worker computes, and {engine.name} computes in a server of its own"
        if part.needs and not names & {*part.needs}:
            return f"{part.name} changes only what {' or '.join(part.needs)} does; write {part.needs[0]}+{part.name}"
        for name in sorted(names & part.conflicts.keys()):
            return f"{part.name} cannot be combined with {name}: {part.conflicts[name]}"
    return None
