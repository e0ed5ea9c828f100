"""A suite of its own for every test: simulated backends ``ref`` and ``sim``, a model folder without weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from simulated import CONFIG

from pytest_llmperf.cases import METRICS, STARTS
from pytest_llmperf.gate import baseline as store
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.machine.fingerprint import everything_installed, system, take
from pytest_llmperf.machine.fitness import Barrier

TESTS = Path(__file__).parent
#: What the machine of a suite is said to do.
RATES = {"flops": 1e15, "bandwidth": 1e15, "interpreter cpython-311": 1e7}
#: What the outer run's environment says of itself and an inner run's must not: where these tests run in parallel, the
#: inner run's benchmarks do not.
OUTER = ("CI", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER")

CONFTEST = """\
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, {tests!r})

from simulated import Simulated

from pytest_llmperf import Backend, Engagement

HERE = Path(__file__).parent
PEAKS = {{"flops": 1e15, "bandwidth": 1e15, "interpreter cpython-311": 1e7}}


def started(name):
    with open(HERE / f"{{name}}.pids", "a") as file:
        file.write(f"{{os.getpid()}}\\n")
    return len((HERE / f"{{name}}.pids").read_text().split())


def pytest_configure(config):
    import pytest

    patch = pytest.MonkeyPatch()
    patch.setattr("pytest_llmperf.runtime.Runtime.measure_rates", lambda run: PEAKS)
    config.add_cleanup(patch.undo)

{extra}

def load_ref(spec):
    process = started("ref")
    return {ref}


def load_sim(spec):
    process = started("sim")
    return {sim}


def pytest_llmperf_backends():
    return {backends}
"""

#: For the conftest.py: an engine beside which others use the machine all the time.
BUSY = """
class Busy(Simulated):
    def __init__(self, tpot):
        super().__init__(tpot=tpot)
        from itertools import count
        from pytest_llmperf.machine import health
        wall = count(1)
        health.snapshot = lambda _processes: health.Snapshot(now := float(next(wall)), 4 * now, 0.0, 0.0)
"""

#: For the conftest.py: an engine that keeps a record of what each process was asked for, for `Suite.served`. ``fail``
#: is called with every batch size before it is generated, and may raise.
SERVING = """\
class Serving(Simulated):
    def __init__(self, fail=lambda batch: None, **options):
        super().__init__(**options)
        self.fail = fail

    def generate(self, prompts, max_new_tokens, on_token):
        with open(HERE / "served", "a") as file:
            file.write(f"{os.getpid()} {len(prompts)}\\n")
        self.fail(len(prompts))
        super().generate(prompts, max_new_tokens, on_token)


def die():
    os.kill(os.getpid(), 9)


def exhaust():
    raise MemoryError("no room")
"""

#: For the conftest.py: an engine that hangs, and says so by a file.
HANGING = """\
def hang():
    (HERE / "hangs").touch()
    time.sleep(3600)
"""

BACKENDS = 'Backend("ref", load_ref), Backend("sim", load_sim)'
WORDLEVEL = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "the": 1, "of": 2, "and": 3}, "unk_token": "[UNK]"},
}
#: By entry point, but no others: importing those anew takes longer than everything else in a run.
PLUGINS = ("-p", "benchmark", "-p", "llmperf")
INI = {
    "llm_device": "cpu",
    "llm_model": "tiny",
    "llm_backends": "ref,sim",
    "llm_dtype": "bfloat16",  # whatever this machine's own is
    "llm_reference": "ref",
    "llm_batch_sizes": "1",
    "llm_prompt_lengths": "16",
    "llm_max_new_tokens": "8",
    "llm_seed": "0",
}


class Suite:
    """Drives the plugin in a folder of its own.

    Everything but the engines is real: collection, worker processes, pipes, gate, files. The engines' clock is
    scripted, so a generation takes no time.
    """

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.model()
        self.ini()
        self.backends()
        # Of memory there are tests of its own; here it would be rows of every table.
        left_out = shutil.ignore_patterns("__pycache__", "test_memory.py")
        shutil.copytree(TESTS.parent / "suites", self.path / "suites", ignore=left_out)

    def model(self, **changes: Any) -> None:
        folder = self.path / "tiny"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIG | changes))
        (folder / "tokenizer.json").write_text(json.dumps(WORDLEVEL))

    def ini(self, **changes: str) -> None:
        lines = [f"{name} = {value}" for name, value in (INI | changes).items() if value]
        (self.path / "pytest.ini").write_text("\n".join(["[pytest]", *lines, ""]))

    def backends(
        self,
        sim: str = "Simulated(tpot=0.005)",
        ref: str = "Simulated()",
        extra: str = "",
        backends: str = f"[{BACKENDS}]",
    ) -> None:
        """Write the conftest.py.

        Args:
            sim: an expression for the engine; ``process`` is how many processes have loaded it, this one included.
            ref: likewise, of the reference.
            extra: statements at the top level of the conftest.py.
            backends: what the hook returns.
        """
        text = CONFTEST.format(tests=str(TESTS), sim=sim, ref=ref, extra=extra, backends=backends)
        (self.path / "conftest.py").write_text(text)

    def test(self, code: str) -> None:
        (self.path / "test_it.py").write_text(code)

    def run(self, *arguments: str, **how: Any) -> pytest.RunResult:
        """Run pytest on the suite, in this process, with its workers outside."""
        return self.pytester.runpytest_inprocess(*PLUGINS, *arguments, **how)

    def decode(self, *arguments: str, backends: str = "sim") -> pytest.RunResult:
        """Gate TPOT."""
        return self.run("suites/test_decode.py", f"--llm-backends={backends}", *arguments)

    def git(self, *arguments: str) -> str:
        """What git prints in the suite's folder."""
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(self.path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self) -> str:
        """Make the suite a repository where it is none, and commit everything but what runs leave; the revision."""
        if not (self.path / ".git").exists():
            self.git("init", "--quiet")
            (self.path / ".gitignore").write_text("*.pids\nserved\n")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "a revision")
        return self.git("rev-parse", "HEAD")

    @property
    def baseline(self) -> Path:
        return self.path / "baselines" / "cpu" / "tiny.json"

    def record(
        self,
        figures: dict[str, float],
        processes: int = 3,
        barrier: float | None = None,
        revision: str | None = None,
        recorded: str = "2026-01-31",
        rates: dict[str, float] = RATES,
        versions: dict[str, str] | None = None,
        add: bool = False,
        parts: tuple[float, ...] = (),
        **fingerprint: Any,
    ) -> None:
        """Write a baseline of one sitting without measuring it.

        Args:
            figures: seconds by ``backend/metric``.
            processes: how many each entry was made of.
            barrier: what their two threads took to meet, in seconds.
            revision: of the repository, as the sitting has it.
            recorded: the day.
            rates: of the machine.
            versions: of everything installed; None for those of now.
            add: whether it is a further sitting of the same code.
            parts: of the starts among the figures; without them all of a start is its load.
            fingerprint: what was different about the machine that it was recorded on.
        """
        if versions is None:
            versions = everything_installed(Interpreter(), self.path)
        sitting = store.Sitting(recorded, revision, take().as_dict() | fingerprint, versions, system(), rates)
        met = None if barrier is None else Barrier(barrier, 2)
        entries = {}
        for name, seconds in figures.items():
            backend, _, metric = name.partition("/")
            key = f"bfloat16/{backend}/b1-p16-n8/{metric}"
            own = (parts or (0.0, seconds, 0.0, 0.0)) if metric in STARTS else ()
            entries[key] = (store.Entry(sitting.id, METRICS[metric].unit, (seconds,) * processes, met, own),)
        new = store.Baseline("cpu", "tiny", {sitting.id: sitting}, entries)
        old = store.load(self.baseline)
        store.write(self.baseline, store.merge(old, new, old.sittings.keys() if old and add else ()))

    def spread(self, name: str, *factors: float) -> None:
        """Make the processes of a recorded ``backend/metric`` differ: a factor each."""
        held = store.load(self.baseline)
        assert held is not None
        backend, _, metric = name.partition("/")
        key = f"bfloat16/{backend}/b1-p16-n8/{metric}"
        (entry,) = held.entries[key]
        entry = replace(entry, processes=tuple(entry.figure * factor for factor in factors))
        store.write(self.baseline, replace(held, entries={**held.entries, key: (entry,)}))

    def stored(self) -> dict[str, Any]:
        return json.loads(self.baseline.read_text())  # type: ignore[no-any-return]

    def pids(self, name: str) -> list[int]:
        """The processes that have loaded a backend, in order."""
        file = self.path / f"{name}.pids"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    @property
    def served(self) -> list[list[int]]:
        """The batch sizes that each process of `SERVING` generated, in the order of their first time."""
        found: dict[str, list[int]] = {}
        for line in (self.path / "served").read_text().splitlines():
            pid, batch = line.split()
            if int(batch) not in found.setdefault(pid, []):
                found[pid].append(int(batch))
        return list(found.values())

    @property
    def loads(self) -> dict[str, int]:
        """How many processes have loaded each backend."""
        return {name: len(self.pids(name)) for name in ("ref", "sim")}


def safetensors(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """A safetensors file without the tensors' values."""
    places = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    head = json.dumps(places).encode()
    return len(head).to_bytes(8, "little") + head


def usage_error(result: pytest.RunResult) -> str:
    """The one line that a run ended with before it began."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR, result.stdout.str() + result.stderr.str()
    lines = [line for line in result.errlines if line.strip()]
    said = [line for line in lines if "error: " in line.lower() and "usage: " not in line]
    # For an option that argparse itself refuses, pytest adds its usage and where it looked for options.
    assert len(said) == 1, lines
    assert len(lines) == 1 or lines[0].startswith("ERROR: usage: "), lines
    return said[0]


def running(pid: int) -> bool:
    """Whether a process is there and is more than a zombie that nobody has reaped yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def on_path(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put a folder on the path as PYTHONPATH does: on that of this process, which has started, and of its workers."""
    patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    patch.setattr(sys, "path", [str(folder), *sys.path])


#: Pytest, which heeds Ctrl-C also where these tests do not: a shell's jobs in the background ignore it.
INTERRUPTIBLE = (
    "import signal, sys, pytest; signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(pytest.main())"
)


@contextmanager
def pytest_process(*arguments: str, cwd: Path) -> Iterator[Any]:
    """Pytest in a process of its own, to send signals to; killed at the end if it is still there."""
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *PLUGINS, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
