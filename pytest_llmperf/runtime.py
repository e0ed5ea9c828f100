"""The worker processes, the prompts and the machine's rates of a run, each made when it is first asked for."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from itertools import count
from pathlib import Path

from pytest_llmperf import folders, models
from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.backends.registry import Combination
from pytest_llmperf.cases import Workload
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.machine import facts
from pytest_llmperf.machine.doctor import Finding
from pytest_llmperf.measure.worker_pool import Engines
from pytest_llmperf.measure.worker_process import Arm, WorkerError
from pytest_llmperf.plan import Plan
from pytest_llmperf.prompts import Generation, Prompts

#: Bytes read to measure the memory's rate where the weights' size is not known: more than caches hold.
BUFFER = 2**28


class Runtime:
    """The engines of a run, and what depends on them.

    Args:
        plan: what is measured.
        progress: told what is being done.

    Attributes:
        seed: of the prompts. What a server remembers of an earlier run is of no use in this one.
    """

    def __init__(self, plan: Plan, progress: Callable[[str], None]) -> None:
        self._plan = plan
        self._progress = progress
        self._unready: WorkerError | None = None
        self._generations: dict[tuple[str, Workload], Iterator[Generation]] = {}
        self._finally = ExitStack()
        stated = plan.settings.seed
        self.seed = secrets.randbelow(2**32) if stated is None else stated

    @cached_property
    def engines(self) -> Engines:
        """The worker processes; an embedded model is converted first.

        Raises:
            WorkerError: the model could not be converted.
        """
        if self._unready is not None:
            raise self._unready
        _ = self.findings  # before this run is itself what keeps the machine busy
        try:
            return opened(self._plan, self._head, self._progress)
        except WorkerError as error:
            self._unready = error
            raise

    @cached_property
    def _head(self) -> Callable[[str], Arm]:
        """How to make the arm under test, given its interpreter."""
        head = self._plan.head
        return (lambda python: Arm(python=python)) if head is None else self._finally.enter_context(head.arm("head"))

    def check_out(self) -> None:
        """Check out the revision under test, if somebody named one: before anything is measured.

        Raises:
            BaseError: git cannot.
        """
        _ = self._head

    @cached_property
    def prompts(self) -> Prompts:
        """The token ids of every workload. Raises PromptError: none can be made for the model."""
        if self._plan.model.gguf is not None:
            _ = self.engines  # the tokenizer is in the converted folder
        return Prompts(self._plan.model.architecture.vocabulary, self._plan.model.tokenizer_file, self.seed)

    def generations(self, backend: str, workload: Workload) -> Iterator[Generation]:
        """The prompts of a backend's generations, in whichever process it makes them; never the same ones again.

        The first generation of every backend has the same prompts, and so has the second one, and so on.

        Raises:
            PromptError: none can be made for the model.
        """
        prompts, key = self.prompts, (backend, workload)
        if key not in self._generations:  # no generator: one that is interrupted has ended

            def numbered(number: int) -> Generation:
                return Generation(number, prompts.batch(workload, number))

            self._generations[key] = map(numbered, count())
        return self._generations[key]

    @cached_property
    def findings(self) -> list[Finding]:
        """Whether the machine was fit to measure on, as it was before the first engine."""
        return facts.findings(self._plan.device, lambda: self._plan.need)

    def measure_rates(self) -> dict[str, float]:
        """Measure the machine's rates now, by the names in `pytest_llmperf.machine.rates`."""
        plan = self._plan
        self._progress(f"{plan.device.name}: measuring its rates")
        with self.engines.any_worker() as ask:
            measured = ask(
                "rates",
                dtype=plan.dtype,
                buffer_bytes=plan.model.architecture.weight_bytes(plan.dtype) or BUFFER,
                device=plan.device.torch_device,
                roofs=plan.device.peak_flops is None or plan.device.peak_bandwidth is None,
            )
        return {name: float(f"{value:.4g}") for name, value in measured.items()}

    def measure_peak(self, dtype: str) -> float | None:
        """Measure the best rate of GEMM in a type now (FLOP/s); None if the machine shows none of that type."""
        self._progress(f"{self._plan.device.name}: measuring its GEMM rate in {dtype}")
        with self.engines.any_worker() as ask:
            found: float | None = ask("peak", dtype=dtype, device=self._plan.device.torch_device)
        return found

    def release(self, backend: str) -> None:
        """Say that the tests of a backend are over, if any engine was made."""
        if "engines" in self.__dict__:
            self.engines.release(backend)

    def close(self) -> None:
        """Stop every worker, and remove head's checkout. Safe to call more than once, and when there is none."""
        if "engines" in self.__dict__:
            self.engines.close_all()
        self._finally.close()


def opened(plan: Plan, head: Callable[[str], Arm], progress: Callable[[str], None]) -> Engines:
    """The engines of a run; none is loaded. An embedded model is converted, once.

    Args:
        plan: what is measured.
        head: makes the arm under test, given its interpreter.
        progress: told what is being done.

    Raises:
        WorkerError: the model could not be converted.
    """
    model, settings = plan.model, plan.settings
    spec = EngineSpec(
        model=model.name if model.folder is None else str(model.folder.absolute()),
        config=dict(model.config) if model.folder is None else None,
        dtype=plan.dtype,
        device=plan.device.torch_device,
        batch_size=plan.largest.batch_size,
        sequence_length=plan.largest.prompt_length + plan.largest.max_new_tokens,
        cache=str(plan.cache),
        timeout=settings.timeout,
        executor=settings.executor,
    )

    def arm(backend: Combination | None) -> Arm:
        return head((Interpreter() if backend is None else plan.interpreter(backend)).path)

    engines = Engines(
        spec,
        arm,
        attached=plan.attached,
        devices=plan.device_variables,
        environment=folders.of_workers(plan.cache, os.environ),
        timeout=settings.timeout,
        roomy=plan.fits_twice,
        reference="" if model.random_weights else settings.reference,
        progress=progress,
    )

    def convert(source: Path, target: Path) -> None:
        progress(f"{model.name}: converting {source.name}, once")
        with engines.any_worker() as ask:
            ask("convert", source=str(source), target=str(target))

    try:
        models.ready(model, convert)
    except OSError as error:
        raise WorkerError(f"model {model.name} cannot be converted ({error}); {folders.REMEDY}, with room") from None
    return engines
