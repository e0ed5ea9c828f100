"""How much sittings of unchanged code differ, where few of them are known: by kind of device and metric. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_llmperf.cases import METRICS, STARTS


@dataclass(frozen=True)
class Prior:
    """How much sittings of unchanged code differ where few of them are known.

    Attributes:
        spread: how much sittings differ beyond what their processes do: a standard deviation of logarithms (0.03 is
            3 %).
        weight: how many sittings that is worth.
    """

    spread: float
    weight: int = 4


#: From recorded sittings of unchanged code; `benchmarks.gate.replay` prints the figures that these come from. On an AMD
#: EPYC whose CPUs stayed where they were, sittings of minutes and hours apart differed by 1.5 to 2.0 %. Days may add.
CPU = Prior(0.03)
#: Of seven sittings on H200 machines: 0.7 %.
ACCELERATOR_PREFILL = Prior(0.01)
#: Of the same: 6.5 % in TPOT, 16 % with one machine whose host was slow. Decode of a small batch waits for the host.
ACCELERATOR_DECODE = Prior(0.08)
#: Of bytes, on either kind of device. Assumptions: no sittings of unchanged code were recorded yet.
#: `benchmarks.memory` measures how processes differ, `benchmarks.gate.memory` what the gate makes of it.
CPU_MEMORY, ACCELERATOR_MEMORY = Prior(0.01), Prior(0.002)
#: Of starts, whatever the device. An assumption: no sittings of unchanged code were recorded yet. On shared virtual
#: machines loading and a first generation together differed by 2 to 12 % from process to process.
START = Prior(0.05)


def prior_of(kind: str, metric: str) -> Prior:
    """The prior of a kind of device (``cpu``, ``cuda``, ``rocm``) and a metric."""
    if not METRICS[metric].timed:
        return CPU_MEMORY if kind == "cpu" else ACCELERATOR_MEMORY
    if metric in STARTS:
        return START
    if kind == "cpu":
        return CPU
    return ACCELERATOR_PREFILL if metric == "ttft" else ACCELERATOR_DECODE
