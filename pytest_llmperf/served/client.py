"""HTTP to one server: ask it something, or submit one request and stream its events. Credentials stay in here."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import aiohttp

from pytest_llmperf.output import ESCAPE
from pytest_llmperf.secret import Secret, scrubbed
from pytest_llmperf.served.events import EventError, Events

#: Seconds to open a connection, at most.
CONNECTING = 10.0
#: Seconds that a connection is kept for the next request. Servers close idle ones after 5 s and more (uvicorn's
#: default is 5), and a request sent into a closing one is lost.
KEPT = 2.0
#: Bytes of an answer that is no stream, at most; and characters of a server's message that an error shows.
LONGEST_ANSWER, SHOWN = 8 * 2**20, 200
#: Where servers put their message in a JSON answer.
MESSAGES = ("error", "message", "detail", "object")


class ServerError(RuntimeError):
    """A server cannot be had, or did not do what was asked; one line says what, and where without credentials.

    Args:
        what: that line.
        quoted: what the server said, whole: it is cut only after what is secret was taken out.
        refusal: its answer where that is a status other than 200; not for a message.
    """

    def __init__(self, what: str, quoted: str | None = None, refusal: Answer | None = None) -> None:
        super().__init__(what if quoted is None else f"{what}: {printable(quoted) or 'nothing'}")
        self.what, self.quoted, self.refusal = what, quoted, refusal


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        base: its URL without credentials, query and trailing slash; paths are appended.
        query: sent with every request; may be secret, as ``headers`` may.
        secret: the pieces of all that which a server may repeat and nobody may see.
    """

    base: str
    query: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret: frozenset[str] = field(default=frozenset(), repr=False)

    @classmethod
    def of(cls, url: str, headers: Mapping[str, str] | None = None) -> Address:
        """The address in a URL: name and password become an ``Authorization`` header, a last ``/v1`` is dropped."""
        parts = urlsplit(url)
        userinfo, _, host = parts.netloc.rpartition("@")
        sent = dict(headers or {})
        if userinfo and not any(name.lower() == "authorization" for name in sent):
            sent["Authorization"] = "Basic " + base64.b64encode(unquote(userinfo).encode()).decode()
        path = parts.path.rstrip("/").removesuffix("/v1")
        query = tuple(parse_qsl(parts.query, keep_blank_values=True))
        secret = Secret.url(url).pieces.union(*(Secret.header(value).pieces for value in sent.values()))
        return cls(f"{parts.scheme}://{host}{path}", query, sent, secret)

    def __str__(self) -> str:
        return self.base


@dataclass(frozen=True)
class Answer:
    """What a server answers that does not stream: status, headers by lower-case name, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body's JSON value. Raises ValueError if it is none."""
        return json.loads(self.body)


class Client:
    """A client of one server, to be used in one event loop and closed there.

    Args:
        address: the server.
        stall: seconds without a byte after which a request has failed.
    """

    def __init__(self, address: Address, stall: float) -> None:
        self.address = address
        self._stall = stall
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Compressed, tokens would wait for one another.
            headers={"Accept-Encoding": "identity", **address.headers},
            auto_decompress=False,
            trace_configs=[_noting_reuse()],
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(CONNECTING, stall), sock_read=stall),
        )

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, path: str, seconds: float | None = None) -> Answer:
        """GET something small, within some seconds, or what a stall may take.

        Raises:
            ServerError: there is no answer in time. A status that says no is an answer.
        """

        async def answer() -> Answer:
            async with self._request("GET", path) as response:
                return Answer(response.status, _headers(response), await self._body(response, LONGEST_ANSWER))

        within = self._stall if seconds is None else min(seconds, self._stall)
        try:
            return await asyncio.wait_for(answer(), within)
        except asyncio.TimeoutError:
            raise self.failure(path, f"did not answer within {within:g} s") from None

    async def stream(self, path: str, body: bytes, on_events: Callable[[list[bytes]], None]) -> Mapping[str, str]:
        """Submit one request (JSON) and hand over the data of its events, those of one read of the socket together.

        Returns the headers.

        Raises:
            ServerError: there is no stream, or it is no stream of events, or stalls. Whatever ``on_events`` raises. The
                connection is closed in all these cases.
        """
        events, arrived = Events(), 0
        async with self._request("POST", path, body) as response:
            if response.status != 200:
                raise self.refusal(path, response.status, await self._body(response, LONGEST_ANSWER))
            if (kind := response.content_type) != "text/event-stream":
                raise self.failure(path, f"answered with {kind}, not with a stream of events (text/event-stream)")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise self.failure(path, "compresses its stream, which makes tokens wait for one another")
            try:
                async for chunk in response.content.iter_any():
                    if found := events.feed(chunk):
                        arrived += len(found)
                        on_events(found)
            except EventError as error:
                raise self.failure(path, f"streamed no events: after {arrived} of them {error}") from None
            except (aiohttp.ClientPayloadError, aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                raise self.failure(path, f"cut the stream after {arrived} events") from None
            return _headers(response)

    def failure(self, path: str, what: str, quoted: str | None = None, refusal: Answer | None = None) -> ServerError:
        """The error that says of this server what it did."""
        hidden = None if quoted is None else scrubbed(quoted, self.address.secret)
        return ServerError(f"{self.address}{path} {what}", hidden, refusal)

    def shown(self, text: str) -> str:
        """The first line of what the server says of itself, without what is secret."""
        return printable(scrubbed(text, self.address.secret))

    def refusal(self, path: str, status: int, body: bytes) -> ServerError:
        """The error that says with which status, and first line, the server said no."""
        said = message(body)
        return self.failure(path, f"answered with status {status}", said or None, Answer(status, {}, body))

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, path: str, body: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request's response, its head read. No error quotes aiohttp, whose words may hold the whole URL."""
        url = self.address.base + path
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            async with await self._answered(method, url, body, headers) as response:
                if response.status in (301, 302, 303, 307, 308):
                    where = urlsplit(response.headers.get("Location", "")).netloc.rpartition("@")[2] or "itself"
                    raise self.failure(path, f"redirects to {self.shown(where)}; redirects are not followed, since "
                                             "credentials would go along: name that server")  # fmt: skip
                yield response
        except aiohttp.ServerTimeoutError as error:
            connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
            what = "cannot be connected to" if connecting else "stalled: it sent nothing"
            seconds = min(CONNECTING, self._stall) if connecting else self._stall
            raise self.failure(path, f"{what} within {seconds:g} s") from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise self.failure(path, f"cannot be trusted or does not speak TLS: {_tls(error)}") from None
        except aiohttp.ClientConnectorError as error:
            raise self.failure(path, f"cannot be connected to: {_connecting(error.os_error)}") from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            raise self.failure(path, "closed the connection without an answer") from None
        except aiohttp.ClientError as error:
            raise self.failure(path, f"does not answer in HTTP ({type(error).__name__})") from None

    async def _answered(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """The response to a request, its head read.

        A server may close a connection after an answer without saying so, as llama.cpp's does. A request that was sent
        on such a connection and got no byte of an answer is sent again. On a new connection it is sent once.
        """
        while True:
            connection = {"reused": False}
            try:
                return await self._session.request(
                    method,
                    url,
                    params=self.address.query,
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    trace_request_ctx=connection,
                )
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not connection["reused"]:
                    raise

    async def _body(self, response: aiohttp.ClientResponse, longest: int) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > longest:
                raise self.failure(response.url.path, f"answered with more than {longest} bytes")
        return bytes(body)


def _noting_reuse() -> aiohttp.TraceConfig:
    """Notes in a request's context whether it was sent on a connection that had served another."""

    async def note(_session: aiohttp.ClientSession, context: SimpleNamespace, _parameters: Any) -> None:
        context.trace_request_ctx["reused"] = True

    found = aiohttp.TraceConfig()
    found.on_connection_reuseconn.append(note)
    return found


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _connecting(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "there is no host of that name"
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _tls(error: aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        certificate = error.certificate_error
        return str(getattr(certificate, "verify_message", "") or type(certificate).__name__)
    reason = error.os_error.reason if isinstance(error.os_error, ssl.SSLError) else error.os_error.strerror
    return str(reason or type(error.os_error).__name__)


def message(body: bytes | object) -> str:
    """What a server says went wrong: in its JSON, or as text."""
    found: Any = body
    if isinstance(body, bytes):
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = body.decode(errors="replace")
    while isinstance(found, dict | list):
        if isinstance(found, list):
            found = found[0] if found else ""
        else:
            found = next((found[name] for name in MESSAGES if found.get(name)), "")
    return str(found)


def unicode(text: str) -> str:
    """A text that JSON may have had in halves: those of a pair are joined, and others replaced. Pure."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def printable(text: str) -> str:
    """The first line of a text that others wrote, cut, without what would colour it or move a terminal's cursor."""
    line = next((line for line in ESCAPE.sub("", unicode(text)).splitlines() if line.strip()), "")
    line = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", line).strip()
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."
