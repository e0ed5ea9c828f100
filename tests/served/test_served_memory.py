"""A server that remembers prompts, or a proxy that answers from its own memory, gains nothing, in one run or in two."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from inner import Suite
from loopback import DONE, HEAD, MODELS, Loopback, Request, serving, token, usage

#: Seconds that a server takes to prefill a prompt of which it remembers nothing, and for each further token.
PREFILL, STEP = 0.04, 0.002
TESTS = """
def test_prefill(llm_perf):
    llm_perf.gate("ttft")
"""


def common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


class Server:
    """A server, or one behind a proxy that drops ``cache_salt``. It heeds no hint against caches.

    Attributes:
        what: whether it remembers ``answers`` or ``prefixes``. A prefix is remembered in blocks of 16.
        known: the prompts that it was sent.
    """

    def __init__(self) -> None:
        self.what = "answers"
        self.known: list[list[int]] = []

    def unknown(self, prompt: list[int]) -> float:
        """The share of a prompt that it has to compute."""
        if self.what == "answers":
            return float(prompt not in self.known)
        shared = max((common(prompt, other) for other in self.known), default=0)
        return 1 - shared // 16 * 16 / len(prompt)

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        asked = request.json
        prompt, wanted = asked["prompt"], asked["max_tokens"]
        share = self.unknown(prompt)
        self.known.append(prompt)
        await asyncio.sleep(0.001 + PREFILL * share)
        writer.write(HEAD)
        for number in range(wanted):
            await asyncio.sleep(STEP if number else 0)
            writer.write(token(1 + number))
            await writer.drain()
        writer.write(usage(len(prompt), wanted) + DONE + b"0\r\n\r\n")
        return True


@pytest.fixture
def model() -> Server:
    return Server()


@pytest.fixture
def server(model: Server) -> Iterator[Loopback]:
    with serving({"/v1/models": MODELS, "/v1/completions": model}) as found:
        yield found


@pytest.fixture(autouse=True)
def _suite(suite: Suite) -> None:
    (suite.path / "tiny" / "tokenizer.json").unlink()  # random ids
    suite.test(TESTS)
    suite.ini(llm_seed="", llm_prompt_lengths="64,256", llm_max_new_tokens="4")


def ttfts(suite: Suite, server: Loopback, *arguments: str) -> list[float]:
    """The fastest TTFT of each workload in a run: a busy machine makes a sample slower, never faster."""
    asked = ("--llm-backends=server", f"--llm-server={server.url}", "--llm-timeout=20", "--llm-results=r.json")
    suite.run("test_it.py", *asked, *arguments).assert_outcomes(passed=2)
    found: list[dict[str, Any]] = json.loads((suite.path / "r.json").read_text())["results"]
    return [one["spread"]["minimum"] for one in found]


@pytest.mark.parametrize("what", ["answers", "prefixes"])
def test_it_gains_nothing_by_what_it_remembers(suite: Suite, server: Loopback, model: Server, what: str) -> None:
    model.what = what
    for _ in range(2):
        assert all(seconds > 0.95 * PREFILL for seconds in ttfts(suite, server))
    assert len(model.known) > 4
    assert len(set(map(tuple, model.known))) == len(model.known)


def test_it_would_gain_by_a_seed_that_is_repeated(suite: Suite, server: Loopback, model: Server) -> None:
    first, again = (ttfts(suite, server, "--llm-seed=1") for _ in range(2))
    assert all(seconds > 0.95 * PREFILL for seconds in first)
    assert all(seconds < 0.5 * PREFILL for seconds in again)
