"""Greedy parity with the reference: a decision from tokens, regrets and logit errors. Pure; nothing is generated here.

Two backends may differ at a near tie in reduced precision and both be right, so tokens need not be equal. Three rules,
each scaled by the reference's own rounding (its logits in this dtype against one precision up), never by a guess:

* *Information.* Repetitions prove nothing: enough tokens must carry information.
* *Regret.* No token may be worse, in the reference's eyes, than rounding on both sides can explain.
* *Error.* Where the engine shows its logits, their error against the exact ones must be of the reference's own size.
  A softmax scale that is 5 % off flips hardly a token in bfloat16, and doubles the error.

Which text a run has must not decide. So a decision says whether it is settled, and more is generated until it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pytest_llmperf.backends.base import LEADING, Observation, Score

#: A token is a repetition if the period before it, of up to this many tokens, is what it repeats.
LONGEST_PERIOD = 8
#: Fewer informative tokens than this (or than a quarter of all, for short generations) decide nothing.
ENOUGH = 24
#: What is said of fewer.
TOO_FEW = (
    "only {} of {} tokens carry information (the rest repeat), which proves nothing; raise --llm-max-new-tokens, "
    "or measure a trained model"
)
#: Both sides round: a right token's regret is at most twice the largest error on a difference of two leading logits.
REGRET_FACTOR = 2.0
#: The error may be this much larger than the reference's before its significance is asked. In a half type the roundings
#: of what every kernel reads and writes outweigh how it computes.
ERROR_MARGIN = 1.15
#: In float32 they do not: an approximate exponential or another order of summation is twice as far from the exact value
#: as eager (vLLM's CPU kernels are), where a wrong kernel is a thousand times as far.
FLOAT32_ERROR_MARGIN = 16.0
#: What a regret may be (in logits) where the weights are other ones, in any type: a token that the reference finds less
#: than 1/e as likely as its own choice is not what rounded weights explain.
BOUNDED_REGRET = 1.0
#: Standard errors that the logarithm of the error ratio must be above the margin: one false alarm in about 700.
ERROR_SIGNIFICANCE = 3.0
#: Standard errors that it must be below the margin before no further positions are looked at.
SETTLED = 4.0
#: Standard deviation of the logarithm of the error ratio over the positions of a right kernel in bfloat16, at most.
POSITION_SPREAD = 0.25


@dataclass(frozen=True)
class Row:
    """One request: where it was made, what the backend chose, and what the reference says of it."""

    place: str
    tokens: Sequence[int]
    score: Score
    observation: Observation | None = None


@dataclass(frozen=True)
class Parity:
    """The decision, with what it rests on.

    Attributes:
        passed: in parity; or, where ``bounded``, no further away than coarser weights or activations explain.
        reason: why not, in one line; empty if passed.
        tokens: tokens judged.
        informative: those that are no repetition.
        exact_match: fraction of tokens that are the reference's own choice, given the same prefix.
        first_divergence: index of the first token of a row that is not the reference's own choice, or None.
        largest_regret: in logits.
        tolerance: what a regret may be, in logits.
        error_ratio: geometric mean of the backend's logit error over the reference's, or None if not observable.
        bounded: its weights or activations are coarser, so that it is never equal, and what is shown is how far away
            it is.
        by_text: its token ids are not known, so that its text was compared with the reference's own; ``tokens`` and
            ``informative`` are then the reference's, ``exact_match`` counts characters, and regrets are 0.
        positions: whose logits were compared.
        settled: whether further rows would hardly change the decision.
        judged: whether there was enough to judge by. If not, nothing was found against the tokens either.
    """

    passed: bool
    reason: str
    tokens: int
    informative: int
    exact_match: float
    first_divergence: int | None
    largest_regret: float
    tolerance: float
    error_ratio: float | None
    bounded: bool = False
    by_text: bool = False
    positions: int = 0
    settled: bool = True
    judged: bool = True

    @property
    def by_tokens(self) -> bool:
        """Whether the engine showed no logits: an error that changes no token was not looked for."""
        return self.error_ratio is None and not self.by_text and not self.bounded


def informative(tokens: Sequence[int], end_of_sequence: Iterable[int] = ()) -> int:
    """How many tokens carry information.

    A token does not if it comes after an end-of-sequence token (a model that has ended says the same for ever), or if
    the period that ends with it, of up to `LONGEST_PERIOD` tokens, is the period before it.
    """
    ended, count = False, 0
    ends = set(end_of_sequence)
    for index, token in enumerate(tokens):
        repeats = any(
            index + 1 >= 2 * period
            and list(tokens[index + 1 - period : index + 1])
            == list(tokens[index + 1 - 2 * period : index + 1 - period])
            for period in range(1, LONGEST_PERIOD + 1)
        )
        count += not (ended or repeats)
        ended = ended or token in ends
    return count


def rounding_spread(score: Score) -> list[float]:
    """Per position, the largest error of the reference on a difference of two leading logits (in logits)."""
    spreads = []
    for logits, exact in zip(score.logits, score.exact, strict=True):
        leading = sorted(zip(exact, logits, strict=True), reverse=True)[:LEADING]
        errors = [own - value for value, own in leading]
        spreads.append(max(errors) - min(errors))
    return spreads


def centred_error(logits: Sequence[float], exact: Sequence[float]) -> float:
    """Root mean square of (logits - exact) after removing their mean, which a softmax does not see."""
    errors = [a - b for a, b in zip(logits, exact, strict=True)]
    mean = fmean(errors)
    return math.sqrt(fmean((error - mean) ** 2 for error in errors))


def error_log_ratios(rows: Iterable[Row]) -> list[float]:
    """log(backend's error / reference's error), one value per observed position."""
    ratios = []
    for row in rows:
        if row.observation is None:
            continue
        for seen, own, exact in zip(row.observation.logits, row.score.logits, row.score.exact, strict=True):
            # The error of one position may happen to be next to nothing; a float64 epsilon keeps the ratio finite.
            tiny = 1e-12 * (1 + max(abs(value) for value in exact))
            ratios.append(math.log((centred_error(seen, exact) + tiny) / (centred_error(own, exact) + tiny)))
    return ratios


def error_margin(dtype: str) -> float:
    """How many times larger a right kernel's error may be than the reference's, in a type."""
    return FLOAT32_ERROR_MARGIN if dtype == "float32" else ERROR_MARGIN


def enough_positions(margin: float) -> int:
    """How many positions show that a right kernel's error is below a margin, as `SETTLED` asks."""
    return math.ceil((SETTLED * POSITION_SPREAD / math.log(margin)) ** 2)


@dataclass(frozen=True)
class TextRow:
    """One request of a backend whose token ids are not known: its text, and what the reference generated itself."""

    place: str
    text: str
    reference_text: str
    reference_tokens: Sequence[int]


#: What stands for bytes that are no whole character (yet); one side may have held them back.
INCOMPLETE = "\ufffd"
#: Characters shown of two texts where they part.
SHOWN = 24


def parting(one: str, other: str) -> int | None:
    """The index of the first character in which two texts differ, an incomplete end apart; None if they do not."""
    one, other = one.rstrip(INCOMPLETE), other.rstrip(INCOMPLETE)
    if one == other:
        return None
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def decide_by_text(rows: Sequence[TextRow], end_of_sequence: Iterable[int] = ()) -> Parity:
    """Whether a backend's texts are the reference's own.

    Without token ids nothing can be scored, so that equality is all that can be asked for. It passes what no right
    backend would fail but at a near tie, and it cannot tell that from an error.

    Args:
        rows: every request judged, at least one.
        end_of_sequence: the model's end-of-sequence ids.
    """
    ends = set(end_of_sequence)
    total = sum(len(row.reference_tokens) for row in rows)
    carrying = sum(informative(row.reference_tokens, ends) for row in rows)
    partings = [parting(row.text, row.reference_text) for row in rows]
    characters = sum(len(row.reference_text) for row in rows)
    equal = sum(len(row.reference_text) if at is None else at for row, at in zip(rows, partings, strict=True))
    differing = next((index for index, at in enumerate(partings) if at is not None), None)
    reason = ""
    if differing is not None:
        row, at = rows[differing], partings[differing] or 0
        reason = (
            f"its text parts from the reference's at character {at} "
            f"({row.text[at : at + SHOWN]!r} instead of {row.reference_text[at : at + SHOWN]!r}) of {row.place}; "
            "without token ids a near tie cannot be told from an error"
        )
    elif not characters:
        reason = "the reference's own text is empty, which proves nothing"
    elif carrying < min(ENOUGH, total / 4):
        reason = TOO_FEW.format(carrying, total)
    return Parity(
        passed=not reason,
        reason=reason,
        tokens=total,
        informative=carrying,
        exact_match=equal / max(1, characters),
        first_divergence=None,
        largest_regret=0.0,
        tolerance=0.0,
        error_ratio=None,
        by_text=True,
        settled=differing is not None or carrying >= min(ENOUGH, total / 4),
        judged=not reason or differing is not None,
    )


def decide(
    rows: Sequence[Row], end_of_sequence: Iterable[int] = (), margin: float = ERROR_MARGIN, other_weights: bool = False
) -> Parity:
    """Whether a backend's tokens are right.

    Args:
        rows: every request judged, at least one.
        end_of_sequence: the model's end-of-sequence ids.
        margin: how many times larger its logits' error may be than the reference's.
        other_weights: its weights or activations are coarser than the reference's by design: what is asked is that no
            regret be above `BOUNDED_REGRET`; the error of its logits is told and not judged.
    """
    ends = set(end_of_sequence)
    total = sum(len(row.tokens) for row in rows)
    carrying = sum(informative(row.tokens, ends) for row in rows)
    regrets = [regret for row in rows for regret in row.score.regret]
    rounding = REGRET_FACTOR * max(spread for row in rows for spread in rounding_spread(row.score))
    tolerance = BOUNDED_REGRET if other_weights else rounding
    largest = max(regrets)
    finite = all(map(math.isfinite, (*regrets, tolerance)))
    divergences = [index for row in rows for index, regret in enumerate(row.score.regret) if regret]
    ratios = error_log_ratios(rows)
    mean = fmean(ratios) if ratios else 0.0
    error = stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.inf
    limit, settled, judged = math.log(margin), True, True
    if not finite:
        reason = "the reference's own logits are not finite numbers, so nothing can be judged by them"
        judged = False
    elif not largest <= tolerance:
        worst = max(rows, key=lambda row: max(row.score.regret))
        reason = (
            f"a token is {largest:.3g} logits worse than the reference's choice; "
            f"{'coarser weights or activations explain' if other_weights else 'rounding explains'} {tolerance:.3g} "
            f"(token {list(worst.score.regret).index(largest)} of {worst.place})"
        )
    elif not other_weights and not mean - ERROR_SIGNIFICANCE * error <= limit:
        worst = max((row for row in rows if row.observation), key=lambda row: fmean(error_log_ratios([row])))
        reason = (
            f"its logits are {math.exp(mean):.2f} times as far from the exact ones as the reference's "
            f"(most so in {worst.place})"
        )
    elif carrying < min(ENOUGH, total / 4):
        reason = TOO_FEW.format(carrying, total)
        settled = judged = False
    else:
        reason = ""
        settled = other_weights or not ratios or mean + SETTLED * error <= limit
    return Parity(
        passed=not reason,
        reason=reason,
        tokens=total,
        informative=carrying,
        exact_match=sum(regret == 0 for regret in regrets) / total,
        first_divergence=min(divergences, default=None),
        largest_regret=largest,
        tolerance=tolerance,
        error_ratio=math.exp(mean) if ratios else None,
        bounded=other_weights,
        positions=len(ratios),
        settled=settled,
        judged=judged,
    )
