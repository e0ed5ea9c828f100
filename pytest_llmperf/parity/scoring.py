"""The reference's side of parity: generates what is judged, and asks the reference to score it. `parity` decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pytest_llmperf.backends.base import Observation, Score
from pytest_llmperf.cases import Workload
from pytest_llmperf.measure.trace import TraceError, check_tokens
from pytest_llmperf.parity.decision import ERROR_MARGIN, Parity, Row, TextRow, decide, decide_by_text

#: Asks a backend's engine: name, operation, arguments.
Ask = Callable[..., Any]


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
        self._observed: dict[tuple[str, Workload], list[Observation]] = {}
        self._scores: dict[tuple[tuple[int, ...], tuple[int, ...]], Score] = {}

    def judge(
        self,
        backend: str,
        workload: Workload,
        *,
        equal: list[list[int]],
        unequal: list[list[int]],
        timed: list[tuple[int, tuple[int, ...]]],
        reference_timed: list[tuple[int, tuple[int, ...]]],
        other_weights: bool = False,
    ) -> Parity:
        """Judge the timed tokens, and an untimed batch of unequal lengths whose logits are looked at too.

        Args:
            backend: the backend's name.
            workload: what was timed.
            equal: its prompts.
            unequal: the prompts of the untimed batch.
            timed: every distinct (request index, tokens) of the timed generations.
            reference_timed: the same of the reference.
            other_weights: the backend's weights or activations are coarser than the reference's by design.
        """
        observed = self._observe(backend, workload, unequal)
        theirs = self._observe(self._reference, workload, unequal)
        self._progress(f"{backend} {workload}: {self._reference} scores its tokens")
        own = dict(reference_timed)
        scores = self._score([equal[index] for index, _ in timed], [list(row) for _, row in timed])
        rows = [Row(tokens, own[index], score) for (index, tokens), score in zip(timed, scores, strict=True)]
        shown = bool(observed[0].candidates)
        scores = self._ask_scores(
            unequal, [list(one.tokens) for one in observed], [one.candidates for one in observed] if shown else None
        )
        rows += [
            Row(one.tokens, their.tokens, score, one if shown else None)
            for one, their, score in zip(observed, theirs, scores, strict=True)
        ]
        return decide(rows, self._end_of_sequence, self._margin, other_weights)

    def judge_by_text(
        self,
        backend: str,
        workload: Workload,
        *,
        equal: list[list[int]],
        unequal: list[list[int]],
        timed: list[tuple[int, str]],
        reference_timed: list[tuple[int, tuple[int, ...]]],
        decode: Callable[[Sequence[int], Sequence[int]], str],
    ) -> Parity:
        """Judge a backend whose token ids are not known: its texts must be those of the reference's own tokens.

        Args:
            backend: the backend's name.
            workload: what was timed.
            equal: its prompts.
            unequal: the prompts of the untimed batch.
            timed: every distinct (request index, text) of the timed generations.
            reference_timed: the (request index, tokens) of the reference.
            decode: the text that tokens add to a prompt.
        """
        observed = self._observe(backend, workload, unequal)
        theirs = self._observe(self._reference, workload, unequal)
        own = dict(reference_timed)
        rows = [TextRow(text, decode(equal[index], own[index]), own[index]) for index, text in timed]
        rows += [
            TextRow(one.text, decode(prompt, their.tokens), their.tokens)
            for one, their, prompt in zip(observed, theirs, unequal, strict=True)
        ]
        return decide_by_text(rows, self._end_of_sequence)

    def _observe(self, backend: str, workload: Workload, prompts: list[list[int]]) -> list[Observation]:
        key = (backend, workload)
        if key not in self._observed:
            self._progress(f"{backend} {workload}: generating for parity")
            answer = self._ask(backend, "observe", prompts=prompts, max_new_tokens=workload.max_new_tokens)
            found = [Observation(**one) for one in answer]
            try:
                check_tokens(
                    [one.tokens for one in found], requests=len(prompts), max_new_tokens=workload.max_new_tokens
                )
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
