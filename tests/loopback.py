"""Servers on the loopback interface, in a thread of the test: the answer of each path is scripted."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """What a client sent: the path with its query, headers by lower-case name, the body."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


#: Writes an answer; the connection is closed if it returns False.
Script = Callable[[Request, asyncio.StreamWriter], Awaitable[bool | None]]


def plain(body: bytes, status: str = "200 OK", kind: str = "application/json", extra: str = "") -> Script:
    """An answer at once."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"

    async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode() + body)

    return answer


def jsons(value: Any, status: str = "200 OK") -> Script:
    return plain(json.dumps(value).encode(), status)


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(value: Any) -> bytes:
    """An event, as a chunk of the body."""
    return chunk(b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n")


def streams(*parts: bytes | float, end: bytes = chunk(b""), head: bytes = HEAD) -> Script:
    """A stream: bytes are written, a number is slept for (s), then ``end``; without one the connection is cut."""

    async def answer(_request: Request, writer: asyncio.StreamWriter) -> bool:
        writer.write(head)
        for part in parts:
            if isinstance(part, bytes):
                writer.write(part)
                await writer.drain()
            else:
                await asyncio.sleep(part)
        writer.write(end)
        return bool(end)

    return answer


def token(*ids: int, text: str = "x", finish: str | None = None) -> bytes:
    """An event as vLLM streams it, with token ids."""
    return event({"choices": [{"index": 0, "text": text, "token_ids": list(ids), "finish_reason": finish}]})


def text(said: str, finish: str | None = None) -> bytes:
    """An event of a server that gives no token ids."""
    return event({"choices": [{"index": 0, "text": said, "finish_reason": finish}], "usage": None})


def usage(prompt: int, completion: int, cached: int | None = None) -> bytes:
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    counted = {"prompt_tokens": prompt, "completion_tokens": completion, **details}
    return event({"choices": [], "usage": counted})


DONE = event(b"[DONE]")
MODELS = jsons({"object": "list", "data": [{"id": "tiny", "max_model_len": 4096}]})
MISSING = jsons({"error": "no such path"}, "404 Not Found")


class Loopback:
    """A server and what it was asked.

    Attributes:
        url: without a path.
        requests: those received so far.
        open: connections that are open now.
    """

    def __init__(self, url: str, scripts: dict[str, Script]) -> None:
        self.url = url
        self.scripts = scripts
        self.requests: list[Request] = []
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                script = self.scripts.get(request.path.partition("?")[0], MISSING)
                if await script(request, writer) is False:
                    break
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self.open -= 1
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(first.split()[1], headers, body)


@contextmanager
def serving(scripts: dict[str, Script], context: ssl.SSLContext | None = None) -> Iterator[Loopback]:
    """A server while the block runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    found = Loopback("", scripts)

    def call(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    server = call(asyncio.start_server(found.serve, "127.0.0.1", 0, ssl=context))
    port = server.sockets[0].getsockname()[1]
    found.url = f"{'https' if context else 'http'}://127.0.0.1:{port}"

    async def stop() -> None:
        server.close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    try:
        yield found
    finally:
        call(stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
