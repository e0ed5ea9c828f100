"""Servers that misbehave in one way each: the right figure, or one clear error; never a wrong figure that passes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inner import WORDLEVEL
from loopback import serving
from scripted import STEP, Scripted

from pytest_llmperf import load
from pytest_llmperf.backends.base import UNKNOWN, EngineSpec
from pytest_llmperf.measure import trace
from pytest_llmperf.measure.trace import Trace, TraceError
from pytest_llmperf.served.client import ServerError
from pytest_llmperf.served.completions import CompletionsEngine
from pytest_llmperf.worker.recorder import LoadRecorder, Recorder

PROMPT, WANTED = [1, 2, 3], 16
IDS = list(range(100, 100 + WANTED))


@contextlib.contextmanager
def engine(script: Scripted, folder: str = "tiny", **changes: Any) -> Iterator[CompletionsEngine]:
    with serving(script.scripts) as server:
        spec = EngineSpec(folder, None, "float32", "cpu", timeout=5.0, server=server.url, **changes)
        found = CompletionsEngine(spec)
        try:
            yield found
        finally:
            found.close()


def measured(found: CompletionsEngine, prompts: tuple[list[int], ...] = (PROMPT,)) -> Trace:
    """A generation as a sample is taken of it."""
    recorder = Recorder(len(prompts))
    found.generate(list(prompts), WANTED, recorder)
    made = trace.checked(recorder.tokens, recorder.times, requests=len(prompts), max_new_tokens=WANTED)
    trace.check_statistics(made, found.statistics())
    return made


def under_load(script: Scripted, requests: int, concurrency: int) -> LoadRecorder:
    with engine(script) as found:
        recorder = LoadRecorder(requests)
        found.serve([PROMPT] * requests, WANTED, recorder, None, concurrency)
    return recorder


def near(stamped: float, written: float) -> bool:
    """Within 5 %, and what a busy machine needs to read an event: far less than a token takes."""
    return abs(stamped - written) < 0.05 * written + STEP / 4


RIGHT = ("good", "azure", "doubledone", "donespace", "nodone", "hangup", "nomodels", "strict", "silentlystrict")


@pytest.mark.parametrize("mode", [*RIGHT, "twomodels", "llamacpp", "text", "surrogate"])
def test_the_right_figure_of(mode: str) -> None:
    script = Scripted(mode)
    with engine(script) as found:
        made = [measured(found) for _ in range(3)]
    assert {one.tokens for one in made} == {(tuple([UNKNOWN] * WANTED if mode in ("text", "surrogate") else IDS),)}
    pairs = list(zip(made, script.written[-3:], strict=True))
    # Where this machine is busy, the client is late now and then.
    assert any(near(one.ttft, written[0]) for one, written in pairs)
    assert any(near(one.tpot, (written[-1] - written[0]) / (WANTED - 1)) for one, written in pairs)
    assert max(one.arrivals for one in made) == WANTED


@pytest.mark.parametrize(
    ("mode", "kind", "said"),
    [
        ("buffered", TraceError, "all 16 tokens came at one instant, so TPOT would be 0"),
        ("chatdelta", ServerError, r"streams chat messages \(choices\[0\].delta\), not completions"),
        ("emptyfirst", ServerError, r"sent 15 events without text .* nobody knows when the first token came$"),
        ("textonly", ServerError, "takes prompts as text, not as token ids, and the model's folder has no tokenizer"),
    ],
)
def test_one_clear_error_of(mode: str, kind: type[Exception], said: str) -> None:
    with engine(Scripted(mode)) as found, pytest.raises(kind, match=said) as caught:
        measured(found)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("together", [2, 4, 5])
def test_tokens_that_are_written_together_come_together(together: int) -> None:
    script = Scripted(together=together)
    with engine(script) as found:
        made = measured(found)
        assert found.evidence().seen["gaps"].startswith("between chunks (ICL): ")
    assert made.arrivals == -(-WANTED // together)
    assert made.first == together
    (written,) = script.written
    assert 0 < made.ttft - written[0] < STEP, "the client has the first token when it has the first chunk"
    assert near(made.tpot, (written[-1] - written[0]) / (WANTED - together)), "and not 12/15 of it"
    assert near(made.latency, written[-1])
    assert len(made.itl) == made.arrivals - 1


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_server_that_hangs_up_after_each_answer_loses_no_request(concurrency: int) -> None:
    script = Scripted("hangup")
    assert under_load(script, 8, concurrency).errors == [""] * 8
    assert len(script.prompts) == 8, "none was computed twice"


def test_under_load_tokens_that_all_come_at_once_are_a_failed_request() -> None:
    assert under_load(Scripted("buffered"), 2, 1).errors == ["all 16 tokens came at one instant"] * 2


def test_under_load_chunks_meet_no_objective_for_single_tokens() -> None:
    recorder = under_load(Scripted(together=4), 2, 2)
    found = load.summarize(
        [load.Served(0.0, sent, times) for sent, times in zip(recorder.sent, recorder.times, strict=True)],
        {"itl": 1.5 * STEP},
        open_loop=False,
    )
    assert (found.met, found.tokens, found.arrivals, found.first) == (0.0, 2 * WANTED, 8, 4)
    assert near(found.percentiles["itl"][0], 4 * STEP)


def test_text_in_halves_of_a_character_is_put_together() -> None:
    with engine(Scripted("surrogate")) as found:
        measured(found)
        assert found.texts() == ["\U0001f600" * (WANTED // 2)]


def test_a_strict_server_is_asked_for_what_it_knows_and_remembered() -> None:
    with engine(Scripted("strict")) as found:
        measured(found, (PROMPT,) * 3)
        assert found.evidence().seen["refused fields"] == (
            "cache_prompt, cache_salt, n_probs, post_sampling_probs, return_token_ids"
        )
        assert found.body(PROMPT, 4).keys() == {
            "model", "prompt", "max_tokens", "temperature", "ignore_eos", "stream", "stream_options"
        }  # fmt: skip


def test_a_server_that_takes_text_alone_is_sent_text_and_its_count_is_checked(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDLEVEL))
    script = Scripted("textonly")
    with engine(script, str(tmp_path)) as found:
        measured(found)
        assert script.prompts == ["the of and"]
        seen = found.evidence().seen
        assert seen["prompts"] == "sent as text"
        assert "refused fields" not in seen


def test_which_model_is_measured_is_in_the_evidence() -> None:
    for mode, names, seen in (
        ("good", ["tiny"], "tiny"),
        ("good", ["org/Other"], "tiny (the only model there)"),
        ("twomodels", ["ORG/Tiny"], "tiny"),
        ("nomodels", ["org/Other"], "org/Other (the server has no /v1/models)"),
    ):
        with engine(Scripted(mode), "/cache/x", names=names) as found:
            measured(found)
            assert found.evidence().seen["served model"] == seen
