"""Worker processes: one that dies, hangs or lies costs its own tests only, and none outlives the run."""

from __future__ import annotations

import ast
import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
from inner import HANGING, PLUGINS, Suite, eventually, pytest_process, running

from pytest_llmperf.machine import fitness
from pytest_llmperf.measure.worker_process import Arm, Checkout, Host, WorkerFailedError, WorkerLostError
from pytest_llmperf.worker import protocol

# An engine that misbehaves at its second generation, when it has been measured for a while.

ENGINE = """
class Bad(Simulated):
    def generate(self, prompts, max_new_tokens, on_token):
        super().generate(prompts, max_new_tokens, on_token)
        if self.now > 1.2:
            {body}
"""
KILLED = "print('about to go', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"


def suite_with(suite: Suite, body: str) -> Suite:
    suite.backends(sim="Bad()", extra=ENGINE.format(body=body))
    return suite


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (KILLED, "worker died during generate: killed by signal 9 (SIGKILL, often the kernel's out-of-memory killer)"),
        ("os.kill(os.getpid(), 11)", "worker died during generate: killed by signal 11 (SIGSEGV)"),
        ("os.abort()", "worker died during generate: killed by signal 6 (SIGABRT)"),
        ("os._exit(3)", "worker died during generate: it exited with status 3"),
        ("time.sleep(3600)", "worker hung: no answer to generate within 1.5 s, so it was killed; *--llm-timeout"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", "worker hung: no answer to generate within 1.5 s*"),
        ("raise MemoryError('no 3 GiB left')", "MemoryError: no 3 GiB left"),
        ("raise MemoryError", "MemoryError: MemoryError"),
        ("raise RuntimeError('illegal memory access')", "RuntimeError: illegal memory access"),
        ("sys.exit('done here')", "*worker*"),
        (
            "os.write(int(sys.argv[2]), b'garbage\\n')",
            "worker sent garbage instead of an answer to generate (b'garbage')*",
        ),
        ("os.write(int(sys.argv[2]), b'[1]\\n')", "worker sent garbage instead of an answer to generate (b'?1?')*"),
        ("os.close(int(sys.argv[2]))", "worker died during generate*"),
        ("os.fork() or time.sleep(3600); os.kill(os.getpid(), 9)", "worker died during generate: killed by signal 9*"),
        ("os.system('sleep 3600 &'); os.kill(os.getpid(), 9)", "worker died during generate: killed by signal 9*"),
    ],
)
def test_what_goes_wrong_in_a_worker_fails_its_own_test_and_is_said(suite: Suite, body: str, said: str) -> None:
    suite_with(suite, "import signal, time; " + body)
    result = suite.run("suites/test_decode.py", "--llm-timeout=1.5" if "hung" in said else "--llm-timeout=30")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(said)
    assert "Traceback" not in result.stdout.str().partition("last output")[0]
    result.stdout.fnmatch_lines("tpot b1-p16-n8 ref*")
    result.stdout.no_fnmatch_line("tpot b1-p16-n8 sim*")
    assert not any(map(running, suite.pids("sim")))


@pytest.mark.parametrize("body", [KILLED, "return None.shape", "raise MemoryError"])
def test_a_case_that_fails_adds_no_warning(suite: Suite, body: str) -> None:
    suite_with(suite, body)
    result = suite.run("suites/test_decode.py", "--llm-backends=sim")
    result.assert_outcomes(failed=1, warnings=0)
    suite.test("def test_it(llm_perf): pass")
    suite.run("test_it.py", "--llm-backends=sim").stdout.fnmatch_lines("*Benchmark fixture was not used at all*")


def test_a_hang_costs_its_time_out_once(suite: Suite) -> None:
    suite_with(suite, "import time; time.sleep(3600)")
    start = time.monotonic()
    result = suite.run("suites", "-k", "not parity", "--llm-backends=sim", "--llm-timeout=2")
    result.assert_outcomes(failed=3, skipped=1)
    assert suite.loads["sim"] == 1
    assert time.monotonic() - start < 6


def test_what_has_no_room_is_loaded_once(suite: Suite) -> None:
    suite_with(suite, "raise MemoryError('no room')")
    result = suite.run("suites", "-k", "not parity", "--llm-backends=sim")
    result.assert_outcomes(failed=3, skipped=1)
    assert suite.loads["sim"] == 1


def test_what_a_backend_raises_is_said_with_where(suite: Suite) -> None:
    suite_with(suite, "return None.shape")
    result = suite.run("suites/test_decode.py", "--llm-backends=sim")
    result.stdout.fnmatch_lines(
        ["*AttributeError: 'NoneType' object has no attribute 'shape'", "*traceback:", "*conftest.py*"]
    )


def test_an_idle_engine_that_was_killed_is_replaced(suite: Suite) -> None:
    """Peaks are measured by any worker that is there; the kernel may have taken it for its memory meanwhile."""
    suite.test(
        "import os, signal\n"
        "def test_it(llm_perf, request):\n"
        "    from pytest_llmperf.plugin import KEY\n"
        "    engines = request.config.stash[KEY].run.engines\n"
        "    with engines.any_worker() as ask:\n"
        "        assert engines._loaded == {}\n"
        "    llm_perf.gate('tpot')\n"
        "    (loaded,) = engines._loaded.values()\n"
        "    os.kill(loaded.host.pids[0], signal.SIGKILL)\n"
        "    loaded.host._process.wait()\n"
        "    with engines.any_worker() as ask:\n"
        "        assert engines._loaded == {}\n"
    )
    suite.run("test_it.py", "--llm-backends=sim").assert_outcomes(passed=1)


def test_the_last_lines_of_a_lost_worker_are_shown(suite: Suite) -> None:
    suite_with(suite, KILLED)
    result = suite.run("suites/test_decode.py")
    result.stdout.fnmatch_lines(["last output of the worker:", "  about to go"])


@pytest.mark.parametrize(
    ("body", "said", "frame"),
    [
        ("import ctypes; ctypes.string_at(0)", "Segmentation fault", "in string_at"),
        ("os.abort()", "Aborted", "in generate"),
        ("os.kill(os.getpid(), 7)", "Bus error", "in generate"),
        ("import ctypes; ctypes.CDLL(None).qsort(b'ba', 2, 1, 1)", "Segmentation fault", "in generate"),
    ],
)
def test_a_crash_in_a_library_shows_where_it_was_called(suite: Suite, body: str, said: str, frame: str) -> None:
    suite_with(suite, "print('loaded', flush=True); " + body)
    result = suite.run("suites/test_decode.py", "--llm-backends=sim")
    result.stdout.fnmatch_lines(
        [
            "worker died during generate: killed by signal *",
            "last output of the worker:",
            "  loaded",
            f"  Fatal Python error: {said}",
            "  Current thread *",
            f"    File * {frame}",
        ],
        consecutive=True,
    )
    result.stdout.no_fnmatch_line("*Extension modules*")


@pytest.mark.parametrize(
    "body",
    [
        KILLED,
        "import time; time.sleep(3600)",
        "raise MemoryError('no room')",
        r"os.write(int(sys.argv[2]), b'garbage\n')",
    ],
    ids=["killed", "hung", "no memory", "garbage"],
)
def test_what_was_measured_before_a_loss_is_kept(suite: Suite, body: str) -> None:
    suite_with(suite, body)
    timeout = "10" if "sleep" in body else "30"
    result = suite.run(
        "suites/test_decode.py", "--llm-results=raw.json", "--llm-update-baselines", f"--llm-timeout={timeout}"
    )
    result.assert_outcomes(passed=1, failed=1)
    raw = json.loads((suite.path / "raw.json").read_text())
    assert [result["case"] for result in raw["results"]] == ["bfloat16/ref/b1-p16-n8/tpot"]
    assert list(suite.stored()["entries"]) == ["bfloat16/ref/b1-p16-n8/tpot"]


def test_after_a_loss_the_backend_s_next_test_has_a_new_worker(suite: Suite) -> None:
    suite.backends(sim="(Bad if process == 1 else Simulated)()", extra=ENGINE.format(body=KILLED))
    result = suite.run("suites/test_decode.py", "suites/test_prefill.py", "--llm-backends=sim")
    result.assert_outcomes(passed=1, failed=1)
    assert suite.loads["sim"] == 2


def test_a_loss_of_the_reference_does_not_cost_the_others(suite: Suite) -> None:
    suite.backends(ref="Bad()", extra=ENGINE.format(body=KILLED))
    suite.run("suites/test_decode.py").assert_outcomes(passed=1, failed=1)


def test_nothing_is_left_to_the_garbage_collector(suite: Suite) -> None:
    """Under ``-W error`` a file that nobody closed would fail whichever test is running then."""
    suite_with(suite, KILLED)
    suite.test(
        "import gc, os, signal, pytest\n"
        "def test_dies(llm_engine, request):\n"
        "    from pytest_llmperf.plugin import KEY\n"
        "    llm_engine.generate([[1]], 2)\n"
        "    (loaded,) = request.config.stash[KEY].run.engines._loaded.values()\n"
        "    os.kill(loaded.host.pids[0], signal.SIGKILL)\n"
        "    del loaded\n"
        "    with pytest.raises(pytest.fail.Exception):\n"
        "        llm_engine.generate([[1]], 2)\n"
        "def test_gate(llm_perf):\n"
        "    with pytest.raises(pytest.fail.Exception):\n"
        "        llm_perf.gate('tpot')\n"
        "def test_other():\n"
        "    gc.collect()\n"
    )
    suite.run("test_it.py", "--llm-backends=sim", "-W", "error").assert_outcomes(passed=3)


def test_prints_are_harmless(suite: Suite) -> None:
    noise = "print('{\"result\": 0}'); print('x' * 200_000); os.system('echo child'); os.write(1, bytes(range(256)))"
    suite_with(suite, noise)
    result = suite.run("suites/test_decode.py")
    result.assert_outcomes(passed=2)
    assert "xxx" not in result.stdout.str()


@pytest.mark.parametrize(
    ("load", "said"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("__import__('no_such_library')", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("os.kill(os.getpid(), 9)", "worker died during load: killed by signal 9 (SIGKILL*)"),
        ("time.sleep(3600)", "worker hung: no answer to load within 1.5 s*"),
    ],
)
def test_a_backend_that_does_not_load_is_tried_once(suite: Suite, load: str, said: str) -> None:
    suite.backends(sim=load)
    result = suite.run("suites", "--llm-timeout=1.5" if "hung" in said else "--llm-timeout=30")
    result.assert_outcomes(passed=4, failed=4, skipped=1)
    result.stdout.fnmatch_lines(said)
    assert suite.loads["sim"] == 1


def test_a_failure_in_a_confirming_process_fails_the_test(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.001})
    suite.backends(sim="(Simulated if process == 1 else Bad)()", extra=ENGINE.format(body=KILLED))
    result = suite.decode()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines("worker died during generate: killed by signal 9*")


# No orphans

CHILD = """
import subprocess

class Parent(Simulated):
    def __init__(self):
        super().__init__()
        child = subprocess.Popen(["sleep", "3600"])
        with open(HERE / "child.pids", "a") as file:
            file.write(f"{child.pid}\\\\n")

    def generate(self, prompts, max_new_tokens, on_token):
        super().generate(prompts, max_new_tokens, on_token)
        if (HERE / "slow").exists():
            (HERE / "generating").touch()
            time.sleep(3600)
"""


@pytest.fixture
def families(suite: Suite) -> Suite:
    """Engines with a child each, as compile pools and ranks are; slow ones where there is a file ``slow``."""
    suite.backends(sim="Parent()", ref="Parent()", extra=CHILD.replace("\\\\n", "\\n"))
    return suite


def all_gone(suite: Suite) -> bool:
    pids = [*suite.pids("ref"), *suite.pids("sim"), *suite.pids("child")]
    assert len(pids) >= 2
    return not any(map(running, pids))


@pytest.mark.parametrize("how", [(), ("-x",), ("--llm-update-baselines",)], ids=["end", "x", "update"])
def test_no_process_outlives_the_run(families: Suite, how: tuple[str, ...]) -> None:
    families.record({"ref/tpot": 0.001})
    families.run("suites/test_decode.py", *how)
    assert eventually(lambda: all_gone(families))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_no_process_outlives_a_pytest_that_is_stopped(families: Suite, name: str) -> None:
    (families.path / "slow").touch()
    with pytest_process("suites/test_decode.py", "--llm-update-baselines", cwd=families.path) as process:
        assert eventually((families.path / "generating").exists, 30)
        for _ in range(1 if name == "SIGINT" else 2):  # ``timeout`` sends it to the process, and to its group
            process.send_signal(getattr(signal, name))
            time.sleep(0.01)
        output, _ = process.communicate(timeout=30)
    assert eventually(lambda: all_gone(families))
    assert not families.baseline.exists()
    if name != "SIGKILL":
        assert process.returncode == pytest.ExitCode.INTERRUPTED
        assert "KeyboardInterrupt" in output
        assert (f"stopped by {name}" in output) == (name != "SIGINT")


def test_a_terminal_that_closes_costs_no_figure(suite: Suite) -> None:
    suite.backends(sim="Hang()", extra=f"{HANGING}\nclass Hang(Simulated):\n    def generate(self, *_): hang()\n")
    ours, theirs = os.openpty()
    arguments = ("suites/test_decode.py", "--llm-results=raw.json", "--llm-report=r.md")
    command = [sys.executable, "-m", "pytest", *PLUGINS, *arguments]
    process = subprocess.Popen(
        command, cwd=suite.path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    os.set_blocking(ours, False)

    def hangs() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 65536)  # a terminal whose output nobody takes stops its programs
        return (suite.path / "hangs").exists()

    try:
        assert eventually(hangs, 60)
    finally:
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) != 0
    assert "ref" in (suite.path / "r.md").read_text()
    assert [one["case"] for one in json.loads((suite.path / "raw.json").read_text())["results"]] == [
        "bfloat16/ref/b1-p16-n8/tpot"
    ]
    assert not any(map(running, [*suite.pids("ref"), *suite.pids("sim")]))


def test_ctrl_c_at_the_terminal_reaches_pytest_alone(families: Suite) -> None:
    (families.path / "slow").touch()
    with pytest_process("suites/test_decode.py", cwd=families.path) as process:
        assert eventually((families.path / "generating").exists, 30)
        (worker,) = families.pids("ref")
        assert os.getpgid(worker) == worker != os.getpgid(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert "Traceback" not in output
    assert eventually(lambda: all_gone(families))


# The handle itself

MODULE = """
import os, sys, time

class Engine:
    def __init__(self, spec):
        self.spec = spec

    def generate(self, prompts, max_new_tokens, on_token):
        for request, prompt in enumerate(prompts):
            for token in range(max_new_tokens):
                on_token(request, token)

    def close(self):
        if self.spec.model == "stuck":
            time.sleep(3600)
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(Arm(), {"LLMPERF_TEST": "seen"})
    yield made
    made.kill()


def load(host: Host, folder: Path, model: str = "any", name: str = "Engine") -> None:
    (folder / "engine.py").write_text(MODULE)
    backend = {"module": "engine", "name": name, "file": str(folder / "engine.py")}
    host.call("load", 30, backend=[backend], spec={"model": model, "config": None, "dtype": "float32", "device": "cpu"})


def test_a_worker_answers_with_tokens_and_rising_times(host: Host, tmp_path: Path) -> None:
    load(host, tmp_path)
    answer = host.call("generate", 30, prompts=[[1], [2]], max_new_tokens=3)
    assert answer["tokens"] == [[0, 1, 2], [0, 1, 2]]
    assert all(row == sorted(row) and row[0] > 0 for row in answer["times"])
    assert fitness.parse(answer["fitness"]).canaries


def test_a_failed_call_is_told_by_its_kind_and_the_worker_lives_on(host: Host, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailedError, match=r"AttributeError: .*Missing") as caught:
        load(host, tmp_path, name="Missing")
    assert caught.value.kind == "AttributeError"
    load(host, tmp_path)
    assert host.call("generate", 30, prompts=[[1]], max_new_tokens=1)["tokens"] == [[0]]


def test_an_unknown_operation_is_a_failed_call(host: Host) -> None:
    with pytest.raises(WorkerFailedError, match="AttributeError"):
        host.call("dance", 30)


def test_a_dead_worker_is_lost_at_the_next_call_and_closing_it_is_safe(host: Host) -> None:
    os.kill(host.pids[0], signal.SIGKILL)
    assert eventually(lambda: not host.alive)
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        host.call("evidence", 30)
    host.close()
    host.close()


def test_closing_ends_the_process_politely_and_frees_its_pipes(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    host = Host(Arm())
    load(host, tmp_path)
    host.close()
    assert not running(host.pids[0])
    del host
    after = len(os.listdir("/proc/self/fd")) if before else 0
    assert after == before


def test_a_worker_that_does_not_close_is_killed(host: Host, tmp_path: Path) -> None:
    load(host, tmp_path, model="stuck")
    start = time.monotonic()
    host.close(patience=0.2)
    assert time.monotonic() - start < 5
    assert not running(host.pids[0])


def test_an_interpreter_that_is_not_there_is_said() -> None:
    with pytest.raises(WorkerLostError, match="cannot start a worker with /nowhere/python"):
        Host(Arm(python="/nowhere/python"))


def test_an_arm_s_checkout_and_environment_come_first(tmp_path: Path) -> None:
    for arm in ("head", "base"):
        package = tmp_path / arm / "stack"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"import os\nVALUE = '{arm} ' + os.environ['WHICH']\n")
    (tmp_path / "engine.py").write_text("import stack\n\ndef load(spec):\n    raise ValueError(stack.VALUE)\n")
    environment = {"WHICH": "arm", "PYTHONPATH": str(tmp_path / "head")}
    checkout = Checkout("abc", tmp_path / "head", tmp_path / "base")
    host = Host(Arm(checkout=checkout, environment=environment), {"OTHER": "1"})
    backend = {"module": "engine", "name": "load", "file": str(tmp_path / "engine.py")}
    try:
        with pytest.raises(WorkerFailedError, match="ValueError: base arm"):
            host.call("load", 30, backend=[backend], spec=dict.fromkeys(("model", "config", "dtype", "device"), "cpu"))
    finally:
        host.close()


def test_while_a_worker_works_its_parent_uses_no_cpu(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text("import time\n\ndef load(spec):\n    time.sleep(0.5)\n")
    backend = {"module": "engine", "name": "load", "file": str(tmp_path / "engine.py")}
    host = Host(Arm())
    try:
        used = time.process_time()
        host.call("load", 30, backend=[backend], spec=dict.fromkeys(("model", "config", "dtype", "device"), "cpu"))
        assert time.process_time() - used < 0.1
    finally:
        host.close()


def test_a_message_larger_than_a_pipe_arrives_whole(host: Host, tmp_path: Path) -> None:
    load(host, tmp_path)
    answer = host.call("generate", 30, prompts=[[1] * 50_000] * 4, max_new_tokens=1500)
    assert len(answer["tokens"]) == 4
    assert len(json.dumps(answer)) > 2**16


def test_a_line_that_is_no_object_is_refused() -> None:
    with pytest.raises(ValueError, match="not an object"):
        protocol.parse(b"[1]")


def test_the_worker_imports_neither_pytest_nor_torch() -> None:
    code = (
        "import pytest_llmperf.worker.server, sys; sys.exit(not {'pytest', 'torch', 'numpy'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_worker_that_dies_while_it_waits_is_lost() -> None:
    host = Host(Arm())
    os.kill(host.pids[0], signal.SIGKILL)
    assert eventually(lambda: not host.alive)
    with pytest.raises(WorkerLostError, match=r"worker died between two steps: killed by signal 9"):
        host.resume()


TRACED = {
    "AMD_SERIALIZE_KERNEL": "3",
    "COV_CORE_SOURCE": "src",
    "COVERAGE_PROCESS_CONFIG": "{}",
    "COVERAGE_PROCESS_START": ".coveragerc",
    "CUDA_LAUNCH_BLOCKING": "1",
    "MKL_VERBOSE": "1",
    "PYDEVD_USE_FRAME_EVAL": "NO",
    "PYTHONASYNCIODEBUG": "1",
    "PYTHONDEVMODE": "1",
    "PYTHONMALLOC": "malloc_debug",
    "PYTHONPROFILEIMPORTTIME": "1",
    "PYTHONTRACEMALLOC": "25",
    "PYTHONWARNINGS": "error",
    "TORCH_LOGS": "recompiles",
    "TRITON_INTERPRET": "1",
}
KEPT = {
    "HIP_LAUNCH_BLOCKING": "0", "NCCL_DEBUG": "INFO", "PYTHONBREAKPOINT": "0", "PYTHONDUMPREFS": "",
    "PYTHONFAULTHANDLER": "0", "PYTHONHASHSEED": "7", "TORCH_LOGS_FORMAT": "short",
}  # fmt: skip


def test_no_worker_is_traced_or_debugged_and_that_is_said_once(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a backend asks for it. A debugger of pytest's process puts itself into no command line."""
    for name, value in (TRACED | KEPT).items():
        monkeypatch.setenv(name, value)
    debugger = ModuleType("pydevd")
    debugger.skip_subprocess_arg_patch = MagicMock()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pydevd", debugger)
    seen = "(HERE / 'seen').write_text(repr((dict(os.environ), sys.flags.dev_mode))) and Simulated()"
    suite.backends(sim=seen, backends="[Backend('sim', load_sim, environment={'PYTHONTRACEMALLOC': '1'})]")
    result = suite.run("suites/test_decode.py", "--llm-backends=sim", "--llm-reference=sim")
    result.assert_outcomes(passed=1)
    variables, dev_mode = ast.literal_eval((suite.path / "seen").read_text())
    assert {name: variables.get(name) for name in KEPT} == KEPT
    assert {name: variables[name] for name in TRACED.keys() & variables.keys()} == {"PYTHONTRACEMALLOC": "1"}
    assert not dev_mode
    result.stdout.fnmatch_lines(f"workers ran without {', '.join(sorted(TRACED))}: tracing and debugging *")
    assert debugger.skip_subprocess_arg_patch.call_count == 1


def test_a_worker_that_gets_no_pipe_is_lost_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def pipe() -> tuple[int, int]:
        if made:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.extend(ends := original())
        return ends

    original = os.pipe
    monkeypatch.setattr(os, "pipe", pipe)
    with pytest.raises(WorkerLostError, match=r"cannot start a worker: .*Too many open files"):
        Host(Arm())
    for descriptor in made:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
