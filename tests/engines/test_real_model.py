"""The bundled model with its real weights under the compiling backends, and the scripts that measure this project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from inner import Suite

from benchmarks import fidelity, script
from pytest_llmperf.cases import Workload
from pytest_llmperf.models import Model
from pytest_llmperf.prompts import Prompts


def test_compiled_backends_are_in_parity_with_eager(suite: Suite, shallow: Model) -> None:
    suite.ini(
        llm_model=str(shallow.folder), llm_reference="", llm_dtype="float32",
        llm_prompt_lengths="48", llm_max_new_tokens="16",
    )  # fmt: skip
    result = suite.run(
        "suites/test_decode.py", "suites/test_greedy_parity.py", "--llm-backends=compile,compile-static",
        "--llm-results=out.json",
    )  # fmt: skip
    result.assert_outcomes(passed=4)
    found = json.loads((suite.path / "out.json").read_text())
    assert {one["backend"]: one["passed"] for one in found["parity"]} == {"compile": True, "compile-static": True}
    by_layer, whole = (one["engagement"]["seen"] for one in found["results"])
    assert by_layer["compiled regions"] == shallow.architecture.layers * 3
    assert by_layer["graphs"] == 3  # a prefill, the step after it, a step
    assert whole["graphs"] == 1


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
