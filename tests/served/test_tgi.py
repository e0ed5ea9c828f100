"""TGI as an engine, against the shapes that its published API and sources have. `test_tgi_replayed` has real ones."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inner import WORDLEVEL
from loopback import Script, event, jsons, serving, streams

from pytest_llmperf.availability import why_not
from pytest_llmperf.backends.base import EngineSpec, NotEngagedError
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.machine.table import DEVICES
from pytest_llmperf.served.client import ServerError
from pytest_llmperf.served.tgi import TgiEngine, command, gptq
from pytest_llmperf.worker.recorder import LoadRecorder, Recorder

REGISTRY = Registry(BUILT_IN)
WORDS = ["[UNK]", "the", "of", "and", "</s>"]
INFO = {"model_id": "org/tiny", "model_sha": "abc", "version": "3.3.7", "max_total_tokens": 4096,
        "max_input_tokens": 4095, "max_concurrent_requests": 128, "router": "text-generation-router"}  # fmt: skip
PROMPT = [1, 2, 3]


def token(identity: int, text: str, special: bool = False, **last: Any) -> bytes:
    shape = {"id": identity, "text": text, "logprob": -0.5, "special": special}
    return event({"index": 1, "token": shape, "generated_text": None, "details": None} | last)


def details(**changes: Any) -> dict[str, Any]:
    return {"finish_reason": "length", "generated_tokens": 3, "seed": None, "input_length": 3} | changes


GOOD = (token(2, " of"), 0.02, token(1, " the"), 0.02,
        token(3, " and", generated_text=" of the and", details=details()))  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = WORDLEVEL | {"model": WORDLEVEL["model"] | {"vocab": {word: at for at, word in enumerate(WORDS)}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return tmp_path


@contextlib.contextmanager
def engine(folder: Path, generate: Script, info: Any = INFO, kind: type[TgiEngine] = TgiEngine) -> Iterator[Any]:
    with serving({"/info": jsons(info), "/generate_stream": generate}) as server:
        found = kind(EngineSpec(str(folder), None, "float16", "cuda", timeout=2.0, server=server.url))
        try:
            yield found, server
        finally:
            found.close()


def test_an_event_is_a_token_with_its_id(folder: Path) -> None:
    with engine(folder, streams(*GOOD)) as (found, server):
        recorder = Recorder(1)
        found.generate([PROMPT], 3, recorder)
        assert recorder.tokens == [[2, 1, 3]]
        assert recorder.times[0][2] > 0.035
        asked = server.requests[-1].json
        assert asked["inputs"] == "the of and"
        assert asked["parameters"] == {"max_new_tokens": 3, "do_sample": False, "details": True}
        seen = found.evidence().seen
        assert (seen["served model"], seen["version"], seen["finish"]) == ("org/tiny", "3.3.7", "length")


def test_an_end_of_sequence_is_one(folder: Path) -> None:
    end = token(
        4, "</s>", special=True, generated_text=" of", details=details(finish_reason="eos_token", generated_tokens=2)
    )
    with engine(folder, streams(token(2, " of"), end)) as (found, _):
        recorder = Recorder(1)
        found.generate([PROMPT], 3, recorder)
        assert recorder.tokens == [[2, 4]]
        assert found.replies[0].text == " of"
        assert found.evidence().seen["finish"] == "eos_token"
        assert found.ended() == [True]
        under_load = LoadRecorder(3, wanted=1)
        found.serve([PROMPT] * 3, 3, under_load, None, 1)
        assert (under_load.early, under_load.errors) == ({0, 1, 2}, [""] * 3)


def test_times_in_headers_are_shown(folder: Path) -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nx-queue-time: 7\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with engine(folder, streams(*GOOD, head=head)) as (found, _):
        found.generate([PROMPT], 3, Recorder(1))
        assert found.evidence().seen["x-queue-time"] == "7 ms"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (streams(event({"error": "Request failed during generation: out of memory", "error_type": "generation"})),
         r"an error in its stream: Request failed during generation: out of memory \(generation\)$"),
        (streams(*GOOD[:3]), "broke off its stream after 2 events with content"),
        (streams(*GOOD, event({"x": 1})), "went on after the end"),
        (streams(*[token(2, " of")] * 9), "more than the 3 tokens"),
        (streams(*GOOD[:-1], token(3, "", generated_text="", details=details(generated_tokens=9))),
         "counts 9 new tokens, and 3 came"),
        (streams(*GOOD[:-1], token(3, "", generated_text="", details=details(input_length=4))),
         "counts 4 prompt tokens, and 3 were sent"),
        (streams(event({"token": {"id": "x"}})), "malformed event"),
        (jsons({"error": "Model is overloaded", "error_type": "overloaded"}, "429 Too Many"),
         "status 429: Model is overloaded$"),
    ],
)  # fmt: skip
def test_one_clear_line_for_what_goes_wrong(folder: Path, script: Script, said: str) -> None:
    with engine(folder, script) as (found, _), pytest.raises(ServerError, match=said) as caught:
        found.generate([PROMPT], 3, Recorder(1))
    assert "\n" not in str(caught.value)


def test_a_prompt_whose_text_would_be_other_tokens_is_refused(folder: Path) -> None:
    refused = pytest.raises(ServerError, match="becomes 0 tokens that are not the 1 meant")
    with engine(folder, streams(*GOOD)) as (found, _), refused:
        found.generate([[99]], 3, Recorder(1))


def test_a_server_that_is_none_of_tgi_s_or_too_small_is_refused(folder: Path) -> None:
    with pytest.raises(ServerError, match="/info does not say which model"), engine(folder, streams(), {"x": 1}):
        pass
    small = INFO | {"max_total_tokens": 16}
    with pytest.raises(ServerError, match="holds 16 tokens a request"), engine(folder, streams(), small):
        pass
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ServerError, match=r"no tokenizer.json"), engine(folder, streams()):
        pass


# Started here


def spec(**changes: Any) -> EngineSpec:
    return EngineSpec(**{"model": "/m", "config": None, "dtype": "float16", "device": "cuda", "batch_size": 8,
                         "sequence_length": 640, "tp": 2} | changes)  # fmt: skip


def test_the_launcher_s_command_line() -> None:
    assert command(spec(), 3001) == [
        "text-generation-launcher", "--model-id", "/m", "--num-shard", "2", "--hostname", "127.0.0.1", "--port", "3001",
        "--max-concurrent-requests", "8", "--max-input-tokens", "639", "--max-total-tokens", "640",
        "--max-batch-prefill-tokens", "5120", "--dtype", "float16",
    ]  # fmt: skip
    assert command(spec(), 3001, "gptq")[-2:] == ["--quantize", "gptq"]
    assert "--dtype" not in command(spec(), 3001, "gptq")


def test_what_tgi_has_not_is_refused() -> None:
    with pytest.raises(ServerError, match="TGI has no float32"):
        command(spec(dtype="float32"), 3001)
    with pytest.raises(ServerError, match="it has no random ones"):
        command(spec(config={}), 3001)


def test_without_a_launcher_or_a_server_it_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    said = why_not(REGISTRY["tgi"], DEVICES["h100"], Interpreter())
    assert said == ("text-generation-launcher is not on PATH; name one that already runs, as in "
                    "--llm-server=tgi=http://127.0.0.1:8000")  # fmt: skip
    assert why_not(REGISTRY["tgi"], DEVICES["h100"], Interpreter(), {"tgi"}) is None


def test_gptq_is_a_part_of_tgi_alone_and_must_be_started_here(folder: Path) -> None:
    combined = REGISTRY["gptq+tgi"]
    assert (combined.name, combined.weight_bytes, combined.boundary) == ("tgi+gptq", 0.5, "client of a server")
    with pytest.raises(ValueError, match="gptq changes tgi, and vllm has its own weights"):
        REGISTRY["vllm+gptq"]
    assert gptq(TgiEngine).quantize == "gptq"
    refused = pytest.raises(NotEngagedError, match="nobody sees how a server's weights are quantized")
    with refused, engine(folder, streams(), kind=gptq(TgiEngine)):
        pass
