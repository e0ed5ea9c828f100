"""The token ids that engines are given: bundled text of one length, other text in every generation, the same for all.

An engine may remember what it was asked: answers, or the prefixes of prompts. So each generation of a run has prompts
of its own, which begin unlike all others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pytest_llmperf.cases import Workload
from pytest_llmperf.output import in_short


@cache
def passages() -> tuple[str, ...]:
    """The bundled prose, about 200 words a passage. Windows cut from it go on as text, not as an end-of-sequence."""
    text = resources.files("pytest_llmperf").joinpath("data/passages.txt").read_text(encoding="utf-8")
    return tuple(part.strip() for part in text.split("\n\n") if part.strip())


#: Words that a prompt of text begins with, each drawn by itself. The text has some 8,000 words, so that two windows may
#: begin at the same one. Two prompts hardly ever share three words of this opening.
OPENING = 4
#: Windows that are tried until the text of one becomes the same tokens again.
TRIES = 16


class PromptError(ValueError):
    """No prompts can be made for the model; one line says why."""


class Generation(NamedTuple):
    """The prompts of one generation of a workload.

    Attributes:
        number: which generation of a backend in this run, from 0.
        prompts: token ids, a row per request.
    """

    number: int
    prompts: list[list[int]]


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raise PromptError where the library of tokenizers fails: it has no class of errors of its own."""
    try:
        yield
    except Exception as error:
        said = in_short(str(error))
        raise PromptError(f"{file} is not usable ({said}); download it again, or update tokenizers") from error


def load_tokenizer(file: Path) -> Any:
    """The tokenizer in a tokenizer.json, without the padding and the truncation that the file may ask for.

    Raises:
        PromptError: it is damaged, or of a newer kind than the library.
    """
    from tokenizers import Tokenizer

    with _reading(file):
        tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def comes_back(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether the text of a prompt becomes the same tokens again, so that a server can be sent the text."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    return bool(text) and list(tokenizer.encode(text).ids) == list(ids)


class Prompts:
    """Cuts prompts for a model. The seed and the arguments of a method decide what it returns, and nothing else does.

    With the model's tokenizer they are windows of real text after a few words, and after the special tokens that the
    tokenizer puts first. If the tokenizer allows it, their text becomes the same tokens again. Without a tokenizer
    (random weights) they are pseudo-random ids.

    Args:
        vocabulary: how many tokens the model has.
        tokenizer_file: its tokenizer.json; None without one.
        seed: of the run.

    Raises:
        PromptError: the tokenizer cannot be used, or has more tokens than the model and the text has such a token.
    """

    def __init__(self, vocabulary: int, tokenizer_file: Path | None, seed: int = 0) -> None:
        self._vocabulary = vocabulary
        self._seed = seed
        self._prefix: list[int] = []
        self._text: list[int] = []
        self._words: list[tuple[int, int]] = []
        self._returns = False
        self._tokenizer: Any = None
        if tokenizer_file is not None:
            self._tokenizer = load_tokenizer(tokenizer_file)
            with _reading(tokenizer_file):
                self._prefix = list(self._tokenizer.encode("").ids)
                self._text, self._words = _text_of(self._tokenizer)
            largest = max([*self._prefix, *self._text], default=0)
            if largest >= vocabulary:
                raise PromptError(
                    f"{tokenizer_file} makes token {largest} of plain text, and the model has {vocabulary} tokens: it "
                    "is another model's tokenizer; put the right one into the model's folder"
                )
            draw = random.Random(0)
            self._returns = self.real_text and any(
                comes_back(self._tokenizer, self._window(draw, 64)) for _ in range(TRIES)
            )

    @property
    def real_text(self) -> bool:
        return bool(self._words)

    def continuation(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """The text that tokens add to a prompt. By themselves they may decode otherwise: a first blank is dropped."""
        before = self._tokenizer.decode(list(prompt), skip_special_tokens=True)
        whole = self._tokenizer.decode([*prompt, *tokens], skip_special_tokens=True)
        return str(whole)[len(before) :]

    def batch(self, workload: Workload, generation: int = 0) -> list[list[int]]:
        """The ``batch_size`` prompts of a generation, of ``prompt_length`` ids each."""
        return [self.prompt(workload, generation, request) for request in range(workload.batch_size)]

    def prompt(self, workload: Workload, generation: int, request: int) -> list[int]:
        """The prompt of one request of a generation."""
        return self._drawn(workload.prompt_length, workload, generation, request)

    def unequal_batch(self, workload: Workload, number: int = 0) -> list[list[int]]:
        """As many prompts of a generation that is not timed, their lengths falling geometrically to 1.

        A batch of one has nothing to be unequal to: it is another prompt of the full length.
        """
        last = max(1, workload.batch_size - 1)
        lengths = [round(workload.prompt_length ** (1 - index / last)) for index in range(workload.batch_size)]
        return [self._drawn(length, workload, f"unequal {number}", request) for request, length in enumerate(lengths)]

    def many(self, count: int, length: int, series: int = 0) -> list[list[int]]:
        """Prompts for a load. Those of another series are other ones."""
        return [self._drawn(length, "load", series, request) for request in range(count)]

    def _drawn(self, length: int, *key: object) -> list[int]:
        """A prompt of so many ids. The key says which one."""
        draw = random.Random(" ".join(map(str, (self._seed, *key))))
        if not self._words:
            # Never zeros where there is another id: timing on constant input flatters caches.
            return draw.choices(range(min(1, self._vocabulary - 1), self._vocabulary), k=length)
        made = self._window(draw, length)
        for _ in range(TRIES if self._returns else 0):
            if comes_back(self._tokenizer, made):
                break
            made = self._window(draw, length)
        return made

    def _window(self, draw: random.Random, length: int) -> list[int]:
        """Special tokens, a few words, and text from a word on; the text begins again where it ends."""
        *opening, (start, _) = draw.choices(self._words, k=OPENING + 1)
        ids = self._prefix + [token for first, end in opening for token in self._text[first:end]]
        while len(ids) < length:
            ids += self._text[start : start + length - len(ids)]
            start = 0
        return ids[:length]


def _text_of(tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of the bundled text, and where each word of it begins and ends among them."""
    text = " ".join(" ".join(passages()).split())
    # The second of two copies begins as any other word does, with what the tokenizer makes of the blank before it.
    twice = f"{text} {text}"
    encoded = tokenizer.encode(twice, add_special_tokens=False)
    spans = [(start, end) for start, end in encoded.offsets if end > len(text)]
    tokens = list(encoded.ids[len(encoded.ids) - len(spans) :])
    return tokens, list(pairwise([*_beginnings(twice, spans), len(tokens)])) if tokens else []


def _beginnings(text: str, spans: Sequence[tuple[int, int]]) -> Iterator[int]:
    """The indices of the tokens that begin a word. A token of the blank before the word begins it; the first one does.

    Args:
        text: what was encoded.
        spans: where each token begins and ends in it.
    """
    covered = 0
    for index, (start, end) in enumerate(spans):
        after_blank = text[start - 1 : start] == " " and covered < start
        if not index or text[start:end].startswith(" ") or after_blank:
            yield index
        covered = end
