"""Causes of a slowdown, put into a real model: the first line names each, and the lines add up to what was measured.

Each cause is repeated until it takes a good part of a step, so that a busy machine does not hide it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from dynamo import dynamo_limits, handed_to_inductor
from tiny import EQUAL, generate, load, spec
from torch.nn.attention import SDPBackend, sdpa_kernel

from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.explain.difference import lines
from pytest_llmperf.explain.profiles import Phase, of_metric, parse
from pytest_llmperf.models import Model

pytestmark = pytest.mark.usefixtures("one_thread")

NEW, TURNS = 8, 3
PROMPT = [[(37 * number) % 40000 + 1 for number in range(48)]]
Cause = Callable[[Any], AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def sdpa(bundled_model: Model) -> Any:
    return load("sdpa", EngineSpec(str(bundled_model.folder), None, "float32", "cpu", 1, 64))


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
    for value in hidden[0, -1, :40].unbind():
        value.item()


def product(module: Any, hidden: torch.Tensor) -> None:
    for _ in range(4):
        torch.nn.functional.linear(hidden, module.weight)


def sleeps(*_: Any) -> None:
    time.sleep(0.001)


CAUSES: dict[str, tuple[Cause, str]] = {
    "copies of the hidden states": (partial(before_each, name="mlp", work=copies), r"\bclone\b|\bcopy_"),
    "waits for the host": (partial(before_each, name="mlp", work=waits), r"\bitem\b.*for which the host waits"),
    "a product done again": (partial(before_each, name="mlp.down_proj", work=product), r"\b(mm|addmm|linear)\b.*->"),
    "a sleep": (partial(before_each, name="mlp", work=sleeps), r"host time between operators"),
    "attention by its formula": (
        lambda _: sdpa_kernel(SDPBackend.MATH),
        r"_scaled_dot_product_flash_attention_for_cpu -> .*_math",
    ),
}


def tpot(engine: Any) -> float:
    times: list[float] = []
    engine.generate(PROMPT, NEW, lambda request, token: times.append(time.perf_counter()))
    return (times[-1] - times[0]) / (len(times) - 1)


def decode(engine: Any) -> Phase:
    found = of_metric(parse(engine.evidence().profile), "tpot", NEW)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def calm(sdpa: Any) -> Phase:
    """What a decode step spends its time on where nothing makes it slower."""
    tpot(sdpa)
    return decode(sdpa)


@pytest.mark.parametrize("name", CAUSES)
def test_the_first_line_names_the_cause_and_the_lines_add_up(
    sdpa: Any, calm: Phase, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause, expected = CAUSES[name]
    monkeypatch.setattr(sdpa, "engaged", lambda profile: True)  # or the fallback would be refused
    usual, slow = [], []
    for _ in range(TURNS):
        usual.append(tpot(sdpa))
        with cause(sdpa.model):
            slow.append(tpot(sdpa))
    with cause(sdpa.model):
        profile = decode(sdpa)
    ratio = min(slow) / min(usual)
    said = lines(calm, profile, ratio)
    assert re.search(expected, said[0]), said
    shares = {line: float(line.partition("%")[0]) / 100 for line in said}
    explained = sum(share for line, share in shares.items() if "not explained" not in line)
    assert explained == pytest.approx(ratio - 1, rel=0.2), said


def test_a_graph_break_shows_as_more_compiled_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = 4
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
