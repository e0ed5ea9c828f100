"""The prompts cut for a model: exact lengths, other ones in every generation, text that comes back as its tokens."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inner import WORDLEVEL
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pytest_llmperf.cases import Workload
from pytest_llmperf.models import Model
from pytest_llmperf.prompts import PromptError, Prompts, comes_back, load_tokenizer, passages


@pytest.fixture(scope="module")
def prompts(bundled_model: Model) -> Prompts:
    return Prompts(bundled_model.architecture.vocabulary, bundled_model.tokenizer_file)


@pytest.fixture(params=["text", "random"])
def either(request: pytest.FixtureRequest) -> Prompts:
    """Prompts of real text, or ids for random weights."""
    return Prompts(49152, None) if request.param == "random" else request.getfixturevalue("prompts")


@pytest.mark.parametrize("length", [1, 7, 128, 2000])
@pytest.mark.parametrize("batch", [1, 4, 32])
def test_prompts_have_exactly_the_length_asked(either: Prompts, batch: int, length: int) -> None:
    rows = either.batch(Workload(batch, length, 8))
    assert [len(row) for row in rows] == [length] * batch
    assert all(0 <= token < 49152 for row in rows for token in row)


@pytest.mark.parametrize(("batch", "length"), [(2, 1), (2, 16), (4, 96), (4, 512), (32, 128)])
def test_unequal_lengths_fall_to_one(either: Prompts, batch: int, length: int) -> None:
    rows = either.unequal_batch(Workload(batch, length, 8))
    lengths = [len(row) for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    assert (lengths[0], lengths[-1], len(lengths)) == (length, 1, batch)
    if length > 4 ** (batch - 1):
        assert len(set(lengths)) == batch


# Other ones in every generation


@given(st.integers(0, 2**32), st.integers(0, 1000), st.integers(1, 9))
def test_the_seed_and_the_generation_say_which_prompts(seed: int, generation: int, request: int) -> None:
    workload = Workload(request + 1, 16, 8)
    made, again = Prompts(1000, None, seed), Prompts(1000, None, seed)
    assert made.batch(workload, generation) == again.batch(workload, generation)
    assert made.batch(workload, generation)[request] == made.prompt(workload, generation, request)
    assert made.batch(workload, generation) != made.batch(workload, generation + 1)
    assert made.batch(workload, generation) != Prompts(1000, None, seed + 1).batch(workload, generation)


def test_prompts_of_a_seed_are_the_same_every_time(either: Prompts, bundled_model: Model) -> None:
    again = Prompts(49152, bundled_model.tokenizer_file if either.real_text else None)
    workload = Workload(4, 96, 8)
    assert either.batch(workload, 3) == again.batch(workload, 3)
    assert either.unequal_batch(workload) == again.unequal_batch(workload)
    assert either.many(4, 96, 1) == again.many(4, 96, 1)


def common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def test_no_prompt_of_a_run_begins_as_another_one(either: Prompts) -> None:
    """A prefix cache, or a memory of answers, has nothing of use: of 64 tokens, and of 256 after those of 64."""
    run = [either.many(200, 64, series) for series in range(2)]
    for workload in (Workload(1, 64, 32), Workload(8, 64, 32), Workload(8, 256, 32), Workload(8, 256, 64)):
        run += [either.batch(workload, generation) for generation in range(40)]
        run.append([row for row in either.unequal_batch(workload) if len(row) >= 64])
    rows = sorted(row for batch in run for row in batch)
    shared = [common(one, other) for one, other in pairwise(rows)]  # the longest is a neighbour's
    assert len(rows) > 1300
    assert max(shared) <= 12
    assert fmean(shared) < 0.04 * 64


def test_there_is_enough_text_that_differs_from_its_first_word_on() -> None:
    texts = passages()
    assert len(texts) >= 32
    assert len({text[:20] for text in texts}) == len(texts)
    assert min(len(text.split()) for text in texts) > 100


# Text


def test_prompts_of_text_read_as_the_text_after_a_few_words(prompts: Prompts, bundled_model: Model) -> None:
    tokenizer = Tokenizer.from_file(str(bundled_model.tokenizer_file))
    text = " ".join(passages())
    assert prompts.real_text
    for generation in range(8):
        for row in prompts.batch(Workload(4, 96, 8), generation):
            words = tokenizer.decode(row).split()
            assert len(words) > 50
            assert all(word in text for word in words[:4])
            assert " ".join(words[4:]) in f"{text} {text}"


def test_a_prompt_longer_than_the_text_begins_it_again(prompts: Prompts) -> None:
    (row,) = prompts.batch(Workload(1, 25_000, 8))
    assert len(row) == 25_000


#: Kinds of tokenizers: their model and trainer, what comes before and after them, and whether they put a token first.
KINDS: dict[str, Any] = {
    "bytes": (
        models.BPE(), trainers.BpeTrainer, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(),
    ),
    "bytes, a blank first": (
        models.BPE(), trainers.BpeTrainer, pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel(),
    ),
    "llama": (models.BPE(), trainers.BpeTrainer, pre_tokenizers.Metaspace(), decoders.Metaspace()),
    "unigram": (models.Unigram(), trainers.UnigramTrainer, pre_tokenizers.Metaspace(), decoders.Metaspace()),
}  # fmt: skip


@pytest.fixture(params=[*KINDS, "smollm2"])
def tokenizer_file(request: pytest.FixtureRequest, tmp_path: Path, bundled_model: Model) -> Path:
    """A tokenizer of each kind, trained on half of the text."""
    if request.param == "smollm2":
        assert bundled_model.tokenizer_file is not None
        return bundled_model.tokenizer_file
    model, trainer, before, decoder = KINDS[request.param]
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = before, decoder
    alphabet = sorted({letter for text in passages() for letter in text})
    options = {"initial_alphabet": alphabet} if trainer is trainers.BpeTrainer else {"unk_token": "<s>"}
    tokenizer.train_from_iterator(
        passages()[::2], trainer(vocab_size=1000, special_tokens=["<s>"], show_progress=False, **options)
    )
    if request.param == "llama":
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("length", [2, 16, 64, 255, 256, 1024])
def test_the_text_of_a_prompt_becomes_the_same_tokens(tokenizer_file: Path, length: int) -> None:
    """A server that is sent the text gets the prompt that was meant, special tokens included."""
    tokenizer, prompts = load_tokenizer(tokenizer_file), Prompts(49152, tokenizer_file)
    rows = [row for number in range(12) for row in prompts.batch(Workload(4, length, 8), number)]
    rows += [row for row in prompts.unequal_batch(Workload(4, length, 8)) if len(row) > 1]
    assert {len(row) for row in rows} >= {length}
    assert [row for row in rows if not comes_back(tokenizer, row)] == []


def test_a_tokenizer_whose_text_never_comes_back_has_prompts_all_the_same(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "of": 2}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompts = Prompts(3, tmp_path / "tokenizer.json")
    assert [len(row) for row in prompts.batch(Workload(4, 64, 8))] == [64] * 4


# What a tokenizer.json may ask for, or have too many of


def changed(file: Path, tmp_path: Path, **changes: Any) -> Path:
    """The tokenizer of a file, with some of its settings changed."""
    (tmp_path / "changed.json").write_text(json.dumps(json.loads(file.read_text()) | changes))
    return tmp_path / "changed.json"


def padding(strategy: Any) -> dict[str, Any]:
    return {"padding": {"strategy": strategy, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 2,
                        "pad_type_id": 0, "pad_token": "<|im_end|>"}}  # fmt: skip


def truncation(length: int) -> dict[str, Any]:
    return {"truncation": {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}}


CHANGES = {
    "longest": padding("BatchLongest"),
    "fixed": padding({"Fixed": 4096}),
    "cut short": truncation(16),
    "cut": truncation(512),
    "both": padding({"Fixed": 64}) | truncation(64),
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_padding_and_truncation_of_the_file_are_off(
    prompts: Prompts, bundled_model: Model, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert bundled_model.tokenizer_file is not None
    file = changed(bundled_model.tokenizer_file, tmp_path, **changes)
    assert Prompts(49152, file).batch(Workload(4, 1024, 4)) == prompts.batch(Workload(4, 1024, 4))
    assert len(load_tokenizer(file).encode("the sea " * 100)) == 200 + 1


def test_a_token_that_the_model_does_not_have_is_refused_where_the_text_has_it(bundled_model: Model) -> None:
    with pytest.raises(PromptError, match=r"makes token 4\d+ of plain text, and the model has 1000 tokens: it is "):
        Prompts(1000, bundled_model.tokenizer_file)
    largest = max(token for row in Prompts(49152, bundled_model.tokenizer_file).many(100, 256) for token in row)
    assert largest < 49151, "a token that no text has is no harm"
    Prompts(49151, bundled_model.tokenizer_file)


def test_a_first_token_that_the_model_does_not_have_is_refused_too(tmp_path: Path) -> None:
    vocabulary = {"[UNK]": 0, "<s>": 9}
    tokenizer = WORDLEVEL | {
        "model": WORDLEVEL["model"] | {"vocab": vocabulary},  # type: ignore[operator]
        "added_tokens": [{"id": 9, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [9], "tokens": ["<s>"]}},
        },
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(PromptError, match="makes token 9 of plain text, and the model has 9 tokens"):
        Prompts(9, tmp_path / "tokenizer.json")
    assert Prompts(10, tmp_path / "tokenizer.json").batch(Workload(1, 4, 2))[0][0] == 9


# Without text


def test_random_ids_are_neither_constant_nor_zero() -> None:
    prompts = Prompts(512, None)
    rows = prompts.batch(Workload(4, 256, 8))
    assert not prompts.real_text
    assert all(0 < token < 512 for row in rows for token in row)
    assert all(len(set(row)) > 100 for row in rows)


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 7])
def test_a_small_vocabulary_has_random_ids_too(vocabulary: int) -> None:
    rows = Prompts(vocabulary, None).batch(Workload(2, 64, 8))
    assert {token for row in rows for token in row} == set(range(min(1, vocabulary - 1), vocabulary))
