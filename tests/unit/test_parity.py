"""The parity decision: right tokens pass whatever the rounding, wrong ones do not, repetition proves nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.backends.base import Observation, Score
from pytest_llmperf.parity.decision import (
    BOUNDED_REGRET,
    Row,
    TextRow,
    decide,
    decide_by_text,
    error_margin,
    informative,
    parting,
    rounding_spread,
)
from pytest_llmperf.result import ParityResult

TOKENS = 64


def row(
    seed: int = 0,
    *,
    rounding: float = 0.05,
    backend: float = 0.05,
    regret: float = 0.0,
    tokens: list[int] | None = None,
    bias: float = 0.0,
) -> Row:
    """A request whose reference rounds with a standard deviation, and whose backend rounds with another."""
    draw = random.Random(seed)
    exact = [[20 - 2 * k + draw.random() for k in range(8)] for _ in range(TOKENS)]
    own = [[value + draw.gauss(0, rounding) for value in values] for values in exact]
    seen = [[value * (1 + bias) + draw.gauss(0, backend) for value in values] for values in exact]
    chosen = tokens or draw.sample(range(10_000), TOKENS)
    ids = [[0] * 8] * TOKENS
    return Row(
        f"row {seed}", chosen, Score([0.0] * (TOKENS - 1) + [regret], ids, own, exact), Observation(chosen, ids, seen)
    )


@given(st.integers(0, 10_000), st.floats(1e-7, 0.5))
def test_a_backend_that_rounds_as_the_reference_does_is_in_parity(seed: int, rounding: float) -> None:
    found = decide([row(seed, rounding=rounding, backend=rounding)])
    assert found.passed, found.reason


def test_a_hundred_right_backends_pass_a_hundred_times() -> None:
    assert all(decide([row(seed), row(seed + 1000)]).passed for seed in range(100))


@given(st.integers(0, 1000))
def test_logits_that_are_off_are_caught_though_no_token_differs(seed: int) -> None:
    found = decide([row(seed, bias=0.02)])
    assert found.exact_match == 1.0
    assert not found.passed
    assert "times as far" in found.reason


@given(st.floats(0.0, 20.0))
def test_a_regret_is_judged_by_the_references_own_rounding(regret: float) -> None:
    found = decide([row(regret=regret)])
    assert found.passed == (regret <= found.tolerance)
    assert found.largest_regret == regret


def test_logits_further_down_explain_no_regret() -> None:
    """They round more than the leading ones here, and an engine may name its candidates in any order."""
    one = row(rounding=0.01)
    own, exact = ([[*values, *others] for values in table] for table, others in (
        (one.score.logits, [-70.0, -72.0]), (one.score.exact, [-60.0, -80.0])
    ))  # fmt: skip
    more = Score(one.score.regret, one.score.candidates, [values[::-1] for values in own], [v[::-1] for v in exact])
    assert rounding_spread(more) == pytest.approx(rounding_spread(one.score))


def test_more_precise_than_the_reference_is_no_fault() -> None:
    assert decide([row(backend=0.001)]).passed


def test_an_engine_that_shows_no_logits_is_judged_by_its_tokens() -> None:
    one = row()
    found = decide([Row("a row", one.tokens, one.score)])
    assert (found.error_ratio, found.by_tokens) == (None, True)
    assert not decide([one]).by_tokens


def test_a_bounded_verdict_never_looks_at_logits_so_it_lacks_none() -> None:
    one = row()
    assert not decide([Row("a row", one.tokens, one.score)], other_weights=True).by_tokens


def test_the_first_divergence_is_the_earliest_token_that_the_reference_would_not_choose() -> None:
    one, regret = row(), [0.0] * TOKENS
    regret[5], regret[9] = 1e-3, 1e-3
    apart = Row("apart", one.tokens, Score(regret, one.score.candidates, one.score.logits, one.score.exact))
    assert decide([one, apart]).first_divergence == 5
    assert decide([one]).first_divergence is None


def test_a_failure_names_the_worst_token_and_its_prompt() -> None:
    found = decide([row(1), row(2, regret=9.0), row(3, regret=8.0)])
    assert found.reason.startswith("a token is 9 logits worse than the reference's choice; rounding explains")
    assert found.reason.endswith(f"(token {TOKENS - 1} of row 2)")


def test_logits_that_are_off_name_the_prompt_where_they_are_most() -> None:
    rows = [row(1, bias=0.02), row(2, bias=0.2), row(3, bias=0.02)]
    assert decide(rows).reason.endswith("(most so in row 2)")


def test_rows_of_unequal_lengths_are_named_rightly() -> None:
    long, short = row(1), row(2, regret=9.0)
    cut = Score(*(values[-3:] for values in vars(short.score).values()))
    found = decide([long, Row("short", short.tokens[-3:], cut)])
    assert found.reason.endswith("(token 2 of short)")


def test_repetition_is_an_error_not_a_pass() -> None:
    found = decide([row(tokens=[2] * TOKENS), row(tokens=[5, 6, 7, 8] * (TOKENS // 4))])
    assert (found.passed, found.judged) == (False, False)
    assert "carry information" in found.reason
    said = ParityResult("eager", "b1-p16-n8", found)
    assert said.against("eager").startswith("eager b1-p16-n8: parity not shown: only ")
    wrong = ParityResult("sdpa", "b1-p16-n8", decide([row(tokens=[2] * TOKENS, regret=9.0)]))
    assert wrong.against("eager").startswith("sdpa b1-p16-n8: not in parity with eager: a token is 9 logits worse")
    itself = ParityResult("eager", "b1-p16-n8", wrong.parity)
    assert itself.against("eager").startswith("eager b1-p16-n8: the reference contradicts itself: a token is 9 logits")


def test_nothing_after_the_end_of_sequence_is_information() -> None:
    assert informative([10, 11, 2, 12, 13], end_of_sequence=[2]) == 3


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 8))
def test_a_repeated_period_adds_nothing(tokens: list[int], period: int) -> None:
    loop = list(range(100, 100 + period))
    once = informative([*tokens, *loop])
    assert (
        informative([*tokens, *loop * 5]) - once < period
    )  # the loop shows at the end of its second turn at the latest


@given(st.permutations(range(30)))
def test_distinct_tokens_all_carry_information(tokens: list[int]) -> None:
    assert informative(tokens) == 30


@given(st.integers(0, 1000), st.floats(2.0, 8.0))
def test_in_float32_another_right_kernel_may_be_several_times_as_far(seed: int, times: float) -> None:
    rows = [row(seed, rounding=1e-5, backend=1e-5 * times)]
    assert decide(rows, margin=error_margin("float32")).passed
    assert not decide(rows, margin=error_margin("bfloat16")).passed


# Other weights


@given(st.integers(0, 1000), st.floats(1e-6, 0.05), st.floats(0.0, 3.0))
def test_other_weights_are_bounded_in_regret_in_every_type_and_never_equal(
    seed: int, rounding: float, regret: float
) -> None:
    found = decide([row(seed, rounding=rounding, backend=0.3, regret=regret)], other_weights=True)
    assert found.passed == (regret <= BOUNDED_REGRET), found.reason
    assert found.bounded
    assert found.tolerance == BOUNDED_REGRET
    assert found.passed or "; coarser weights or activations explain 1 " in found.reason


def test_the_same_weights_are_not_bounded_but_in_parity() -> None:
    assert not decide([row(0)]).bounded
    assert not decide([row(0, backend=0.3)]).passed


# By text, where token ids are not known


def words(*texts: str, reference: str = "one two three", tokens: int = TOKENS) -> list[TextRow]:
    chosen = random.Random(0).sample(range(10_000), tokens)
    return [TextRow(f"row {number}", text, reference, chosen) for number, text in enumerate(texts)]


def test_equal_text_is_parity_by_text() -> None:
    found = decide_by_text(words("one two three", "one two three"))
    assert found.passed
    assert found.by_text
    assert (found.exact_match, found.tokens) == (1.0, 2 * TOKENS)


def test_where_texts_part_is_said() -> None:
    found = decide_by_text(words("one two three", "one too three"))
    assert not found.passed
    assert found.reason == (
        "its text parts from the reference's at character 5 ('oo three' instead of 'wo three') of row 1; "
        "without token ids a near tie cannot be told from an error"
    )
    assert found.exact_match == (13 + 5) / 26


def test_a_text_that_is_cut_short_parts_at_its_end() -> None:
    assert parting("one two", "one two three") == 7
    assert not decide_by_text(words("one two")).passed


def test_half_a_character_at_the_end_is_held_back_by_one_side() -> None:
    assert decide_by_text(words("one two three\ufffd")).passed
    assert parting("a\ufffdb", "ab") == 1


def test_texts_that_repeat_or_are_empty_prove_nothing() -> None:
    repeated = decide_by_text([TextRow("a row", "a a", "a a", [7] * TOKENS)])
    assert ("carry information" in repeated.reason, repeated.judged) == (True, False)
    empty = decide_by_text(words("", reference=""))
    assert ("empty" in empty.reason, empty.judged) == (True, False)
    assert decide_by_text([TextRow("a row", "a b", "a a", [7] * TOKENS)]).judged


@given(st.text(max_size=9), st.text(max_size=9))
def test_texts_part_where_they_first_differ(one: str, other: str) -> None:
    at = parting(one, other)
    if at is not None:
        assert one[:at] == other[:at]
        assert one[at : at + 1] != other[at : at + 1]
