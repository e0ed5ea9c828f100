"""The reference's side of parity: generates what is judged, and asks the reference to score it. `parity` decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, takewhile
from typing import Any

from pytest_llmperf.backends.base import Observation, Score
from pytest_llmperf.cases import Workload
from pytest_llmperf.measure.trace import TraceError, check_tokens
from pytest_llmperf.parity.decision import (
    ERROR_MARGIN,
    Parity,
    Row,
    TextRow,
    decide,
    decide_by_text,
    enough_positions,
)

#: Rounds of untimed batches, each twice as many as the rounds before, and batches in all.
MOST_ROUNDS, MOST_BATCHES = 3, 16
#: Asks a backend's engine: name, operation, arguments.
Ask = Callable[..., Any]


@dataclass(frozen=True)
class Made:
    """A row that a backend generated: where, from which prompt, its tokens, and their text where they are unknown."""

    place: str
    prompt: list[int]
    tokens: tuple[int, ...]
    text: str = ""


class Referee:
    """Judges backends against one reference.

    Args:
        ask: calls an operation of a backend's engine.
        reference: the reference's name.
        end_of_sequence: the model's ids.
        margin: how many times larger an error of logits may be than the reference's own.
        progress: told what is being done.
    """

    def __init__(
        self,
        ask: Ask,
        reference: str,
        end_of_sequence: Sequence[int],
        progress: Callable[[str], None],
        margin: float = ERROR_MARGIN,
    ) -> None:
        self._ask = ask
        self._reference = reference
        self._end_of_sequence = end_of_sequence
        self._progress = progress
        self._margin = margin
        self._observed: dict[tuple[str, int, tuple[tuple[int, ...], ...]], list[Observation]] = {}
        self._scores: dict[tuple[tuple[int, ...], tuple[int, ...]], Score] = {}

    def judge(
        self,
        backend: str,
        workload: Workload,
        *,
        timed: Sequence[Made],
        untimed: Callable[[int], list[list[int]]],
        other_weights: bool = False,
    ) -> Parity:
        """Judge rows of timed generations, and untimed batches whose logits are looked at too.

        Args:
            backend: the backend's name.
            workload: what was timed.
            timed: rows of the timed generations.
            untimed: the prompts of an untimed batch, by its number.
            other_weights: the backend's weights or activations are coarser than the reference's by design.
        """
        first = self._observe(backend, workload, untimed(0))
        shown = bool(first[0].candidates)
        fewest = 1
        if shown and not other_weights:
            fewest = -(-enough_positions(self._margin) // sum(len(one.tokens) for one in first))
        rows: list[Row] = []

        def found(batches: range) -> Parity:
            made = [*self._untimed(backend, workload, untimed, batches)]
            self._progress(f"{backend} {workload}: {self._reference} scores its tokens")
            by_tokens = [] if rows else list(timed)
            if not shown:
                by_tokens += [Made(place, prompt, tuple(one.tokens)) for place, prompt, one in made]
            rows.extend(self._by_tokens(by_tokens, workload))
            if shown:
                scores = self._ask_scores(
                    [prompt for _, prompt, _ in made],
                    [list(one.tokens) for _, _, one in made],
                    [one.candidates for _, _, one in made],
                )
                rows.extend(
                    Row(place, one.tokens, score, one) for (place, _, one), score in zip(made, scores, strict=True)
                )
            return decide(rows, self._end_of_sequence, self._margin, other_weights)

        return _settled(found, fewest)

    def judge_by_text(
        self,
        backend: str,
        workload: Workload,
        *,
        timed: Sequence[Made],
        untimed: Callable[[int], list[list[int]]],
        decode: Callable[[Sequence[int], Sequence[int]], str],
    ) -> Parity:
        """Judge a backend whose token ids are not known: its texts must be those of the reference's own tokens.

        Args:
            backend: the backend's name.
            workload: what was timed.
            timed: rows of the timed generations.
            untimed: the prompts of an untimed batch, by its number.
            decode: the text that tokens add to a prompt.
        """
        rows: list[TextRow] = []

        def found(batches: range) -> Parity:
            new = workload.max_new_tokens
            made = [(one.place, one.prompt, one.text, len(one.tokens) < new) for one in timed if not rows]
            observed = self._untimed(backend, workload, untimed, batches)
            made += [(place, prompt, one.text, len(one.tokens) < new) for place, prompt, one in observed]
            asked, size = [prompt for _, prompt, *_ in made], workload.batch_size
            own = [
                one.tokens
                for start in range(0, len(asked), size)
                for one in self._observe(self._reference, workload, asked[start : start + size])
            ]
            for (place, prompt, text, ended), tokens in zip(made, own, strict=True):
                if ended:
                    tokens = list(takewhile(lambda token: token not in self._end_of_sequence, tokens))
                rows.append(TextRow(place, text, decode(prompt, tokens), tokens))
            return decide_by_text(rows, self._end_of_sequence)

        return _settled(found, 1)

    def _untimed(
        self, backend: str, workload: Workload, untimed: Callable[[int], list[list[int]]], batches: range
    ) -> Iterator[tuple[str, list[int], Observation]]:
        """Of each request of some untimed batches: what errors call it, its prompt, and what was observed."""
        for number in batches:
            prompts = untimed(number)
            for request, one in enumerate(self._observe(backend, workload, prompts)):
                yield (
                    f"request {request} of {len(prompts)} of untimed batch {number}, a prompt of "
                    f"{len(prompts[request])} tokens" + (" among unequal ones" if len(prompts) > 1 else ""),
                    prompts[request],
                    one,
                )

    def _observe(self, backend: str, workload: Workload, prompts: list[list[int]]) -> list[Observation]:
        key = (backend, workload.max_new_tokens, tuple(map(tuple, prompts)))
        if key not in self._observed:
            self._progress(f"{backend} {workload}: generating for parity")
            answer = self._ask(backend, "observe", prompts=prompts, max_new_tokens=workload.max_new_tokens)
            found = [Observation(**one) for one in answer]
            rows = [one.tokens for one in found]
            ended = [one.ended or bool({*one.tokens[-1:]} & {*self._end_of_sequence}) for one in found]
            try:
                check_tokens(rows, requests=len(prompts), max_new_tokens=workload.max_new_tokens, ended=ended)
            except TraceError as error:
                raise TraceError(f"{backend} {workload}, generating for parity: {error}") from None
            self._observed[key] = found
        return self._observed[key]

    def _by_tokens(self, made: Sequence[Made], workload: Workload) -> Iterator[Row]:
        """Rows judged by their tokens alone. Some engines do not show the end-of-sequence token by which a row ended.

        Then the model's one that the reference likes most is judged.
        """
        shown: list[tuple[Made, list[int]]] = []
        for one in made:
            hidden = len(one.tokens) < workload.max_new_tokens and one.tokens[-1] not in self._end_of_sequence
            if hidden and not self._end_of_sequence:
                raise TraceError(f"{one.place} ended early, and the model has no end-of-sequence token")
            shown += [
                (one, [*one.tokens, *end]) for end in ([[end] for end in self._end_of_sequence] if hidden else [[]])
            ]
        scores = self._score([one.prompt for one, _ in shown], [tokens for _, tokens in shown])
        judged = zip(shown, scores, strict=True)
        for one, rows in groupby(judged, key=lambda row: row[0][0]):
            (_, tokens), score = min(rows, key=lambda row: row[1].regret[-1])
            yield Row(one.place, tokens, score)

    def _score(self, prompts: list[list[int]], continuations: list[list[int]]) -> list[Score]:
        """Scores by the largest logits, each (prompt, continuation) asked once: most backends say the same."""
        keys = [(tuple(prompt), tuple(row)) for prompt, row in zip(prompts, continuations, strict=True)]
        wanted = sorted(set(keys) - self._scores.keys())
        if wanted:
            asked = self._ask_scores([list(prompt) for prompt, _ in wanted], [list(row) for _, row in wanted], None)
            self._scores.update(zip(wanted, asked, strict=True))
        return [self._scores[key] for key in keys]

    def _ask_scores(self, prompts: Any, continuations: Any, candidates: Any) -> list[Score]:
        answer = self._ask(
            self._reference, "score", prompts=prompts, continuations=continuations, candidates=candidates
        )
        return [Score(**one) for one in answer]


def _settled(found: Callable[[range], Parity], fewest: int) -> Parity:
    """The decision, once it is settled, or after `MOST_ROUNDS`. Each round doubles the untimed batches.

    An engine may have to be loaded again for each round, where there is no memory for the reference beside it.

    Args:
        found: generates and scores these further batches, and decides by all so far.
        fewest: batches of the first round.
    """
    stops = [min(fewest << number, MOST_BATCHES) for number in range(MOST_ROUNDS)]
    for start, stop in pairwise([0, *dict.fromkeys(stops)]):
        parity = found(range(start, stop))
        if parity.settled:
            break
    return parity
