"""The one protocol: what a backend declares, what an engine does, and the proof that an optimization ran."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pytest_llmperf.interpreter import Interpreter
    from pytest_llmperf.machine.table import Device

#: Called by an engine the moment a token is on the host, with the request's index in the batch and the token's id.
OnToken = Callable[[int, int], None]
#: The id of a token of which a server does not say which one it is.
UNKNOWN = -1
#: Where a latency is seen, which every figure says.
IN_PROCESS, CLIENT = "in process", "client of a server"
#: What evidence calls the fraction of the time in which ranks exchange data, for reports to find it.
TIME_IN_COLLECTIVES = "share of time in collectives"
#: What evidence calls the model of a server that runs already, for reports to name it.
SERVED_MODEL = "served model"


#: Leading logits of a position among which rounding may turn a choice over: one further down is never chosen by it.
LEADING = 8
#: Leading logits that an engine is asked to show of a position. More of them show an error in fewer positions.
OBSERVED_LOGITS = 64


class OnTokens(Protocol):
    """What the worker passes as `OnToken`: tokens of a request that came together can be named in one call."""

    def __call__(self, request: int, *tokens: int) -> None:
        """Give them one stamp."""


class NotEngagedError(RuntimeError):
    """The optimization did not run: what was timed, or would be, is a fallback, and must never become a figure."""


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is asked to load.

    Attributes:
        model: folder or Hugging Face id of the weights; with random weights, the model's name.
        config: the model's Hugging Face configuration where the weights are random, else None.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        device: torch's device string, ``cpu`` or ``cuda``.
        seed: of random weights.
        batch_size: the most requests that will be submitted together.
        sequence_length: the most tokens that one request will have, the new ones included.
        cache: a folder for what may outlive the process, such as tuned kernels.
        timeout: seconds that one request may take.
        tp: tensor-parallel degree: how many ranks share the model.
        executor: what starts the ranks of an engine that starts its own, such as ``ray``; empty for its own choice.
        server: URL of a server that runs already, with credentials if it wants some; empty where there is none.
        headers: sent to it with every request; they may be secret too.
        names: what that server may call the model.
        served_model: what the user says that it calls the model; empty if the user does not say.
        arguments: of a variant, by name. The engine takes them beside its own, or instead of them.
        proofs: what the variant must show; the worker looks at the evidence for it.
    """

    model: str
    config: Mapping[str, Any] | None
    dtype: str
    device: str
    seed: int = 0
    batch_size: int = 1
    sequence_length: int = 2048
    cache: str = ""
    timeout: float = 600.0
    tp: int = 1
    executor: str = ""
    server: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    names: Sequence[str] = ()
    served_model: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    proofs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Engagement:
    """Evidence that the optimized path ran.

    Attributes:
        engaged: whether it did.
        expected: what had to be seen.
        seen: what was seen, by name: kernels and their counts, graphs, the resolved attention implementation.
        profile: what the prefill and a decode step spend their time on, as `pytest_llmperf.explain.profiles` reads it;
            empty where the engine does not say. A slower case is then not explained.
    """

    engaged: bool
    expected: str
    seen: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)

    def require(self) -> None:
        """Raise NotEngagedError, with what was seen instead, unless the optimization ran."""
        if not self.engaged:
            seen = ", ".join(f"{name}={value}" for name, value in self.seen.items()) or "nothing"
            raise NotEngagedError(f"the optimization did not engage: expected {self.expected}; seen: {seen}")


@dataclass(frozen=True)
class Observation:
    """One request of an untimed greedy generation, with the leading logits behind every choice.

    Attributes:
        tokens: output token ids, n of them.
        candidates: the ids of the k largest logits at each position; shape (n, k).
        logits: those logits, or log-probabilities, which differ by a constant per position; shape (n, k).
        text: the tokens as text, where they are `UNKNOWN`.
        ended: whether it ended with an end-of-sequence token before it had all tokens, as `Ending` says.
    """

    tokens: Sequence[int]
    candidates: Sequence[Sequence[int]]
    logits: Sequence[Sequence[float]]
    text: str = ""
    ended: bool = False


@dataclass(frozen=True)
class Score:
    """The reference's judgement of one continuation, token by token, teacher-forced.

    Attributes:
        regret: the reference's top logit minus its logit of the continuation's token; n values, in logits.
        candidates: ids whose logits follow: those asked for, or the k largest; shape (n, k).
        logits: the reference's logits of the candidates, in the dtype of the run; shape (n, k).
        exact: the same one precision up (float32 for a half type, float64 for float32); shape (n, k).
    """

    regret: Sequence[float]
    candidates: Sequence[Sequence[int]]
    logits: Sequence[Sequence[float]]
    exact: Sequence[Sequence[float]]


class Engine(Protocol):
    """A loaded backend, inside its worker process."""

    def generate(self, prompts: list[list[int]], max_new_tokens: int, on_token: OnToken) -> None:
        """Greedy generation of exactly ``max_new_tokens`` per prompt, not stopping at end-of-sequence.

        Calls ``on_token(request, token)`` the moment a token is on the host; the worker stamps the clock there, so
        an engine never reports a time of its own. Tokens of a request that came together are named in one call.

        An engine with an attribute ``pausable`` that is true promises to compute in the thread that calls this, and to
        do nothing until ``on_token`` returns, which takes long where two engines are compared step by step.
        """

    def evidence(self) -> Engagement:
        """What ran in the last shape generated; may generate again, since it is never timed."""

    def close(self) -> None:
        """Give back what the process's end would not (servers, ranks)."""


class Compiling(Protocol):
    """An engine that compiles while it loads, so that a start's parts tell compiling from loading."""

    @property
    def compile_seconds(self) -> float:
        """How long it compiled while it was loaded."""


class Observable(Protocol):
    """An engine that can show the logits behind its choices: parity then sees errors that flip no token."""

    def observe(self, prompts: list[list[int]], max_new_tokens: int, leading: int) -> list[Observation]:
        """Generate as `Engine.generate` does, by the same kernels, and keep the ``leading`` largest logits."""


@dataclass(frozen=True)
class RequestStatistics:
    """What an engine that keeps time itself says of one request of its last generation; checked, never reported.

    Attributes:
        ttft: seconds from the request's arrival to its first token; None where it does not say.
        tpot: seconds per further token; likewise.
        cached_tokens: prompt tokens that were not computed but found in a prefix cache.
        preemptions: how often the request lost its cache and was computed again; 0 where the engine does not say.
        untimed: tokens that a server counts, and of which nobody saw when they came.
    """

    ttft: float | None
    tpot: float | None
    cached_tokens: int = 0
    preemptions: int = 0
    untimed: int = 0


class Adjustable(Protocol):
    """An engine that says what it has for the arguments of a variant."""

    def in_effect(self) -> Mapping[str, Any]:
        """The value in effect of each argument that it knows, by the argument's path, such as ``a.b`` for ``{"b": }``.

        One that is not what was asked for is an error, unless a proof of the variant says what it may be.
        """


class Timekeeper(Protocol):
    """An engine that has statistics of its own, by which the worker's stamps are checked."""

    def statistics(self) -> list[RequestStatistics]:
        """Of the last generation, a record per request, in the order of the prompts."""


class Elsewhere(Protocol):
    """An engine that takes memory in other processes than the worker: ranks or a server that it started."""

    def resident(self) -> list[int] | None:
        """The processes whose memory is the engine's; none where that is not known, None where it is the worker's."""


class Ending(Protocol):
    """An engine that cannot go on past end-of-sequence, as most can.

    A generation in which a request ends early has no figures. Another one is made from other prompts, and parity judges
    what came. That the sequence ended there is judged as a choice too.
    """

    def ended(self) -> list[bool]:
        """Of each request of the last generation, whether it ended with an end-of-sequence token, shown or not."""


class LoadObserver(Protocol):
    """Told of every request under load, as it happens.

    Attributes:
        more: whether another request is to be sent: fewer have been sent than are wanted, early ends left out.
    """

    @property
    def more(self) -> bool: ...

    def __call__(self, request: int, *tokens: int) -> None:
        """Tokens have arrived, together."""

    def submitted(self, request: int) -> None:
        """It is about to be sent."""

    def failed(self, request: int, reason: str) -> None:
        """It has failed, for a reason of one line."""

    def ended(self, request: int) -> None:
        """It has ended early, as `Ending` says: it gives no figures, and another one is sent."""


class Servable(Protocol):
    """An engine that answers requests as they come, so that it can be put under load."""

    def serve(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        observer: LoadObserver,
        due: list[float] | None,
        concurrency: int | None,
    ) -> None:
        """Send each request when it is due (s from the start), or so many at a time; a failed one stops no other.

        An engine that is `Ending` is given more prompts than are wanted. It sends no further one unless
        ``observer.more``.
        """


class Reference(Protocol):
    """An engine that can judge another's tokens."""

    def score(
        self, prompts: list[list[int]], continuations: list[list[int]], candidates: list[list[list[int]]] | None
    ) -> list[Score]:
        """Score each continuation of each prompt; ``candidates`` has shape (rows, n, k), or is None for the largest."""


def runs_anywhere(device: Device) -> str | None:
    """The requirement of a backend that needs nothing."""
    return None


#: Bytes of the types that a run may have. Every other type is narrower.
WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
#: What a part of a combination decides, in the order in which a combination's name has its parts.
SLOTS = ("engine", "attention", "compile", "gemm", "weights", "parallelism")
#: The order in which they change an engine: weights are shared out first, and packed before anything is compiled around
#: them.
APPLIED = ("engine", "parallelism", "attention", "weights", "compile", "gemm")


@dataclass(frozen=True)
class Backend:
    """One optimization, under the name that ``--llm-backends`` knows. Several are combined as ``a+b``.

    Attributes:
        name: without a plus sign.
        load: for an engine, a module-level function or class that is called *in the worker process* with an
            `EngineSpec` and returns an `Engine`. For any other slot, a module-level function that takes an engine's
            class, there too, and returns one that adds the optimization. It is passed on by name, so its heavy imports
            belong inside it. A string, ``module:name``, will do.
        slot: what it decides, one of `SLOTS`. A combination has at most one backend for each, and one without an
            engine is run by transformers.
        engines: the engines that it can change, by name; empty for any. Of no meaning for an engine.
        needs: other backends, of which the combination must have one.
        conflicts: other backends that it cannot be combined with, and why.
        optimizes: what it is meant to make faster: ``prefill``, ``decode``, ``both`` or ``none``.
        proof: what must be seen for it to count as engaged; shown to users.
        distributions: installed packages, of which the worker's interpreter must have one, such as ``vllm``.
        at_least: a package and the lowest version of it that will do, such as ``("transformers", "5.19")``.
        dtypes: that it computes in; empty for any.
        requires: given the `Device`, the reason why it cannot run here, or None. Runs in pytest's process: no torch.
        compiles: whether it must run ``torch.compile``, so that the machine needs what that needs.
        environment: variables set in the worker before anything is imported.
        weight_bytes: bytes of a weight where it reads others than those of the run's dtype, which MBU counts.
        compute_dtype: the type in which it multiplies, such as ``int8``, ``fp8`` or ``bfloat16``, where that is not the
            run's dtype. MFU is of that type's peak.
        approximate: whether its weights or activations are coarser than the reference's by design, so that tokens may
            rightly differ and parity is `bounded`. None: if it has ``weight_bytes``, or computes in a narrower type.
            False: its weights are packed, and equal.
        max_batch_size: the most requests that it takes together; None for any. Larger cases are skipped.
        max_sequence_length: the most tokens of one request, the new ones included; likewise.
        degree: how many devices share the model.
        boundary: where its latencies are seen, `IN_PROCESS` or as the `CLIENT` of a server.
        attaches: it can be the client of a server that runs already, which ``--llm-server`` names.
        launcher: the program that starts its server where none is named; empty if one must be.
        arguments: the names of the arguments that a variant may give it, or a function that returns those of an
            interpreter, None where nobody knows them. `EngineSpec` has their values.
        held: those of them that a variant cannot give, and why; a variable is named ``env:NAME``.
    """

    name: str
    load: Callable[[Any], Any] | str
    slot: str = "engine"
    engines: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    conflicts: Mapping[str, str] = field(default_factory=dict)
    optimizes: str = "none"
    proof: str = ""
    distributions: tuple[str, ...] = ()
    at_least: tuple[str, str] | None = None
    dtypes: tuple[str, ...] = ()
    requires: Callable[[Device], str | None] = runs_anywhere
    compiles: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    weight_bytes: float | None = None
    compute_dtype: str | None = None
    approximate: bool | None = None
    max_batch_size: int | None = None
    max_sequence_length: int | None = None
    degree: int = 1
    boundary: str = IN_PROCESS
    attaches: bool = False
    launcher: str = ""
    arguments: Collection[str] | Callable[[Interpreter], Collection[str] | None] = ()
    held: Mapping[str, str] = field(default_factory=dict)

    def approximates(self, dtype: str) -> bool:
        """Whether its tokens may rightly differ from the reference's in a run of this dtype."""
        if self.approximate is not None:
            return self.approximate
        narrower = self.compute_dtype is not None and WIDTHS.get(self.compute_dtype, 1) < WIDTHS[dtype]
        return self.weight_bytes is not None or narrower

    def reference(self) -> dict[str, str]:
        """Where the worker finds ``load``: module, qualified name and file (empty where it is to be imported by name).

        Raises:
            ValueError: ``load`` is a lambda, a local function or a partial, which no other process can find.
        """
        if isinstance(self.load, str):
            module, _, attribute = self.load.partition(":")
            return {"module": module, "name": attribute, "file": ""}
        name = getattr(self.load, "__qualname__", "")
        file = _source(self.load)
        if not name or "<" in name or file is None:
            raise ValueError(
                f"backend {self.name!r}: load must be a function or class at the top level of a module, "
                f"since a worker process imports it by name; got {self.load!r}"
            )
        return {"module": self.load.__module__, "name": name, "file": file}


def _source(load: Callable[[Any], Any]) -> str | None:
    """The file in which a function or class is defined, or None.

    A decorator's file is not it. Of a class Python knows only the module's name, which the last of several conftest.py
    files has; its methods know their file.
    """
    methods = filter(inspect.isfunction, vars(load).values()) if inspect.isclass(load) else ()
    own = (inspect.unwrap(one) for one in methods if one.__module__ == load.__module__)
    files = (one.__code__.co_filename for one in own if inspect.isfunction(one))
    if (file := next(filter(os.path.isfile, files), None)) is not None:
        return file
    try:
        return inspect.getsourcefile(inspect.unwrap(load))
    except TypeError:  # a builtin, a partial
        return None
