"""Check the Markdown of this repository: lines of at most 100 columns, sentences of at most 40 words.

    python tools/prose.py [FILE ...]

Without files it checks the pages in ``PAGES``. It prints ``file:line: message`` for each finding and then exits with 1.

A line may be wider in two cases: it has no space to break at, such as a bare link, or it is a row of a table that
follows a line ``<!-- wide -->``. Lines of code and rows of other tables must fit.

Sentences are counted in paragraphs, list items and quotes, not in code or tables. Inline code counts as one word, and
of a link only the text counts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "benchmarks/**/*.md")
COLUMNS = 100
WORDS = 40
WIDE = "<!-- wide -->"

FENCE = re.compile(r"[ >]*(`{3,}|~{3,})")
ROW = re.compile(r"\s*\|")
MARKER = re.compile(r"^\s*(?:[-*+]|\d+[.)]) +")
QUOTE = re.compile(r"^\s*> ?")
ALONE = re.compile(r"\s*(?:#{1,6} |\[[^\]]+\]: |<!--.*-->\s*$)")  # a heading, a link's definition, a comment

CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"!?\[([^\[\]]*)\](?:\([^()]*(?:\([^()]*\)[^()]*)*\)|\[[^\]]*\])")
TAG = re.compile(r"</?[a-zA-Z!][^<>]*>")
END = re.compile(r"[.!?][\"')\]*_]*\s+")
ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|vs|cf|approx)\.\s+$")


@dataclass(frozen=True)
class Finding:
    """A fault of a page, and the line where it starts."""

    line: int
    message: str


def check(text: str) -> list[Finding]:
    """The faults of a page, in the order of its lines."""
    return sorted([*wide_lines(text), *long_sentences(text)], key=lambda finding: finding.line)


def wide_lines(text: str) -> Iterator[Finding]:
    """The lines that are too wide and could be broken."""
    wide_table = False
    for number, line in enumerate(text.splitlines(), 1):
        wide_table = line.strip() == WIDE or (wide_table and ROW.match(line) is not None)
        breakable = " " in MARKER.sub("", line, count=1).strip()
        if len(line) > COLUMNS and breakable and not wide_table:
            yield Finding(number, f"{len(line)} columns, {COLUMNS} at most")


def long_sentences(text: str) -> Iterator[Finding]:
    """The sentences with too many words."""
    for first, block in blocks(text):
        for line, sentence in sentences(block):
            words = [word for word in sentence.split() if re.search(r"\w", word)]
            if len(words) > WORDS:
                yield Finding(first + line, f"a sentence of {len(words)} words, {WORDS} at most")


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """The page's paragraphs, list items and headings, each with the number of its first line."""
    block: list[str] = []
    for number, line in enumerate([*prose(text), ""], 1):
        starts = MARKER.match(line) or ALONE.match(line) or (block and ALONE.match(block[-1]))
        if block and (starts or not line.strip()):
            yield number - len(block), "\n".join(block)
            block = []
        if line.strip():
            block.append(MARKER.sub("", line, count=1))


def prose(text: str) -> Iterator[str]:
    """The page's lines, with an empty one in place of each line of code or of a table."""
    fence = ""
    column = 0  # where the text of the current list item starts; code is indented by four more
    after_blank = True
    for line in text.splitlines():
        mark = FENCE.match(line)
        if fence or mark:
            if not fence and mark:
                fence = mark[1]
            elif mark and mark[1].startswith(fence):
                fence = ""
            yield ""
            continue
        line = QUOTE.sub("", line)
        indent = len(line) - len(line.lstrip())
        item = MARKER.match(line)
        if not line.strip():
            after_blank = True
        elif ROW.match(line) or (after_blank and indent >= column + 4):
            line = ""
        else:
            after_blank = False
            column = item.end() if item else column if indent else 0
        yield line


def sentences(block: str) -> Iterator[tuple[int, str]]:
    """The sentences of a block, each with the number of lines before it."""
    block = CODE.sub(lambda match: "Code" + "\n" * match[0].count("\n"), block)
    block = LINK.sub(lambda match: match[1] + "\n" * match[0][len(match[1]) :].count("\n"), block)
    block = TAG.sub(lambda match: "\n" * match[0].count("\n"), block)
    start = 0
    for end in [*(match.end() for match in END.finditer(block)), len(block)]:
        sentence = block[start:end]
        if not ABBREVIATION.search(sentence):
            indent = len(sentence) - len(sentence.lstrip())
            yield block.count("\n", 0, start + indent), sentence
            start = end


def main(arguments: list[str]) -> int:
    named = [Path(argument) for argument in arguments]
    pages = named or sorted(page for pattern in PAGES for page in ROOT.glob(pattern))
    found = False
    for page in pages:
        for finding in check(page.read_text(encoding="utf-8")):
            print(f"{page if named else page.relative_to(ROOT)}:{finding.line}: {finding.message}")
            found = True
    return int(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
