"""What dynamo does in a test of a compiling backend: its settings, and the graphs that it makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


@contextmanager
def dynamo_limits() -> Iterator[Any]:
    """Dynamo's settings, which loading a compiling backend changes; put back, and what was compiled forgotten."""
    config: Any = torch._dynamo.config
    names = ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit")
    with config.patch({name: getattr(config, name) for name in names}):  # monkeypatch would delete them in the end
        yield config
    torch._dynamo.reset()


@contextmanager
def handed_to_inductor(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What dynamo hands to inductor, which does not compile it."""
    found: list[Any] = []

    def uncompiled(graph: Any, inputs: Any, **options: Any) -> Any:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", uncompiled)
    config: Any = torch._inductor.config
    with config.patch(freezing=False):  # max-autotune sets it, and weights are then part of a graph
        yield found
