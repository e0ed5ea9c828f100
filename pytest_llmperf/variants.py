"""Variants: a name for a backend with arguments, variables and proofs of its own. Pure.

A line is ``name = backend key=value ...``: an argument of the engine, ``env:NAME=VALUE`` for a variable of the worker,
or ``proof:what=REGEX`` for what must be seen.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_llmperf.backends.base import Engagement
from pytest_llmperf.explain import profiles
from pytest_llmperf.explain.families import families

EXAMPLE = "vllm-triton = vllm attention_backend=TRITON_ATTN"
ENVIRONMENT, PROOF = "env:", "proof:"
#: Where a proof looks for kernels: in the whole profile, or in one phase of it.
KERNELS: Mapping[str, tuple[str, ...]] = {
    "kernel": ("prefill", "decode"),
    "prefill": ("prefill",),
    "decode": ("decode",),
}
#: Hexadecimal digits of a variant's content in its id.
DIGITS = 8
#: Kernels that an error names, those with the most time first.
NAMED = 8
#: Names of variables and arguments whose values are secrets.
SECRET_NAME = re.compile(r"(token|key|secret|password|passwd|credentials?)$", re.IGNORECASE)
#: Variables that a variant cannot set, and why.
HELD_VARIABLES = {
    "HF_HUB_OFFLINE": "nothing is downloaded while something is timed",
    **dict.fromkeys(
        ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"), "--llm-visible-devices chooses devices"
    ),
    **dict.fromkeys(("PATH", "PYTHONPATH", "PYTHONHOME"), "--llm-python chooses the interpreter"),
}


@dataclass(frozen=True)
class Variant:
    """A backend with arguments of its own, which is measured, judged and stored under a name of its own.

    Attributes:
        name: without plus sign, comma, slash, equals sign, at sign or space.
        backend: what it is a variant of, by the name that ``--llm-backends`` knows; parts may be joined to it.
        arguments: of the engine, JSON values by name.
        environment: variables of the worker.
        proofs: what must be seen beside the backend's own proof: regular expressions by what they are matched with.
            ``kernel``, ``prefill`` and ``decode`` are searched in the names of kernels in the profile. ``attention``,
            ``moe`` and ``gemm`` are the implementations of these. Any other name is a value that the engine reports.
            The whole of an implementation or a value must match.
    """

    name: str
    backend: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    proofs: Mapping[str, str] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """Its content in the words of a line, after the name and the equals sign."""
        arguments = [(name, _spelled(value)) for name, value in sorted(self.arguments.items())]
        variables = [(ENVIRONMENT + name, value) for name, value in sorted(self.environment.items())]
        proofs = [(PROOF + name, value) for name, value in sorted(self.proofs.items())]
        return " ".join([self.backend, *(shlex.quote(f"{a}={b}") for a, b in (*arguments, *variables, *proofs))])

    @property
    def id(self) -> str:
        """The name, and a short hash of the whole content: two contents never have one baseline."""
        return f"{self.name}@{hashlib.sha256(self.said.encode()).hexdigest()[:DIGITS]}"

    def check(self) -> None:
        """Check what can be known of it alone. Raises ValueError, a line."""
        if not self.name or set(self.name) & set("+,/=@ "):
            raise ValueError(f"variant {self.name!r}: a name has no plus sign, comma, slash, equals sign, @ or space")
        if not (self.arguments or self.environment or self.proofs):
            raise ValueError(f"variant {self.name} changes nothing; give it an argument, as in {EXAMPLE!r}")
        try:
            json.dumps([self.arguments, self.environment, self.proofs], allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"variant {self.name}: its values must be plain JSON: {error}") from None
        for name in (*self.environment, *(path for path, _ in leaves(self.arguments))):
            if SECRET_NAME.search(name):
                raise ValueError(f"variant {self.name}: {name} looks like a secret, and reports show a variant; set it "
                                 "in the environment of pytest")  # fmt: skip
        for name in self.environment:
            if name in HELD_VARIABLES or name.startswith("LLMPERF_"):
                why = HELD_VARIABLES.get(name, "it is the plugin's own")
                raise ValueError(f"variant {self.name}: it cannot set {name}: {why}; leave it out")
        for name, pattern in self.proofs.items():
            if wrong := _malformed(pattern):
                raise ValueError(f"variant {self.name}: {PROOF}{name}={pattern} is no regular expression: {wrong}")


def _malformed(pattern: str) -> str:
    """What is wrong with a regular expression; empty if nothing is."""
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return ""


def parse(line: str) -> Variant:
    """The variant of a line.

    Raises:
        ValueError: it is malformed; one line says how.
    """
    name, equals, content = (part.strip() for part in line.partition("="))
    try:
        backend, *words = _words(content)
    except ValueError as error:
        if not (name and equals and content):
            raise ValueError(f"{line!r} is not 'name = backend key=value ...', as in {EXAMPLE!r}") from None
        raise ValueError(f"variant {name}: {error}") from None
    arguments: dict[str, Any] = {}
    environment: dict[str, str] = {}
    proofs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key.strip(":-") and equals):
            raise ValueError(f"variant {name}: {word!r} is not key=value; the whole is as in {EXAMPLE!r}")
        for prefix, table in ((ENVIRONMENT, environment), (PROOF, proofs)):
            if key.startswith(prefix):
                short = key.removeprefix(prefix)
                if not short or short in table:
                    raise ValueError(f"variant {name}: {key!r} {'is stated twice' if short else 'has no name'}")
                table[short] = value
                break
        else:
            _put(arguments, key.lstrip("-").replace("-", "_").split("."), _value(value, name), f"variant {name}: {key}")
    found = Variant(name, backend, arguments, environment, proofs)
    found.check()
    return found


def table(lines: Collection[str]) -> tuple[Variant, ...]:
    """The variants of lines, one each. Raises ValueError: one is malformed, or a name is there twice."""
    found: dict[str, Variant] = {}
    for line in filter(None, map(str.strip, lines)):
        one = parse(line)
        if one.name in found:
            raise ValueError(f"variant {one.name} is stated twice; choose another name")
        found[one.name] = one
    return tuple(found.values())


def _words(text: str) -> list[str]:
    """As a shell's words, but a backslash is a character like any other: regular expressions have many."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    return list(lexer)


def _value(text: str, name: str) -> Any:
    """JSON where it is, else a Python literal that JSON has too, else the text itself."""
    for read in (json.loads, ast.literal_eval):
        if (value := _read(read, text)) is not ...:
            return value
    if text.startswith(("{", "[")):
        raise ValueError(f"variant {name}: {text!r} is not JSON; put it in single quotes, as in 'key={{\"a\": 1}}'")
    return text


def _read(read: Callable[[str], Any], text: str) -> Any:
    """A value of JSON as a reader has it; an ellipsis where it has none."""
    try:
        return json.loads(json.dumps(read(text), allow_nan=False))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ...


def _spelled(value: Any) -> str:
    """A value as a line has it."""
    plain = isinstance(value, str) and not value.startswith(("{", "[")) and _value(value, "") == value
    return value if plain else json.dumps(value, sort_keys=True)


def _put(into: dict[str, Any], path: list[str], value: Any, what: str) -> None:
    """Set a value of nested dictionaries: ``a.b=1`` is ``{"a": {"b": 1}}``."""
    *above, last = path
    for name in above:
        into = into.setdefault(name, {})
        if not isinstance(into, dict):
            break
    if not isinstance(into, dict) or last in into or not all(path):
        raise ValueError(f"{what} is stated twice" if all(path) else f"{what} has an empty part")
    into[last] = value


# The proof


def leaves(arguments: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Each single value of nested arguments, with its path: ``compilation_config.mode``."""
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def reported(value: Any) -> Any:
    """A value that an engine has, as JSON: an enumeration's member by its name."""
    name = getattr(value, "name", None)
    if isinstance(name, str):
        return name
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def same(asked: Any, has: Any) -> bool:
    """Whether an engine has what it was asked for. Where it may decide (null, auto), and of lists, anything will do."""
    if asked is None or isinstance(asked, list) or str(asked).lower() == "auto":
        return True
    return has == asked or str(reported(has)).lower() == str(asked).lower()


def proved(
    engagement: Engagement, arguments: Mapping[str, Any], proofs: Mapping[str, str], values: Mapping[str, Any]
) -> Engagement:
    """The evidence with what a variant must show, and whether it does.

    Args:
        engagement: of the backend.
        arguments: of the variant.
        proofs: likewise.
        values: what the engine has for its arguments, by their paths, where it says so.
    """
    known = {_plain(name) for name in engagement.seen}
    seen = {**engagement.seen, **{name: reported(one) for name, one in values.items() if _plain(name) not in known}}
    expected, engaged = [engagement.expected], engagement.engaged
    stated = {_plain(name) for name in proofs}
    for name, asked in leaves(arguments):
        if name in values and _plain(name) not in stated and not same(asked, values[name]):
            expected.append(f"{name}={asked}")
            engaged = False
    for name, pattern in proofs.items():
        if name in KERNELS:
            names = _kernels(engagement, KERNELS[name])
            expected.append(f"a kernel{'' if name == 'kernel' else f' of the {name}'} that matches {pattern!r}")
            if not any(re.search(pattern, one) for one in names):
                seen[f"kernels{'' if name == 'kernel' else f' of the {name}'}"] = ", ".join(names[:NAMED]) or "none"
                engaged = False
        else:
            found = [str(one) for key, one in seen.items() if _plain(key) == _plain(name)]
            for kind, ran in families(dict(_rows(engagement, KERNELS["kernel"]))).items():
                if kind.lower() == name.lower():
                    seen[kind] = ran
                    found += ran.split(", ")
            expected.append(f"{name} that matches {pattern!r}")
            if not any(re.fullmatch(pattern, one) for one in found):
                seen |= {} if found else {name: "not reported"}
                engaged = False
    return replace(engagement, engaged=engaged, expected=", and ".join(filter(None, expected)), seen=seen)


def _plain(name: str) -> str:
    return re.sub(r"[\s-]", "_", name).lower()


def _kernels(engagement: Engagement, phases: Collection[str]) -> list[str]:
    """The names of kernels (on a CPU of operators) in the profile, those with the most time first.

    What the evidence names counts too, where the engine gives no profile.
    """
    if not profiles.parse(engagement.profile):
        return [name for name, one in engagement.seen.items() if isinstance(one, int) and one > 0]
    return list(dict.fromkeys(name for name, _ in sorted(_rows(engagement, phases), key=lambda row: -row[1])))


def _rows(engagement: Engagement, phases: Collection[str]) -> list[tuple[str, float]]:
    """The kernels of phases of the profile, and the share of the time of each."""
    found = profiles.parse(engagement.profile)
    return [(name, row.share) for phase in phases if phase in found for name, row in found[phase].rows.items()]
