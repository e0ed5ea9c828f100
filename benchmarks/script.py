"""The parts that every script here shares: the command line and the file of the data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pytest_llmperf.machine import fingerprint
from pytest_llmperf.plan import cpu_dtype

#: The dtype that a run uses by default on this machine's CPU.
DTYPE = cpu_dtype()
#: A conftest.py with a backend ``slowed``: it runs sdpa, and calls ``extra.do(batch_size, prompt_length)`` before every
#: step except the first, and ``extra.prepare(engine)`` once, if there is one. The module ``extra`` lies beside it.
SLOWED = """\
import extra

from pytest_llmperf import Backend


class Slowed:
    pausable = True  # as transformers' engine is

    def __init__(self, spec):
        from pytest_llmperf.backends.transformers_engine import TransformersEngine

        self.engine = TransformersEngine(spec)  # whose attention is sdpa
        if hasattr(extra, "prepare"):
            extra.prepare(self.engine)
        self.evidence, self.close = self.engine.evidence, self.engine.close

    def generate(self, prompts, max_new_tokens, on_token):
        first = True

        def late(request, token):
            nonlocal first
            if request == 0 and not first:
                extra.do(len(prompts), len(prompts[0]))
            first = False
            on_token(request, token)

        self.engine.generate(prompts, max_new_tokens, late)


def pytest_llmperf_backends():
    return [Backend("slowed", Slowed)]
"""


def options(description: str | None, count: str, default: int, what: str) -> argparse.Namespace:
    """Parse the command line of a script without options of its own."""
    return parser(description, count, default, what).parse_args()


def parser(description: str | None, count: str, default: int, what: str) -> argparse.ArgumentParser:
    """Make a parser of ``--<count>``, the number of measurements, and ``--output``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{count}", type=int, default=default, help=f"{what} (default: {default})")
    parser.add_argument("--output", type=Path, help="write the data as JSON")
    return parser


def write(output: Path | None, command: str, **data: Any) -> None:
    """Write the data with the command, the machine and the versions. Without an output, write nothing."""
    if output is None:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    where = {"machine": fingerprint.take().as_dict(), "versions": fingerprint.versions()}
    output.write_text(json.dumps({"command": f"python -m {command}", **where, **data}, indent=1) + "\n")
