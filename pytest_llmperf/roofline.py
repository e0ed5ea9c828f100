"""FLOPs and bytes of a workload, the bounds that they imply, and how near a latency comes (MFU, MBU). Pure.

FLOPs of a prefill of S tokens: 2 N S + 2 L H d S (S + 1), with the output head counted for the last position only,
which is all that generate asks for; of a decoded token at context C: 2 N + 4 L H d C (Kaplan et al. 2020, with causal
attention counted exactly). A layer with a window of W tokens attends to W at most. Bytes of a decode step: the weights
once, and each request's keys and values. Of a layer's experts, N and the bytes count those of one token: however many
the requests choose, none does with fewer. So every figure is the least that must be done. The roofline is that of
Williams, Waterman and Patterson (2009): time >= max(FLOPs / peak, bytes / bandwidth).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_llmperf.architecture import BYTES, Architecture
from pytest_llmperf.cases import Workload

#: A roof that was measured here is itself a measurement, with noise: only beyond this is a figure impossible.
MEASURED_ROOF_MARGIN = 1.15


@dataclass(frozen=True)
class Bound:
    """The shortest time possible, and which roof says so."""

    seconds: float
    limit: Literal["compute", "memory"]


def prefill_flops(arch: Architecture, batch: int, prompt_length: int) -> float:
    """FLOPs of prefilling B prompts of S tokens."""
    body = arch.matrix_parameters - arch.head_parameters
    attention = 2 * arch.attended * arch.pairs(prompt_length)
    return float(batch * (2 * body * prompt_length + 2 * arch.head_parameters + attention))


def decode_flops(arch: Architecture, batch: int, context: float) -> float:
    """FLOPs of one decode step of B requests at a context of C tokens."""
    return float(batch * (2 * arch.matrix_parameters + 2 * arch.attended * arch.reach(context)))


def prefill_bytes(
    arch: Architecture, batch: int, prompt_length: int, dtype: str, weight_bytes: float | None = None
) -> float:
    """Bytes that a prefill must move at least: the weights read, the keys and values written."""
    return float(_weights_read(arch, dtype, weight_bytes) + batch * arch.kv_bytes(prompt_length, dtype))


def decode_bytes(
    arch: Architecture, batch: int, context: float, dtype: str, weight_bytes: float | None = None
) -> float:
    """Bytes that a decode step must move at least: the weights, and each request's keys and values."""
    return float(_weights_read(arch, dtype, weight_bytes) + batch * arch.kv_bytes(context, dtype))


def _weights_read(arch: Architecture, dtype: str, weight_bytes: float | None) -> float:
    return arch.read_parameters * (BYTES[dtype] if weight_bytes is None else weight_bytes)


def mean_context(prompt_length: int, max_new_tokens: int) -> float:
    """Mean context of the decode steps: S + 1 to S + n - 1, since the prefill brings the first new token."""
    return prompt_length + max_new_tokens / 2


def _bound(flops: float, size: float, peak_flops: float, peak_bandwidth: float) -> Bound:
    compute, memory = flops / peak_flops, size / peak_bandwidth
    return Bound(compute, "compute") if compute >= memory else Bound(memory, "memory")


def prefill_bound(
    arch: Architecture,
    batch: int,
    prompt_length: int,
    dtype: str,
    peak_flops: float,
    peak_bandwidth: float,
    weight_bytes: float | None = None,
) -> Bound:
    """The shortest TTFT (s) that the roofs (FLOP/s, bytes/s) allow."""
    flops = prefill_flops(arch, batch, prompt_length)
    return _bound(flops, prefill_bytes(arch, batch, prompt_length, dtype, weight_bytes), peak_flops, peak_bandwidth)


def decode_bound(
    arch: Architecture,
    batch: int,
    prompt_length: int,
    max_new_tokens: int,
    dtype: str,
    peak_flops: float,
    peak_bandwidth: float,
    weight_bytes: float | None = None,
) -> Bound:
    """The shortest TPOT (s/token) that the roofs (FLOP/s, bytes/s) allow, at the mean context."""
    context = mean_context(prompt_length, max_new_tokens)
    flops = decode_flops(arch, batch, context)
    return _bound(flops, decode_bytes(arch, batch, context, dtype, weight_bytes), peak_flops, peak_bandwidth)


def mfu(arch: Architecture, batch: int, prompt_length: int, seconds: float, peak_flops: float) -> float:
    """Model FLOPs utilization of a prefill that took ``seconds``: achieved FLOP/s over the peak."""
    return prefill_flops(arch, batch, prompt_length) / seconds / peak_flops


def mbu(
    arch: Architecture,
    batch: int,
    prompt_length: int,
    max_new_tokens: int,
    dtype: str,
    seconds: float,
    peak_bandwidth: float,
    weight_bytes: float | None = None,
) -> float:
    """Model bandwidth utilization of decode steps of ``seconds`` each: achieved bytes/s over the peak."""
    context = mean_context(prompt_length, max_new_tokens)
    return decode_bytes(arch, batch, context, dtype, weight_bytes) / seconds / peak_bandwidth


@dataclass(frozen=True)
class Utilization:
    """How much of a roof a latency means.

    Attributes:
        name: ``MFU`` (of a prefill) or ``MBU`` (of a decode).
        fraction: achieved rate over the roof's.
        bound: the shortest latency that the roofs allow, in the metric's unit.
        limit: which roof that is, ``compute`` or ``memory``.
        flops, size: FLOPs and bytes of the work, whose ratio is its arithmetic intensity.
    """

    name: str
    fraction: float
    bound: float
    limit: str
    flops: float
    size: float


def utilization(
    arch: Architecture,
    workload: Workload,
    metric: str,
    seconds: float,
    dtype: str,
    peaks: Mapping[str, float],
    weight_bytes: float | None = None,
) -> Utilization | None:
    """The utilization of a TTFT or TPOT (s), given peaks ``flops`` (FLOP/s) and ``bandwidth`` (bytes/s).

    None for other metrics, for a model type that is not counted, and for quantized weights of unknown size.
    ``weight_bytes`` are those of one weight, where they are not the dtype's.
    """
    if arch.parameters is None or (arch.quantized and weight_bytes is None):
        return None
    batch, prompt, new = workload.batch_size, workload.prompt_length, workload.max_new_tokens
    flops, bandwidth = peaks["flops"], peaks["bandwidth"]
    if metric == "ttft":
        bound = prefill_bound(arch, batch, prompt, dtype, flops, bandwidth, weight_bytes)
        work = prefill_flops(arch, batch, prompt), prefill_bytes(arch, batch, prompt, dtype, weight_bytes)
        return Utilization("MFU", mfu(arch, batch, prompt, seconds, flops), bound.seconds, bound.limit, *work)
    if metric == "tpot":
        bound = decode_bound(arch, batch, prompt, new, dtype, flops, bandwidth, weight_bytes)
        fraction = mbu(arch, batch, prompt, new, dtype, seconds, bandwidth, weight_bytes)
        context = mean_context(prompt, new)
        work = decode_flops(arch, batch, context), decode_bytes(arch, batch, context, dtype, weight_bytes)
        return Utilization("MBU", fraction, bound.seconds, bound.limit, *work)
    return None


def impossible(found: Utilization, seconds: float, measured_roof: bool, strict: bool = True) -> str | None:
    """Why a latency (s) cannot be, or None: the work was not done, or the clock was not waited for.

    ``strict`` says that nothing passes a data sheet's roof; else it has the margin of a measured one.
    """
    limit = MEASURED_ROOF_MARGIN if measured_roof or not strict else 1.0
    roof = "the measured roof of this machine" if measured_roof else "the device's data-sheet roof"
    if found.fraction > limit:
        what = f"{found.name} is {found.fraction:.0%} of {roof}"
    elif found.bound > limit * seconds:
        what = f"{seconds * 1e3:.3g} ms is under the {found.limit} bound of {found.bound * 1e3:.3g} ms, by {roof}"
    else:
        return None
    declared = "compute_dtype" if found.limit == "compute" else "weight_bytes"
    return f"{what}: the work was not done, the clock did not wait for it, or the backend does not say its {declared}"
