"""Statistics of the gate: samples in, `Verdict` out. No clock, no files, no torch.

From small to large: a *sample* is the figure of one generation (in seconds, or as a fraction of eager's latency); a
*block* is the best of a few samples in a row; an *invocation* is one fresh process, and its *statistic* is the median
of its blocks; an arm's *centre* is the median of its statistics. Two arms are compared by the ratio of their centres.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import chain, takewhile
from statistics import median
from typing import Literal

#: One sequence of samples per fresh process, in the order taken. None is empty; samples are positive and finite.
Invocations = Sequence[Sequence[float]]

#: What was compared: latencies of one machine, relative latencies, which may come from two, or base and head side by
#: side.
Basis = Literal["latency", "speedup", "base"]

#: Confidence level of a verdict's interval.
LEVEL = 0.99

#: The share of the threshold that the interval's low end and every single process must still exceed. All of it would
#: miss most slowdowns near the threshold; none of it would let one slow process pull the others along.
CONSISTENT = 1 / 3

#: Where Tukey's fences stand (Exploratory Data Analysis, 1977), in interquartile ranges beyond a quartile: what lies
#: beyond the inner one is outside, and beyond the outer one far out. A process that is outside is a question, which
#: several more and a witness answer; figures that are far out are of other code.
OUTSIDE, FAR_OUT = 1.5, 3.0

#: An improvement beyond this fraction is asked about: a step that was skipped looks like one, and so does a baseline
#: that nobody has renewed.
LARGE = 0.2


class Outcome(str, Enum):
    """What the gate says of a case. Only a regression fails its test."""

    REGRESSION = "regression"
    OK = "ok"
    FASTER = "faster"
    INCONCLUSIVE = "inconclusive"
    NEW = "new"
    NO_BASELINE = "no baseline"
    INCOMPARABLE = "incomparable"

    def __str__(self) -> str:
        return self.value

    @property
    def compared(self) -> bool:
        """Whether head was compared with anything."""
        return self not in (Outcome.NEW, Outcome.NO_BASELINE, Outcome.INCOMPARABLE)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison, and how sure it is.

    Attributes:
        outcome: what the gate says.
        ratio: centre of head / centre of baseline: 1.07 is 7 % slower. NaN without a baseline.
        low, high: the 99 % bootstrap interval of the ratio.
        threshold: the slowdown that was needed, as a fraction.
        resolution: the smallest slowdown, as a fraction, that would surely have been called had these samples come
            out that much slower: the threshold widened, on the log scale, by the lower half of the interval,
            ``(1 + threshold) * ratio / low - 1``; more where the least slow process or the floor would object,
            or where the reference is faster than it was, which the gate adds. (A slowdown of just the threshold is
            called half the time.)
        processes, blocks: how many invocations head has, and how many blocks in all.
        basis: what was compared.
        reason: one readable clause; empty for a plain ok.
        flagged: the screen saw a slowdown, inconclusive until `clear` or `confirm` has judged fresh processes, or a
            large improvement, which they judge likewise.
        head, baseline: the two centres, in the samples' unit. NaN without a baseline.
    """

    outcome: Outcome
    ratio: float
    low: float
    high: float
    threshold: float
    resolution: float
    processes: int
    blocks: int
    basis: Basis = "latency"
    reason: str = ""
    flagged: bool = False
    head: float = math.nan
    baseline: float = math.nan

    @property
    def compared(self) -> bool:
        """Whether head was compared with anything, and anything came of it."""
        return self.outcome.compared and not math.isnan(self.ratio)

    @property
    def questionable(self) -> bool:
        """Whether it is an improvement too large to be taken on trust."""
        return self.outcome is Outcome.FASTER and self.ratio < 1 - LARGE

    @property
    def change(self) -> float:
        """How much slower (above 0) or faster (below 0) head is, as a fraction of the baseline."""
        return self.ratio - 1


def nothing(outcome: Outcome, reason: str) -> Verdict:
    """The verdict of a case that was compared with nothing."""
    return Verdict(outcome, math.nan, math.nan, math.nan, math.nan, math.nan, 1, 0, reason=reason)


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and range of n samples, in their unit."""

    median: float
    q1: float
    q3: float
    minimum: float
    maximum: float
    n: int


def summarize(samples: Sequence[float]) -> Spread:
    """The spread of samples.

    Raises:
        ValueError: there are no samples, or one is not positive and finite.
    """
    _check(samples=[samples])
    q1, q3 = quantile(samples, 1 / 4), quantile(samples, 3 / 4)
    return Spread(median(samples), q1, q3, min(samples), max(samples), len(samples))


def blocks(samples: Sequence[float], k: int = 2) -> list[float]:
    """The best of every k samples in a row: ``max(1, n // k)`` blocks, of which the last takes what is left over.

    Contamination on a shared machine is one-sided: a neighbour makes a sample slower, never faster. The best of a few
    samples in a row sheds such spikes, and the median over blocks still follows a change that lasts.

    Raises:
        ValueError: k is below 1, there are no samples, or one is not positive and finite.
    """
    _check(samples=[samples])
    if k < 1:
        raise ValueError(f"a block holds at least 1 sample, not {k}")
    starts = range(0, max(1, len(samples) // k) * k, k)
    return [min(samples[start : start + k if start != starts[-1] else None]) for start in starts]


def centre(invocations: Invocations) -> float:
    """The median, over invocations, of the median of their blocks: the figure that is compared."""
    return median(_statistics(invocations))


def noise_floor(baseline: Invocations, earlier: Sequence[Invocations] = ()) -> float:
    """How far above the baseline's centre an invocation of unchanged code may lie, as a fraction.

    Of one set of invocations it is the fence of their statistics over their centre, minus 1: 0 for fewer than 2. Sets
    that one machine made on different days differ by more than processes of one day do. So of the sets that are
    `unchanged` there are two fences: that of all processes, each over its own set's centre, and that of the centres,
    over the newest. The two vary independently, so they add up in quadrature. The floor is never below the newest
    set's own, nor below the slowest process of them all. The fences are the inner ones, `OUTSIDE`.

    Args:
        baseline: the newest set, whose centre is compared.
        earlier: the sets before it on the same machine, newest first.

    Raises:
        ValueError: data that `Invocations` excludes.
    """
    _check(baseline=baseline)
    return _floor(unchanged([baseline, *earlier]), OUTSIDE)


def unchanged(sets: Sequence[Invocations]) -> list[Invocations]:
    """The newest of the sets and those before it that the same code made, as far as the figures tell; newest first.

    An accepted change of the code is not noise. A set further from the newest, slower or faster, than what was far out
    (`FAR_OUT`) just before the newest was made, was other code; and what came before that set does not count either.
    Since each set is held against all that are kept, small steps in one direction do not add up to a wide floor.

    Raises:
        ValueError: data that `Invocations` excludes.
    """
    _check(**{f"set {number}": one for number, one in enumerate(sets)})
    kept: list[Invocations] = []
    for one in reversed(sets):
        kept = [one, *_like(one, kept)]
    return kept


def _like(newest: Invocations, older: Sequence[Invocations]) -> list[Invocations]:
    """Those of the older sets, newest first, before the first that is far out from the newest by their own noise."""
    if not older:
        return []
    floor, now = _floor(older, FAR_OUT), centre(newest)
    return list(takewhile(lambda one: max(now, centre(one)) <= min(now, centre(one)) * (1 + floor), older))


def _floor(sets: Sequence[Invocations], reach: float) -> float:
    """How far above the newest centre the fences stand of sets of unchanged code, newest first."""
    statistics, centres = [_statistics(one) for one in sets], [centre(one) for one in sets]
    own = _fence(statistics[0], reach) / centres[0] - 1
    if len(sets) == 1:
        return own
    within = _fence([value / at for row, at in zip(statistics, centres, strict=True) for value in row], reach) - 1
    between = _fence(centres, reach) / centres[0] - 1
    return max(own, math.hypot(within, between), max(chain.from_iterable(statistics)) / centres[0] - 1)


def _fence(values: Sequence[float], reach: float) -> float:
    """That many interquartile ranges above the upper quartile, or the largest value where that is beyond."""
    q1, q3 = quantile(values, 1 / 4), quantile(values, 3 / 4)
    return max(q3 + reach * (q3 - q1), *values)


def bootstrap_interval(
    baseline: Invocations, head: Invocations, level: float = LEVEL, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval (low, high) of the ratio of centres, head / baseline.

    A hierarchical bootstrap (Kalibera and Jones, Rigorous Benchmarking in Reasonable Time, 2013): invocations are
    drawn with replacement, then blocks within each. An arm of one invocation varies by its blocks alone, so the
    difference between processes is not in the interval. It is widened, if need be, to contain the ratio itself.

    Raises:
        ValueError: the level is not between 0 and 1, there are no resamples, or data that `Invocations` excludes.
    """
    if not (0 < level < 1 and resamples >= 1):
        raise ValueError(f"the level must be between 0 and 1 and resamples at least 1, not {level} and {resamples}")
    _check(baseline=baseline, head=head)
    rng = random.Random(seed)
    centres = [_resampled_centres(arm, resamples, rng) for arm in (baseline, head)]
    ratios = [above / below for below, above in zip(*centres, strict=True)]
    ratio, tail = centre(head) / centre(baseline), (1 - level) / 2
    return min(ratio, quantile(ratios, tail)), max(ratio, quantile(ratios, 1 - tail))


def screen(
    baseline: Invocations,
    head: Invocations,
    tolerance: float,
    floor: float,
    basis: Basis = "latency",
    earlier: Sequence[Invocations] = (),
) -> Verdict:
    """Judge the one invocation of head that every case gets: ok, faster, or inconclusive.

    Flagged is what is slower by more than the threshold, ``max(tolerance, noise_floor(baseline, earlier))``, and by
    more than the floor. It needs `clear` or `confirm`: one process is never enough to call a regression. What is slower
    by more than the tolerance, but not by more than the baseline's own processes differ, is inconclusive: nobody can
    tell. Flagged as well is an improvement too large to be taken on trust, `LARGE`.

    Args:
        baseline: the stored invocations.
        head: the one invocation of this run.
        tolerance: accepted slowdown, as a fraction.
        floor: accepted slowdown in seconds; 0 for relative latencies.
        basis: what the samples are.
        earlier: the stored sets before the baseline, newest first, as in `noise_floor`.

    Raises:
        ValueError: head is not one invocation, a negative tolerance or floor, or data that `Invocations` excludes.
    """
    if len(head) != 1:
        raise ValueError(f"the screen takes 1 invocation of head, not {len(head)}")
    verdict = _compare(baseline, head, tolerance, floor, basis, earlier)
    change, threshold = change_of(verdict.ratio), verdict.threshold
    if verdict.ratio > 1 + threshold:
        if verdict.head - verdict.baseline <= floor:
            return replace(verdict, reason=f"{change}, but within the floor of {1e3 * floor:.3g} ms")
        reason = f"flagged: {change} in one process, above the threshold of {threshold:.1%}"
        return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=reason, flagged=True)
    if verdict.ratio > 1 + tolerance:
        return _unresolved(verdict, tolerance, floor)
    if verdict.ratio < 1 / (1 + threshold) and verdict.high < 1:
        faster = replace(verdict, outcome=Outcome.FASTER, reason=change)
        return replace(faster, flagged=faster.questionable)
    return verdict


def clear(
    baseline: Invocations,
    head_fresh: Invocations,
    tolerance: float,
    floor: float,
    earlier: Sequence[Invocations] = (),
) -> Verdict | None:
    """Judge a flagged case by its first fresh invocation, if that one is as fast as the baseline; else None.

    What `confirm` asks of every invocation is then out of reach, whatever further ones would say: the case would be
    neither a regression nor faster.

    Raises:
        ValueError: as `screen`, which explains the arguments.
    """
    if len(head_fresh) != 1:
        raise ValueError(f"a case is cleared by 1 fresh invocation of head, not {len(head_fresh)}")
    verdict = _compare(baseline, head_fresh, tolerance, floor, "latency", earlier)
    if max(verdict.ratio, 1 / verdict.ratio) > 1 + verdict.threshold * CONSISTENT:
        return None
    return _calm(verdict, "not confirmed in a fresh process", tolerance, floor)


def confirm(
    baseline: Invocations,
    head_fresh: Invocations,
    tolerance: float,
    floor: float,
    earlier: Sequence[Invocations] = (),
) -> Verdict:
    """Judge a flagged case by its fresh invocations: regression, faster, ok or inconclusive.

    A regression needs all of: a ratio above 1 + threshold, as in `screen`; the interval's low end and every single
    invocation's ratio above 1 + threshold / 3; a difference above the floor. The flagged invocation must not be among
    the fresh ones: it was selected for being slow, so it is biased. Faster is the same the other way round.

    Raises:
        ValueError: there are fewer than 2 fresh invocations; else as `screen`, which explains the arguments.
    """
    if len(head_fresh) < 2:
        raise ValueError(f"a confirmation takes at least 2 fresh invocations of head, not {len(head_fresh)}")
    verdict = _compare(baseline, head_fresh, tolerance, floor, "latency", earlier)
    needed, reason = verdict.threshold * CONSISTENT, f"{change_of(verdict.ratio)} in {len(head_fresh)} fresh processes"
    most = max(_statistics(head_fresh)) / verdict.baseline
    if verdict.ratio < 1 / (1 + verdict.threshold) and max(verdict.high, most) < 1 / (1 + needed):
        return questioned(replace(verdict, outcome=Outcome.FASTER, reason=reason))
    if verdict.ratio <= 1 + verdict.threshold:
        return _calm(verdict, f"not confirmed in {len(head_fresh)} fresh processes", tolerance, floor)
    least = min(_statistics(head_fresh)) / verdict.baseline
    doubts = []
    if verdict.low <= 1 + needed:
        doubts.append(f"the {LEVEL:.0%} interval reaches down to {change_of(verdict.low)}, not above {needed:.1%}")
    if least <= 1 + needed:
        doubts.append(f"one process was {change_of(least)}, not above {needed:.1%}")
    if verdict.head - verdict.baseline <= floor:
        doubts.append(f"the difference is within the floor of {1e3 * floor:.3g} ms")
    if doubts:
        return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=f"{reason}, but {' and '.join(doubts)}")
    return replace(verdict, outcome=Outcome.REGRESSION, reason=reason)


def questioned(verdict: Verdict) -> Verdict:
    """A large improvement, with what to ask of it; others as they are."""
    if not verdict.questionable:
        return verdict
    return replace(
        verdict, reason=f"{verdict.reason}: is something not measured any more, or what it is held against stale?"
    )


def _calm(verdict: Verdict, reason: str, tolerance: float, floor: float) -> Verdict:
    """A flagged case that is not confirmed."""
    calm = replace(verdict, reason=reason)
    return calm if verdict.ratio <= 1 + tolerance else _unresolved(calm, tolerance, floor)


def _unresolved(verdict: Verdict, tolerance: float, floor: float) -> Verdict:
    """Slower than the tolerance allows, by less than the baseline's own processes differ."""
    if verdict.head - verdict.baseline <= floor:
        return verdict
    reason = (
        f"{change_of(verdict.ratio)}, more than the {tolerance:.0%} allowed, but this baseline's own processes differ "
        f"by up to {verdict.threshold:.1%}; record it on a quieter machine"
    )
    return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=reason)


def contaminated(verdict: Verdict, reason: str) -> Verdict:
    """A regression or faster becomes inconclusive, for a reason such as "the GPU was throttled"; others stay."""
    if verdict.outcome not in (Outcome.REGRESSION, Outcome.FASTER):
        return verdict
    return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=f"{verdict.reason}, but {reason}")


def speedup_invocations(eager: Invocations, backend: Invocations) -> list[list[float]]:
    """Relative latencies backend / eager (a fraction: 0.5 is a speedup of 2), for a baseline of another machine.

    Every sample is divided by eager's centre, so that `screen` and `confirm` take the result as it is, with floor 0.
    Eager's own uncertainty is common to all of them, and so is not in their interval.

    Raises:
        ValueError: data that `Invocations` excludes.
    """
    _check(eager=eager, backend=backend)
    scale = centre(eager)
    return [[sample / scale for sample in samples] for samples in backend]


def _compare(
    baseline: Invocations,
    head: Invocations,
    tolerance: float,
    floor: float,
    basis: Basis,
    earlier: Sequence[Invocations],
) -> Verdict:
    """The figures of a comparison, under the outcome ok."""
    if not (0 <= tolerance < math.inf and 0 <= floor < math.inf):
        raise ValueError(f"the tolerance and the floor must be finite and at least 0, not {tolerance} and {floor}")
    low, high = bootstrap_interval(baseline, head)
    threshold = max(tolerance, noise_floor(baseline, earlier))
    now, before = centre(head), centre(baseline)
    ratio = now / before
    resolution = max(
        threshold,
        (1 + threshold) * (ratio / low) - 1,
        (1 + threshold * CONSISTENT) * (now / min(_statistics(head))) - 1,
        floor / before,
    )
    count = sum(len(blocks(samples)) for samples in head)
    return Verdict(
        Outcome.OK,
        ratio,
        low,
        high,
        threshold,
        resolution,
        len(head),
        count,
        basis,
        head=now,
        baseline=before,
    )


def _statistics(invocations: Invocations) -> list[float]:
    return [median(blocks(samples)) for samples in invocations]


def _resampled_centres(invocations: Invocations, resamples: int, rng: random.Random) -> list[float]:
    """The centres of hierarchical resamples of one arm."""
    arm = sorted(sorted(blocks(samples)) for samples in invocations)  # so that the order given does not matter
    picks = rng.choices(range(len(arm)), k=len(arm) * resamples)
    # One call draws an invocation's blocks for all resamples, which is much faster than a call for each.
    drawn = [iter(_medians(rng.choices(b, k=len(b) * picks.count(i)), len(b))) for i, b in enumerate(arm)]
    return _medians([next(drawn[pick]) for pick in picks], len(arm))


def _medians(values: Sequence[float], size: int) -> list[float]:
    """The median of every `size` values in a row; spelled out, because this is the inner loop of the bootstrap."""
    half = size // 2
    runs = [sorted(run) for run in zip(*[iter(values)] * size, strict=True)]
    return [run[half] for run in runs] if size % 2 else [(run[half - 1] + run[half]) / 2 for run in runs]


def quantile(values: Sequence[float], p: float) -> float:
    """The p-quantile (p from 0 to 1), linear between values: type 7 of Hyndman and Fan, 1996."""
    ordered = sorted(values)
    index, share = divmod(p * (len(ordered) - 1), 1)
    lower, upper = ordered[int(index)], ordered[min(int(index) + 1, len(ordered) - 1)]
    return lower + share * (upper - lower)


def _check(**arms: Invocations) -> None:
    for name, invocations in arms.items():
        if not invocations:
            raise ValueError(f"{name}: no invocations")
        for samples in invocations:
            if not samples or not all(isinstance(x, (int, float)) and math.isfinite(x) and x > 0 for x in samples):
                raise ValueError(f"{name}: an invocation must hold positive finite samples, not {list(samples)}")


def change_of(ratio: float) -> str:
    """A ratio in words, such as ``4.2% slower``."""
    return f"{abs(ratio - 1):.1%} {'slower' if ratio >= 1 else 'faster'}"
