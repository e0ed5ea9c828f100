"""The worker's loop: read a request, do it, reply. One engine lives here."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import operator
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from pytest_llmperf.backends.base import OBSERVED_LOGITS, UNKNOWN, Engine, EngineSpec, Observation
from pytest_llmperf.machine import memory
from pytest_llmperf.variants import proved
from pytest_llmperf.worker import protocol
from pytest_llmperf.worker.imports import ImportClock
from pytest_llmperf.worker.recorder import LoadRecorder, Recorder, SlowedRecorder, TokenError
from pytest_llmperf.worker.watch import Watch


def _importable(name: str, file: Path) -> bool:
    """Whether a module of that name, installed or in the checkout, is the one in the file."""
    if name.partition(".")[0] == "pytest_llmperf" or not file.name:
        return True  # of whichever arm this is
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == file.resolve()


def _from_file(name: str, path: Path) -> ModuleType:
    """Import a module from its file, or a package from its folder; first the packages that its name says it is in."""
    above, _, last = name.rpartition(".")
    if above and str(path.parent) not in getattr(sys.modules.get(above), "__path__", ()):
        _from_file(above, path.parent)
    file = path / "__init__.py" if (path / "__init__.py").is_file() else path
    if file.is_dir():
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(file)]
    elif (found := importlib.util.spec_from_file_location(name, file)) is not None:
        spec = found
    else:
        raise ImportError(f"cannot import {file}")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    if above:
        setattr(sys.modules[above], last, module)
    if spec.loader is not None:
        spec.loader.exec_module(module)
    return module


def find(reference: dict[str, str]) -> Any:
    """The object that a parent named by module, qualified name and file."""
    file = Path(reference["file"])
    if _importable(reference["module"], file):
        module = importlib.import_module(reference["module"])
    else:  # one of several conftest.py files, or one that no entry of sys.path leads to, as with importlib mode
        beside = file.parent if file.name == "__init__.py" else file
        inside = reference["module"].rpartition(".")[2] == beside.stem
        module = _from_file(reference["module"] if inside else file.stem, beside)
    found: Any = module
    for part in reference["name"].split("."):
        found = getattr(found, part)
    return found


def vocabulary_of(spec: EngineSpec) -> int | None:
    """How many token ids the model has; None if its configuration does not say."""
    config: Any = spec.config
    if config is None:
        with suppress(OSError, ValueError):
            config = json.loads((Path(spec.model) / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        return None
    found = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return found if isinstance(found, int) else None


class Worker:
    """The operations that a parent may ask for; each takes and returns plain JSON values.

    Args:
        pause: says that a step is done, and returns when the parent wants the next one; None if no parent does.
    """

    def __init__(self, pause: Callable[[], None] | None = None) -> None:
        self._pause = pause
        self.engine: Engine | None = None
        self.device = "cpu"
        self.vocabulary: int | None = None
        self.spec: EngineSpec | None = None
        self.watch: Watch | None = Watch()
        self.meter: memory.Meter = memory.Unknown("nothing is loaded")
        self._last: tuple[list[list[int]], int] | None = None

    def load(
        self,
        backend: list[dict[str, str]],
        spec: dict[str, Any],
        ranks: list[int] | None = None,
        timed: bool = False,
    ) -> dict[str, Any]:
        """Load an engine and what changes it, in that order.

        Returns the seconds it took, imports included, and whether the engine can be paused between steps.

        Args:
            backend: where the engine and its changes are defined, as `Backend.reference` says.
            spec: an `EngineSpec` as plain values.
            ranks: the processes that are asked to load it together, whose CPU time is the engine's own.
            timed: whether to return also how many of these seconds were ``imports`` and ``compiled``.
        """
        start = time.perf_counter()
        self.device = spec["device"]
        imports = ImportClock()
        with imports if timed else nullcontext():
            loader = find(backend[0])
            for part in backend[1:]:
                loader = find(part)(loader)
            self.spec = asked = EngineSpec(**spec)
            self.engine = loader(asked)
        seconds = time.perf_counter() - start
        self.vocabulary = vocabulary_of(asked)
        processes = self.engine.processes() if hasattr(self.engine, "processes") else ()
        # Such an engine computes in this thread alone.
        pausable = len(ranks or ()) <= 1 and bool(getattr(self.engine, "pausable", False))
        # One rank looks at the machine for all: the others' canaries would disturb its own.
        self.watch = (
            Watch({*(ranks or ()), *processes} - {os.getpid()}, computes=pausable and self.device == "cpu")
            if not ranks or ranks[0] == os.getpid()
            else None
        )
        # A meter reads weights in mapped files, which the first generation of a start has to do itself.
        self.meter = memory.Unknown("a start was timed") if timed else memory.meter(self.engine, self.device, asked.tp)
        compiled = float(getattr(self.engine, "compile_seconds", 0.0))
        parts = {"imports": imports.seconds, "compiled": compiled} if timed else {}
        return {"seconds": seconds, "pausable": pausable, **parts}

    def generate(
        self, prompts: list[list[int]], max_new_tokens: int, slowdown: float = 0.0, beside: list[int] | None = None
    ) -> dict[str, Any]:
        """One generation: tokens, times, what the engine says of them itself, and what else used the machine.

        Args:
            prompts: token ids, a row per request.
            max_new_tokens: of each.
            slowdown: every step takes that share longer, which is how the gate tests itself.
            beside: the processes that take turns with this one, step by step; None without any.
        """
        assert self.engine is not None
        self._last = prompts, max_new_tokens
        self.meter.begin()
        before = self.watch.begin(beside or ()) if self.watch else None
        pause = None if beside is None else self._pause
        recorder = SlowedRecorder(len(prompts), slowdown, pause) if slowdown else Recorder(len(prompts), pause)
        self.engine.generate(prompts, max_new_tokens, recorder)
        fitness = self.watch.end(before) if self.watch and before else None
        self.meter.end(alone=beside is None)
        tokens, times = self._recorded(recorder, max_new_tokens)
        return {
            "tokens": tokens,
            "times": times,
            "statistics": [asdict(one) for one in self.engine.statistics()]
            if hasattr(self.engine, "statistics")
            else [],
            "ended": self._ended(),
            "texts": self.engine.texts()
            if any(UNKNOWN in row for row in tokens) and hasattr(self.engine, "texts")
            else [],
            "fitness": asdict(fitness) if fitness else {},
        }

    def _ended(self) -> list[bool]:
        """Of each request of the last generation, whether the engine says that it ended early."""
        return list(self.engine.ended()) if hasattr(self.engine, "ended") else []  # type: ignore[union-attr]

    def _recorded(self, recorder: Recorder, max_new_tokens: int) -> tuple[list[list[int]], list[list[float]]]:
        """Token ids and times of a generation that is over, a row per request.

        Raises:
            TokenError: the engine called ``on_token`` wrongly, or not once for each token. A server may end early, and
                so may a request that ``ended`` names: that is for the parent to judge.
        """
        ended = self._ended()
        try:
            tokens, times = recorder.rows(self.vocabulary)
            for request, row in enumerate([] if hasattr(self.engine, "serve") else tokens):
                if len(row) != max_new_tokens and not any(ended[request : request + 1]):
                    raise TokenError(
                        f"on_token was called {len(row)} times for request {request} until generate returned, and "
                        f"{max_new_tokens} tokens were asked for; call it once for each token"
                    )
                if UNKNOWN in row and not hasattr(self.engine, "texts"):
                    raise TokenError(f"on_token got the token {UNKNOWN} for request {request}; ids begin at 0")
        except TokenError as error:
            raise TokenError(f"{os.environ.get(protocol.BACKEND_VARIABLE, 'the engine')}: {error}") from None
        return tokens, times

    def serve(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        due: list[float] | None,
        concurrency: int | None,
        requests: int,
    ) -> list[dict[str, Any]]:
        """A load: the times of each request that was sent, or why it failed, in seconds from the start.

        Args:
            prompts: token ids, a row per request. Those after the first ``requests`` replace requests that end early.
            max_new_tokens: of each.
            due: when each is to be sent, in order; None where the next one is sent when one is done.
            concurrency: how many are sent at a time where there is no ``due``.
            requests: how many are to have all their tokens, or to fail.
        """
        if not hasattr(self.engine, "serve"):
            raise TypeError("this backend answers one batch at a time: load is for servers")
        assert self.engine is not None
        size = len(prompts) if hasattr(self.engine, "ended") else requests
        prompts, due = prompts[:size], due and due[:size]
        recorder = LoadRecorder(len(prompts), requests)
        self.engine.serve(prompts, max_new_tokens, recorder, due, concurrency)
        times, sent = recorder.times, recorder.sent
        return [
            {
                # One that replaces another may be needed only after it was due.
                "due": sent[index] or 0.0 if due is None or index >= requests else due[index],
                "sent": sent[index] or 0.0,
                "times": [] if recorder.errors[index] else times[index],
                "error": recorder.errors[index],
                "early": index in recorder.early,
            }
            for index in range(len(prompts))
            if sent[index] is not None or index < requests + len(recorder.early)
        ]

    def observe(self, prompts: list[list[int]], max_new_tokens: int) -> list[dict[str, Any]]:
        """An untimed generation with the logits behind it, or with tokens alone where the engine shows no logits."""
        assert self.engine is not None
        if hasattr(self.engine, "observe"):
            return [asdict(one) for one in self.engine.observe(prompts, max_new_tokens, OBSERVED_LOGITS)]
        recorder = Recorder(len(prompts))
        self.engine.generate(prompts, max_new_tokens, recorder)
        tokens, _ = self._recorded(recorder, max_new_tokens)
        texts = self.engine.texts() if hasattr(self.engine, "texts") else [""] * len(prompts)
        ended = self._ended() or [False] * len(prompts)
        rows = zip(tokens, texts, ended, strict=True)
        return [asdict(Observation(row, [], [], text, early)) for row, text, early in rows]

    def score(
        self,
        prompts: list[list[int]],
        continuations: list[list[int]],
        candidates: list[list[list[int]]] | None,
    ) -> list[dict[str, Any]]:
        """Teacher-forced scores, a row per prompt."""
        if self.engine is None or not hasattr(self.engine, "score"):
            raise TypeError("this backend cannot be the reference: its engine has no score method")
        return [asdict(score) for score in self.engine.score(prompts, continuations, candidates)]

    def evidence(self) -> dict[str, Any]:
        """What ran in the last shape generated, and what one more generation of it takes of memory.

        Raises:
            NotEngagedError: the optimization did not run, or not as its variant says.
        """
        assert self.engine is not None
        took = self.meter.of(self._again) if self._last else "nothing was generated"  # before a profiler takes some
        engagement = self.engine.evidence()
        if self.spec is not None and (self.spec.arguments or self.spec.proofs):
            values = self.engine.in_effect() if hasattr(self.engine, "in_effect") else {}
            engagement = proved(engagement, self.spec.arguments, self.spec.proofs, values)
        engagement.require()
        found = {"threads": self._threads(), "memory": took if isinstance(took, str) else asdict(took)}
        return asdict(engagement) | found

    def _again(self) -> None:
        """The last generation once more."""
        assert self.engine is not None
        assert self._last is not None
        prompts, max_new_tokens = self._last
        self.engine.generate(prompts, max_new_tokens, Recorder(len(prompts)))

    def _threads(self) -> int | None:
        """In how many threads the engine computes on a CPU: what it says, else torch's; None where nobody knows."""
        stated = getattr(self.engine, "threads", None)
        if stated is not None:
            return operator.index(stated)
        torch = sys.modules.get("torch")
        if torch is None or self.device != "cpu" or hasattr(self.engine, "serve"):
            return None
        return int(torch.get_num_threads())

    def rates(self, dtype: str, buffer_bytes: int, device: str, roofs: bool) -> dict[str, float]:
        """The machine's rates."""
        from pytest_llmperf.worker.rates import measure

        return measure(device, dtype, buffer_bytes, roofs)

    def peak(self, dtype: str, device: str) -> float | None:
        """The best rate of GEMM in a type."""
        from pytest_llmperf.worker.rates import peak

        return peak(device, dtype)

    def imported(self, folder: str) -> int:
        """How many of the modules imported so far lie in a folder."""
        files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        return sum(file is not None and Path(file).is_relative_to(folder) for file in files)

    def convert(self, source: str, target: str) -> None:
        """Unpack an embedded model into a folder of safetensors."""
        from pytest_llmperf.worker.convert import convert

        convert(Path(source), Path(target))

    def rest(self) -> None:
        """Free the device's memory that is kept for the next generation, since another engine is to be loaded."""
        if self.device != "cpu" and "torch" in sys.modules:
            gc.collect()  # a cache may be part of a cycle
            sys.modules["torch"].cuda.empty_cache()

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()


def serve(requests: int, replies: int) -> None:
    """Answer requests until the parent closes the pipe or asks to close."""
    with os.fdopen(requests, "rb") as stream:

        def pause() -> None:
            protocol.send(replies, {"step": True})
            if not (line := stream.readline()):
                raise EOFError("the parent is gone")
            if protocol.parse(line) != {"call": "resume"}:
                raise ValueError(f"{line!r} between two steps")

        worker = Worker(pause)
        for line in stream:
            request = protocol.parse(line)
            call = str(request.pop("call"))
            try:
                protocol.send(replies, {"result": getattr(worker, call)(**request)})
            except Exception as error:
                text = str(error).strip() or type(error).__name__
                protocol.send(
                    replies,
                    {"error": {"kind": type(error).__name__, "message": text, "traceback": traceback.format_exc()}},
                )
            if call == "close":
                return


def main() -> None:
    """Entry point: the descriptors of requests and replies are the arguments."""
    requests, replies = (int(argument) for argument in sys.argv[1:3])

    def give_up() -> None:
        os.close(requests)
        os.close(replies)

    # A child that held these would keep the parent from seeing that this process died.
    for descriptor in (requests, replies):
        os.set_inheritable(descriptor, False)
    os.register_at_fork(after_in_child=give_up)
    serve(requests, replies)
    # Libraries' exit handlers (compile pools, profilers) may hang; everything has been replied by now.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
