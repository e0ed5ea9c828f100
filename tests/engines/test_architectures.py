"""Kinds of models, loaded in process: the backends' tokens and proofs, and checkpoints that are not the model's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamo import dynamo_limits, handed_to_inductor
from safetensors.torch import load_file, save_file
from tiny import EQUAL, NEW, UNEQUAL, generate, load

from benchmarks.architectures import configuration, save
from pytest_llmperf import known
from pytest_llmperf.backends.base import EngineSpec, NotEngagedError
from pytest_llmperf.backends.transformers_engine import attentions
from pytest_llmperf.models import ModelError
from pytest_llmperf.worker.convert import convert

pytestmark = pytest.mark.usefixtures("one_thread")

#: How many layers with attention the tiny model of a type has.
LAYERS = {
    "bloom": 2, "deepseek_v3": 2, "falcon": 2, "gemma3": 2, "gpt2": 2, "gpt_neox": 2, "gpt_oss": 2, "lfm2": 1,
    "mamba": 0, "mistral": 2, "mixtral": 2, "opt": 2, "phi": 2, "qwen3_next": 1,
}  # fmt: skip
#: transformers has no sdpa attention for these.
EAGER_ONLY = ("bloom", "gpt_oss", "mamba")
#: What PyTorch says where its fused kernels for a CPU do not serve a model.
UNFUSED = {
    "deepseek_v3": "Flash attention requires q,k,v to have the same last dimension.",
    "falcon": "both fused kernels require query, key and value to have the same num_heads.",
}


def of(kind: str) -> EngineSpec:
    return EngineSpec("tiny", configuration(kind, 512), "float32", "cpu", batch_size=2, sequence_length=32)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What dynamo hands to inductor, which does not compile it."""
    torch._dynamo.reset()
    with dynamo_limits(), handed_to_inductor(monkeypatch) as found:
        yield found


@pytest.mark.parametrize("kind", LAYERS)
def test_eager_generates_proves_itself_and_scores(kind: str) -> None:
    engine = load("eager", of(kind))
    tokens = generate(engine, UNEQUAL)
    assert tokens == [generate(engine, [prompt])[0] for prompt in UNEQUAL]
    found = engine.evidence()
    found.require()
    assert engine.layers == LAYERS[kind]
    assert f"({LAYERS[kind]} layers, 3 steps)" in found.expected
    for score in engine.score(UNEQUAL, tokens, None):
        assert max(score.regret) < 1e-3


@pytest.mark.parametrize("kind", sorted(LAYERS.keys() - set(EAGER_ONLY)))
def test_sdpa_chooses_the_references_tokens_or_says_that_it_did_not_run(kind: str) -> None:
    engine, reference = (load(name, of(kind)) for name in ("sdpa", "eager"))
    for prompts in (EQUAL, UNEQUAL):
        assert generate(engine, prompts) == generate(reference, prompts)
    found = engine.evidence()
    assert found.engaged == (kind not in UNFUSED), found
    if not found.engaged:
        with pytest.raises(NotEngagedError, match="_scaled_dot_product_attention_math") as caught:
            found.require()
        assert UNFUSED[kind] in str(caught.value)
        assert "Triggered internally" not in str(caught.value)


@pytest.mark.parametrize("kind", LAYERS)
def test_what_transformers_serves_by_sdpa_is_known_without_it(kind: str) -> None:
    model = configuration(kind, 512)
    assert known.supports_sdpa(model.get("text_config", model)["model_type"]) == (kind not in EAGER_ONLY)


@pytest.mark.parametrize("kind", ["gpt_oss", "mixtral"])
def test_a_routers_softmax_is_no_attention(kind: str) -> None:
    engine = load("eager", of(kind))
    generate(engine, EQUAL)
    profile = engine.profiled(2)
    assert profile.scores == 2 * LAYERS[kind]
    assert profile.count("aten::_softmax") > profile.scores


@pytest.mark.parametrize(
    ("name", "kind"),
    [("compile", "gpt2"), ("eager+compile", "bloom"), ("compile", "gpt_neox"), ("compile", "lfm2"),
     ("compile-static", "gpt2"), ("compile-static", "gemma3"), ("compile-static", "mixtral")],
)  # fmt: skip
def test_what_is_compiled_is_found_whatever_it_is_called(name: str, kind: str, graphs: list[Any]) -> None:
    engine, reference = load(name, of(kind)), load("eager", of(kind))
    assert generate(engine, EQUAL) == generate(reference, EQUAL)
    engine.evidence().require()
    assert graphs


def test_attention_modules_are_found_whatever_they_are_called() -> None:
    names = {kind: attentions(load("eager", of(kind)).model) for kind in ("llama", "gpt2", "bloom", "opt", "gemma3")}
    assert names["llama"] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert names["gpt2"] == ["transformer.h.0.attn", "transformer.h.1.attn"]
    assert names["bloom"] == ["transformer.h.0.self_attention", "transformer.h.1.self_attention"]
    assert [name.rpartition(".")[2] for name in names["opt"]] == ["self_attn"] * 2
    assert all("language_model" in name for name in names["gemma3"])  # and none of the tower for images
    assert len(names["gemma3"]) == LAYERS["gemma3"]


def test_a_model_without_attention_has_nothing_to_compile_there() -> None:
    with pytest.raises(NotEngagedError, match="has no attention module"):
        load("eager+compile", of("mamba"))


def test_weights_outside_of_linear_layers_are_not_int8() -> None:
    pytest.importorskip("torchao")
    engine = load("eager+int8", of("gpt2"))
    generate(engine, EQUAL)
    with pytest.raises(NotEngagedError, match="share of the matrices that is int8"):
        engine.evidence().require()


# Checkpoints


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for kind in ("llama", "gpt2", "gemma2"):
        save(kind, folder / kind, 512)
    return folder


Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@pytest.fixture
def changed(checkpoints: Path, tmp_path: Path) -> Callable[[str, Change], EngineSpec]:
    """A checkpoint of a kind whose tensors were changed."""

    def make(kind: str, change: Change) -> EngineSpec:
        shutil.copytree(checkpoints / kind, tmp_path / kind)
        file = tmp_path / kind / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
        return EngineSpec(str(tmp_path / kind), None, "float32", "cpu", batch_size=2, sequence_length=32)

    return make


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_checkpoint_is_its_model_though_a_tied_head_is_not_in_it(kind: str, changed: Any, checkpoints: Path) -> None:
    engine = load("eager", changed(kind, lambda tensors: tensors))
    drawn = load("eager", of(kind))
    assert generate(engine, UNEQUAL) == generate(drawn, UNEQUAL)
    assert len(generate(engine, EQUAL)[0]) == NEW
    assert ("lm_head.weight" in load_file(checkpoints / kind / "model.safetensors")) == (kind != "gpt2")


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("llama", lambda held: {name: one for name, one in held.items() if "layers.1." not in name},
         r"lacks \d+ tensors \(model\.layers\.1\.\S+, "),
        ("llama", lambda held: {name: one for name, one in held.items() if name != "lm_head.weight"},
         r"lacks 1 tensor \(lm_head\.weight\)"),
        ("gpt2", lambda held: {name: one for name, one in held.items() if not name.endswith("h.0.ln_1.bias")},
         r"lacks 1 tensor \(transformer\.h\.0\.ln_1\.bias\)"),
        ("llama", lambda held: {**held, "model.layers.7.extra": torch.ones(2)},
         r"has more than the model, by 1 tensor \(model\.layers\.7\.extra\)"),
        ("gemma2", lambda held: {**held, "model.norm.weight": torch.ones(3)},
         r"has other shapes for 1 tensor \(model\.norm\.weight\)"),
    ],
    ids=["a layer", "the head", "a bias", "more", "other shapes"],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_checkpoint_that_is_not_the_models_is_refused_in_one_line(
    backend: str, kind: str, change: Change, said: str, changed: Any
) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        load(backend, changed(kind, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "nobody's"},
        {"rope_parameters": {"rope_type": "nobody's", "rope_theta": 1.0}},
        {"num_attention_heads": 5},
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64}},
        {"model_type": "nobody's", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}},
    ],
    ids=["activation", "rope", "heads", "quantization", "own code"],
)
def test_a_configuration_that_transformers_refuses_is_told_in_one_line(
    checkpoints: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = shutil.copytree(checkpoints / "llama", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "code.py").write_text("raise SystemExit('code of the model ran')")
    with pytest.raises(ModelError, match=r"^transformers cannot load \S+ \(\w+: ") as caught:
        load("eager", EngineSpec(str(folder), None, "float32", "cpu", batch_size=1, sequence_length=32))
    assert "\n" not in str(caught.value)
    assert "trust_remote_code" not in str(caught.value)
    assert len(str(caught.value)) < 600
    if not changes.keys() & {"auto_map", "quantization_config"}:
        with pytest.raises(ModelError):
            load("eager", EngineSpec("m", config | changes, "float32", "cpu", batch_size=1, sequence_length=32))


@pytest.mark.parametrize("content", [b"GGUF" + bytes(100), b"no GGUF", b""], ids=["header", "other", "empty"])
def test_a_damaged_gguf_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"^transformers cannot load \S+m\.gguf \(\w+: ") as caught:
        convert(tmp_path / "m.gguf", tmp_path / "m")
    assert "\n" not in str(caught.value)
