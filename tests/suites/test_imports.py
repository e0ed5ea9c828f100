"""What a suite can import, a backend of its own can import in its worker."""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path

import pytest
from inner import Suite, pytest_process

from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.measure.worker_process import Arm, Host, WorkerLostError

#: A module with an engine, in files that the suite imports.
ENGINE = """\
from simulated import Simulated


def load(spec):
    return Simulated(tpot={tpot})
"""
REGISTERED = """\
from pytest_llmperf import Backend


def pytest_llmperf_backends():
    return [Backend({name!r}, {load})]
"""


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_a_backend_imports_what_its_suite_imports(suite: Suite) -> None:
    """By ``pythonpath`` and beside a test; a backend by its name, a decorated function, and a class of methods."""
    suite.ini(pythonpath="src", llm_backends="by-name,by-function,by-class")
    tools = """
import functools

def logged(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)
    return inner
"""
    engine = """
from simulated import Simulated
from mykern.tools import logged

class Kernel(Simulated):
    @logged
    def __init__(self, spec):
        super().__init__(tpot=0.005)

@logged
def load(spec):
    import sibling
    return Kernel(spec)
"""
    write(suite.path, {"src/mykern/tools.py": tools, "src/mykern/engine.py": engine, "suites/sibling.py": ""})
    own = "Backend('by-name', 'mykern.engine:load'), Backend('by-function', load), Backend('by-class', Kernel)"
    suite.backends(extra="from mykern.engine import Kernel, load", backends=f"[{own}, Backend('ref', load_ref)]")
    suite.run("suites/test_decode.py").assert_outcomes(passed=3)


def test_a_backend_imports_from_where_python_dash_m_pytest_was_started(suite: Suite) -> None:
    write(suite.path, {"mykern.py": ENGINE.format(tpot=0.005)})
    suite.backends(backends="[Backend('sim', 'mykern:load'), Backend('ref', load_ref)]")
    with pytest_process("suites/test_decode.py", "--rootdir=suites", "-c", "pytest.ini", "-q", cwd=suite.path) as run:
        said, _ = run.communicate(timeout=60)
    assert "2 passed" in said, said


@pytest.mark.parametrize("mode", ["importlib", "prepend"])
def test_a_suite_that_is_a_package_imports_relatively(suite: Suite, mode: str) -> None:
    """In importlib mode no entry of sys.path leads to it. An installed package may have the name of its folder."""
    engine = "from .scale import SCALE\n" + ENGINE.format(tpot="SCALE")
    conftest = "from .kernel.engine import load\n" + REGISTERED.format(name="relative", load="load")
    inline = "from ..scale import SCALE\n" + ENGINE.format(tpot="SCALE") + REGISTERED.format(name="deep", load="load")
    files = {"kernel/engine.py": engine, "kernel/scale.py": "SCALE = 0.005", "scale.py": "SCALE = 0.006"}
    tests = {name: (suite.path / "suites" / "test_decode.py").read_text() for name in ("test_a.py", "deep/test_b.py")}
    write(
        suite.path / "checks",
        {
            "__init__.py": "",
            "conftest.py": conftest,
            "deep/__init__.py": "",
            "deep/conftest.py": inline,
            **files,
            **tests,
        },
    )
    write(suite.path / "installed" / "checks", {"__init__.py": ""})
    suite.backends(extra="sys.path.append(str(HERE / 'installed'))")
    suite.ini(llm_backends="relative,deep")
    suite.run("checks", f"--import-mode={mode}").assert_outcomes(passed=4)


def test_a_class_of_one_conftest_is_not_looked_for_in_another(suite: Suite) -> None:
    """All of them are called conftest, and Python knows of a class no more than that."""
    kernel = "class Kernel(Simulated):\n    def __init__(self, spec):\n        super().__init__(tpot={})\n\n"
    suite.backends(extra=kernel.format(0.005), backends="[Backend('outer', Kernel), Backend('ref', load_ref)]")
    inner = "from simulated import Simulated\n" + kernel.format(0.007) + REGISTERED.format(name="inner", load="Kernel")
    write(suite.path / "suites", {"conftest.py": inner})
    suite.run("suites/test_decode.py", "--llm-backends=outer,inner", "--llm-results=raw.json").assert_outcomes(passed=2)
    found = json.loads((suite.path / "raw.json").read_text())["results"]
    assert [one["samples"][0] for one in found] == pytest.approx([0.005, 0.007])


def test_base_imports_its_own_code_from_where_head_imports(suite: Suite) -> None:
    suite.ini(pythonpath="src")
    caching = f"\n    with open({str(suite.path / 'caches')!r}, 'a') as file:\n        print(spec.cache, file=file)"
    engine = ENGINE.replace("(spec):", "(spec):" + caching)
    write(suite.path, {"src/mykern.py": engine.format(tpot=0.005)})
    suite.backends(backends="[Backend('sim', 'mykern:load'), Backend('ref', load_ref)]")
    suite.commit()
    write(suite.path, {"src/mykern.py": engine.format(tpot=0.006)})
    result = suite.decode("--llm-base=HEAD")
    assert result.ret == 1
    result.stdout.fnmatch_lines("*sim*6.000 ms, base 5.000 ms, +20.0%*")
    caches = (suite.path / "caches").read_text().split()
    assert len(set(caches)) == 2, "base uses nothing that head has compiled"


def test_another_interpreter_gets_what_the_suite_put_there_and_no_packages_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bin" / "python"  # outside of its environment, whose packages it does not see
    bare.parent.mkdir()
    bare.symlink_to(Path(sys.executable).resolve())
    write(tmp_path, {"first/mykern.py": "", "last/other.py": ""})
    write(tmp_path, {"engine.py": "import mykern, other, sys\ndef load(spec):\n    sys.exit(sys.path)"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("first")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "last")])
    host = Host(Arm(python=str(bare)), None, Interpreter(str(bare)).search_path())
    backend = {"module": "engine", "name": "load", "file": str(tmp_path / "engine.py")}
    try:
        with pytest.raises(WorkerLostError) as caught:
            host.call("load", 30, backend=[backend], spec=dict.fromkeys(("model", "config", "dtype", "device"), "cpu"))
    finally:
        host.close()
    said = str(caught.value)
    assert str(tmp_path / "first") in said
    assert str(tmp_path / "last") in said
    assert sysconfig.get_path("purelib") not in said
