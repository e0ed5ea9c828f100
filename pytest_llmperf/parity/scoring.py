"""The reference's side of parity: generates what is judged, and asks the reference to score it. `parity` decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llmperf.backends.base import Observation, Score
from pytest_llmperf.cases import Workload
from pytest_llmperf.measure.trace import TraceError, check_tokens
from pytest_llmperf.parity.decision import ERROR_MARGIN, Parity, Row, TextRow, decide, decide_by_text

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
        unequal: list[list[int]],
        other_weights: bool = False,
    ) -> Parity:
        """Judge rows of timed generations, and an untimed batch of unequal lengths whose logits are looked at too.

        Args:
            backend: the backend's name.
            workload: what was timed.
            timed: rows of the timed generations.
            unequal: the prompts of the untimed batch.
            other_weights: the backend's weights or activations are coarser than the reference's by design.
        """
        observed = self._observe(backend, workload, unequal)
        for one in timed:
            if len(one.tokens) < workload.max_new_tokens and one.tokens[-1] not in self._end_of_sequence:
                raise TraceError(
                    f"{backend} {workload}: it ended after {len(one.tokens)} of {workload.max_new_tokens} tokens, and "
                    f"the last one is no end-of-sequence token ({one.place})"
                )
        self._progress(f"{backend} {workload}: {self._reference} scores its tokens")
        scores = self._score([one.prompt for one in timed], [list(one.tokens) for one in timed])
        rows = [Row(one.place, one.tokens, score) for one, score in zip(timed, scores, strict=True)]
        shown = bool(observed[0].candidates)
        scores = self._ask_scores(
            unequal, [list(one.tokens) for one in observed], [one.candidates for one in observed] if shown else None
        )
        rows += [
            Row(place, one.tokens, score, one if shown else None)
            for place, one, score in zip(_places(unequal), observed, scores, strict=True)
        ]
        return decide(rows, self._end_of_sequence, self._margin, other_weights)

    def judge_by_text(
        self,
        backend: str,
        workload: Workload,
        *,
        timed: Sequence[Made],
        unequal: list[list[int]],
        decode: Callable[[Sequence[int], Sequence[int]], str],
    ) -> Parity:
        """Judge a backend whose token ids are not known: its texts must be those of the reference's own tokens.

        Args:
            backend: the backend's name.
            workload: what was timed.
            timed: rows of the timed generations.
            unequal: the prompts of the untimed batch.
            decode: the text that tokens add to a prompt.
        """
        observed = self._observe(backend, workload, unequal)
        made = [(one.place, one.prompt, one.text) for one in timed]
        made += [
            (place, prompt, one.text) for place, prompt, one in zip(_places(unequal), unequal, observed, strict=True)
        ]
        asked, size = [prompt for _, prompt, _ in made], workload.batch_size
        own = [
            one.tokens
            for start in range(0, len(asked), size)
            for one in self._observe(self._reference, workload, asked[start : start + size])
        ]
        rows = [
            TextRow(place, text, decode(prompt, tokens), tokens)
            for (place, prompt, text), tokens in zip(made, own, strict=True)
        ]
        return decide_by_text(rows, self._end_of_sequence)

    def _observe(self, backend: str, workload: Workload, prompts: list[list[int]]) -> list[Observation]:
        key = (backend, workload.max_new_tokens, tuple(map(tuple, prompts)))
        if key not in self._observed:
            self._progress(f"{backend} {workload}: generating for parity")
            answer = self._ask(backend, "observe", prompts=prompts, max_new_tokens=workload.max_new_tokens)
            found = [Observation(**one) for one in answer]
            rows = [one.tokens for one in found]
            ended = [bool({*row[-1:]} & {*self._end_of_sequence}) for row in rows]
            try:
                check_tokens(rows, requests=len(prompts), max_new_tokens=workload.max_new_tokens, ended=ended)
            except TraceError as error:
                raise TraceError(f"{backend} {workload}, generating for parity: {error}") from None
            self._observed[key] = found
        return self._observed[key]

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


def _places(unequal: list[list[int]]) -> list[str]:
    """What errors call the rows of the untimed batch."""
    return [
        f"request {request} of {len(unequal)} of the untimed batch, a prompt of {len(prompt)} tokens"
        + (" among unequal ones" if len(unequal) > 1 else "")
        for request, prompt in enumerate(unequal)
    ]
