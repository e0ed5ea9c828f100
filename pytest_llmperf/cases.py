"""What is measured: a workload, a case (the unit that is gated), and the metrics of a generation."""

from __future__ import annotations

from dataclasses import dataclass

#: Seconds that are never a regression: stamping a token costs microseconds.
FLOOR = 50e-6
#: The metrics of a generation's times, which ``--llm-max-regression`` is for.
LATENCIES = ("ttft", "tpot", "latency")
#: The metrics of a process that is started for its own sake: without what earlier processes compiled, and with it.
STARTS = (COLD_START, WARM_START) = ("cold-start", "warm-start")


@dataclass(frozen=True)
class Metric:
    """What a figure is, and how it is said.

    Attributes:
        title: what a reader calls it.
        unit: of its figures: ``s``, ``s/token``, or ``B`` for bytes.
        floor: a difference, in the unit, that is never a regression.
        allowed: the growth allowed by default, a fraction, on a CPU and on an accelerator; None where that is the
            device's own.
    """

    title: str
    unit: str
    floor: float = FLOOR
    allowed: tuple[float, float] | None = None

    @property
    def timed(self) -> bool:
        """Whether it is a time, so that a slow machine has a larger figure."""
        return self.unit != "B"

    @property
    def more(self) -> str:
        """What a larger figure is called."""
        return "slower" if self.timed else "more memory"

    @property
    def less(self) -> str:
        """What a smaller figure is called."""
        return "faster" if self.timed else "less memory"

    @property
    def growth(self) -> str:
        """What the gate looks for, with its article."""
        return "a slowdown" if self.timed else "an increase"


#: The metrics by name, in the order of every report.
METRICS = {
    "ttft": Metric("prefill latency (mean TTFT)", "s"),
    "tpot": Metric("decode latency (mean TPOT)", "s/token"),
    "latency": Metric("end-to-end latency", "s"),
    "memory": Metric("peak memory beyond what is loaded", "B", floor=4 * 2**20, allowed=(0.05, 0.02)),
    "weights": Metric("memory when loaded", "B", floor=4 * 2**20, allowed=(0.05, 0.02)),
    "cold-start": Metric("cold start", "s", allowed=(0.25, 0.25)),
    "warm-start": Metric("warm start", "s", allowed=(0.25, 0.25)),
}


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
    def start(self) -> str:
        """The metric if it is one of `STARTS`; else empty."""
        return self.metric if self.metric in STARTS else ""

    @property
    def kept(self) -> tuple[str, ...]:
        """The keys of the baselines that stay while a test has the case: its own, and those of the starts.

        Tests of starts are left out of most runs.
        """
        return self.key, *(f"{self.profile_key}/{start}" for start in STARTS)

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
