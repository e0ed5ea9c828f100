"""A profile of one generation, as PyTorch's profiler records it, inside the worker."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pytest_llmperf.explain.profiles import MARK, Event, of_events

#: Operators that tell how long the profiler takes for one, in so many series of so many.
SERIES, OPERATORS = 8, 32


def mark() -> None:
    """Note in the profile that a step begins or ends here."""
    with record_function(MARK):
        pass


class Profiler:
    """A context in which every operator and kernel is recorded. The first step begins with it.

    Args:
        device: torch's device string.
        shapes: whether the shapes of operators' inputs are kept.

    Attributes:
        device: torch's device string.
        seconds: that it lasted.
    """

    def __init__(self, device: str, shapes: bool = False) -> None:
        self.device = device
        activities = [ProfilerActivity.CPU, *([] if device == "cpu" else [ProfilerActivity.CUDA])]
        # Of all threads: an engine may generate in another one.
        everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
        options: dict[str, Any] = {"record_shapes": shapes, "acc_events": True, "experimental_config": everywhere}
        self._profile = profile(activities=activities, **options)
        self._alone = 0.0
        self._overhead = 0.0
        self.seconds = 0.0

    def __enter__(self) -> Profiler:
        self._alone = _operator()
        self._profile.start()
        self._began = time.perf_counter()
        mark()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self._overhead = max(0.0, _operator() - self._alone)
        self._profile.stop()

    @property
    def events(self) -> list[Any]:
        """Everything that was recorded, as PyTorch says it."""
        recorded: Any = self._profile
        return list(recorded.events() or ())

    def averages(self) -> list[Any]:
        """PyTorch's sums of the events of each name."""
        return list(self._profile.key_averages())

    def phases(self) -> dict[str, Any]:
        """The profile of each phase as plain values."""
        found = of_events(_events(self.events), self._overhead * 1e6)
        return {phase: one.as_dict() for phase, one in found.items()}


def _operator() -> float:
    """Seconds that a small operator takes now, at best."""
    one = torch.ones(1)
    taken = []
    with torch.inference_mode():
        for _ in range(SERIES):
            start = time.perf_counter()
            for _ in range(OPERATORS):
                one.neg()
            taken.append((time.perf_counter() - start) / OPERATORS)
    return min(taken)


def _events(recorded: Iterable[Any]) -> Iterable[Event]:
    for one in recorded:
        device = one.device_type.name != "CPU"
        if one.is_async or (device and (one.is_user_annotation or one.name == MARK)):
            continue  # a range that somebody named is no kernel, though the device has it too
        yield Event(one.name, one.time_range.start, one.time_range.end, one.thread, device)
