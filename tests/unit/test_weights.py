"""Files of weights that are not there, not whole or not the files themselves, and how a checkpoint differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf import weights

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n"
#: Tensor names by shard.
SHARDS = {"model-00001-of-00002.safetensors": ["a", "b"], "model-00002-of-00002.safetensors": ["c"]}
INDEX = "model.safetensors.index.json"


def tensors(*names: str) -> bytes:
    """A safetensors file of tensors of four bytes each."""
    places = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * at, 4 * at + 4]} for at, name in enumerate(names)
    }
    head = json.dumps({"__metadata__": {"format": "pt"}, **places}).encode()
    return len(head).to_bytes(8, "little") + head + bytes(4 * len(names))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    for shard, names in SHARDS.items():
        (tmp_path / shard).write_bytes(tensors(*names))
    held = {name: shard for shard, names in SHARDS.items() for name in names}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": held}))
    return tmp_path


def said(folder: Path) -> str:
    found = weights.broken(folder)
    assert found is not None
    assert "\n" not in found
    return found


def test_whole_files_are_not_broken(tmp_path: Path, sharded: Path) -> None:
    assert weights.broken(sharded) is None
    (tmp_path / "model.safetensors").write_bytes(tensors("a", "b"))
    assert weights.broken(tmp_path) is None


def test_a_folder_without_weights_is_not_broken(tmp_path: Path) -> None:
    assert weights.broken(tmp_path) is None
    (tmp_path / "notes.safetensors").write_bytes(b"")  # which nobody loads
    assert weights.broken(tmp_path) is None


def test_one_whole_file_is_loaded_whatever_an_index_says(tmp_path: Path, sharded: Path) -> None:
    (sharded / "model.safetensors").write_bytes(tensors("a", "b", "c"))
    for shard in SHARDS:
        (sharded / shard).unlink()
    assert weights.broken(sharded) is None


@pytest.mark.parametrize("shard", SHARDS)
def test_a_shard_that_is_missing_is_named(sharded: Path, shard: str) -> None:
    (sharded / shard).unlink()
    assert f"1 file ({shard})" in said(sharded)


@pytest.mark.parametrize("name", [*SHARDS, INDEX])
def test_a_pointer_of_git_lfs_is_told_from_the_file(sharded: Path, name: str) -> None:
    (sharded / name).write_bytes(LFS)
    assert f"{sharded / name} is a pointer of Git LFS" in said(sharded)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_single_file_may_be_a_pointer_too(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LFS)
    assert "git lfs pull" in said(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", INDEX])
def test_a_link_whose_file_is_gone_is_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "blobs" / "gone")
    assert "link to a file that is not there" in said(tmp_path)


@given(st.data())
def test_a_file_whose_end_is_missing_is_damaged(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = tensors("a", "b", "c")
    folder = tmp_path_factory.mktemp("cut")
    (folder / "model.safetensors").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert "is damaged" in said(folder)


@given(st.binary(max_size=200))
def test_any_bytes_are_judged_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "model.safetensors").write_bytes(content)
    (folder / INDEX).write_bytes(content)
    said(folder)
    (folder / "model.safetensors").unlink()
    said(folder)


def test_a_tensor_that_the_index_promises_must_be_in_its_shard(sharded: Path) -> None:
    shard, names = next(iter(SHARDS.items()))
    (sharded / shard).write_bytes(tensors(names[0]))
    assert f"lacks 1 tensor ({names[1]})" in said(sharded)


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused(sharded: Path, index: str) -> None:
    (sharded / INDEX).write_text(index)
    assert "is no index of weights" in said(sharded)


# Tensors that are missing


LAYER = ("attn.weight", "attn.bias", "mlp.weight")
NAMES = ["wte.weight", *(f"h.{layer}.{name}" for layer in range(4) for name in LAYER), "lm_head.weight"]


def test_the_shapes_of_all_files_are_read(tmp_path: Path, sharded: Path) -> None:
    assert weights.shapes(sharded) == {"a": (1,), "b": (1,), "c": (1,)}
    (tmp_path / "model.safetensors").write_bytes(tensors("a", "x"))
    assert weights.shapes(tmp_path) == {"a": (1,), "x": (1,)}


@pytest.mark.parametrize("name", [None, "pytorch_model.bin"])
def test_other_files_have_no_shapes(tmp_path: Path, name: str | None) -> None:
    if name:
        (tmp_path / name).write_bytes(b"PK")
    assert weights.shapes(tmp_path) == {}
    assert weights.short({}, 10) is None


@given(st.sets(st.sampled_from(NAMES), max_size=3))
def test_too_few_parameters_are_told_and_named_where_layers_show_them(lost: set[str]) -> None:
    held = {name: (2, 3) for name in NAMES if name not in lost}
    said = weights.short(held, 6 * len(NAMES))
    assert (said is None) == (not lost)
    if len(lost) == 1 and (name := lost.pop()).startswith("h."):
        assert said == f"has {6 * len(held):,} of the model's {6 * len(NAMES):,} parameters: it lacks 1 tensor ({name})"


def test_a_whole_layer_that_is_missing_is_named() -> None:
    held = {name: (1,) for name in NAMES if not name.startswith("h.1.")}
    assert weights.short(held, len(NAMES)) == (
        "has 11 of the model's 14 parameters: it lacks 3 tensors (h.1.attn.bias, h.1.attn.weight, h.1.mlp.weight)"
    )


def test_more_than_the_model_needs_is_not_short() -> None:
    assert weights.short(dict.fromkeys(NAMES, (1,)), len(NAMES) - 1) is None  # a tied head, stored again


# How a checkpoint differs from its model


def test_a_checkpoint_that_is_the_models_does_not_differ() -> None:
    assert weights.unlike([], [], []) is None


def test_every_kind_of_difference_is_said_with_names() -> None:
    found = weights.unlike(["b", "a"], ["c"], [f"layers.{index}" for index in range(9)])
    assert found == (
        "lacks 2 tensors (a, b) and has more than the model, by 1 tensor (c) and "
        "has other shapes for 9 tensors (layers.0, layers.1, layers.2 and 6 more)"
    )
