"""What a run covers: device, model, dtype, backends, workloads, tolerances. Settled before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf import models
from pytest_llmperf.backends.registry import Registry
from pytest_llmperf.cases import Workload
from pytest_llmperf.devices import detect
from pytest_llmperf.sampling import Plan
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


DEFAULTS = {
    "cpu": Defaults((1, 4), (256,), 32, Plan(minimum=3, maximum=10, budget=6.0)),
    "accelerator": Defaults((1, 2, 4, 8, 16, 32), (2048,), 128, Plan(minimum=5, maximum=20, budget=6.0)),
}


class Scope:
    """The settings, with what the device and the model decide where the user did not.

    Args:
        settings: what the user asked for.
        registry: every backend known.
        cache: the user's cache folder.

    Raises:
        UnusableError: the device, the model, the dtype or a backend rules the run out.
    """

    def __init__(self, settings: Settings, registry: Registry, cache: Path) -> None:
        self.settings = settings
        self.registry = registry
        self.cache = cache
        try:
            self.device = detect.resolve(settings.device)
            self.model = models.resolve(settings.model, settings.random_weights, cache)
            self.backends = self._backends()
        except (KeyError, ValueError) as error:
            raise UnusableError(str(error.args[0] if error.args else error)) from None
        self.defaults = DEFAULTS["cpu" if self.device.kind == "cpu" else "accelerator"]
        self.dtype = self._dtype()

    def _backends(self) -> tuple[str, ...]:
        asked = self.registry.names() if self.settings.backends == ("all",) else self.settings.backends
        for name in (*asked, self.settings.reference):
            _ = self.registry[name]
        # The reference comes first: every speedup needs its figures.
        return tuple(sorted(asked, key=lambda name: name != self.settings.reference))

    def _dtype(self) -> str:
        dtype = self.settings.dtype or ("bfloat16" if self.device.kind == "cpu" else self.model.half_type)
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
        return found

    def missing(self, backend: str) -> str | None:
        """Why the backend cannot run here, or None."""
        return self.registry[backend].requires(self.device)

    def tolerance(self, stated: float | None) -> tuple[float, str]:
        """The slowdown allowed and where that was stated; the strictest of the stated ones."""
        candidates = [
            (value, source)
            for value, source in (
                (stated, "marker"),
                (self.settings.max_regression, "--llm-max-regression"),
            )
            if value is not None
        ]
        return min(candidates, default=(self.device.max_regression, f"default of {self.device.name}"))
