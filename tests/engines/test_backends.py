"""The built-in backends, loaded in process: what they generate, and whether they notice that they did not engage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dynamo import dynamo_limits, handed_to_inductor
from tiny import EQUAL, NEW, REGISTRY, TINY, UNEQUAL, generate, load, spec
from tokenizers import Tokenizer
from transformers import AutoConfig, DynamicCache, GenerationConfig

from pytest_llmperf.availability import why_not
from pytest_llmperf.backends.base import EngineSpec, NotEngagedError
from pytest_llmperf.backends.compile import LayerCache, with_layer_cache
from pytest_llmperf.backends.transformers_engine import TokenStreamer, TransformersEngine
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.machine.table import DEVICES
from pytest_llmperf.models import Model
from pytest_llmperf.worker.recorder import Recorder
from pytest_llmperf.worker.server import Worker

pytestmark = pytest.mark.usefixtures("one_thread")

BACKENDS = ("eager", "sdpa", "compile", "compile-static", "compile-static+max-autotune", "transformers-paged")


@pytest.fixture(scope="module")
def limits() -> Iterator[Any]:
    """Dynamo's settings, which loading a compiling backend changes; put back, and what was compiled forgotten."""
    with dynamo_limits() as config:
        yield config


@pytest.fixture(scope="module")
def reference() -> Any:
    return load("eager", spec())


@pytest.fixture(scope="module", params=BACKENDS)
def engine(request: pytest.FixtureRequest, limits: Any, reference: Any) -> Iterator[Any]:
    """A backend's engine. The reference comes first: continuous batching's thread seeds torch as it starts."""
    if (reason := why_not(REGISTRY[request.param], DEVICES["cpu"], Interpreter())) is not None:
        pytest.skip(reason)
    torch._dynamo.reset()
    loaded = load(request.param, spec())
    yield loaded
    loaded.close()  # continuous batching has a thread, without whose end this process would have none


# Generation


@pytest.mark.parametrize("prompts", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_a_backend_generates_exactly_what_is_asked_and_the_references_tokens(
    engine: Any, reference: Any, prompts: list[list[int]]
) -> None:
    tokens = generate(engine, prompts)
    assert [len(row) for row in tokens] == [NEW] * len(prompts)
    assert tokens == generate(reference, prompts)
    assert len({token for row in tokens for token in row}) > 3  # or the comparison would show nothing


def test_a_backend_shows_that_it_engaged(engine: Any) -> None:
    generate(engine, EQUAL)
    found = engine.evidence()
    assert found.engaged, found
    found.require()
    assert found.seen["attn_implementation"] == engine.attention


def test_a_variant_generates_with_its_arguments_and_shows_its_proof(reference: Any) -> None:
    chunks: list[int] = []
    worker = Worker()
    given = {"prefill_chunk_size": 8, "experts_implementation": "eager"}
    proofs = {"kernel": "^aten::_softmax$", "experts_implementation": "eager"}
    varied = replace(spec(), arguments=given, proofs=proofs)
    worker.load(REGISTRY["eager"].reference(), asdict(varied))
    engine: Any = worker.engine

    def seen(_: Any, _args: Any, named: dict[str, Any]) -> None:
        chunks.append(named["input_ids"].shape[1])

    engine.model.register_forward_pre_hook(seen, with_kwargs=True)
    assert generate(engine, EQUAL) == generate(reference, EQUAL)
    assert chunks[:3] == [8, 8, 4]
    assert worker.evidence()["seen"]["experts_implementation"] == "eager"
    worker.spec = replace(varied, proofs={"kernel": "flash"})
    with pytest.raises(NotEngagedError, match=r"and a kernel that matches 'flash'; seen: .*kernels=.*aten::mm"):
        worker.evidence()
    worker.spec = replace(varied, arguments={"experts_implementation": "grouped_mm"}, proofs={})
    with pytest.raises(NotEngagedError, match=r"and experts_implementation=grouped_mm; seen: "):
        worker.evidence()


def test_what_is_observed_is_what_is_generated(engine: Any) -> None:
    observed = engine.observe(EQUAL, NEW, 3)
    assert [list(one.tokens) for one in observed] == generate(engine, EQUAL)
    for one in observed:
        assert [candidates[0] for candidates in one.candidates] == one.tokens
        assert all(list(logits) == sorted(logits, reverse=True) for logits in one.logits)
        assert {len(row) for row in (*one.candidates, *one.logits)} == {3}


def test_a_padded_prompt_yields_what_it_yields_alone(reference: Any) -> None:
    assert generate(reference, UNEQUAL) == [generate(reference, [prompt])[0] for prompt in UNEQUAL]


def test_one_token_is_a_generation(reference: Any) -> None:
    assert generate(reference, UNEQUAL, new=1) == [row[:1] for row in generate(reference, UNEQUAL)]


def test_the_reference_scores_its_own_tokens_without_regret(reference: Any) -> None:
    tokens = generate(reference, UNEQUAL)
    for row, score in zip(tokens, reference.score(UNEQUAL, tokens, None), strict=True):
        assert max(score.regret) == 0
        assert [candidates[0] for candidates in score.candidates] == row
        for logits, exact in zip(score.logits, score.exact, strict=True):
            assert logits == pytest.approx(exact, abs=1e-4)
            assert logits != exact  # float64 is another computation


def test_a_wrong_token_is_regretted_and_only_it(reference: Any) -> None:
    tokens = generate(reference, EQUAL[:1])[0]
    wrong = [*tokens[:-1], (tokens[-1] + 1) % 512]
    (score,) = reference.score(EQUAL[:1], [wrong], None)
    assert score.regret[:-1] == [0.0] * (NEW - 1)
    assert score.regret[-1] > 0.01


def test_the_same_tokens_are_computed_once_however_they_are_asked_of(
    reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = generate(reference, UNEQUAL)
    first = reference.score(UNEQUAL, tokens, None)
    monkeypatch.setattr(reference, "_exact", lambda *_, **__: pytest.fail("computed again"))
    assert reference.score(UNEQUAL, tokens, [score.candidates for score in first]) == first


def test_what_is_kept_of_scores_is_bounded(reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(type(reference)._logits_of.__globals__, "KEPT_LOGITS", 1)  # of the module that it is from
    reference._logits.clear()
    tokens = generate(reference, UNEQUAL)
    assert reference.score(UNEQUAL, tokens, None) == reference.score(UNEQUAL, tokens, None)
    assert len(reference._logits) == 1


# End of sequence, and the model's own generation config


def test_end_of_sequence_is_neither_suppressed_nor_an_end(reference: Any) -> None:
    tokens = generate(reference, EQUAL)
    ending = load("eager", spec(eos_token_id=tokens[0][2]))  # the same weights, by the same seed
    assert generate(ending, EQUAL) == tokens


def test_a_models_own_generation_config_changes_nothing(reference: Any, tmp_path: Path) -> None:
    tokens = generate(reference, UNEQUAL)
    reference.model.save_pretrained(tmp_path)
    own = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        top_k=50,
        repetition_penalty=9.0,
        min_new_tokens=4,
        eos_token_id=tokens[0][1],
        suppress_tokens=tokens[0][:1],
    )
    own.save_pretrained(tmp_path)
    loaded = load("eager", EngineSpec(str(tmp_path), None, "float32", "cpu"))
    assert generate(loaded, UNEQUAL) == tokens


def test_a_real_model_goes_on_after_it_has_ended(bundled_model: Model) -> None:
    """Asked for nothing but the end of its turn, the bundled model says so, and is made to go on."""
    assert bundled_model.folder is not None
    loaded = load("sdpa", EngineSpec(str(bundled_model.folder), None, "bfloat16", "cpu"))
    tokenizer_file = bundled_model.tokenizer_file
    assert tokenizer_file is not None
    chat = "<|im_start|>user\nSay only the word yes.<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    prompt = Tokenizer.from_file(str(tokenizer_file)).encode(chat + chat + chat.removesuffix("<|im_end|>\n")).ids
    (tokens,) = generate(loaded, [prompt], 8)
    assert tokens[0] in bundled_model.end_of_sequence
    assert len(tokens) == 8


# The streamer


def test_the_end_of_a_stream_is_no_token() -> None:
    recorder = Recorder(2)
    streamer = TokenStreamer(recorder)
    streamer.put(torch.tensor([[5, 6, 7], [0, 6, 7]]))  # the prompt
    assert recorder.tokens == [[], []]
    streamer.put(torch.tensor([8, 9]))
    streamer.end()
    assert recorder.tokens == [[8], [9]]
    assert [len(times) for times in recorder.times] == [1, 1]


# Engagement


LAYERS = 9


@pytest.fixture
def nine_layers(limits: Any) -> Iterator[Any]:
    """The compile backend on as many layers as dynamo's own limit does not allow graphs."""
    if (reason := why_not(REGISTRY["compile"], DEVICES["cpu"], Interpreter())) is not None:
        pytest.skip(reason)
    torch._dynamo.reset()
    yield load("compile", spec(num_hidden_layers=LAYERS))
    torch._dynamo.reset()


@pytest.fixture
def unlike(nine_layers: Any, limits: Any) -> Iterator[Any]:
    """Every layer another graph, and dynamo's own limit."""
    for number, layer in enumerate(nine_layers.model.model.layers):
        layer.self_attn.scaling += 0.001 * number
    with limits.patch(recompile_limit=8):
        yield nine_layers


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What dynamo hands to inductor, which does not compile it."""
    with handed_to_inductor(monkeypatch) as found:
        yield found


def test_one_graph_serves_every_layer(nine_layers: Any, graphs: list[Any]) -> None:
    generate(nine_layers, EQUAL)
    assert len(graphs) == 2  # a prefill and a step; inductor's own prefill leaves other strides, and there are three
    nine_layers.evidence().require()


def test_a_cache_with_layer_cache_is_that_layers_whatever_index_is_named() -> None:
    cache = DynamicCache(config=AutoConfig.for_model("llama", num_hidden_layers=2))
    last = SimpleNamespace(layer_idx=1)
    _, options = with_layer_cache(last, (), {"past_key_values": cache, "position_ids": 7})
    assert options["position_ids"] == 7
    view = options["past_key_values"]
    assert isinstance(view, LayerCache)
    keys, values = torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
    assert view.update(key_states=keys, value_states=values, layer_idx=0)[0].equal(keys)
    assert [layer.get_seq_length() for layer in cache.layers] == [0, 3]
    assert view.get_seq_length(1) == 3  # and all else is the whole cache's


@pytest.mark.parametrize(
    ("attention", "cache"),
    [
        (SimpleNamespace(), DynamicCache(config=AutoConfig.for_model("llama", num_hidden_layers=2))),
        (SimpleNamespace(layer_idx=0), None),
        (SimpleNamespace(layer_idx=0), DynamicCache()),  # has no layers before the first step
        (SimpleNamespace(layer_idx=0), SimpleNamespace(layers=["one"], offloading=True)),
    ],
    ids=["no index", "no cache", "no layers yet", "offloaded"],
)
def test_what_has_no_layer_of_its_own_is_handed_on(attention: Any, cache: Any) -> None:
    call: Any = ((1,), {"past_key_values": cache})
    assert with_layer_cache(attention, *call) == call


def test_more_kinds_of_step_than_the_limit_are_an_error(nine_layers: Any, limits: Any, graphs: list[Any]) -> None:
    with limits.patch(recompile_limit=4):
        generate(nine_layers, EQUAL)
        generate(nine_layers, UNEQUAL)  # has a mask
        with pytest.raises(NotEngagedError, match="fell back to eager"):
            generate(nine_layers, EQUAL[:1])
    assert len(graphs) == 4


def test_hitting_the_recompile_limit_is_an_error(unlike: Any, graphs: list[Any]) -> None:
    with pytest.raises(NotEngagedError) as caught:
        generate(unlike, EQUAL, 2)
    message = str(caught.value)
    assert "fell back to eager" in message
    assert "limit of 8" in message
    assert str(LAYERS) in message


def test_a_silent_fallback_is_seen_in_the_evidence(unlike: Any, limits: Any, graphs: list[Any]) -> None:
    with limits.patch(fail_on_recompile_limit_hit=False):
        assert [len(row) for row in generate(unlike, EQUAL, 2)] == [2, 2]  # it does generate: most of it uncompiled
        with pytest.raises(NotEngagedError, match=r"a compiled region in every layer .*compiled regions=\d+"):
            unlike.evidence().require()


@pytest.mark.parametrize("name", ["compile", "compile-static"])
def test_the_recompile_limit_is_no_less_an_error_where_logits_are_shown(
    name: str, limits: Any, graphs: list[Any]
) -> None:
    torch._dynamo.reset()
    engine = load(name, spec())
    with limits.patch(recompile_limit=1):
        engine.observe(EQUAL[:1], NEW if name == "compile-static" else 1, 4)
        with pytest.raises(NotEngagedError, match="fell back to eager"):
            engine.observe(EQUAL, NEW, 4)
    torch._dynamo.reset()


class Resolved(TransformersEngine):
    attention = "sdpa"


@pytest.mark.parametrize(("resolved", "engaged"), [("sdpa", True), ("eager", False)])
def test_another_attention_than_asked_is_not_engaged(resolved: str, engaged: bool) -> None:
    engine = Resolved(spec())
    engine.model.set_attn_implementation(resolved)
    generate(engine, EQUAL)
    found = engine.evidence()
    assert found.engaged == engaged
    if not engaged:
        with pytest.raises(NotEngagedError, match=r"expected attn_implementation sdpa.*attn_implementation=eager"):
            found.require()


@pytest.mark.parametrize("prompts", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_pytorchs_flash_attention_generates_the_references_tokens(reference: Any, prompts: list[list[int]]) -> None:
    assert generate(load("sdpa-flash", spec()), prompts) == generate(reference, prompts)


def test_another_fused_kernel_is_not_pytorchs_flash_attention() -> None:
    engine = load("sdpa-flash", spec())
    generate(engine, EQUAL)
    assert engine.evidence().engaged
    profile = engine.profiled(2)
    renamed = Counter({name.replace("flash", "cudnn"): count for name, count in profile.counts.items()})
    assert load("sdpa", spec()).engaged(replace(profile, counts=renamed))
    assert not engine.engaged(replace(profile, counts=renamed))


@pytest.fixture
def int8() -> Any:
    pytest.importorskip("torchao")
    return load("sdpa+int8", spec())


def test_int8_weights_are_int8_and_choose_nearly_the_same(int8: Any, reference: Any) -> None:
    assert [len(row) for row in generate(int8, EQUAL)] == [NEW] * len(EQUAL)
    found = int8.evidence()
    found.require()
    layers, heads = TINY["num_hidden_layers"], 1
    assert found.seen["int8 linear layers"] == f"{7 * layers + heads} of {7 * layers + heads}"
    observed = int8.observe(EQUAL, NEW, 4)
    scores = reference.score(EQUAL, [one.tokens for one in observed], [one.candidates for one in observed])
    error = max(
        abs((mine - mine_of_all) - (theirs - theirs_of_all))
        for one, score in zip(observed, scores, strict=True)
        for row, exact in zip(one.logits, score.exact, strict=True)
        for mine, theirs in zip(row, exact, strict=True)
        for mine_of_all, theirs_of_all in [(sum(row) / len(row), sum(exact) / len(exact))]
    )
    assert 1e-4 < error < 1  # other weights, and close to them


def test_a_weight_that_stayed_as_it_was_is_not_engaged(int8: Any) -> None:
    generate(int8, EQUAL)
    layer = int8.linears()[0]
    layer.weight = torch.nn.Parameter(layer.weight.dequantize(), requires_grad=False)
    with pytest.raises(NotEngagedError, match=r"int8 linear layers=14 of 15"):
        int8.evidence().require()


def test_pytorchs_own_fallback_is_not_engaged() -> None:
    engine = load("sdpa", spec())
    generate(engine, EQUAL)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found = engine.evidence()
    assert not found.engaged
    assert any("math" in name for name in found.seen)


@pytest.mark.parametrize(("name", "other"), [("eager", "sdpa"), ("sdpa", "eager")])
def test_another_kernel_under_the_right_name_is_not_engaged(name: str, other: str) -> None:
    engine = load(name, spec())
    for module in engine.model.modules():
        if hasattr(module, "q_proj"):
            module.config = type(module.config)(**module.config.to_dict())
            module.config._attn_implementation = other
    generate(engine, EQUAL)
    assert engine.model.config._attn_implementation == name
    assert not engine.evidence().engaged
