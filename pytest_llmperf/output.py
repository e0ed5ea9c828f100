"""What an error shows of a process's output: its last lines, or the Python stack of a crash."""

from __future__ import annotations

import os
import re
from itertools import islice, takewhile
from typing import IO

#: Lines of its output that an error shows, and bytes of the output that are looked at.
LAST_LINES, LAST_BYTES = 8, 65536
#: What colours a terminal's text, moves its cursor, names its window or chooses its characters (ECMA-48, ECMA-35).
ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]+[0-~]|[@-Z\\^_])")
#: How Python's faulthandler begins, and how it introduces the stack of the thread that crashed.
CRASH, CURRENT = "Fatal Python error: ", "Current thread "

#: What a library advises where a model's repository brings code, which is never run here.
ADVICE = re.compile("trust[-_]remote[-_]code")
#: Characters that an error quotes of a library's message at most.
QUOTED = 300


def in_short(text: str) -> str:
    """The beginning of a library's message in one line, without the sentences that advise to run others' code. Pure."""
    sentences = re.split(r"(?<=[.!?:;])\s+|\n", ESCAPE.sub("", text))
    line = " ".join(" ".join(one for one in sentences if not ADVICE.search(one)).split())
    return line if len(line) <= QUOTED else f"{line[:QUOTED].rpartition(' ')[0]} ..."


def end_of(log: IO[bytes]) -> str:
    """The end of what a process wrote to a file."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - LAST_BYTES))
    return log.read().decode(errors="replace")


def last_lines(text: str) -> list[str]:
    """The lines of an output that an error shows, without colours and empty lines. Pure.

    The last ones; but of a crash that faulthandler reported, some lines before it and the innermost frames of the
    thread that crashed. The outermost frames, other threads and the names of extension modules follow those.
    """
    lines = [line for line in ESCAPE.sub("", text).splitlines() if line.strip() and not ADVICE.search(line)]
    crashes = [number for number, line in enumerate(lines) if CRASH in line]
    if not crashes:
        return lines[-LAST_LINES:]
    before, crash = lines[: crashes[-1]], lines[crashes[-1] :]
    current = next((number for number, line in enumerate(crash) if line.startswith(CURRENT)), 1)
    frames = takewhile(lambda line: line.startswith(" "), crash[current + 1 :])
    return [*before[-LAST_LINES // 2 :], crash[0], *crash[current : current + 1], *islice(frames, LAST_LINES)]
