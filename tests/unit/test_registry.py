"""Which backends can be combined, under which name, and in which order they are applied."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import spec

from pytest_llmperf.backends import flash_attention, transformers_engine
from pytest_llmperf.backends.base import APPLIED, SLOTS, Backend, NotEngagedError
from pytest_llmperf.backends.eager import extend
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.backends.transformers_engine import TransformersEngine
from pytest_llmperf.machine.table import DEVICES

REGISTRY = Registry(BUILT_IN)


def resolves(name: str) -> bool:
    try:
        return bool(REGISTRY[name])
    except ValueError:
        return False


def _combined() -> list[tuple[str, ...]]:
    by_slot = [[None, *(one.name for one in BUILT_IN if one.slot == slot)] for slot in SLOTS]
    parts = (tuple(filter(None, chosen)) for chosen in itertools.product(*by_slot))
    return [names for names in parts if names and resolves("+".join(names))]


COMBINED = _combined()


# Names


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("sdpa", "sdpa"),
        ("eager", "eager"),
        ("vllm", "vllm"),
        ("int8+compile-static", "compile-static+int8"),
        ("max-autotune+compile-static", "compile-static+max-autotune"),
        ("int8+max-autotune+compile-static", "compile-static+max-autotune+int8"),
        ("compile+eager", "eager+compile"),
        ("sdpa+compile", "compile"),
        ("compile-static+sdpa+int8", "compile-static+int8"),
        ("transformers-paged+sdpa", "transformers-paged"),
        ("eager+transformers-paged", "transformers-paged+eager"),
        ("tunableop+vllm", "vllm+tunableop"),
    ],
)
def test_a_combination_has_one_name(name: str, canonical: str) -> None:
    assert REGISTRY[name].name == canonical


@given(st.data())
def test_parts_make_the_same_combination_in_any_order(data: st.DataObject) -> None:
    parts = data.draw(st.sampled_from(COMBINED))
    order = data.draw(st.permutations(parts))
    one, other = REGISTRY["+".join(parts)], REGISTRY["+".join(order)]
    assert one == other
    assert REGISTRY[one.name] == one


@given(st.lists(st.sampled_from(REGISTRY.names()), min_size=1, max_size=4, unique=True), st.randoms())
def test_what_makes_no_sense_makes_none_in_any_order(parts: list[str], random: Any) -> None:
    order = random.sample(parts, len(parts))
    assert resolves("+".join(parts)) == resolves("+".join(order))


@pytest.mark.parametrize("name", REGISTRY.everything())
def test_everything_is_called_by_its_own_name(name: str) -> None:
    assert REGISTRY[name].name == name


def test_everything_is_what_is_worth_measuring() -> None:
    everything = REGISTRY.everything()
    assert len(everything) == len(set(everything))
    assert set(everything) >= {
        "eager",
        "sdpa",
        "compile",
        "compile-static",
        "compile-static+max-autotune",
        "compile-static+int8",
        "transformers-paged",
        "vllm",
        "vllm-eager",
        "flash-attention-2",
        "xformers",
        "eager+tunableop",
        "vllm+tunableop",
    }
    assert not {"int8", "max-autotune", "tunableop"} & set(everything)


def test_everything_of_a_few_backends_combines_only_those() -> None:
    few = Registry([REGISTRY.part(name) for name in ("eager", "compile-static", "int8")])
    assert few.everything() == ("eager", "compile-static", "compile-static+int8")


# Nonsense


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("compile+compile-static", "compile and compile-static both decide the compile; keep one"),
        ("eager+sdpa", "eager and sdpa both decide the attention; keep one"),
        ("eager+eager", "eager and eager both decide the attention; keep one"),
        ("vllm+transformers-paged", "vllm and transformers-paged both are engines; keep one"),
        ("compile-static+max-autotune+tunableop", "max-autotune and tunableop both tune matrix products; keep one"),
        ("vllm+compile", "compile changes transformers, and vllm has its own compile"),
        ("vllm+eager", "eager changes transformers or transformers-paged, and vllm has its own attention"),
        ("vllm+int8", "int8 changes transformers, and vllm has its own weights"),
        ("transformers-paged+xformers", "xformers changes transformers, and transformers-paged has its own attention"),
        ("xformers+compile", "xformers cannot be combined with compile: its masks are Python objects"),
        ("xformers+compile-static", "xformers cannot be combined with compile-static: its masks are Python objects"),
        ("vllm-serve+tunableop", "tunableop changes what the worker computes, and vllm-serve computes in a server"),
        ("server+tunableop", "tunableop changes what the worker computes, and server computes in a server of its own"),
        ("max-autotune", "max-autotune changes only what compile-static does; write compile-static+max-autotune"),
        ("compile+max-autotune", "max-autotune changes only what compile-static does"),
    ],
)
def test_nonsense_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^backend '") as caught:
        REGISTRY[name]
    assert reason in str(caught.value)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["speedy", "eager+speedy", "speedy+eager", "eager+", "transformers"])
def test_an_unknown_part_lists_those_that_are_known(name: str) -> None:
    with pytest.raises(KeyError, match="unknown backend") as caught:
        REGISTRY[name]
    assert all(known in str(caught.value) for known in REGISTRY.names())


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("sdap", "sdpa"), ("eager+compile_static", "compile-static"), ("flash-attn-2", "flash-attention-2")],
)
def test_a_typo_is_answered_with_the_nearest_name(typo: str, meant: str) -> None:
    with pytest.raises(KeyError, match=f", did you mean '{meant}'\\?; known: eager, "):
        REGISTRY[typo]


@pytest.mark.parametrize("name", ["a+b", "a,b", "a b", "a/b", "a=b", "", " "])
def test_a_name_that_the_options_could_not_say_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name has no plus sign"):
        Registry().add(Backend(name, extend))


@pytest.mark.parametrize("name", ["eager", "transformers"])
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="registered twice"):
        Registry(BUILT_IN).add(Backend(name, extend))


def test_an_unknown_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown slot 'cache'"):
        Registry().add(Backend("mine", extend, slot="cache"))


# What a combination is


def test_every_slot_is_applied() -> None:
    assert sorted(SLOTS) == sorted(APPLIED)


@pytest.mark.parametrize("name", ["compile-static+int8", "compile-static+max-autotune+int8", "eager+compile+int8"])
def test_weights_are_packed_before_anything_is_compiled(name: str) -> None:
    combination = REGISTRY[name]
    slots = [part.slot for part in combination.parts]
    assert slots.index("weights") < slots.index("compile")
    assert slots == sorted(slots, key=APPLIED.index)
    assert combination.reference()[0]["name"] == "TransformersEngine"


def test_what_tunes_matrix_products_is_around_everything() -> None:
    assert [part.name for part in REGISTRY["tunableop+int8+compile+eager"].parts] == [
        "eager",
        "int8",
        "compile",
        "tunableop",
    ]


def test_a_combination_is_of_all_its_parts() -> None:
    combination = REGISTRY["compile-static+int8"]
    assert combination.weight_bytes == 1
    assert REGISTRY["compile-static"].weight_bytes is None
    assert all(REGISTRY.part(name).proof in combination.proof for name in ("compile-static", "int8"))
    assert REGISTRY["compile-static"].optimizes == "decode"
    assert REGISTRY["flash-attention-2+compile-static"].optimizes == "both"
    assert REGISTRY["vllm+tunableop"].environment == REGISTRY.part("vllm").environment


@pytest.mark.parametrize(
    ("declared", "dtype", "coarser"),
    [
        ({}, "float32", False),
        ({"weight_bytes": 0.5}, "bfloat16", True),
        ({"weight_bytes": 0.625, "approximate": False}, "float32", False),  # packed, and equal
        ({"approximate": True}, "bfloat16", True),
        ({"compute_dtype": "bfloat16"}, "float32", True),
        ({"compute_dtype": "bfloat16"}, "bfloat16", False),
        ({"compute_dtype": "float16"}, "bfloat16", False),
        ({"compute_dtype": "float32"}, "bfloat16", False),
        ({"compute_dtype": "int8"}, "bfloat16", True),
        ({"compute_dtype": "fp8", "approximate": False}, "bfloat16", False),
    ],
)
def test_what_a_backend_declares_says_whether_its_tokens_may_differ(
    declared: dict[str, Any], dtype: str, coarser: bool
) -> None:
    assert Registry([Backend("mine", "ours:Engine", **declared)])["mine"].approximates(dtype) == coarser


def test_a_combination_is_as_coarse_as_its_coarsest_part() -> None:
    registry = Registry(
        [
            Backend("engine-of-ours", "ours:Engine", weight_bytes=0.625, approximate=False),
            Backend("products-of-ours", "ours:extend", slot="gemm", compute_dtype="int8"),
        ]
    )
    combined = registry["engine-of-ours+products-of-ours"]
    assert (combined.weight_bytes, combined.compute_dtype) == (0.625, "int8")
    assert combined.approximates("float32")
    assert not registry["engine-of-ours"].approximates("float32")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("flash-attention-2", "no CPU kernel"),
        ("xformers", "no CPU kernel"),
        ("eager+tunableop", "CUDA and ROCm builds"),
        ("flash-attention-2+tunableop", "no CPU kernel"),
    ],
)
def test_what_has_no_cpu_kernel_says_so(name: str, reason: str) -> None:
    assert reason in str(REGISTRY[name].requires(DEVICES["cpu"]))
    assert REGISTRY[name].requires(DEVICES["h100"]) is None


# Flash attention


def test_a_substitute_for_flash_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = transformers_engine.AutoModelForCausalLM
    real = auto.from_config

    def substitute(config: Any, **options: Any) -> Any:
        assert options["attn_implementation"] == "flash_attention_2"
        return real(config, **options | {"attn_implementation": "sdpa"})

    monkeypatch.setattr(auto, "from_config", substitute)
    with pytest.raises(NotEngagedError, match="transformers serves flash_attention_2 by sdpa"):
        flash_attention.extend_2(TransformersEngine)(spec())


def test_a_part_for_another_engine_is_nothing_by_itself() -> None:
    registry = Registry(BUILT_IN)
    registry.add(Backend("engine-of-ours", "ours:Engine"))
    registry.add(Backend("kernel-of-ours", "ours:extend", slot="attention", engines=("engine-of-ours",)))
    assert "engine-of-ours" in registry.everything()
    assert "kernel-of-ours" not in registry.everything()
    assert registry["engine-of-ours+kernel-of-ours"].engine.name == "engine-of-ours"


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        ("int8", ["int8"]),
        ("tunableop", ["tunableop"]),
        ("max-autotune", ["compile-static+max-autotune"]),
        ("gptq", ["tgi+gptq"]),
        ("sdpa", ["sdpa"]),
        ("vllm", ["vllm"]),
    ],
)
def test_a_part_is_completed_by_what_it_changes(name: str, smallest: list[str]) -> None:
    assert [one.name for one in REGISTRY.completed(name)] == smallest
