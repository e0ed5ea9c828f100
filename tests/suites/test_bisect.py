"""``pytest-llmperf bisect``, end to end: a repository of simulated backends, one of whose commits is slower."""

from __future__ import annotations

import os
import subprocess
import sys

from inner import OUTER, PLUGINS, Suite

FAST, SLOW = "Simulated(tpot=0.005)", "Simulated(tpot=0.005 * 1.08)"


def test_the_commit_that_made_it_slower_is_found(suite: Suite) -> None:
    suite.git("init", "--quiet")
    (suite.path / ".gitignore").write_text("*.pids\n*.json\n__pycache__\n.pytest_cache\nsteps\n")
    for tpot, comment in ((FAST, "the first"), (FAST, "a comment"), (SLOW, "slower")):
        suite.backends(sim=tpot, extra=f"# {comment}")
        suite.git("add", "--all")
        suite.git("commit", "--quiet", "--message", comment)
    suite.git("tag", "good", "HEAD~2")
    suite.backends(sim="Simulated(tpot=1)", extra="# the tree, which is never run")

    def bisect(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name not in OUTER}
        return subprocess.run(
            [sys.executable, "-m", "pytest_llmperf.cli", "bisect", *arguments, "--", *PLUGINS, "suites/test_decode.py"],
            cwd=suite.path,
            env=environment | {"XDG_CACHE_HOME": str(suite.path / "steps")},
            capture_output=True,
            text=True,
            check=False,
        )

    done = bisect("good", "HEAD")
    said = done.stdout.splitlines()
    slower = suite.git("rev-parse", "HEAD")[:12]
    assert (done.returncode, said[-4]) == (0, f"the first slower revision is {slower} slower"), done
    assert said[-3].startswith("  beside the revision before it: tpot b1-p16-n8 sim +8.0% [")
    assert said[-2] == "  tpot b1-p16-n8 sim: what got slower is not known: this run has no profile"
    assert said[-1].startswith("3 comparisons in ")
    assert len(suite.git("worktree", "list").splitlines()) == 1
    assert not list((suite.path / "steps").rglob("steps.json"))
    assert bisect("HEAD", "good").stderr == (
        "pytest-llmperf: HEAD is no ancestor of good; name the older revision first\n"
    )
    assert "BAD=nowhere: " in bisect("good", "nowhere").stderr
