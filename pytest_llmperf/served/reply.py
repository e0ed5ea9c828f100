"""What the stream of one request says, protocol by protocol: events in, tokens out. Nothing here waits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pytest_llmperf.backends.base import UNKNOWN, OnTokens
from pytest_llmperf.served.client import ServerError, message, printable, unicode
from pytest_llmperf.served.events import LONGEST

#: Characters of a token's text, on average and at most; beyond one event's worth of them the text is something else.
LONGEST_TOKEN = 256
#: What ends a stream of OpenAI's API. Some servers say it twice, or with a blank, or not at all.
DONE = b"[DONE]"


class ReplyError(ServerError):
    """What is wrong with a stream; whoever submitted the request knows which server it is of."""


class Reply:
    """One request's stream. An instance is the client's ``on_events``.

    The tokens of one read of the socket came together, so ``on_token`` is told of them at once.

    Args:
        request: its index in the batch, or whatever ``on_token`` is to be told.
        prompt_tokens: how many tokens its prompt has.
        wanted: how many new tokens were asked for.
        on_token: called for the tokens of each read as they arrive.

    Attributes:
        tokens: how many there were.
        events: how many events had content.
        arrivals: how many reads had content: fewer than tokens where some came together.
        untimed: tokens that the server counts, and that came without content of their own.
        text: what the server says of them as text.
        finish: why it ended, in the server's word.
        usage: how the server counts, if it does.
        cached_tokens: prompt tokens that it found in a cache, as far as it says.
        ended: whether the stream said that it was over.
    """

    __slots__ = (
        "_new",
        "_on_token",
        "_prompt_tokens",
        "_request",
        "_room",
        "_texts",
        "_wanted",
        "arrivals",
        "cached_tokens",
        "ended",
        "events",
        "finish",
        "tokens",
        "untimed",
        "usage",
    )

    def __init__(self, request: int, prompt_tokens: int, wanted: int, on_token: OnTokens) -> None:
        self._request, self._prompt_tokens, self._wanted, self._on_token = request, prompt_tokens, wanted, on_token
        self._texts: list[str] = []
        #: Of the read that is looked at.
        self._new: list[int] = []
        self._room = LONGEST + LONGEST_TOKEN * wanted
        self.tokens = self.events = self.arrivals = self.untimed = self.cached_tokens = 0
        self.finish = ""
        self.usage: dict[str, Any] = {}
        self.ended = False

    def __call__(self, events: Sequence[bytes]) -> None:
        """Read the data of the events that one read of the socket has brought.

        Raises:
            ReplyError: one is malformed, an error, one token too many, or after the end.
        """
        before = self.events
        for data in events:
            self._event(data)
        self.arrivals += self.events > before
        self._hand_over()

    def _hand_over(self) -> None:
        if self._new:
            self._on_token(self._request, *self._new)
            self._new = []

    def _event(self, data: bytes) -> None:
        if self.ended:
            if data.strip() in (b"", DONE):
                return
            raise ReplyError("went on after the end of its stream", _text(data))
        try:
            self._read(data)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ReplyError("sent a malformed event", _text(data)) from None
        if self.tokens > self._wanted:
            raise ReplyError(f"sent more than the {self._wanted} tokens that were asked for")

    def _read(self, data: bytes) -> None:
        raise NotImplementedError

    @property
    def text(self) -> str:
        return unicode("".join(self._texts))

    def _keep(self, text: str) -> None:
        self._texts.append(text)
        self._room -= len(text)
        if self._room < 0:
            raise ReplyError(f"sent more text than {self._wanted} tokens can be")

    def finished(self) -> None:
        """The connection has ended.

        Raises:
            ReplyError: the stream had not, or the server's count of tokens is not what was sent or came.
        """
        if not self.ended:
            raise ReplyError(f"broke off its stream after {self.events} events with content, before its end")
        counted = self.usage.get("prompt_tokens")
        if counted is not None and not isinstance(counted, int):
            raise ReplyError("counts its prompt tokens in something that is no number")
        if counted is not None and counted != self._prompt_tokens:
            raise ReplyError(f"counts {counted} prompt tokens, and {self._prompt_tokens} were sent: it changes prompts")


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _error(error: object) -> ReplyError:
    return ReplyError("reported an error in its stream", message(error))


class CompletionReply(Reply):
    """A stream of the OpenAI-compatible ``/v1/completions``.

    Token ids are there where the server has vLLM's ``return_token_ids``, or llama.cpp's ``n_probs``. Elsewhere a token
    is `UNKNOWN`: one for each event with text, and at the end as many more as the server's usage counts.
    """

    __slots__ = ("_identified", "_silent")

    def __init__(self, request: int, prompt_tokens: int, wanted: int, on_token: OnTokens) -> None:
        super().__init__(request, prompt_tokens, wanted, on_token)
        self._identified = False
        #: Events without text or ids, before the first one with either.
        self._silent = 0

    def finished(self) -> None:
        """See `Reply.finished`. A stream that said why it ends may leave out `DONE`."""
        if not self.ended and self.finish:
            self._end()
        self._hand_over()
        super().finished()

    def _end(self) -> None:
        self.ended = True
        self._make_up()

    def _read(self, data: bytes) -> None:
        if data.strip() == DONE:
            self._end()
            return
        event = json.loads(data)
        if event.get("error"):
            raise _error(event["error"])
        if choices := event.get("choices"):
            self._choice(choices[0])
        elif "usage" not in event and "choices" not in event:  # Azure's first event has no choice yet
            raise ValueError("neither choices nor usage")
        if event.get("usage"):
            self.usage = {**event["usage"]}
            self.cached_tokens = int((self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    def _choice(self, choice: dict[str, Any]) -> None:
        if "delta" in choice:
            raise ReplyError("streams chat messages (choices[0].delta), not completions (choices[0].text)")
        text, ids = choice.get("text"), choice.get("token_ids")
        self._identified = self._identified or bool(ids)
        if ids is None:
            told = (choice.get("logprobs") or {}).get("content") or ()
            ids = [one["id"] for one in told if "id" in one] or [UNKNOWN] * bool(text)
        if ids:
            self.events += 1
            self.tokens += len(ids)
            self._new += map(int, ids)
        elif not self.events:
            self._silent += 1
        if text:
            self._keep(text)
        if choice.get("finish_reason"):
            self.finish = printable(str(choice["finish_reason"]))

    def _make_up(self) -> None:
        """What usage counts beyond the tokens that were seen. Nobody knows when they came: in time for the end."""
        counted = self.usage.get("completion_tokens")
        if counted is None:
            if not self._identified:
                raise ReplyError(
                    "gives neither token ids (vLLM does) nor usage, so that nobody knows how many tokens "
                    "came; it must heed stream_options.include_usage"
                )
        elif counted < self.tokens or (self._identified and counted > self.tokens):
            raise ReplyError(f"counts {counted} new tokens, and {self.tokens} came")
        elif counted > self._wanted:
            raise ReplyError(f"made {counted} tokens, and {self._wanted} were asked for")
        else:
            self.untimed = counted - self.tokens
            if self.untimed and self._silent:
                raise ReplyError(
                    f"sent {self._silent} events without text or token ids before the first with either, and its "
                    f"{counted} tokens are more than the events with text: nobody knows when the first token came"
                )
            self._new += [UNKNOWN] * self.untimed
            self.tokens = counted


class TgiReply(Reply):
    """A stream of TGI's ``/generate_stream``: an event for each token, with its id; the last has the whole text."""

    __slots__ = ()

    def _read(self, data: bytes) -> None:
        event = json.loads(data)
        if "error" in event:
            raise _error(event["error"] if not event.get("error_type") else f"{event['error']} ({event['error_type']})")
        token = event["token"]
        self.events += 1
        self.tokens += 1
        self._new.append(int(token["id"]))
        if not token.get("special"):
            self._keep(token["text"])
        if event.get("generated_text") is not None:
            self.ended = True
            details = event.get("details") or {}
            self.finish = printable(str(details.get("finish_reason") or ""))
            if "generated_tokens" in details and details["generated_tokens"] != self.tokens:
                raise ReplyError(f"counts {details['generated_tokens']} new tokens, and {self.tokens} came")
            if "input_length" in details:  # not every 2.x says it
                self.usage = {"prompt_tokens": details["input_length"]}
