"""What the documentation shows works, and what it links to is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from inner import Suite
from tiny import TINY
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import accelerator_page
from benchmarks.gate import replay
from pytest_llmperf.models import Model
from pytest_llmperf.settings import OPTIONS, _flag

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_option_is_in_the_reference_as_its_help_says() -> None:
    table = (ROOT / "docs/reference/options.md").read_text().splitlines()
    rows = []
    for option in OPTIONS:
        value = f"[={option.metavar}]" if option.bare else f"={option.metavar}"
        flag = option.flag + value * (option.parse is not _flag)
        rows.append(f"| `{flag}` | `{option.ini}` | {option.help.replace('%%', '%')} |")
    assert [row for row in rows if row not in table] == []


def test_what_is_said_of_the_gate_is_what_its_data_say() -> None:
    tables, _, holds = replay.replayed()
    assert holds
    assert replay.README.read_text() == replay.page(tables)


def test_what_is_said_of_a_gpu_is_what_its_data_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(shutil.copy(ROOT / "docs/results-h200.md", tmp_path))
    monkeypatch.setattr(sys, "argv", ["accelerator_page", str(ROOT / "benchmarks/data/h200"), str(page)])
    assert accelerator_page.main() == 0
    assert page.read_text() == (ROOT / "docs/results-h200.md").read_text()
    drawn = {file.name: file.read_text() for file in (tmp_path / "images").iterdir()}
    kept = {file.name: file.read_text() for file in (ROOT / "docs/images").glob("results-h200-*.svg")}
    assert drawn == kept


@pytest.mark.parametrize(("page", "tests"), [("README.md", 8), ("docs/how-to/write-a-suite.md", 12)])
def test_the_example_suite_runs(suite: Suite, page: str, tests: int) -> None:
    (example,) = re.findall(r"```python\n((?:# .*\n)?import pytest\n.*?)```", (ROOT / page).read_text(), re.DOTALL)
    suite.model(max_position_embeddings=1024)
    suite.test(example.replace('"sdpa"', '"sim"').replace('"eager"', '"ref"'))
    suite.run("test_it.py").assert_outcomes(passed=tests)


def test_the_example_backend_is_short_and_runs(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, bundled_model: Model
) -> None:
    assert bundled_model.folder is not None
    # Pytester's own home is empty, and converting the model takes longer than the rest.
    monkeypatch.setenv("XDG_CACHE_HOME", str(bundled_model.folder.parents[2]))
    text = (ROOT / "docs/how-to/add-a-backend.md").read_text()
    example = re.search(r"```python\n(# conftest.py\n.*?)```", text, re.DOTALL)
    assert example is not None
    assert len(example[1].strip().splitlines()) < 30
    pytester.makeconftest(example[1])
    pytester.makepyfile("def test_it(llm_parity):\n    llm_parity.check()\n")
    done = pytester.runpytest_subprocess(
        "--llm-backends=mine",
        "--llm-dtype=float32",
        "--llm-batch-sizes=2",
        "--llm-prompt-lengths=48",
        "--llm-max-new-tokens=16",
    )
    done.assert_outcomes(passed=1)


def test_the_example_of_an_engine_outside_transformers_runs(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # with it, pytest-benchmark times nothing
    text = (ROOT / "docs/how-to/add-a-backend.md").read_text()
    _, example = re.findall(r"```python\n(# conftest.py\n.*?)```", text, re.DOTALL)
    assert len(example.strip().splitlines()) < 65
    pytester.makeconftest(example)
    pytester.makepyfile(
        "def test_ttft(llm_perf):\n    llm_perf.gate('ttft')\n\n\ndef test_it(llm_parity):\n    llm_parity.check()\n"
    )
    shutil.copy(ROOT / "tests/stand_in_engine.py", pytester.path / "stack.py")
    info = pytester.mkdir("stack-1.0.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stack\nVersion: 1.0\n")
    small_model(pytester.mkdir("small"))
    done = pytester.runpytest_subprocess(
        "--llm-backends=stack",
        "--llm-model=small",
        "--llm-dtype=float32",
        "--llm-batch-sizes=2",
        "--llm-prompt-lengths=48",
        "--llm-max-new-tokens=24",
        "--llm-results=raw.json",
    )
    done.assert_outcomes(passed=2)
    raw = json.loads((pytester.path / "raw.json").read_text())
    (parity,), (result,) = raw["parity"], raw["results"]
    assert parity["error_ratio"] is not None, "its logits were seen"
    assert result["engagement"]["seen"] == {"prompt tokens": 96, "steps": 24}
    assert result["engine"]["versions"]["stack"] == "1.0"
    assert result["engine"]["threads"] == len(os.sched_getaffinity(0))


def small_model(folder: Path) -> None:
    """Write a model of seeded weights whose tokens vary, and a tokenizer of single bytes."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY)).save_pretrained(folder)
    tokenizer = Tokenizer(BPE({byte: index for index, byte in enumerate(sorted(ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.save(str(folder / "tokenizer.json"))
