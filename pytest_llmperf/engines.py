"""Opens the worker processes of a run: what every engine is asked to load, with the model ready for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pytest_llmperf import models
from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.backends.registry import Combination
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.measure.worker_pool import Engines
from pytest_llmperf.measure.worker_process import Arm
from pytest_llmperf.plan import Plan


def opened(plan: Plan, progress: Callable[[str], None]) -> Engines:
    """The engines of a run; none is loaded. An embedded model is converted, once.

    Raises:
        WorkerError: the model could not be converted.
    """
    model, settings = plan.model, plan.settings
    spec = EngineSpec(
        model=model.name if model.folder is None else str(model.folder),
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
        return Arm(python=(Interpreter() if backend is None else plan.interpreter(backend)).path)

    engines = Engines(
        spec,
        arm,
        attached=plan.attached,
        devices=plan.device_variables,
        cache=str(plan.cache / "inductor"),
        timeout=settings.timeout,
        roomy=plan.fits_twice,
        reference="" if model.random_weights else settings.reference,
        progress=progress,
    )

    def convert(source: Path, target: Path) -> None:
        progress(f"{model.name}: converting {source.name}, once")
        with engines.any_worker() as ask:
            ask("convert", source=str(source), target=str(target))

    models.ready(model, convert)
    return engines
