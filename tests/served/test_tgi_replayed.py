"""What a real TGI 3.3.7 sent, replayed byte by byte: the right figure, or one clear error."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from loopback import Request, Script, serving

from pytest_llmperf.backends.base import UNKNOWN
from pytest_llmperf.measure import trace
from pytest_llmperf.served.client import Address, Client, ServerError
from pytest_llmperf.served.engine import submit
from pytest_llmperf.served.reply import CompletionReply, Reply, TgiReply
from pytest_llmperf.worker.recorder import Recorder

DATA = Path(__file__).parent.parent / "data" / "tgi"
#: How much sooner the replayed reads come than the recorded ones did.
FASTER = 10


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    return found


def replaying(reads: list[tuple[float, str]]) -> Script:
    async def answer(_request: Request, writer: asyncio.StreamWriter) -> bool:
        now = 0.0
        for at, said in reads:
            await asyncio.sleep(max(0.0, at - now) / FASTER)
            now = max(now, at)
            writer.write(said.encode())
            await writer.drain()
        return False  # each says "connection: close"

    return answer


def replayed(name: str, prompt_tokens: int, wanted: int, kind: type[Reply] = TgiReply) -> tuple[Recorder, Reply]:
    """A recorded stream as an engine reads it."""
    found = recorded(name)
    path = found["request"]["path"]
    recorder = Recorder(1)
    reply = kind(0, prompt_tokens, wanted, recorder)

    async def read(url: str) -> None:
        client = Client(Address.of(url), 5.0)
        try:
            await submit(client, path, json.dumps(found["request"]["body"]).encode(), reply)
        finally:
            await client.close()

    with serving({path: replaying(found["reads"])}) as server:
        asyncio.run(asyncio.wait_for(read(server.url), 20))
    return recorder, reply


@pytest.mark.parametrize(
    ("name", "prompt", "kind"),
    [
        ("stream", 5, TgiReply),
        ("stream-unknown-parameter", 1, TgiReply),
        ("openai-completions-stream", 5, CompletionReply),
    ],
)
def test_figures_are_those_of_the_recorded_reads(name: str, prompt: int, kind: type[Reply]) -> None:
    at = [seconds for seconds, said in recorded(name)["reads"] if "data:" in said]
    tries = [replayed(name, prompt, len(at), kind) for _ in range(3)]
    made = [trace.checked(recorder.tokens, recorder.times, requests=1, max_new_tokens=len(at)) for recorder, _ in tries]
    # Where this machine is busy, the client is late now and then.
    assert max(one.arrivals for one in made) == len(at)
    assert min(one.ttft for one in made) == pytest.approx(at[0] / FASTER, abs=0.03)
    expected = (at[-1] - at[0]) / (len(at) - 1) / FASTER
    assert min(abs(one.tpot - expected) for one in made) < 0.1 * expected
    assert {(reply.finish, reply.untimed) for _, reply in tries} == {("length", 0)}


def test_tokens_and_text_are_those_of_the_recording() -> None:
    recorder, reply = replayed("stream", 5, 8)
    assert recorder.tokens == [[7042, 30, 198, 198, 504, 2988, 314, 42]]
    assert reply.text == " Paris.\n\nThe answer is:"
    recorder, reply = replayed("openai-completions-stream", 5, 4, CompletionReply)
    assert recorder.tokens == [[UNKNOWN] * 4]
    assert reply.text == " Paris.\n\n"


def test_an_end_of_sequence_is_a_token_and_ends_the_stream() -> None:
    recorder, reply = replayed("stream-ends-early", 12, 64)
    assert len(recorder.tokens[0]) == 33
    assert recorder.tokens[0][-1] == 2
    assert reply.finish == "eos_token"
    assert reply.text.endswith("What can I help you with?")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stream-overloaded", r"reported an error in its stream: Model is overloaded \(overloaded\)$"),
        ("stream-prompt-too-long", r"must have less than 1024 tokens. Given: 1100 \(validation\)$"),
        ("stream-empty-prompt", r"Input validation error: `inputs` cannot be empty \(validation\)$"),
        ("stream-token-ids", r"status 422: Failed to deserialize .* invalid type: sequence, expected a string"),
        ("openai-chat-stream", r"status 422: Template error: template not found$"),
        ("stream", r"counts 5 prompt tokens, and 6 were sent: it changes prompts$"),
    ],
)
def test_one_clear_line_for(name: str, said: str) -> None:
    with pytest.raises(ServerError, match=said) as caught:
        replayed(name, 6, 8)
    assert "\n" not in str(caught.value)
