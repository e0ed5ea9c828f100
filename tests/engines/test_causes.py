"""Causes of a slowdown, put into a real model: the first line names each, and the lines add up to what was measured.

Each cause is repeated until it takes a good part of a step, so that a busy machine does not hide it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from dynamo import dynamo_limits, handed_to_inductor
from tiny import EQUAL, generate, load, spec
from torch.nn.attention import SDPBackend, sdpa_kernel

from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.explain.difference import kernels_changed, lines, parts
from pytest_llmperf.explain.profiles import Phase, of_metric, parse
from pytest_llmperf.models import Model

pytestmark = pytest.mark.usefixtures("one_thread")

NEW, TURNS, TRIES = 6, 2, 4
#: Rows of the hidden states, as of so many requests.
MANY = 400
COPY = torch.empty(MANY, 1, 576)
PROMPT = [[(37 * number) % 40000 + 1 for number in range(48)]]


@contextmanager
def before_each(model: Any, name: str, work: Callable[[Any, torch.Tensor], None]) -> Iterator[None]:
    """In decode steps, do some work before each module of that name, with it and the hidden states that it is given."""

    def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[1] == 1:
            work(module, inputs[0])

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if re.fullmatch(rf"model\.layers\.\d+\.{name}", path):
                hooks.callback(module.register_forward_pre_hook(hook).remove)
        yield


def copies(_: Any, hidden: torch.Tensor) -> None:
    # Into the same memory: what malloc asks of the kernel differs under a profiler.
    for _ in range(40):
        COPY.copy_(hidden.expand(MANY, -1, -1))


def waits(_: Any, hidden: torch.Tensor) -> None:
    for _ in range(20):
        hidden.expand(MANY, -1, -1).max().item()


def product(module: Any, hidden: torch.Tensor) -> None:
    for _ in range(10):
        torch.nn.functional.linear(hidden, module.weight)


def sleeps(*_: Any) -> None:
    time.sleep(0.002)


#: What is done before each module of a name, and what the first line has to say.
CAUSES: dict[str, tuple[str, Any, str]] = {
    "copies of the hidden states": ("mlp", copies, r"^\S+ copy_\b.*: 129 -> 1329 calls a step"),
    "waits for the host": ("mlp", waits, r"item\b.*: 1 -> 601 calls a step"),
    "a product done again": ("mlp.down_proj", product, r"^\S+ (mm|addmm)\b.*: 211 -> 511 calls a step"),
    "a sleep": ("mlp", sleeps, r"host time between operators"),
}


def step(engine: Any) -> float:
    """Seconds of the shortest decode step of a generation."""
    times: list[float] = []
    engine.generate(PROMPT, NEW, lambda request, token: times.append(time.perf_counter()))
    return min(end - start for start, end in pairwise(times))


def decode(engine: Any) -> Phase:
    found = of_metric(parse(engine.evidence().profile), "tpot", NEW)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def sdpa(bundled_model: Model) -> Any:
    engine = load("sdpa", EngineSpec(str(bundled_model.folder), None, "float32", "cpu", 1, 64))
    engine.engaged = lambda profile: True  # or the fallback would be refused
    step(engine)
    return engine


@pytest.fixture(scope="module")
def calm(sdpa: Any) -> Phase:
    """A decode step that nothing makes slower."""
    return decode(sdpa)


@pytest.mark.parametrize("name", CAUSES)
def test_the_first_line_names_the_cause_and_the_lines_add_up(sdpa: Any, calm: Phase, name: str) -> None:
    module, work, expected = CAUSES[name]
    with before_each(sdpa.model, module, work):
        head = decode(sdpa)
    for _ in range(TRIES):
        usual, slow = [], []
        for _ in range(TURNS):
            usual.append(step(sdpa))
            with before_each(sdpa.model, module, work):
                slow.append(step(sdpa))
        slowdown = min(slow) / min(usual) - 1
        said = lines(calm, head, 1 + slowdown)
        explained = sum(float(line.partition("%")[0]) / 100 for line in said if "not explained" not in line)
        if explained == pytest.approx(slowdown, rel=0.2):
            break  # else something else used the machine in one of the two
    assert re.search(expected, said[0]), said
    assert explained == pytest.approx(slowdown, rel=0.2), said


def test_attention_by_its_formula_shows_as_what_is_gone_and_what_came(sdpa: Any, calm: Phase) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        step(sdpa)
        head = decode(sdpa)
    (first, *_) = (part.said for part in parts(calm, head, 1.0) if part.structural)
    whose = "attention: PyTorch's flash of the CPU -> PyTorch's math (_scaled_dot_product_flash_attention_for_cpu -> "
    assert first.startswith(f"{whose}_scaled_dot_product_attention_math")
    assert "_scaled_dot_product_flash_attention_for_cpu -> " in kernels_changed(calm, head)


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
            phases.append(decode(engine))
    before, after = phases
    first, *others = lines(before, after, max(1.1, after.seconds / before.seconds))
    assert "Torch-Compiled Region" in first, others
    assert f": {layers} -> {2 * layers} calls a step" in first
