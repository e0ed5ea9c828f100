"""Which of a server's models is measured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import jsons, serving

from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.served.client import Answer, ServerError
from pytest_llmperf.served.completions import HINTS, SALT, CompletionsEngine, Form, called

NAMES = st.text("abcXYZ019-._/", min_size=1, max_size=12).filter(lambda name: name.strip("/"))


@given(st.lists(NAMES, min_size=1, max_size=6), st.data())
def test_a_name_that_is_listed_is_found_whatever_its_case(names: list[str], data: Any) -> None:
    wanted = data.draw(st.sampled_from(names))
    found = called([{"id": name} for name in names], [data.draw(st.sampled_from([wanted.upper(), wanted.lower()]))])
    assert wanted in [one["id"] for one in found]
    assert {one["id"].casefold() for one in found} == {wanted.casefold()}, "a whole name goes before the end of a path"
    assert len(found) == len({one["id"] for one in found})


@pytest.mark.parametrize(
    ("entries", "names", "found"),
    [
        (["other-70b", "smollm2-135m"], ["smollm2-135m"], ["smollm2-135m"]),
        (["Qwen/Qwen3-0.6B", "x"], ["qwen3-0.6b"], ["Qwen/Qwen3-0.6B"]),
        (["/models/llama-3.1-8b/", "/models/llama"], ["llama-3.1-8b"], ["/models/llama-3.1-8b/"]),
        (["a/tiny", "b/tiny"], ["tiny"], ["a/tiny", "b/tiny"]),
        (["a/tiny", "b/tiny"], ["B/tiny"], ["b/tiny"]),
        (["a", "b"], ["", "c"], []),
        (["tiny", "tiny"], ["tiny"], ["tiny"]),
    ],
)
def test_the_entries_that_have_a_name(entries: list[str], names: list[str], found: list[str]) -> None:
    assert [one["id"] for one in called([{"id": one} for one in entries], names)] == found


def test_vllm_says_where_the_weights_of_a_name_are() -> None:
    entries = [{"id": "chat", "root": "/models/Tiny"}, {"id": "adapter", "root": "/adapters/x"}]
    assert called(entries, ["tiny"]) == entries[:1]


@contextlib.contextmanager
def engine(models: list[dict[str, Any]], **changes: Any) -> Iterator[CompletionsEngine]:
    with serving({"/v1/models": jsons({"data": models})}) as server:
        found = CompletionsEngine(
            EngineSpec("/cache/tiny", None, "float32", "cpu", timeout=2.0, server=server.url, **changes)
        )
        try:
            yield found
        finally:
            found.close()


TWO = [{"id": "other-70b", "max_model_len": 16}, {"id": "org/tiny-1", "max_model_len": 4096}]


def test_the_context_is_that_of_the_model_that_is_measured() -> None:
    with engine(TWO, served_model="tiny-1") as found:
        assert found.body([1], 2)["model"] == "org/tiny-1"
    with pytest.raises(ServerError, match="holds 16 tokens a request"), engine(TWO, served_model="Other-70B"):
        pass


@pytest.mark.parametrize(
    ("models", "changes", "said"),
    [
        (TWO, {}, r"serves other-70b, org/tiny-1; none of them would be tiny: name one by --llm-served-model=NAME$"),
        (TWO, {"served_model": "x"}, r"; none of them would be x: name one by"),
        ([{"id": "a/tiny"}, {"id": "b/tiny"}], {}, r"serves a/tiny, b/tiny; 2 of them would be tiny: name one"),
        ([{"id": "only"}], {"served_model": "x"}, r"serves only; none of them would be x"),
        ([{"id": f"m{at}"} for at in range(30)], {}, r"m6, m7 and 22 more; none"),
        ([{"name": "x"}], {}, "/v1/models names no model$"),
        (["x"], {}, "/v1/models names no model$"),
        ([], {}, "/v1/models names no model$"),
    ],
)
def test_a_model_that_cannot_be_told_is_asked_for(models: Any, changes: dict[str, str], said: str) -> None:
    with pytest.raises(ServerError, match=said) as caught, engine(models, names=["tiny"], **changes):
        pass
    assert "\n" not in str(caught.value)


# The form of a request


@given(st.lists(st.sampled_from([*HINTS, SALT, "prompt: str", "nothing", "prompt"])), st.sampled_from([400, 422]))
def test_refusals_lead_to_plainer_forms_and_end(said: list[str], status: int) -> None:
    form: Form | None = Form()
    seen = []
    while form is not None:
        assert form not in seen, "nothing is tried twice"
        seen.append(form)
        form = form.plainer(Answer(status, {}, " ".join(said).encode()))
    assert all(a.without <= b.without and a.as_text <= b.as_text for a, b in pairwise(seen))
    assert seen[-1].without == {*HINTS, SALT}, "at last without any hint"


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_other_refusals_are_no_reason_to_ask_again(status: int) -> None:
    assert Form().plainer(Answer(status, {}, b"ignore_eos prompt: str")) is None


def test_what_is_named_is_left_out_and_nothing_else() -> None:
    form = Form().plainer(Answer(400, {}, b"Unrecognized request argument supplied: ignore_eos"))
    assert form == Form(frozenset({"ignore_eos"}))
    assert Form().plainer(Answer(422, {}, b'[{"loc":["body","prompt"],"msg":"str type expected"}]')) == Form(
        as_text=True
    )
