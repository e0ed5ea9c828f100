"""Does ``pytest-llmperf bisect`` find the commit, or the environment, that made decode slower, and what does it take?

    python -m benchmarks.gate.bisection [--slower 11] [--environments PYTHON PYTHON PYTHON] [--output FILE]

The repository of ``benchmarks.gate`` gets 16 commits after its first one. Each touches a comment. From commit
``--slower`` on, a loop spins in each decode step for 8 % of what the step's forward pass took. Commit 8, which is the
first one to be tried, does not import. In the middle of the third comparison the command is killed, and given again.

With ``--environments`` three interpreters are bisected instead, and the second comparison is killed. The second one is
a copy of the first, and the third has another version of transformers. With that version the loop spins.

The criterion: the slower one is found, in at most 5 comparisons beside the good one that could run, in 20 minutes.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import script
from benchmarks.gate.flow import SPIN
from benchmarks.gate.repository import BACKEND, NOTHING, git, repository
from pytest_llmperf.interpreter import Interpreter

COMMITS, BROKEN, COMPARISONS, SECONDS = 16, 8, 5, 1200.0
#: Which comparison is killed, of revisions and of environments, and how many seconds after it began.
KILLED, KILLED_ENVIRONMENT, AFTER = 3, 2, 20.0
SLOWER = SPIN.replace("SHARE = 0.10", "SHARE = 0.08")
#: The same with one version of transformers, and nothing with any other.
VERSIONED = "import importlib.metadata\n" + SLOWER.replace(
    "SHARE = 0.08", 'SHARE = 0.08 if importlib.metadata.version("transformers") == "{version}" else 0.0'
)
TESTS = ["-q", "suites/test_decode.py", "--llm-batch-sizes=1", "--llm-prompt-lengths=64", "--llm-max-new-tokens=16"]


def history(folder: Path, slower: int) -> None:
    """Make the commits."""
    for number in range(1, COMMITS + 1):
        code = "import nothing_like_this\n" if number == BROKEN else SLOWER if number >= slower else NOTHING
        (folder / "extra.py").write_text(f"# {number}\n{code}")
        git(folder, "commit", "--quiet", "--all", "--message", f"commit {number}")


def bisect(folder: Path, arguments: list[str], kill: int = 0) -> list[str]:
    """What the command says until it ends, or until it is killed in the comparison of that number."""
    command = [sys.executable, "-m", "pytest_llmperf.cli", "bisect", *arguments, "--", *TESTS]
    command += [f"--llm-backends={BACKEND}"]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(cache)}
    lines: list[str] = []
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
            if kill and sum(one.startswith("comparing ") for one in lines) == kill:
                time.sleep(AFTER)
                os.killpg(process.pid, signal.SIGKILL)
                break
    return lines


def main() -> int:
    """Measure, print, write the data; 1 if the criterion does not hold."""
    parser = script.parser(__doc__, "slower", 11, "the first slower commit")
    parser.add_argument("--environments", nargs="+", metavar="PYTHON")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository(folder)
        if options.environments:
            expected = options.environments[-1]
            version = Interpreter(expected).version("transformers")
            (folder / "extra.py").write_text(VERSIONED.replace("{version}", str(version)))
            arguments, kill = ["--environments", *options.environments], KILLED_ENVIRONMENT
        else:
            history(folder, options.slower)
            expected, arguments, kill = f"commit {options.slower}", ["base", "HEAD"], KILLED
        killed = bisect(folder, arguments, kill)
        lines = bisect(folder, arguments)
    seconds = time.monotonic() - began
    compared = [line for line in lines if re.match(r"  .*: (good|bad|inconclusive): ", line)]
    found = any(re.fullmatch(rf"the first slower \w+ is (\w+ )?{re.escape(expected)}", line) for line in lines)
    print(f"{'found' if found else 'not found'} in {len(compared)} comparisons, {seconds / 60:.1f} min")
    command = "benchmarks.gate.bisection" + (
        " --environments ..." if options.environments else f" --slower {options.slower}"
    )
    script.write(options.output, command, killed=killed, lines=lines, seconds=round(seconds))
    return int(not found or len(compared) > COMPARISONS or seconds > SECONDS)


if __name__ == "__main__":
    sys.exit(main())
