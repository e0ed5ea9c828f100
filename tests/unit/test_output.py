"""What an error shows of a process's output."""

from __future__ import annotations

import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.output import CRASH, LAST_BYTES, LAST_LINES, QUOTED, end_of, in_short, last_lines

#: As faulthandler writes it, of a process with two threads and many extension modules.
CRASHED = """\
a line
loaded, says the engine
Fatal Python error: Segmentation fault

Thread 0x00007f5a6bfff6c0 (most recent call first):
  File "/lib/threading.py", line 324 in wait

Current thread 0x00007f5a7d3c1740 (most recent call first):
  File "/lib/ctypes/__init__.py", line 519 in string_at
  File "/suite/conftest.py", line 13 in generate
{more}
Extension modules: numpy._core._multiarray_umath, torch._C (total: 2)
"""
STACK = [
    "Fatal Python error: Segmentation fault",
    "Current thread 0x00007f5a7d3c1740 (most recent call first):",
    '  File "/lib/ctypes/__init__.py", line 519 in string_at',
    '  File "/suite/conftest.py", line 13 in generate',
]


def test_of_a_crash_the_stack_is_shown_after_what_was_printed_before() -> None:
    assert last_lines(CRASHED.format(more="")) == ["a line", "loaded, says the engine", *STACK]


def test_of_a_deep_stack_the_innermost_frames_are_shown() -> None:
    frames = [f'  File "/deep.py", line {number} in f' for number in range(100)]
    found = last_lines("earlier\n" * 50 + CRASHED.format(more="\n".join(frames)))
    assert found == ["earlier", "earlier", "a line", "loaded, says the engine", *STACK, *frames[: LAST_LINES - 2]]


@pytest.mark.parametrize("also", ["", "\n  <no Python frame>\n", "Python runtime state: initialized\n"])
def test_a_crash_without_a_stack_is_shown(also: str) -> None:
    assert last_lines(f"{CRASH}Aborted\n{also}")[0] == f"{CRASH}Aborted"


def test_colours_and_cursor_movements_are_left_out() -> None:
    said = "\x1b[2m12:00\x1b[0m \x1b[1;31mERROR\x1b[0m it \x1b]8;;http://h\x1b\\broke\x1b]8;;\x07\x1b[2K\r\n\x1b[?25h"
    assert last_lines(said) == ["12:00 ERROR it broke"]


@given(st.lists(st.text(st.characters(categories=["L", "N", "P"])), max_size=30))
def test_otherwise_the_last_lines_are_shown(lines: list[str]) -> None:
    assert last_lines("\n".join(lines)) == [line for line in lines if line][-LAST_LINES:]


@pytest.mark.parametrize("size", [0, 1, LAST_BYTES, LAST_BYTES + 1, 3 * LAST_BYTES])
def test_the_end_of_an_output_is_read_whatever_its_size(size: int) -> None:
    with tempfile.TemporaryFile() as log:
        log.write(b"x" * size + b"\xffend")
        assert end_of(log).endswith("\N{REPLACEMENT CHARACTER}end")
        assert len(end_of(log)) == min(size + 4, LAST_BYTES)


def test_a_library_s_message_is_one_line_that_advises_to_run_nobody_s_code() -> None:
    said = (
        "The repository brings custom code. You can inspect it at https://x.\n"
        "Please pass the argument `trust_remote_code=True` to run it!\n\nOr use --trust-remote-code in the CLI."
    )
    assert in_short(said) == "The repository brings custom code. You can inspect it at https://x."
    assert in_short("one of: " + ", ".join(f"type{number}" for number in range(9999))).endswith(" ...")
    assert last_lines(said) == ["The repository brings custom code. You can inspect it at https://x."]


@given(st.text())
def test_any_message_is_one_short_line(text: str) -> None:
    short = in_short(text)
    assert len(short) <= QUOTED + len(" ...")
    assert len(short.splitlines()) <= 1
