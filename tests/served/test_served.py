"""A server as an engine: what is streamed, what is stamped, and every way in which a server can misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inner import eventually
from loopback import (
    DONE,
    HEAD,
    MODELS,
    Loopback,
    Script,
    chunk,
    event,
    jsons,
    plain,
    serving,
    streams,
    text,
    token,
    usage,
)

from pytest_llmperf.backends.base import UNKNOWN, EngineSpec
from pytest_llmperf.machine import health
from pytest_llmperf.measure import trace
from pytest_llmperf.served import metrics
from pytest_llmperf.served.client import Address, ServerError, message, printable
from pytest_llmperf.served.completions import CompletionsEngine
from pytest_llmperf.served.events import LONGEST, EventError, Events
from pytest_llmperf.worker.recorder import LoadRecorder, Recorder
from pytest_llmperf.worker.watch import Watch

PROMPT = [5, 6, 7]
WANTED = 4
GOOD = (token(11), 0.02, token(12), 0.02, token(13), 0.02, token(14, finish="length"), usage(3, 4), DONE)
#: Seconds: a stall is half of it, a batch may take 0.9 of it.
TIMEOUT = 2.0


def scripts(completions: Script, **others: Script) -> dict[str, Script]:
    return {"/v1/models": MODELS, "/v1/completions": completions} | {f"/{name}": one for name, one in others.items()}


@contextlib.contextmanager
def engine(url: str, **changes: Any) -> Iterator[CompletionsEngine]:
    found = CompletionsEngine(EngineSpec("tiny", None, "float32", "cpu", timeout=TIMEOUT, server=url, **changes))
    try:
        yield found
    finally:
        found.close()


def generate(found: CompletionsEngine, prompts: list[list[int]], wanted: int = WANTED) -> Recorder:
    recorder = Recorder(len(prompts))
    found.generate(prompts, wanted, recorder)
    return recorder


@contextlib.contextmanager
def generated(*script: bytes | float, **how: Any) -> Iterator[tuple[Recorder, CompletionsEngine, Loopback]]:
    """What an engine makes of one request, and the engine, and the server."""
    with serving(scripts(streams(*script, **how))) as server, engine(server.url) as found:
        yield generate(found, [PROMPT]), found, server


# Events


@given(st.data())
def test_events_are_the_same_however_their_bytes_are_cut(data: Any) -> None:
    payloads = data.draw(st.lists(st.text(st.characters(exclude_characters="\r\n"), min_size=1), max_size=5))
    line_end = data.draw(st.sampled_from(["\n", "\r\n"]))
    stream = "".join(f": ping{line_end}{line_end}data: {one}{line_end}{line_end}" for one in payloads).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser = Events()
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [one.decode() for piece in pieces for one in parser.feed(piece)] == payloads


def test_the_lines_of_an_event_are_joined_and_other_fields_dropped() -> None:
    assert Events().feed(b"event: x\nid: 1\ndata: a\ndata:b\nretry: 3\n\ndata\n\n") == [b"a\nb", b""]


def test_llama_cpp_s_errors_count_as_data() -> None:
    assert Events().feed(b'error: {"message": "no"}\n\n') == [b'{"message": "no"}']


@pytest.mark.parametrize("cut", [1000, LONGEST])
def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(cut: int) -> None:
    parser = Events()
    for _ in range(LONGEST // cut):
        parser.feed(b"d" * cut)
    with pytest.raises(EventError, match="a line is longer than 1048576 bytes"):
        parser.feed(b"d" * cut)
    assert len(parser._tail) <= LONGEST + cut


def test_an_event_without_an_end_is_refused() -> None:
    with pytest.raises(EventError, match="an event is longer"):
        Events().feed(b"data: x\n" * (LONGEST // 7 + 1))


# What is streamed


def test_tokens_are_stamped_one_by_one_as_they_arrive() -> None:
    with generated(*GOOD) as (recorder, found, server):
        assert recorder.tokens == [[11, 12, 13, 14]]
        checked = trace.checked(recorder.tokens, recorder.times, requests=1, max_new_tokens=WANTED)
        assert len(set(checked.times[0])) == WANTED
        assert checked.times[0][-1] > 0.055, "20 ms between two of them; a late reader makes it more, never less"
        seen = found.evidence()
        assert seen.engaged
        assert "gaps" not in seen.seen
        assert seen.seen["server"] == server.url
        assert seen.seen["served model"] == "tiny"


def test_a_request_asks_for_greedy_tokens_past_the_end_of_sequence_and_their_ids() -> None:
    with generated(*GOOD) as (_, _found, server):
        asked = server.requests[-1].json
    expected = {"model": "tiny", "prompt": PROMPT, "max_tokens": WANTED, "temperature": 0, "ignore_eos": True,
                "stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}  # fmt: skip
    assert {name: asked[name] for name in expected} == expected


def test_ttft_ends_at_the_first_event_with_content() -> None:
    role = event({"choices": [{"index": 0, "text": "", "finish_reason": None}]})
    with generated(role, 0.1, *GOOD) as (recorder, _, _server):
        assert recorder.times[0][0] > 0.09
    # A token may have no text of its own yet: half a character.
    with generated(token(11, text=""), 0.6, *GOOD[2:]) as (recorder, _, _server):
        assert recorder.times[0][0] < 0.55


def test_a_batch_is_so_many_requests_at_once() -> None:
    with serving(scripts(streams(*GOOD))) as server, engine(server.url) as found:
        recorder = generate(found, [PROMPT] * 8)
        assert server.open == 8, "a connection each"
        assert recorder.tokens == [[11, 12, 13, 14]] * 8
        salts = {request.json["cache_salt"] for request in server.requests if request.body}
        assert len(salts) == 8


def test_connections_are_kept_for_the_next_generation() -> None:
    with serving(scripts(streams(*GOOD))) as server, engine(server.url) as found:
        generate(found, [PROMPT] * 4)
        before = server.open
        generate(found, [PROMPT] * 4)
        assert server.open == before == 4


def test_several_tokens_in_one_event_are_stamped_together_and_flagged() -> None:
    with generated(token(11, 12), 0.02, token(13, 14), usage(3, 4), DONE) as (recorder, found, _):
        assert recorder.tokens == [[11, 12, 13, 14]]
        assert found.evidence().seen["gaps"] == "between chunks (ICL): 2 reads brought 4 tokens"
        assert recorder.times[0][0] == recorder.times[0][1] < recorder.times[0][2] == recorder.times[0][3]


def test_without_ids_tokens_are_unknown_and_usage_counts_them() -> None:
    script = (text("one"), 0.02, text(" two three"), text(""), usage(3, 4), DONE)
    with generated(*script) as (recorder, found, _):
        assert recorder.tokens == [[UNKNOWN] * 4]
        assert found.texts() == ["one two three"]
        assert found.evidence().seen["gaps"] == "between chunks (ICL): 2 reads brought 4 tokens"
        made = trace.checked(recorder.tokens, recorder.times, requests=1, max_new_tokens=WANTED)
        with pytest.raises(trace.TraceError, match="2 of 4 tokens have no event of their own, so nobody saw when"):
            trace.check_statistics(made, found.statistics())


def test_a_token_of_llama_cpp_s_has_its_id_in_its_log_probabilities() -> None:
    told = {"content": [{"id": 7042, "token": " Paris", "bytes": [32], "prob": 1.0, "top_probs": []}]}
    paris = event({"choices": [{"text": " Paris", "index": 0, "logprobs": told, "finish_reason": None}]})
    silent = event({"choices": [{"text": "", "index": 0, "logprobs": told, "finish_reason": None}]})
    legacy = event({"choices": [{"text": ".", "logprobs": {"tokens": ["."], "token_logprobs": [-0.1]}}]})
    last = event({"choices": [{"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}]})
    with generated(paris, 0.01, silent, 0.01, legacy, 0.01, paris, last, usage(3, 4), DONE) as (recorder, found, _):
        assert recorder.tokens == [[7042, 7042, UNKNOWN, 7042]]
        assert found.texts() == [" Paris. Paris"]
        assert [one.untimed for one in found.statistics()] == [0]


def test_an_early_stop_is_handed_over_as_it_came() -> None:
    with generated(token(11), token(2, finish="stop"), usage(3, 2), DONE) as (recorder, found, _):
        assert recorder.tokens == [[11, 2]]
        assert found.evidence().seen["finish"] == "stop"
        with pytest.raises(trace.TraceError, match="2 tokens came back, 4 were asked for"):
            trace.check_tokens(recorder.tokens, requests=1, max_new_tokens=WANTED)
        assert found.ended() == [True]
        trace.check_tokens(recorder.tokens, requests=1, max_new_tokens=WANTED, ended=found.ended())


def test_cached_prompt_tokens_deny_the_sample() -> None:
    with generated(*GOOD[:-2], usage(3, 4, cached=2), DONE) as (recorder, found, _):
        checked = trace.checked(recorder.tokens, recorder.times, requests=1, max_new_tokens=WANTED)
        with pytest.raises(trace.TraceError, match="2 prompt tokens came from a prefix cache"):
            trace.check_statistics(checked, found.statistics())


METRICS = """\
# HELP vllm:prefix_cache_hits_total x
vllm:prefix_cache_hits_total{{engine="0"}} {hits}
vllm:request_queue_time_seconds_sum{{engine="0"}} {sum}
vllm:request_queue_time_seconds_count{{engine="0"}} {count}
vllm:request_queue_time_seconds_bucket{{le="+Inf"}} 7
vllm:num_preemptions_total{{engine="0"}} 0
"""


def test_a_server_s_own_metrics_are_read_around_a_generation() -> None:
    with serving(scripts(streams(*GOOD))) as server:
        server.scripts["/metrics"] = plain(METRICS.format(hits=16, sum=1.0, count=2).encode(), kind="text/plain")
        with engine(server.url) as found:
            server.scripts["/metrics"] = plain(METRICS.format(hits=16, sum=1.5, count=4).encode(), kind="text/plain")
            generate(found, [PROMPT])
            assert [one.cached_tokens for one in found.statistics()] == [0]
            assert found.evidence().seen["queue time"] == "250.000 ms"
            server.scripts["/metrics"] = plain(METRICS.format(hits=48, sum=1.5, count=4).encode(), kind="text/plain")
            generate(found, [PROMPT])
            assert [one.cached_tokens for one in found.statistics()] == [32]


def test_metrics_are_summed_over_labels_and_nonsense_is_passed_over() -> None:
    found = metrics.parse('a{x="1"} 2\na{x="2"} 3.5\nb 1e3 1700000000\na oops\n\x00', ["a", "b", "c"])
    assert found == {"a": 5.5, "b": 1000.0}
    assert metrics.grown({}, found, "a") == 5.5
    assert metrics.grown({}, found, "c") is None


def test_whoever_listens_on_this_machine_is_the_server_and_its_cpu_time_is_known() -> None:
    with serving(scripts(streams(*GOOD))) as server, engine(server.url) as found:
        assert os.getpid() in found.processes()
        watch = Watch(found.processes())
        counted = health.snapshot(watch._processes).own
        assert counted > health.snapshot().own + 0.1, "this process was counted twice, as itself and as the server"
        found.address = Address("http://elsewhere.example:80")
        assert found.processes() == []


# What goes wrong

HUGE = chunk(b"data: " + b"x" * (LONGEST + 10))
BAD: dict[str, tuple[Script, str]] = {
    "401": (plain(b'{"error": {"message": "invalid key\\nsecond line"}}', "401 Unauthorized"),
            r"/v1/completions answered with status 401: invalid key$"),
    "500": (plain(b"<h1>oops</h1>\nTraceback", "500 Internal Server Error", "text/html"),
            r"status 500: <h1>oops</h1>$"),
    "422 in TGI's words": (jsons({"error": "inputs tokens + max_new_tokens must be <= 512", "error_type": "validation"},
                                 "422 Unprocessable"), r"status 422: inputs tokens \+ max_new_tokens must be <= 512$"),
    "503 without words": (plain(b"", "503 Service Unavailable"), r"status 503$"),
    "wrong content type": (jsons({"choices": []}), r"answered with application/json, not with a stream of events"),
    "compressed": (plain(b"x", kind="text/event-stream", extra="Content-Encoding: gzip\r\n"), "compresses its stream"),
    "cut": (streams(token(11), token(12), end=b""), r"cut the stream after 2 events$"),
    "cut without chunks": (streams(b"data: {\"choices\": [{\"text\": \"x\"}]}\n\n", end=b"",
                                   head=b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"),
                           r"broke off its stream after 1 events with content, before its end$"),
    "ended early": (streams(token(11)), r"broke off its stream after 1 events with content, before its end$"),
    "hung up": (streams(head=b"", end=b""), r"closed the connection without an answer$"),
    "no HTTP": (streams(b"220 smtp ready\r\n\r\n", head=b"", end=b""), r"does not answer in HTTP \(\w+\)$"),
    "stalled": (streams(token(11), 9.0), r"stalled: it sent nothing within 1 s$"),
    "stalled before its head": (streams(9.0, head=b""), r"stalled: it sent nothing within 1 s$"),
    "trickling": (streams(*[b for _ in range(30) for b in (chunk(b": ping\n\n"), 0.3)]),
                  r"1 of 1 requests were not complete within 1.8 s$"),
    "malformed": (streams(event(b'{"choices": [')), r'malformed event: {"choices": \[$'),
    "of another kind": (streams(event(b"[1, 2]")), r"malformed event: \[1, 2\]$"),
    "nothing in it": (streams(event({"hello": 1})), r'malformed event: {"hello": 1}$'),
    "strange tokens": (streams(event({"choices": [{"token_ids": 7}]})), "malformed event: "),
    "strange usage": (streams(event({"choices": [], "usage": [1]})), "malformed event: "),
    "endless text": (streams(*[token(text="x" * 500_000)] * 9), "sent more text than 4 tokens can be"),
    "deeply nested": (streams(event(b"[" * 200000)), "malformed event: "),
    "an error event": (streams(token(11), event({"error": {"message": "CUDA out of memory", "code": 500}})),
                       r"reported an error in its stream: CUDA out of memory$"),
    "endless": (streams(*[token(11)] * 50), r"sent more than the 4 tokens that were asked for$"),
    "endless without ids": (streams(*[text("x")] * 50), r"sent more than the 4 tokens that were asked for$"),
    "chat": (streams(event({"choices": [{"index": 0, "delta": {"content": "x"}}]})),
             r"streams chat messages \(choices\[0\].delta\), not completions"),
    "an end without a count": (streams(text("a"), text("b", "length")), "gives neither token ids"),
    "after its end": (streams(*GOOD, event({"more": 1})), r"went on after the end of its stream: {\"more\": 1}$"),
    "a line of 1 MiB": (streams(HUGE), r"streamed no events: after 0 of them a line is longer than 1048576 bytes$"),
    "neither ids nor usage": (streams(text("a"), text("b"), DONE), "gives neither token ids"),
    "a count that is not its ids": (streams(token(11), token(12), usage(3, 4), DONE),
                                    r"counts 4 new tokens, and 2 came$"),
    "too high a count": (streams(text("a"), usage(3, 5), DONE), r"made 5 tokens, and 4 were asked for$"),
    "another prompt": (streams(*GOOD[:-2], usage(4, 4), DONE), r"counts 4 prompt tokens, and 3 were sent"),
    "redirect": (plain(b"", "307 Temporary Redirect", extra="Location: http://u:p@elsewhere.example:81/x?key=s\r\n"),
                 r"redirects to elsewhere.example:81; redirects are not followed"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_one_clear_line_for(name: str) -> None:
    script, said = BAD[name]
    with serving(scripts(script)) as server, engine(server.url) as found:
        start = time.monotonic()
        with pytest.raises(ServerError, match=said) as caught:
            generate(found, [PROMPT])
        assert time.monotonic() - start < TIMEOUT
        assert str(caught.value).startswith(("request 0: " + server.url, "1 of 1"))
        assert len(str(caught.value).splitlines()) == 1
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        assert eventually(lambda: server.open <= 1), "what misbehaved is no longer connected"


def test_when_one_request_fails_the_others_are_cancelled_and_closed() -> None:
    async def one_of_them(request: Any, writer: asyncio.StreamWriter) -> bool:
        if request.json["prompt"] == [1]:
            writer.write(HEAD + token(11) + event({"error": "no"}))
            return False
        writer.write(HEAD + token(11))
        await asyncio.sleep(30)
        return True

    with serving(scripts(one_of_them)) as server, engine(server.url) as found:
        start = time.monotonic()
        with pytest.raises(ServerError, match=r"^request 3: .*reported an error in its stream: no$"):
            generate(found, [PROMPT, PROMPT, PROMPT, [1], PROMPT])
        assert time.monotonic() - start < 1
        server.scripts["/v1/completions"] = streams(*GOOD)
        assert generate(found, [PROMPT]).tokens == [[11, 12, 13, 14]], "the engine lives on"


def test_nobody_listens() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ServerError, match=r"^http://127.0.0.1:\d+/v1/models cannot be connected to: .*refused"):
            CompletionsEngine(EngineSpec("tiny", None, "float32", "cpu", timeout=TIMEOUT, server=url))


def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(
        ServerError, match=r"^http://nowhere.invalid/v1/models cannot be connected to: there is no host"
    ):
        CompletionsEngine(EngineSpec("tiny", None, "float32", "cpu", server="http://u:p@nowhere.invalid"))


def test_https_where_there_is_none() -> None:
    def answer() -> None:
        with listener.accept()[0] as connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ServerError, match=r"/v1/models cannot be trusted or does not speak TLS: \w+"):
            CompletionsEngine(EngineSpec("tiny", None, "float32", "cpu", timeout=TIMEOUT, server=url))
        thread.join(5)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    how = ["-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run(
        ["openssl", "req", *how, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    trusted = pytest.raises(ServerError, match=r"/v1/models cannot be trusted .*self.signed")
    with serving(scripts(streams(*GOOD)), context) as server, trusted:
        CompletionsEngine(EngineSpec("tiny", None, "float32", "cpu", timeout=TIMEOUT, server=server.url))


async def trickle(_request: Any, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n")
    for _ in range(99):
        writer.write(b" ")
        await writer.drain()  # raises once the client is gone
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (trickle, "/v1/models did not answer within 1 s"),
        (jsons({"data": []}), "/v1/models names no model"),
        (plain(b"<html>", kind="text/html"), "/v1/models answered with something that is no JSON"),
        (jsons({"detail": "Forbidden"}, "403 Forbidden"), "/v1/models answered with status 403: Forbidden"),
        (
            jsons({"data": [{"id": "tiny", "max_model_len": 100}]}),
            "holds 100 tokens a request, and this run needs 2048",
        ),
    ],
)
def test_a_server_that_cannot_be_used_is_refused_when_it_is_loaded(models: Script, said: str) -> None:
    with serving({"/v1/models": models}) as server:
        with pytest.raises(ServerError, match=said):
            CompletionsEngine(EngineSpec("tiny", None, "float32", "cpu", timeout=TIMEOUT, server=server.url))
        assert eventually(lambda: server.open == 0)


# Where it is, and what is sent there


def test_credentials_of_a_url_are_sent_and_not_said() -> None:
    with serving(scripts(streams(*GOOD))) as server:
        url = server.url.replace("//", "//us%40er:pass@") + "/v1/?key=q1&empty="
        with engine(url, headers={"X-Team": "a"}) as found:
            assert generate(found, [PROMPT]).tokens == [[11, 12, 13, 14]]
            assert str(found.address) == server.url
            assert "pass" not in repr(found.address) + repr(found.spec)
        for request in server.requests:
            assert request.path.endswith("?key=q1&empty=")
            assert request.headers["authorization"] == "Basic dXNAZXI6cGFzcw=="
            assert request.headers["x-team"] == "a"


def test_a_stated_authorization_wins_over_the_url_s() -> None:
    assert Address.of("http://u:p@h", {"authorization": "Bearer t"}).headers == {"authorization": "Bearer t"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "a\\nb"}}', "a"),
        (b'{"detail": [{"msg": "x"}]}', ""),
        (b'{"message": "m"}', "m"),
        (b"\n  \nfirst\nsecond", "first"),
        (b"\x1b[2m\x1b[31mred\x1b[0m \x1b[1;38;5;9mbold\x1b[m", "red bold"),
        (b"\x1b[2K\x1b[1G\n\x1b]0;title\x07said\x1b(B\x1b[m", "said"),
        (b'{"error": "half \\ud83d of \\ud83d\\ude00"}', "half \ufffd of \U0001f600"),
        (b"x" * 999, "x" * 197 + "..."),
        (b"\xff", "\ufffd"),
        (json.dumps({"error": "e"}).encode(), "e"),
    ],
)
def test_the_first_line_of_a_server_s_message(body: bytes, said: str) -> None:
    assert printable(message(body)) == said


# Load


def under_load(
    script: Script,
    requests: int,
    due: list[float] | None = None,
    concurrency: int | None = None,
    wanted: int | None = None,
) -> tuple[LoadRecorder, int]:
    """What became of the requests, and how many the server had at a time, at most."""
    most = now = 0

    async def counted(request: Any, writer: Any) -> bool | None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        try:
            return await script(request, writer)
        finally:
            now -= 1

    with serving(scripts(counted)) as server, engine(server.url) as found:
        recorder = LoadRecorder(requests, wanted)
        found.serve([PROMPT] * requests, WANTED, recorder, due, concurrency)
    return recorder, most


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_requests_are_with_the_server_at_a_time(concurrency: int) -> None:
    recorder, most = under_load(streams(*GOOD), 6, concurrency=concurrency)
    assert most == concurrency
    assert recorder.errors == [""] * 6
    assert [len(row) for row in recorder.times] == [WANTED] * 6
    assert all(times[0] > sent for times, sent in zip(recorder.times, recorder.sent, strict=True))


def test_requests_are_sent_when_they_are_due_whatever_the_server_does() -> None:
    due = [0.0, 0.05, 0.06, 0.3]
    recorder, most = under_load(streams(0.15, *GOOD), 4, due=due)
    assert most > 1
    assert all(0 <= sent - at < 0.5 for sent, at in zip(recorder.sent, due, strict=True))


def test_a_request_that_fails_under_load_stops_no_other() -> None:
    answered = 0

    async def each_third_fails(request: Any, writer: Any) -> bool | None:
        nonlocal answered
        answered += 1
        bad = answered % 3 == 0
        script = streams(token(11), end=b"") if bad else streams(*GOOD)
        return await script(request, writer)

    recorder, _ = under_load(each_third_fails, 6, concurrency=1)
    assert [bool(error) for error in recorder.errors] == [False, False, True] * 2
    assert "cut the stream after 1 events" in recorder.errors[2]


def test_fewer_tokens_than_asked_for_are_a_failed_request() -> None:
    recorder, _ = under_load(streams(token(11), token(12, finish="abort"), usage(3, 2), DONE), 1, concurrency=1)
    assert recorder.errors == ["2 of 4 tokens came"]


@pytest.mark.parametrize(
    ("due", "concurrency"), [(None, 1), (None, 3), ([0.05 * index for index in range(12)], None)], ids=str
)
def test_a_request_that_ends_early_under_load_is_replaced(due: list[float] | None, concurrency: int | None) -> None:
    """Every third one does, and as many as are wanted have all their tokens."""
    answered = 0

    async def each_third_ends(request: Any, writer: Any) -> bool | None:
        nonlocal answered
        answered += 1
        short = (token(11), token(2, finish="stop"), usage(3, 2), DONE)
        return await streams(*(short if answered % 3 == 0 else GOOD))(request, writer)

    recorder, most = under_load(each_third_ends, 12, due=due, concurrency=concurrency, wanted=6)
    whole = [index for index, row in enumerate(recorder.times) if len(row) == WANTED]
    assert (len(whole), answered) == (6, 8)
    assert not any(recorder.errors)
    assert all(len(recorder.times[index]) == 2 for index in recorder.early)
    assert most <= (concurrency or 12)
    assert [sent is None for sent in recorder.sent].count(False) == 8
    for at, sent in zip(due or (), recorder.sent, strict=False):
        assert sent is None or sent >= at, "the traffic goes on at its rate"


def test_a_load_that_takes_too_long_keeps_what_was_answered() -> None:
    answered = 0

    async def slower(request: Any, writer: Any) -> bool | None:
        nonlocal answered
        answered += 1
        pauses = (0.4,) * 8 if answered > 2 else ()
        return await streams(*(part for pause in pauses for part in (b"3\r\n:\n\n\r\n", pause)), *GOOD)(request, writer)

    start = time.monotonic()
    recorder, _ = under_load(slower, 4, concurrency=1)
    assert time.monotonic() - start < TIMEOUT + 1
    assert recorder.errors[:2] == ["", ""]
    assert recorder.errors[2:] == ["not complete when the load had taken 1.8 s"] * 2
