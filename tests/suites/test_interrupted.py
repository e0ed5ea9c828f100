"""A test that is interrupted during a call: nobody else gets the answer that was on its way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from inner import Suite, eventually, running

from pytest_llmperf.measure import worker_process
from pytest_llmperf.measure.ranks import Ranks
from pytest_llmperf.measure.worker_process import Arm, Host, WorkerLostError

#: For the conftest.py: an engine whose tokens and evidence say which prompt they are of. It takes seconds over a
#: prompt that begins with 500.
ECHO = """
class Echo(Simulated):
    def generate(self, prompts, max_new_tokens, on_token):
        (self.first, *_), = prompts
        if self.first == 500:
            (HERE / f"{os.getpid()}.busy").touch()
            time.sleep(3)
        self.token = lambda request, position: self.first + position
        super().generate(prompts, max_new_tokens, on_token)

    def evidence(self):
        return Engagement(True, str(self.first))
"""
#: For the conftest.py: an engine that takes seconds over a step, once in a run.
SLOW_ONCE = """
NOTES = Path({folder!r})

class Slow(Simulated):
    def token(self, request, position):
        if position == 3 and not list(NOTES.glob("*.slow")):
            (NOTES / f"{{os.getpid()}}.slow").touch()
            time.sleep(3)
        return super().token(request, position)
"""
#: For a test: something that interrupts the main thread after a while.
ALARM = """
import contextlib, signal, threading
import pytest

@contextlib.contextmanager
def alarm(error, seconds=0.3):
    def ring(*_):
        raise error
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
"""
KINDS = {
    "pytest-timeout": "pytest.fail.Exception('Timeout >0.3s')",
    "a time-out of the system's kind": "TimeoutError('too slow')",
    "Ctrl-C in a debugger": "KeyboardInterrupt()",
}


@pytest.mark.parametrize("error", KINDS.values(), ids=KINDS)
def test_the_next_question_gets_its_own_answer(suite: Suite, error: str) -> None:
    suite.backends(sim="Echo()", extra=ECHO)
    suite.test(
        ALARM + f"def test_interrupted(llm_engine):\n"
        "    assert llm_engine.generate([[1]], 2).tokens == ((1, 2),)\n"
        f"    with pytest.raises(BaseException) as caught, alarm({error}):\n"
        "        llm_engine.generate([[500]], 3)\n"
        f"    assert caught.type is type({error})\n"
        "    assert llm_engine.generate([[20]], 3).tokens == ((20, 21, 22),)\n"
        "def test_other(llm_engine):\n"
        "    assert llm_engine.generate([[30]], 3).tokens == ((30, 31, 32),)\n"
        "    assert llm_engine.evidence()['expected'] == '30'\n"
    )
    suite.run("test_it.py", "--llm-backends=sim").assert_outcomes(passed=2)
    first, second = suite.pids("sim")
    assert not any(map(running, (first, second)))


def test_an_answer_that_another_thread_waits_for_is_nobody_else_s(suite: Suite) -> None:
    suite.backends(sim="Echo()", extra=ECHO)
    suite.test(
        "import threading, time\n"
        "def test_left_behind(llm_engine, request):\n"
        "    assert llm_engine.generate([[1]], 2).tokens == ((1, 2),)\n"
        "    threading.Thread(target=left, args=(llm_engine,), daemon=True).start()\n"
        "    while not list(request.config.rootpath.glob('*.busy')):\n"
        "        time.sleep(0.01)\n"
        "lost = []\n"
        "def left(llm_engine):\n"
        "    try:\n"
        "        llm_engine.generate([[500]], 3)\n"
        "    except BaseException as error:\n"
        "        lost.append(error)\n"
        "def test_other(llm_engine):\n"
        "    assert llm_engine.generate([[30]], 3).tokens == ((30, 31, 32),)\n"
        "    assert len(lost) == 1\n"
    )
    suite.run("test_it.py", "--llm-backends=sim").assert_outcomes(passed=2)


def test_what_a_gate_measures_after_an_interruption_is_its_own(suite: Suite) -> None:
    """The test of TTFT is interrupted while its prompts are made, and while it loads; that of TPOT is not."""
    suite.backends(sim="time.sleep(1.5) or Echo() if process == 1 else Echo()", extra=ECHO)
    suite.test(
        ALARM + "from pytest_llmperf.prompts import Prompts\n"
        "def test_loading(llm_perf):\n"
        "    with alarm(pytest.fail.Exception('Timeout')):\n"
        "        llm_perf.gate('ttft')\n"
        "def test_drawing(llm_perf, monkeypatch):\n"
        "    monkeypatch.setattr(Prompts, 'batch', lambda *_: pytest.fail('Timeout'))\n"
        "    llm_perf.gate('latency')\n"
        "def test_tpot(llm_perf):\n"
        "    llm_perf.gate('tpot')\n"
    )
    result = suite.run("test_it.py", "--llm-backends=sim", "--llm-results=raw.json")
    result.assert_outcomes(passed=1, failed=2)
    (found,) = json.loads((suite.path / "raw.json").read_text())["results"]
    assert found["case"] == "bfloat16/sim/b1-p16-n8/tpot"


@pytest.mark.parametrize("side", ["base", "head"])
def test_a_pair_that_is_interrupted_is_made_anew(suite: Suite, side: str) -> None:
    """One of the two waits for the other, which takes seconds over a step, once."""
    noted = SLOW_ONCE.format(folder=str(suite.path))
    slow = {"sim": "(Slow if process > 1 or HERE != NOTES else Simulated)(tpot=0.005)", "extra": noted}
    suite.backends(**(slow if side == "base" else {}))
    suite.commit()
    suite.backends(**(slow if side == "head" else {}))
    suite.test(
        ALARM + "def test_interrupted(llm_perf):\n"
        "    with alarm(pytest.fail.Exception('Timeout'), 1.0):\n"
        "        llm_perf.gate('ttft')\n"
        "def test_other(llm_perf):\n"
        "    assert llm_perf.gate('tpot').verdict.basis == 'base'\n"
    )
    suite.run("test_it.py", "--llm-backends=sim", "--llm-base=HEAD").assert_outcomes(passed=1, failed=1)
    pids = [int(file.stem) for file in suite.path.glob("*.slow")]
    assert len(pids) == 1
    assert not any(map(running, pids))


def test_ranks_are_idle_only_if_all_are(tmp_path: Path) -> None:
    ranks = Ranks(2, Arm(), {})
    try:
        ranks._hosts[1].ask("rest")
        assert not ranks.idle
        ranks._hosts[1].answer("rest", 30)
        assert ranks.idle
    finally:
        ranks.kill()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no more processes")])
def test_a_worker_whose_start_is_interrupted_is_ended(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    started: list[int] = []

    def fail(lifeline: int, group: int, folder: str) -> None:
        started.append(group)
        raise error

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(worker_process, "started_reaper", fail)
    with pytest.raises((KeyboardInterrupt, WorkerLostError)):
        Host(Arm())
    assert eventually(lambda: not running(started[0]))
    assert len(os.listdir("/proc/self/fd")) == before
