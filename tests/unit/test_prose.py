"""The check of Markdown finds wide lines and long sentences, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import prose

LONG = " ".join(["word"] * 41)
RIGHT = " ".join(["word"] * 40)
WIDE = "wide " * 20 + "x"  # 101 columns


def lines(text: str) -> list[int]:
    """The numbers of the lines in which the check finds a fault."""
    return [finding.line for finding in prose.check(text)]


def wrapped(text: str) -> str:
    """The words of a text, eight to a line."""
    words = text.split()
    return "\n".join(" ".join(words[at : at + 8]) for at in range(0, len(words), 8))


def test_a_line_has_at_most_100_columns() -> None:
    assert lines("wide " * 20) == []
    assert prose.check(f"short\n{WIDE}\n") == [prose.Finding(2, "101 columns, 100 at most")]


@pytest.mark.parametrize("line", [f"    {WIDE}", f"| {WIDE} |", f"- {WIDE}", f"```\n{WIDE}\n```", f"# {WIDE}"])
def test_code_tables_and_headings_must_fit_too(line: str) -> None:
    assert len(lines(line)) == 1


@pytest.mark.parametrize("before", ["", "- ", "    ", "  1. "])
def test_a_line_without_a_space_to_break_at_may_be_wider(before: str) -> None:
    assert lines(f"{before}https://example.org/{'x' * 100}") == []


def test_a_table_that_is_marked_may_be_wider_and_what_follows_may_not() -> None:
    assert lines(f"<!-- wide -->\n| {WIDE} |\n| {WIDE} |\n\n| {WIDE} |\n") == [5]
    assert lines(f"<!-- wide -->\n{WIDE}\n") == [2]


def test_a_sentence_has_at_most_40_words() -> None:
    assert prose.check(wrapped(f"{RIGHT}. {RIGHT}!")) == []
    assert prose.check(wrapped(f"{LONG}.")) == [prose.Finding(1, "a sentence of 41 words, 40 at most")]


def test_the_line_is_the_one_where_the_sentence_starts() -> None:
    assert lines(f"# Title\n\nShort. Short\nindeed.\n{wrapped(LONG)}") == [5]
    assert lines(f"`code\ncode` and [a\nlink](target).\n{wrapped(LONG)}") == [4]


@pytest.mark.parametrize("end", [". ", ".** ", '." ', ".) ", "? ", ".\n", ".\n\n", "\n\n", "\n- ", "\n1. ", "\n# "])
def test_what_ends_a_sentence(end: str) -> None:
    assert lines(f"{wrapped(RIGHT)}{end}{wrapped(RIGHT)}") == []


@pytest.mark.parametrize("inside", [", ", "; ", ": ", " e.g. ", " 2.5 ", " - ", " > ", "\n"])
def test_what_does_not_end_a_sentence(inside: str) -> None:
    assert lines(f"{wrapped(RIGHT)}{inside}{wrapped(RIGHT)}") == [1]


@pytest.mark.parametrize(
    "text",
    [
        f"```\n{wrapped(LONG)}\n```",
        f"~~~~text\n{wrapped(LONG)}\n~~~\n{wrapped(LONG)}\n~~~~",
        "    " + wrapped(LONG).replace("\n", "\n    "),
        "- item\n\n      " + wrapped(LONG).replace("\n", "\n      "),
        f"| cell |\n| {LONG[:90]} |\n| {LONG[:90]} |",
        f"`{wrapped(LONG)}`",
        f"[text](<{wrapped(LONG)}>)",
        "word - " * 14 + "\n" + "word - " * 14,
    ],
    ids=["fence", "long fence", "indented", "indented in an item", "table", "inline", "target", "dashes"],
)
def test_code_tables_and_targets_are_no_sentences(text: str) -> None:
    assert lines(text) == []


def test_prose_after_code_counts_again() -> None:
    assert lines(f"```\ncode\n```\n{wrapped(LONG)}") == [4]
    assert lines(f"    code\n\n{wrapped(LONG)}") == [3]


@pytest.mark.parametrize("before", ["> ", "- ", "- item\n\n  "])
def test_quotes_and_items_count(before: str) -> None:
    indent = "\n" + ("> " if before == "> " else "  ")
    assert len(lines(before + wrapped(LONG).replace("\n", indent))) == 1


def test_the_command_prints_file_and_line_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong = tmp_path / "right.md", tmp_path / "wrong.md"
    right.write_text("Short.\n")
    wrong.write_text(f"Short.\n{WIDE}\n")
    assert prose.main([str(right)]) == 0
    assert prose.main([str(right), str(wrong)]) == 1
    assert capsys.readouterr().out == f"{wrong}:2: 101 columns, 100 at most\n"


def test_without_files_it_checks_the_pages_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    (tmp_path / "docs/how-to").mkdir(parents=True)
    for page in ("README.md", "docs/how-to/a.md", "NOTES.md"):
        (tmp_path / page).write_text(WIDE)
    assert prose.main([]) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["README.md", "docs/how-to/a.md"]
