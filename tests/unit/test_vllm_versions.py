"""Every version of vLLM whose source was read has the names that the adapter uses."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llmperf.backends import vllm_engine
from pytest_llmperf.backends.base import EngineSpec, RequestStatistics

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "vllm-signatures.json").read_text())
VERSIONS = list(RECORDED["versions"])
SOURCE = ast.parse(inspect.getsource(vllm_engine))
SPEC = EngineSpec("a folder", None, "float32", "cuda", tp=2, executor="ray")
#: The variables of the adapter, by the class of what they hold.
HELD = {"output": "RequestOutput", "completion": "CompletionOutput", "own": "RequestStateStats"}
#: What the adapter reads only where it is there.
OPTIONAL = {"num_preemptions", "num_cached_tokens"}


def passed(name: str) -> Iterator[str]:
    """The arguments that a class is called with by name."""
    for node in ast.walk(SOURCE):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name:
            yield from (keyword.arg for keyword in node.keywords if keyword.arg is not None)


def read(name: str) -> set[str]:
    """The attributes that are read of a variable."""
    return {
        node.attr
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == name
    }


def of_the_engine() -> set[str]:
    """The attributes that are read of ``self.engine``."""
    return {
        node.attr
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.Attribute) and getattr(node.value, "attr", "") == "engine"
    }


@pytest.fixture(params=VERSIONS)
def has(request: pytest.FixtureRequest) -> Any:
    """What a class has in a version."""
    version = RECORDED["versions"][request.param]
    return lambda name: {*RECORDED["every"][name], *version[name]}


def test_it_takes_every_argument(has: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "_check_room", lambda *_: None)
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    config |= {"intermediate_size": 128, "vocab_size": 100}
    given = {*passed("EngineArgs"), *vllm_engine.arguments(SPEC, config)}
    assert len(given) > 12
    assert given <= has("EngineArgs")
    assert "ignore_eos" in set(passed("SamplingParams")) <= has("SamplingParams")
    assert "DELTA" in has("RequestOutputKind")


def test_it_says_what_is_read_of_it(has: Any) -> None:
    for variable, name in HELD.items():
        assert read(variable)
        assert read(variable) - {"outputs"} - OPTIONAL <= has(name), name
    assert "outputs" in has("RequestOutput")
    assert {"step", "collective_rpc", "vllm_config"} <= of_the_engine() <= has("LLMEngine")


def test_a_version_that_counts_no_preemptions_has_figures_all_the_same() -> None:
    """vLLM 0.20 ended every case in an AttributeError."""
    own = SimpleNamespace(first_token_latency=0.5, first_token_ts=1.0, last_token_ts=1.3)
    found = vllm_engine._statistics(SimpleNamespace(metrics=own), 4)
    assert found == RequestStatistics(0.5, pytest.approx(0.1), cached_tokens=0, preemptions=0)
    assert any("num_preemptions" not in one["RequestStateStats"] for one in RECORDED["versions"].values())
