"""One session with many faults: each costs its own test, and all figures that could be had are in every output."""

from __future__ import annotations

import json

import pytest
from inner import Suite

#: Engines that fail, each in its own way.
ENGINES = """
class Faulty(Simulated):
    def generate(self, prompts, max_new_tokens, on_token):
        name = os.environ["LLMPERF_BACKEND"]
        if name == "dies":
            os.kill(os.getpid(), 9)
        if name == "raises":
            raise RuntimeError("no such kernel")
        if name == "exhausts":
            raise MemoryError("no room")
        if name == "prints":
            os.write(int(sys.argv[2]), b"warning: something" + bytes([10]))
        if name == "shorts":
            max_new_tokens -= 1
        super().generate(prompts, max_new_tokens, on_token)

def faulty(spec):
    name = os.environ["LLMPERF_BACKEND"]
    return Faulty(
        wrong_from=2 if name == "astray" else None,
        evidence=Engagement(False, "a kernel") if name == "falls-back" else None,
    )

def missing(spec):
    import no_such_library

def slow_once(spec):
    class Slow(Simulated):
        def generate(self, prompts, max_new_tokens, on_token):
            if len(prompts) == 2:
                time.sleep(3)
            super().generate(prompts, max_new_tokens, on_token)

    return Slow(tpot=0.004)
"""
FAULTY = ("dies", "raises", "exhausts", "prints", "shorts", "falls-back", "astray")
BACKENDS = "[Backend('ref', load_ref), Backend('sim', load_sim), Backend('missing', missing), " + "".join(
    f"Backend('{name}', faulty), " for name in FAULTY
)
#: The tests of these backends gate and judge; those of the others misuse pytest, or are interrupted.
TESTS = f"""
import contextlib, signal, unittest, warnings
import pytest

@pytest.mark.llm(backends={["missing", *FAULTY]})
def test_faulty(llm_perf):
    llm_perf.gate("tpot")

@pytest.mark.llm(backends=["astray"])
def test_tokens(llm_parity):
    llm_parity.check()

class TestOld(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _perf(self, llm_perf):
        self.perf = llm_perf

    def test_it(self):
        self.perf.gate("tpot")

def test_dynamic(request):
    request.getfixturevalue("llm_perf").gate("tpot")

def documented():
    '''
    >>> getfixture("llm_engine").backend
    'sim'
    '''

@pytest.fixture(scope="module")
def wide(llm_perf):
    return llm_perf

def test_wide(wide):
    pass

@pytest.mark.parametrize("llm_backend", ["sim"])
def test_own(llm_engine):
    pass

async def test_async(llm_engine):
    pass

@pytest.mark.llm(backends=["slow-once"])
@pytest.mark.parametrize("error", [pytest.fail.Exception("Timeout"), KeyboardInterrupt()], ids=["timeout", "ctrl-c"])
def test_interrupted(llm_engine, error):
    def ring(*_):
        raise error

    signal.signal(signal.SIGALRM, ring)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            llm_engine.generate([[1]], 2)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            llm_engine.generate([[1], [2]], 3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(llm_engine.generate([[1]], 2).tokens[0]) == 2

@pytest.mark.llm(backends=["slow-once"])
def test_after(llm_perf):
    llm_perf.gate("ttft")

@pytest.mark.llm(backends=["sim"])
def test_twice(llm_perf):
    llm_perf.gate("latency")
    llm_perf.gate("tpot")

def test_warns():
    warnings.warn("old", DeprecationWarning)

def test_takes_a_folder_away(request):
    folder = request.config.rootpath / "out"
    folder.rmdir()
    folder.touch()
"""


def test_every_fault_costs_its_own_test(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = suite.path / "a b"
    blank.mkdir()
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blank))
    monkeypatch.setenv("TMPDIR", str(blank))
    monkeypatch.setenv("PYTHONDEVMODE", "1")
    monkeypatch.setenv("COV_CORE_SOURCE", ".")
    monkeypatch.setenv("COVERAGE_PROCESS_START", "no-such-file")
    suite.backends(extra=ENGINES, backends=BACKENDS + "Backend('slow-once', slow_once)]")
    suite.test(TESTS)
    result = suite.run(
        "test_it.py",
        "suites/test_decode.py",
        "suites/test_greedy_parity.py",
        "--doctest-modules",
        "--llm-results=raw.json",
        "--llm-report=report.md,report.html,out/report.csv",
        "-W",
        "error",
    )
    outcomes = result.parseoutcomes()
    named = {line.split(" - ")[0] for line in result.outlines if line.startswith(("FAILED ", "ERROR "))}
    assert named == {
        *(f"FAILED test_it.py::test_faulty[{name}-b1-p16-n8]" for name in ("missing", *FAULTY) if name != "astray"),
        "FAILED test_it.py::test_tokens[astray-b1-p16-n8]",
        "ERROR test_it.py::TestOld::test_it",
        "FAILED test_it.py::test_dynamic",
        "FAILED test_it.py::test_it.documented",
        "ERROR test_it.py::test_wide[sim-b1-p16-n8]",
        "ERROR test_it.py::test_wide[ref-b1-p16-n8]",
        "ERROR test_it.py::test_own[sim]",
        "FAILED test_it.py::test_async[sim]",
        "FAILED test_it.py::test_async[ref]",
        "FAILED test_it.py::test_interrupted[slow-once-timeout]",
        "FAILED test_it.py::test_twice[sim-b1-p16-n8]",
        "FAILED test_it.py::test_warns",
    }
    assert outcomes["passed"] == len(
        ["astray gated", "ctrl-c", "after", "folder", "ref tpot", "sim tpot", "ref parity", "sim parity"]
    )
    figures = {
        "bfloat16/astray/b1-p16-n8/tpot",
        "bfloat16/ref/b1-p16-n8/tpot",
        "bfloat16/sim/b1-p16-n8/tpot",
        "bfloat16/sim/b1-p16-n8/latency",
        "bfloat16/slow-once/b1-p16-n8/ttft",
    }
    raw = json.loads((suite.path / "raw.json").read_text())
    assert {one["case"] for one in raw["results"]} == figures
    assert {one["backend"]: one["passed"] for one in raw["parity"]} == {"astray": False, "ref": True, "sim": True}
    for text in (result.stdout.str(), *((suite.path / f"report.{form}").read_text() for form in ("md", "html"))):
        assert all(name in text for name in ("astray", "slow-once", "not in parity", "5.000 ms"))
    result.stdout.fnmatch_lines("*out/report.csv was not written: *")
