"""The token ids that every backend is given: bundled text that goes on, cut to length, the same for all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pytest_llmperf.cases import Workload


@cache
def passages() -> tuple[str, ...]:
    """The bundled prose, about 200 words a passage. Windows cut from it go on as text, not as an end-of-sequence."""
    text = resources.files("pytest_llmperf").joinpath("data/passages.txt").read_text(encoding="utf-8")
    return tuple(part.strip() for part in text.split("\n\n") if part.strip())


#: Prompts of one series without text, at most: the next one begins after them.
SERIES = 1_000_000


class Prompts:
    """Cuts prompts for a model.

    With the model's tokenizer they are windows of real text, each beginning at a passage, after the special tokens
    that the tokenizer puts first. Without one (random weights) they are pseudo-random ids from a fixed seed, never
    zeros, since timing on constant input flatters caches.
    """

    def __init__(self, vocabulary: int, tokenizer_file: Path | None) -> None:
        self._vocabulary = vocabulary
        self._prefix: list[int] = []
        self._passages: list[list[int]] = []
        self._tokenizer: Any = None
        if tokenizer_file is not None:
            from tokenizers import Tokenizer

            tokenizer = self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
            self._prefix = list(tokenizer.encode("").ids)
            encoded = tokenizer.encode_batch(list(passages()), add_special_tokens=False)
            self._passages = [list(one.ids) for one in encoded]

    @property
    def real_text(self) -> bool:
        return bool(self._passages)

    def continuation(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """The text that tokens add to a prompt. By themselves they may decode otherwise: a first blank is dropped."""
        before = self._tokenizer.decode(list(prompt), skip_special_tokens=True)
        whole = self._tokenizer.decode([*prompt, *tokens], skip_special_tokens=True)
        return str(whole)[len(before) :]

    def batch(self, workload: Workload) -> list[list[int]]:
        """``batch_size`` prompts of ``prompt_length`` ids each."""
        return self._cut([workload.prompt_length] * workload.batch_size)

    def unequal_batch(self, workload: Workload) -> list[list[int]]:
        """As many prompts of other passages, their lengths falling geometrically from ``prompt_length`` to 1.

        A batch of one has nothing to be unequal to: it is another prompt of the full length.
        """
        last = max(1, workload.batch_size - 1)
        lengths = [round(workload.prompt_length ** (1 - index / last)) for index in range(workload.batch_size)]
        return self._cut(lengths, offset=len(self._passages) // 2)

    def many(self, count: int, length: int, series: int = 0) -> list[list[int]]:
        """Prompts for a load, no two alike from their first tokens on, or a server's prefix cache would answer some.

        Prompts of another series begin elsewhere too.
        """
        whole = [token for passage in self._passages for token in passage]
        if not whole:
            return self._cut([length] * count, offset=series * SERIES)
        starts = [(index * len(whole) // count + series) % len(whole) for index in range(count)]
        kept = length - len(self._prefix)
        return [(self._prefix + [whole[(at + i) % len(whole)] for i in range(kept)])[:length] for at in starts]

    def _cut(self, lengths: Sequence[int], offset: int = 0) -> list[list[int]]:
        return [self._window(index + offset, length) for index, length in enumerate(lengths)]

    def _window(self, passage: int, length: int) -> list[int]:
        if not self._passages:
            draw = random.Random(passage)
            return [draw.randrange(1, self._vocabulary) for _ in range(length)]
        ids = list(self._prefix)
        while len(ids) < length:
            ids += self._passages[passage % len(self._passages)]
            passage += 1
        return ids[:length]
