from __future__ import annotations

import gc
import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from inner import OUTER, Suite

# Pytester forgets what an inner run imports; what is here already stays, one copy for all runs.
import pytest_llmperf.fixtures
import pytest_llmperf.report.html
import pytest_llmperf.report.results
import pytest_llmperf.session  # noqa: F401
from pytest_llmperf import folders, models
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.machine import facts
from pytest_llmperf.models import Model

pytest_plugins = "pytester"
asked_installed = Interpreter.installed
sys.path.append(str(Path(__file__).parent.parent))  # for benchmarks, which are not installed

# How long an example takes, or takes to draw, says how busy the machine is.
hypothesis.settings.register_profile(
    "shared machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--page",
        metavar="FILE",
        help="the HTML report that tests/suites/test_browser.py looks at, instead of one that it makes",
    )
    parser.addoption(
        "--shuffle", nargs="?", const="", metavar="SEED", help="run the tests of each folder in an order that is drawn"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.shuffle == "":
        config.option.shuffle = str(random.randrange(10**6))  # before xdist's workers are told the options


def pytest_report_header(config: pytest.Config) -> str | None:
    return f"order of the tests: --shuffle={config.option.shuffle}" if config.option.shuffle else None


@pytest.hookimpl(tryfirst=True)  # before pytest puts together the tests that share a parameter of a wider fixture
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files of each folder in another order, and the tests of each file, except those that have to be last."""
    if not config.option.shuffle:
        return

    def drawn(*names: str) -> float:
        return random.Random(" ".join((config.option.shuffle, *names))).random()

    items.sort(
        key=lambda item: (
            item.path.parent,
            drawn(item.path.name),
            bool(item.get_closest_marker("last")),
            drawn(item.name),
        )
    )


def pytest_collection_finish() -> None:
    """Spare the garbage collector what imports made: at the end of each run that is configured here it looks at all."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A folder with the benchmark suites, a model without weights and two simulated backends."""
    for name in OUTER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "1000")  # so that no line of the summary is wrapped or shortened
    # A conftest.py that is written again within a second, and is as long as before, would be read from its bytecode.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(facts, "LOOK", 0.0)  # nobody asks here what others do
    monkeypatch.setattr(Interpreter, "installed", _installed)
    return Suite(pytester)


def _installed(interpreter: Interpreter) -> dict[str, dict[str, str]]:
    """What is installed, as if no file differed from its revision: the plugin itself, installed in place, may."""
    return {
        name: {key: value.removesuffix("+") for key, value in one.items()}
        for name, one in asked_installed(interpreter).items()
    }


@pytest.fixture(scope="session")
def bundled_model() -> Model:
    """The bundled model with real weights, converted into the user's cache at first use."""
    from pytest_llmperf.worker.convert import convert

    model = models.resolve("smollm2-135m", False, folders.cache().folder)
    models.ready(model, convert)
    return model


@pytest.fixture(scope="session")
def shallow(bundled_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The first layers of the bundled model: more than the eight that dynamo compiles if it is not told otherwise."""
    from safetensors.torch import load_file, save_file

    layers = 10
    folder = tmp_path_factory.mktemp("model") / "shallow"
    shutil.copytree(bundled_model.folder, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    later = tuple(f"model.layers.{layer}." for layer in range(layers, config["num_hidden_layers"]))
    held = {name: one for file in bundled_model.folder.glob("*.safetensors") for name, one in load_file(file).items()}
    kept = {name: one for name, one in held.items() if not name.startswith(later)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return models.resolve(str(folder), False, folder)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch computes on one thread: several wait for one another, for ever as it seems, where a core is busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
