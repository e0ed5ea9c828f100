"""tunableop: PyTorch's TunableOp, which times every candidate kernel of a matrix product and keeps the fastest.

Tuning happens while the engine loads and in the first generation of every shape, which is warm-up and never a sample;
then it is off. Results are kept in a file for the device, versions, engine and model, and read by the next process.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf.backends.base import Backend, Engagement

if TYPE_CHECKING:
    from pytest_llmperf.backends.base import Engine, EngineSpec, OnToken
    from pytest_llmperf.machine.table import Device

#: The candidate that is PyTorch's own choice without tuning.
UNTUNED = "Default"


class TunedEngine:
    """An engine whose matrix products are tuned.

    Args:
        load: loads the engine.
        spec: what it loads.
        tunable: ``torch.cuda.tunable``.
    """

    def __init__(self, load: Callable[[EngineSpec], Engine], spec: EngineSpec, tunable: Any) -> None:
        self._tunable = tunable
        self._shapes: set[tuple[tuple[int, ...], int]] = set()
        tunable.enable(True)
        self._file = results_file(load, spec, tunable)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        tunable.set_filename(str(self._file))
        if self._file.exists():
            tunable.read_file(str(self._file))  # refused by its validators if it is of another device or version
        # vLLM captures its graphs while it loads: what is to be in them must be tuned then.
        self._engine = self._tuning(lambda: load(spec))
        self._entries = self._results()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._engine, name)
        if name != "observe":  # an engine need not have one
            return found
        return lambda prompts, new_tokens, leading: self._tuned(
            prompts, new_tokens, lambda: found(prompts, new_tokens, leading)
        )

    def _results(self) -> dict[tuple[str, str], str]:
        """The chosen kernel by operator and shape."""
        return {(entry[0], entry[1]): entry[2] for entry in self._tunable.get_results()}

    def _tuning(self, work: Callable[[], Any]) -> Any:
        self._tunable.tuning_enable(True)
        try:
            return work()
        finally:
            self._tunable.tuning_enable(False)
            if hasattr(self._tunable, "write_file"):  # newer versions write every result when it is found
                self._tunable.write_file(str(self._file))

    def _tuned(self, prompts: list[list[int]], max_new_tokens: int, work: Callable[[], Any]) -> Any:
        shape = tuple(map(len, prompts)), max_new_tokens
        if shape in self._shapes:
            return work()
        done = self._tuning(work)
        self._shapes.add(shape)
        self._entries = self._results()
        return done

    def generate(self, prompts: list[list[int]], max_new_tokens: int, on_token: OnToken) -> None:
        """See `Engine.generate`. The first generation of a shape is tuned, and slow."""
        self._tuned(prompts, max_new_tokens, lambda: self._engine.generate(prompts, max_new_tokens, on_token))

    def evidence(self) -> Engagement:
        """See `Engine.evidence`: the engine's own, and entries other than `UNTUNED`, none added while timing."""
        own = self._engine.evidence()
        now = self._results()
        tuned = {key: name for key, name in now.items() if name != UNTUNED}
        added = now.keys() - self._entries.keys()
        return Engagement(
            engaged=own.engaged and bool(tuned) and not added,
            expected=f"{own.expected}; tuned matrix products, none of them tuned while timing",
            seen={
                **own.seen,
                "tuned products": f"{len(tuned)} of {len(now)}",
                "tuned while timing": len(added),
                "kernels": sorted(set(tuned.values()))[:8],
                "results file": self._file.name,
            },
        )


def results_file(load: Any, spec: EngineSpec, tunable: Any) -> Path:
    """Where results are kept: of this device and these versions (its validators), this engine, model, dtype and degree.

    Torch does not say which entries a product used. What another model tuned would pass for what this one ran.
    """
    validators = sorted(" ".join(map(str, one)) for one in tunable.get_validators())
    engine = [load.__module__, load.__qualname__, getattr(load, "attention", "")]
    work = json.dumps([engine, spec.model, spec.config and dict(spec.config), spec.dtype, spec.tp], sort_keys=True)
    of = hashlib.sha256("\n".join((*validators, work)).encode()).hexdigest()
    return Path(spec.cache) / "tunableop" / f"{of[:12]}.csv"


def extend(load: Callable[[EngineSpec], Engine]) -> Callable[[EngineSpec], TunedEngine]:
    """Any engine that computes in this process."""
    # PyTorch heeds these before its own functions, so that tuning could not be switched off.
    for name in [name for name in os.environ if name.startswith("PYTORCH_TUNABLEOP_")]:
        del os.environ[name]
    from torch.cuda import tunable

    return lambda spec: TunedEngine(load, spec, tunable)


def no_tunable_build(device: Device) -> str | None:
    """The reason why there is nothing to tune on a device, or None."""
    return "TunableOp exists in the CUDA and ROCm builds of torch alone" if device.kind == "cpu" else None


BACKEND = Backend(
    name="tunableop",
    load=extend,
    slot="gemm",
    optimizes="both",
    proof="tuned matrix products other than the default, none of them tuned while timing",
    requires=no_tunable_build,
)
