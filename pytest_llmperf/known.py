"""What the installed transformers knows of model types, read from its source: importing it takes seconds, and torch."""

from __future__ import annotations

import ast
import importlib.util
import operator
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pytest_llmperf.architecture import Architecture, Config, text_config

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Pow: operator.pow}


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The sizes of a model, with transformers' defaults for what its configuration leaves out.

    Raises:
        KeyError, TypeError, ValueError: as `Architecture.from_config`.
    """
    return Architecture.from_config(config, defaults(str(text_config(config).get("model_type", ""))))


@cache
def _source(pattern: str) -> str:
    """The files of transformers that a pattern matches; empty where there are none."""
    package = importlib.util.find_spec("transformers")
    folders = (package and package.submodule_search_locations) or ()
    files = [file for folder in folders for file in sorted(Path(folder).glob(pattern))]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def source(model_type: str, kind: str) -> str:
    """The source of a model type's ``configuration`` or ``modeling``."""
    return _source(f"models/{_folder(model_type)}/{kind}_*.py") if re.fullmatch(r"[\w-]+", model_type) else ""


def _pairs(path: str, table: str) -> dict[str, str]:
    """A table of pairs of strings in a file of transformers."""
    _, _, after = _source(path).partition(f"\n{table} = OrderedDict(")
    return dict(re.findall(r'\(\s*"([^"]+)",\s*"([^"]+)",?\s*\)', after.partition("\n)")[0]))


@cache
def causal_models() -> Mapping[str, str]:
    """The class that ``AutoModelForCausalLM`` loads each model type with; empty where that cannot be read."""
    return _pairs("models/auto/modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")


@cache
def configured() -> Mapping[str, str]:
    """The configuration's class of each model type that transformers knows; empty where that cannot be read."""
    return _pairs("models/auto/auto_mappings.py", "CONFIG_MAPPING_NAMES")


@cache
def _folder(model_type: str) -> str:
    special = _pairs("models/auto/auto_mappings.py", "SPECIAL_MODEL_TYPE_TO_MODULE_NAME")
    return special.get(model_type, model_type.replace("-", "_"))


@cache
def defaults(model_type: str) -> Mapping[str, Any]:
    """The fields of a model type's configuration with their defaults, as far as those are constants."""
    for node in ast.parse(source(model_type, "configuration")).body:
        if isinstance(node, ast.ClassDef) and _states(node, "model_type") == model_type:
            named = {one.target.id: one.value for one in node.body if _is_field(one)}  # type: ignore[attr-defined]
            return {name: value for name, default in named.items() if (value := _constant(default)) is not ...}
    return {}


def _is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None


def _states(node: ast.ClassDef, name: str) -> Any:
    """The constant that a class gives to a name, or None."""
    for one in node.body:
        if isinstance(one, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in one.targets):
            return _constant(one.value)
    return None


def _constant(node: ast.expr) -> Any:
    """The value of a literal or of a product of some, such as 4096 * 32; an ellipsis for anything else."""
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _constant(node.left), _constant(node.right)
        return ... if ... in (left, right) else _OPERATORS[type(node.op)](left, right)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...


@cache
def supports_sdpa(model_type: str) -> bool | None:
    """Whether transformers' model of a type has attention by PyTorch's sdpa; None where that cannot be read."""
    code = source(model_type, "modeling")
    return "\n    _supports_sdpa = True" in code if code else None


def score_cap(config: Mapping[str, Any]) -> float | None:
    """What a model caps its attention scores to by a function that the attention is handed; None without one.

    Of transformers' own attentions, eager and flash attention apply it, and the others ignore it without a word.
    """
    text = text_config(config)
    kind = str(text.get("model_type"))
    if "softcap=self.attn_logit_softcapping" not in source(kind, "modeling"):
        return None
    found: float | None = Config(text, defaults(kind)).get("attn_logit_softcapping")
    return found
