"""The bundled model with its real weights under the compiling backends, and the scripts that measure this project."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from dynamo import dynamo_limits

from benchmarks import fidelity, script
from benchmarks.wrong_kernels import Bench
from pytest_llmperf import folders
from pytest_llmperf.cases import Workload
from pytest_llmperf.models import Model
from pytest_llmperf.prompts import Prompts


@pytest.fixture(scope="module")
def bench(shallow: Model, one_thread: None) -> Iterator[Bench]:
    """The reference and what compiles, judged as in a run, with a run's cache of compiled kernels."""
    with pytest.MonkeyPatch.context() as patch, dynamo_limits():
        for name, value in folders.of_workers(folders.cache().folder, os.environ).items():
            patch.setenv(name, value)
        yield Bench(shallow, "float32")


#: How many regions of a profiled generation are compiled, and graphs: a prefill, the step after it, a step.
@pytest.mark.parametrize(("name", "regions", "graphs"), [("compile", 10 * 3, 3), ("compile-static", 2, 1)])
def test_a_compiled_backend_is_in_parity_with_eager(bench: Bench, name: str, regions: int, graphs: int) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    bench.load(name)
    workload = Workload(1, 48, 16)
    bench.ask(name, "generate", prompts=bench.prompts(0).batch(workload), max_new_tokens=workload.max_new_tokens)
    seen = bench.ask(name, "evidence")["seen"]
    assert (seen["compiled regions"], seen["graphs"]) == (regions, graphs)
    found = bench.judge(name, workload, seed=1)
    assert found.passed, found.reason


def test_the_plugin_is_compared_with_a_bare_generate(
    tmp_path: Path, bundled_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = Workload(1, 16, 4)
    monkeypatch.setattr(fidelity, "TURNS", 1)
    monkeypatch.setattr(fidelity, "WORKLOAD", workload)
    prompts = Prompts(bundled_model.architecture.vocabulary, bundled_model.tokenizer_file).batch(workload)
    request = tmp_path / "request.json"
    asked = {
        "folder": str(bundled_model.folder),
        "dtype": script.DTYPE,
        "prompts": prompts,
        "new": workload.max_new_tokens,
    }
    request.write_text(json.dumps(asked))
    made = fidelity.pair(request, str(bundled_model.folder), prompts)
    assert set(made) == set(fidelity.KINDS)
    assert all(figures["tpot"] > 0 and figures["ttft"] > 0 for rows in made.values() for figures in rows)
    found = fidelity.agreement([made])
    assert set(found) == {"ttft", "tpot"}
