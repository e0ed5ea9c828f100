"""Whether a model's weights are all there and whole, by what their files' headers say. No weight is read."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from pathlib import Path

#: What a file of Git LFS begins with where its content was not fetched.
POINTER = b"version https://git-lfs"
#: Where weights are, or the index that names their files: the first that is there, as transformers looks for them.
PLACES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: Names that a message has at most.
NAMED = 3


def broken(folder: Path) -> str | None:
    """What is wrong with the files of a folder's weights, or None, also where there are none."""
    found = _place(folder)
    if found is None:
        return None
    return _indexed(folder, found) if found.endswith(".json") else unusable(folder / found)


def _place(folder: Path) -> str | None:
    # A link to a file that is gone is there, too.
    return next((name for name in PLACES if os.path.lexists(folder / name)), None)


def present(folder: Path, anything: bool = False) -> bool:
    """Whether a folder has weights where transformers looks for them; or, with ``anything``, under any name."""
    loose = (any(folder.glob(f"*.{suffix}")) for suffix in ("safetensors", "bin", "pt"))
    return _place(folder) is not None or (anything and any(loose))


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a folder that is not broken; nothing where the weights are no safetensors."""
    found = _place(folder) or ""
    files = [found] if found.endswith(".safetensors") else []
    if found.endswith(".safetensors.index.json"):
        files = sorted(set(json.loads((folder / found).read_text(encoding="utf-8"))["weight_map"].values()))
    return {name: shape for file in files for name, shape in header(folder / file).items()}


def short(tensors: Mapping[str, Sequence[int]], parameters: int) -> str | None:
    """What tensors lack to be a model of so many parameters, or None. A tied head may be among them, and be too many.

    Which names are missing follows from comparing the layers, as far as it does.
    """
    held = sum(map(prod, tensors.values()))
    if not tensors or held >= parameters:
        return None
    lost = sorted(_unlike_their_layers(tensors))
    names = f": it lacks {some(lost, 'tensor')}" if lost else ""
    return f"has {held:,} of the model's {parameters:,} parameters{names}"


def _unlike_their_layers(names: Iterable[str]) -> set[str]:
    """Tensors that most layers have, and one has not. Layers are numbered from 0."""
    layers: defaultdict[str, defaultdict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if found := re.match(r"(.*?\.)(\d+)(\..*)", name):
            layers[found[1]][int(found[2])].add(found[3])
    lost = set()
    for prefix, held in layers.items():
        counted = Counter(suffix for one in held.values() for suffix in one)
        usual = {suffix for suffix, count in counted.items() if 2 * count > len(held)}
        lost |= {f"{prefix}{at}{suffix}" for at in range(max(held) + 1) for suffix in usual - held.get(at, set())}
    return lost


def _indexed(folder: Path, index: str) -> str | None:
    """What is wrong with weights in several files, as their index names them."""
    if why := unusable(folder / index):
        return why
    try:
        files = dict(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"])
        if not files:
            raise ValueError("it names no file")
    except (RecursionError, ValueError, KeyError, TypeError) as error:
        return f"{folder / index} is no index of weights ({type(error).__name__}: {error}); download the model again"
    shards = sorted({str(name) for name in files.values()})
    if absent := [name for name in shards if not (folder / name).is_file()]:
        return f"{folder} lacks {some(absent, 'file')} that {index} names; download the model again"
    for shard in shards:
        if why := unusable(folder / shard):
            return why
        if shard.endswith(".safetensors"):
            held = header(folder / shard)
            if lost := [name for name, file in files.items() if file == shard and name not in held]:
                return f"{folder / shard} lacks {some(lost, 'tensor')} that {index} names; download the model again"
    return None


def unusable(file: Path) -> str | None:
    """What is wrong with a file of a model that is there, if only as a link; or None."""
    if not file.is_file():
        what = "a link to a file that is not there" if file.is_symlink() else "no file"
        return f"{file} is {what}; download the model again"
    if why := pointer(file):
        return why
    if file.suffix == ".safetensors":
        try:
            header(file)
        except (RecursionError, ValueError) as error:
            return f"{file} is damaged ({error}); download the model again"
    return None


def pointer(file: Path) -> str | None:
    """Why a file has not its own content, or None."""
    with file.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            return f"{file} is a pointer of Git LFS, not the file itself; run 'git lfs pull' in {file.parent}"
    return None


def header(file: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a safetensors file: names and shapes.

    Raises:
        ValueError: it is no such file, or its end is missing.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > size - 8:
            raise ValueError(f"its header would have {length} bytes, and the file has {size}")
        found = json.loads(stream.read(length))
    if not isinstance(found, dict):
        raise ValueError("its header is no object")
    found.pop("__metadata__", None)
    try:
        needed = 8 + length + max((int(one["data_offsets"][1]) for one in found.values()), default=0)
        shapes = {name: tuple(map(int, one["shape"])) for name, one in found.items()}
    except (KeyError, IndexError, TypeError):
        raise ValueError("its header does not say what the tensors are, and where") from None
    if needed > size:
        raise ValueError(f"its tensors need {needed} bytes, and the file has {size}")
    return shapes


def unlike(missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[str]) -> str | None:
    """How a checkpoint's tensors differ from the model's, in one line; None where they do not."""
    kinds = {
        "lacks": sorted(missing),
        "has more than the model, by": sorted(unexpected),
        "has other shapes for": sorted(mismatched),
    }
    found = [f"{verb} {some(names, 'tensor')}" for verb, names in kinds.items() if names]
    return " and ".join(found) or None


def some(names: Collection[str], what: str) -> str:
    """A count of things, and the names of the first few."""
    shown = ", ".join(list(names)[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({shown}{more})"
