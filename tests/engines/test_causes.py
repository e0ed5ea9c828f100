"""Causes of a slowdown, put into a real model: the first line names each, and the lines add up to what was measured.

Each cause is repeated until it takes a good part of a step, so that a busy machine does not hide it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from dynamo import dynamo_limits, handed_to_inductor
from tiny import EQUAL, generate, load, spec
from torch.nn.attention import SDPBackend, sdpa_kernel

from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.explain.difference import lines
from pytest_llmperf.explain.profiles import Profile, of_metric, parse
from pytest_llmperf.models import Model

pytestmark = pytest.mark.usefixtures("one_thread")

NEW, TURNS = 5, 2
PROMPT = [[(37 * number) % 40000 + 1 for number in range(192)]]
Cause = Callable[[Any], AbstractContextManager[Any]]


@contextmanager
def before_each(model: Any, name: str, work: Callable[[Any, torch.Tensor], Any]) -> Iterator[None]:
    """Do some work before each module of that name, with the module and the hidden states that it is given."""
    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if re.fullmatch(rf"model\.layers\.\d+\.{name}", path):
                hook = module.register_forward_pre_hook(lambda module, inputs: work(module, inputs[0]) and None)
                hooks.callback(hook.remove)
        yield


def copies(_: Any, hidden: torch.Tensor) -> None:
    for _ in range(40):
        hidden.clone()


def waits(_: Any, hidden: torch.Tensor) -> None:
    for _ in range(30):
        hidden.abs().max().item()


def product(module: Any, hidden: torch.Tensor) -> None:
    for _ in range(4):
        torch.nn.functional.linear(hidden, module.weight)


def sleeps(*_: Any) -> None:
    time.sleep(0.001)


CAUSES: dict[str, tuple[Cause, str, str]] = {
    "copies of the hidden states": (partial(before_each, name="mlp", work=copies), "tpot", r"\bclone\b|\bcopy_"),
    "waits for the host": (partial(before_each, name="mlp", work=waits), "tpot", r"\bitem\b.*: 1 -> 901 calls"),
    "a product done again": (
        partial(before_each, name="mlp.down_proj", work=product),
        "tpot",
        r"^\S+ (mm|addmm)\b.*: 211 -> 331 calls",
    ),
    "a sleep": (partial(before_each, name="mlp", work=sleeps), "tpot", r"host time between operators"),
    "attention by its formula": (
        lambda _: sdpa_kernel(SDPBackend.MATH),
        "ttft",
        r"_scaled_dot_product_flash_attention_for_cpu -> .*_math",
    ),
}


@dataclass(frozen=True)
class Measured:
    """The shortest prefill and decode step (s) of some generations, and a profile."""

    seconds: dict[str, float]
    profile: Profile


def measured(engine: Any) -> Measured:
    found: dict[str, list[float]] = {"ttft": [], "tpot": []}
    for _ in range(TURNS):
        times = [time.perf_counter()]
        engine.generate(PROMPT, NEW, lambda request, token: times.append(time.perf_counter()))  # noqa: B023
        first, *steps = [end - start for start, end in pairwise(times)]
        found["ttft"].append(first)
        found["tpot"] += steps
    return Measured({name: min(taken) for name, taken in found.items()}, parse(engine.evidence().profile))


@pytest.fixture(scope="module")
def calm(bundled_model: Model) -> tuple[Any, Measured]:
    """An engine, and how it is where nothing makes it slower."""
    engine = load("sdpa", EngineSpec(str(bundled_model.folder), None, "float32", "cpu", 1, 200))
    engine.engaged = lambda profile: True  # or the fallback would be refused
    return engine, measured(engine)


@pytest.mark.parametrize("name", CAUSES)
def test_the_first_line_names_the_cause_and_the_lines_add_up(calm: tuple[Any, Measured], name: str) -> None:
    cause, metric, expected = CAUSES[name]
    engine, before = calm
    with cause(engine.model):
        after = measured(engine)
    base, head = (of_metric(one.profile, metric, NEW) for one in (before, after))
    assert base is not None
    assert head is not None
    slowdown = after.seconds[metric] / before.seconds[metric] - 1
    said = lines(base, head, 1 + slowdown)
    assert re.search(expected, said[0]), said
    explained = sum(float(line.partition("%")[0]) / 100 for line in said if "not explained" not in line)
    assert explained == pytest.approx(slowdown, rel=0.2), said


def test_a_graph_break_shows_as_more_compiled_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = 2
    dynamo: Any = torch._dynamo
    with dynamo_limits(), handed_to_inductor(monkeypatch):
        phases = []
        for broken in (False, True):
            torch._dynamo.reset()
            engine = load("compile", spec(num_hidden_layers=layers))
            if broken:
                for layer in engine.model.model.layers:
                    layer.self_attn.k_proj.forward = dynamo.disable(layer.self_attn.k_proj.forward)
            generate(engine, EQUAL)
            phases.append(of_metric(parse(engine.evidence().profile), "tpot", NEW))
    before, after = phases
    first, *others = lines(before, after, max(1.1, after.seconds / before.seconds))
    assert "Torch-Compiled Region" in first, others
    assert f": {layers} -> {2 * layers} calls a step" in first
