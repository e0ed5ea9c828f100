"""Secrets: nothing prints them, and only a worker's pipe carries them."""

from __future__ import annotations

import copy
import json
import os

import pytest

from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.secret import Secret, pieces_in, scrubbed
from pytest_llmperf.worker import protocol

URL = "https://user:pa%24%24word@host:8000/v1?api_key=k1234&x=1"


@pytest.mark.parametrize("secret", [Secret.url(URL), Secret.header("Bearer sk-12345")])
def test_a_secret_has_no_form_that_says_it(secret: Secret) -> None:
    said = f"{secret} {secret!r} {[secret]} { ({'a': secret}) } {copy.deepcopy(secret)!r} {'%s' % secret}"  # noqa: UP031
    assert "pa%24" not in said
    assert "sk-" not in said
    with pytest.raises(TypeError, match="not JSON serializable"):
        json.dumps({"server": secret})
    assert copy.deepcopy(secret) == secret


def test_a_pipe_carries_it() -> None:
    reading, writing = os.pipe()
    protocol.send(writing, {"spec": {"server": Secret.url(URL), "headers": {"A": Secret.header("b")}}})
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        assert protocol.parse(stream.readline()) == {"spec": {"server": URL, "headers": {"A": "b"}}}
    with pytest.raises(TypeError, match="object is no JSON value"):
        protocol.send(1, {"a": object()})


def test_a_spec_shows_neither_server_nor_headers() -> None:
    assert "pa%24" not in repr(EngineSpec("m", None, "float32", "cpu", server=URL, headers={"A": "pa%24"}))


def test_every_piece_of_it_is_left_out_of_texts_that_others_wrote() -> None:
    pieces = pieces_in({"server": Secret.url(URL), "headers": {"A": Secret.header("Bearer sk-12345")}, "n": [1, None]})
    for text in ("user:pa%24%24word", "pa$$word", "k1234", "Bearer sk-12345", "sk-12345", "dXNlcjpwYSQkd29yZA=="):
        assert scrubbed(f"<{text}>", pieces) == "<***>"
    assert scrubbed("https://host:8000/v1 x=1", pieces) == "https://host:8000/v1 x=1"
