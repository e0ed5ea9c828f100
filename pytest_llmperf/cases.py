"""What is measured: a workload, a case (the unit that is gated), and the metrics of a generation."""

from __future__ import annotations

from dataclasses import dataclass

#: Metric name -> (what a reader calls it, unit). The order is the order of every report.
METRICS: dict[str, tuple[str, str]] = {
    "ttft": ("prefill latency (mean TTFT)", "s"),
    "tpot": ("decode latency (mean TPOT)", "s/token"),
    "latency": ("end-to-end latency", "s"),
    "cold-start": ("cold start (load, compile, first generation)", "s"),
}
#: The metrics that a test can gate. Every generation has them.
GATED = ("ttft", "tpot", "latency")


@dataclass(frozen=True, order=True)
class Workload:
    """B requests submitted together, each of the same prompt length (tokens) and number of new tokens."""

    batch_size: int
    prompt_length: int
    max_new_tokens: int

    def __str__(self) -> str:
        return f"b{self.batch_size}-p{self.prompt_length}-n{self.max_new_tokens}"

    @classmethod
    def parse(cls, text: str) -> Workload:
        """The inverse of `str`. Raises ValueError or TypeError where it is not one."""
        return cls(*(int(part[1:]) for part in text.split("-")))


def place(metric: str, workload: Workload) -> tuple[int, Workload]:
    """What reports sort cases by, so that backends stand under each other. Raises ValueError for an unknown metric."""
    return list(METRICS).index(metric), workload


@dataclass(frozen=True, order=True)
class Case:
    """Model x dtype x backend x workload x metric: the unit that has a baseline and a verdict."""

    model: str
    dtype: str
    backend: str
    workload: Workload
    metric: str

    @property
    def key(self) -> str:
        """The case's name inside ``baselines/<device>/<model>.json``: its full configuration."""
        return f"{self.dtype}/{self.backend}/{self.workload}/{self.metric}"

    @property
    def profile_key(self) -> str:
        """What the metrics of one generation have in common: the key without the metric."""
        return self.key.rpartition("/")[0]

    def __str__(self) -> str:
        return f"{self.model}/{self.key}"

    @classmethod
    def parse(cls, model: str, key: str) -> Case:
        """The case of a model by its `key`. Raises ValueError or TypeError where it is not one."""
        dtype, rest = key.split("/", 1)
        backend, workload, metric = rest.rsplit("/", 2)  # nothing keeps a slash from a backend's name
        return cls(model, dtype, backend, Workload.parse(workload), metric)
