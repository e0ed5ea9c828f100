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
from tiny import load
from torch.nn.attention import SDPBackend, sdpa_kernel

from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.explain.difference import lines
from pytest_llmperf.explain.profiles import Phase, of_metric, parse
from pytest_llmperf.models import Model

NEW, TURNS = 12, 4
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
    for _ in range(20):
        hidden.clone()


def waits(_: Any, hidden: torch.Tensor) -> None:
    for value in hidden[0, -1, :20].unbind():
        value.item()


def product(module: Any, hidden: torch.Tensor) -> None:
    for _ in range(4):
        torch.nn.functional.linear(hidden, module.weight)


def sleeps(*_: Any) -> None:
    time.sleep(0.0005)


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


def compared(base: Any, head: Any, cause: AbstractContextManager[Any] | Callable[[], Any]) -> tuple[float, list[str]]:
    """How much slower head's decode step is, as a share of base's, and what is said of it."""
    taken: dict[str, list[float]] = {"base": [], "head": []}
    for _ in range(TURNS):
        taken["base"].append(tpot(base))
        with cause():  # type: ignore[operator]
            taken["head"].append(tpot(head))
    with cause():  # type: ignore[operator]
        slow = decode(head)
    tpot(base)
    ratio = min(taken["head"]) / min(taken["base"])
    return ratio - 1, lines(decode(base), slow, ratio)


def decode(engine: Any) -> Phase:
    found = of_metric(parse(engine.evidence().profile), "tpot", NEW)
    assert found is not None
    return found


def shares(said: list[str]) -> list[float]:
    return [float(line.partition("%")[0]) / 100 for line in said]


@pytest.mark.parametrize("name", CAUSES)
def test_the_first_line_names_the_cause_and_the_lines_add_up(sdpa: Any, name: str, monkeypatch: Any) -> None:
    cause, expected = CAUSES[name]
    monkeypatch.setattr(type(sdpa), "engaged", lambda engine, profile: True)  # a fallback would be refused
    slowdown, said = compared(sdpa, sdpa, partial(cause, sdpa.model))
    assert re.search(expected, said[0]), said
    explained = sum(share for share, line in zip(shares(said), said, strict=True) if "not explained" not in line)
    assert explained == pytest.approx(slowdown, rel=0.2), said
