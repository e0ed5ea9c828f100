"""Profiles, their difference and the lines that say it: properties, and names as profilers record them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.explain import names
from pytest_llmperf.explain.difference import LINES, kernels_changed, lines, parts
from pytest_llmperf.explain.profiles import (
    LEAST,
    MARK,
    Event,
    Phase,
    Row,
    of_events,
    of_metric,
    parse,
    plain,
    typical,
)

#: Calls and time of operators by name.
Weights = Mapping[str, tuple[float, float]]
NAMES = [f"aten::{name}" for name in ("mm", "add", "copy_", "mul", "item", "view", "cat", "silu")]
WEIGHTS = st.dictionaries(st.sampled_from(NAMES), st.tuples(st.integers(1, 90), st.floats(0.01, 1)), max_size=8)


def phase(found: Weights, host: float = 1.0, kernels: bool = False, **counts: float) -> Phase:
    """A phase of calls and weights by name; the host has a weight too."""
    whole = host + sum(weight for _, weight in found.values())
    rows = {name: Row(calls, weight / whole, weight / whole) for name, (calls, weight) in found.items()}
    return Phase(host / whole, rows, counts, kernels=kernels, seconds=0.02).short()


PHASES = st.builds(phase, WEIGHTS, st.floats(0.01, 2))


@st.composite
def operators(draw: st.DrawFn, start: float = 0.0, end: float = 1000.0, depth: int = 0) -> list[Event]:
    """Operators of one thread, nested, between two moments."""
    cuts = sorted(draw(st.lists(st.integers(int(start), int(end)), max_size=6, unique=True)))
    found: list[Event] = []
    for first, last in zip(cuts[::2], cuts[1::2], strict=False):
        found.append(Event(draw(st.sampled_from(NAMES)), first, last))
        if depth < 2 and last - first > 2:
            found += draw(operators(first, last, depth + 1))
    return found


def marks(*moments: float) -> list[Event]:
    return [Event(MARK, moment, moment) for moment in moments]


# Profiles


@given(operators(), st.floats(0, 3))
def test_the_shares_of_a_step_add_up_to_all_of_it(found: list[Event], overhead: float) -> None:
    one = of_events([*marks(0, 1001), *found], overhead)["prefill"]
    assert one.host + sum(row.share for row in one.rows.values()) == pytest.approx(1)
    assert all(0 <= row.share <= 1 for row in one.rows.values())
    assert sum(row.calls for row in one.rows.values()) == len(found)


@given(operators())
def test_equal_steps_are_one_step(found: list[Event]) -> None:
    later = [Event(one.name, one.start + 2000 * step, one.end + 2000 * step) for one in found for step in range(3)]
    phases = of_events([*marks(0, 2000, 4000, 6000), *later])
    prefill, decode = phases["prefill"], phases["decode"]
    assert decode.rows.keys() == prefill.rows.keys()
    for name, row in prefill.rows.items():
        assert decode.rows[name].calls == row.calls
        assert decode.rows[name].share == pytest.approx(row.share)


def test_what_an_operator_calls_is_not_its_own_time() -> None:
    found = of_events([*marks(0, 100), Event("aten::linear", 10, 90), Event("aten::mm", 20, 80)])["prefill"]
    assert found.rows == {
        "aten::linear": Row(1, 0.2, 0.8),
        "aten::mm": Row(1, 0.6, 0.6),
    }
    assert found.host == pytest.approx(0.2)


def test_a_step_that_something_disturbed_counts_as_the_other_one() -> None:
    calm = [Event("aten::mm", 110, 150), Event("aten::mm", 210, 350)]  # the second one took 100 us longer
    decode = of_events([*marks(0, 100, 200, 400), *calm])["decode"]
    assert decode.rows["aten::mm"].share == pytest.approx(40 / 100)


def test_the_profiler_s_own_time_is_taken_from_where_it_falls() -> None:
    events = [*marks(0, 100), Event("aten::linear", 10, 90), Event("aten::mm", 20, 80)]
    found = of_events(events, overhead=5)["prefill"]
    assert found.host == pytest.approx(15 / 90)
    assert found.rows["aten::linear"].share == pytest.approx(15 / 90)


def test_on_a_device_kernels_count_and_the_host_s_time_is_when_none_runs() -> None:
    kernels = [Event("gemm", 10, 40, device=True), Event("ncclDevKernel", 30, 60, thread=7, device=True)]
    host = [Event("aten::mm", 0, 5), Event("cudaStreamSynchronize", 60, 99), Event("cudaGraphLaunch", 6, 7)]
    found = of_events([*marks(0, 100), *kernels, *host])["prefill"]
    assert found.kernels
    assert found.host == pytest.approx(0.5)
    assert {name: row.share for name, row in found.rows.items()} == pytest.approx({"gemm": 0.25, "ncclDevKernel": 0.25})
    assert found.counts == {"cudaStreamSynchronize": 1, "cudaGraphLaunch": 1}


@given(PHASES)
def test_plain_values_are_read_again(one: Phase) -> None:
    (found,) = parse(plain({"decode": one})).values()
    assert found.rows.keys() == one.rows.keys()
    assert found.host == pytest.approx(one.host, abs=1e-5)


@pytest.mark.parametrize("odd", [None, [], "text", {"decode": 3}, {"decode": {"rows": {"a": [1]}}}])
def test_what_is_no_profile_counts_as_none(odd: object) -> None:
    assert parse(odd) == {}


@given(PHASES)
def test_a_stored_phase_is_one_line_that_says_the_same(one: Phase) -> None:
    text = one.stored()
    found = Phase.from_stored(text)
    assert found.stored() == text
    assert "\n" not in text
    for name, row in one.rows.items():
        assert name in found.rows or row.share < LEAST or one.kernels
        assert found.rows.get(name, row).share == pytest.approx(row.share, rel=0.06, abs=1e-4)
    assert kernels_changed(found, one) == ""


@given(st.lists(PHASES, min_size=3, max_size=5))
def test_the_typical_phase_is_one_step(found: list[Phase]) -> None:
    one = typical([None, *found])
    assert one is not None
    assert one.host + sum(row.share for row in one.rows.values()) == pytest.approx(1)
    assert typical([None]) is None


def test_a_latency_is_a_prefill_and_its_decode_steps() -> None:
    prefill, decode = phase({"aten::mm": (10, 1.0)}, host=0), phase({"aten::mm": (10, 1.0)}, host=1)
    found = of_metric({"prefill": prefill, "decode": decode}, "latency", 5)
    assert found is not None
    assert found.host == pytest.approx(0.4)  # four of five equal steps, half of each
    assert found.rows["mm"].calls == pytest.approx(10)


@pytest.mark.parametrize("small", ["sin", "sin; cos"])
def test_a_stored_latency_knows_kernels_without_a_row(small: str) -> None:
    """One that is below the least share in a phase, or in both, is neither new nor called more often later on."""

    def profile(prefill: float, decode: float) -> dict[str, Phase]:
        weights = (("prefill", prefill), ("decode", decode))
        return {name: phase({"aten::mm": (10, 1 - one), small: (5, one)}, host=0) for name, one in weights}

    for stored in (profile(0.002, 0.002), profile(0.004, 0.002), profile(0.002, 0.004)):
        read = {name: Phase.from_stored(one.stored()) for name, one in stored.items()}
        before, after = of_metric(read, "latency", 5), of_metric(profile(0.005, 0.005), "latency", 5)
        assert before is not None
        assert after is not None
        assert kernels_changed(before, after) == ""
        assert not any(part.structural for part in parts(before, after, 1.1))
        assert sum(part.share for part in parts(before, after, 1.1)) == pytest.approx(0.1, abs=0.005)


# The difference


@given(PHASES, PHASES, st.floats(0.5, 3))
def test_the_parts_add_up_to_the_slowdown(base: Phase, head: Phase, ratio: float) -> None:
    assert sum(part.share for part in parts(base, head, ratio)) == pytest.approx(ratio - 1, abs=1e-9)


@given(PHASES, PHASES, st.floats(1.02, 3), st.integers(2, LINES))
def test_the_lines_are_few_and_add_up(base: Phase, head: Phase, ratio: float, most: int) -> None:
    said = lines(base, head, ratio, most)
    assert 0 < len(said) <= most
    shares = [float(re.match(r"([+-][\d.]+)%", line)[1]) / 100 for line in said]  # type: ignore[index]
    assert sum(shares) == pytest.approx(ratio - 1, abs=0.0005 * len(said) + 0.001)


@given(PHASES)
def test_the_same_profile_has_no_changed_kernel(one: Phase) -> None:
    assert kernels_changed(one, one) == ""
    assert not any(part.structural for part in parts(one, one, 1.1))


SDPA = {"aten::mm": (211, 70.0), "aten::mul": (120, 5.0), "aten::view": (900, 4.0), "aten::copy_": (60, 3.0)}
FUSED = SDPA | {"aten::_scaled_dot_product_flash_attention_for_cpu": (30, 8.0)}


def slower(head: Weights, host: float = 10.0, base: Weights = FUSED) -> list[str]:
    """What is said of a head whose weights are its times."""
    before, after = ([10.0, *(weight for _, weight in base.values())], [host, *(weight for _, weight in head.values())])
    return lines(phase(base, 10.0), phase(head, host), sum(after) / sum(before))


def test_one_product_done_twice() -> None:
    first, *_ = slower(FUSED | {"aten::mm": (241, 80.0), "aten::view": (990, 4.4)})
    assert first == "+10.4% mm: 211 -> 241 calls a step"


def test_copies() -> None:
    found = FUSED | {"aten::copy_": (90, 9.0), "aten::clone": (30, 0.5)}
    assert slower(found)[0] == "+6.5% copy_, clone: 30 more calls a step"


def test_one_large_copy_among_many_small_ones() -> None:
    assert slower(FUSED | {"aten::copy_": (61, 63.0)}) == ["+60.0% copy_: 60 -> 61 calls a step"]


def test_what_is_new_comes_before_what_follows_from_it() -> None:
    mask = {"aten::triu": (30, 1.1), "aten::full": (30, 1.0)}
    found = slower(FUSED | {"aten::copy_": (150, 5.3)} | mask)
    assert found == ["+2.1% triu, full: new, 30 calls a step", "+2.3% copy_: 60 -> 150 calls a step"]
    copies, new = slower(FUSED | {"aten::copy_": (150, 9.0)} | mask)
    assert (copies, new) == ("+6.0% copy_: 60 -> 150 calls a step", "+2.1% triu, full: new, 30 calls a step")


def test_what_takes_longest_is_named_though_something_beside_it_is_new() -> None:
    before = FUSED | {"aten::cat": (60, 2.0)}
    new = {f"aten::{name}": (60, 0.5) for name in ("new_zeros", "new_empty", "zero_")}
    first, *_ = slower(before | {"aten::cat": (120, 6.0)} | new, base=before)
    assert first == "+5.4% cat, new_zeros, new_empty and 1 more: 60 more calls a step"


def test_a_fallback_names_what_is_gone_and_what_came_in_its_place() -> None:
    math = {"_scaled_dot_product_attention_math": (30, 1.0), "_softmax": (30, 4.0), "bmm": (60, 20.0)}
    head = SDPA | {f"aten::{name}": row for name, row in math.items()}
    first, *others = slower(head)
    implementations = "attention: PyTorch's flash of the CPU -> PyTorch's math"
    assert first.startswith(f"+17.0% {implementations} (_scaled_dot_product_flash_attention_for_cpu -> ")
    assert "bmm" in first
    assert not others


def test_a_wait_for_each_layer_has_the_time_of_the_host_too() -> None:
    found = FUSED | {"aten::item": (30, 0.1), "aten::_local_scalar_dense": (30, 0.1)}
    assert slower(found, host=14.0) == [
        "+4.2% item, _local_scalar_dense: new, 30 calls a step, for which the host waits"
    ]
    device = {"gemm": (32, 50.0)}
    before = phase(device, 5.0, kernels=True, cudaStreamSynchronize=1)
    after = phase(device, 11.0, kernels=True, cudaStreamSynchronize=33)
    assert lines(before, after, 61 / 55) == [
        "+10.9% cudaStreamSynchronize: 1 -> 33 calls a step, for which the host waits"
    ]


def test_a_lost_graph_has_the_time_of_the_host_that_it_saved() -> None:
    device = {"gemm": (32, 50.0)}
    before = phase(device, 5.0, kernels=True, cudaGraphLaunch=1)
    after = phase(device, 16.0, kernels=True)
    assert lines(before, after, 66 / 55) == [
        "+20.0% cudaGraphLaunch: gone, 1 call a step before, with the host time between"
    ]
    assert lines(after, before, 55 / 66) == ["-16.7% host time between kernels"]


def test_vllm_without_compilation_shows_as_the_region_that_is_gone() -> None:
    """As vLLM 0.32 was profiled on a CPU: what was compiled now takes less time in operators, and more between them."""
    same = {"_C::onednn_mm": (121, 70.0), "aten::item": (121, 0.5), "_C::cpu_attention_with_kv_cache": (30, 3.0)}
    compiled = {
        "## Call CompiledFxGraph fv3mb4dfrbqk ##": (1, 10.0),
        "Pregraph bytecode": (1, 1.5),
        "aten::copy_": (16, 0.3),
    }
    eager = {"aten::mean": (61, 2.6), "aten::mul": (152, 0.9), "aten::copy_": (381, 1.5), "aten::embedding": (1, 0.1)}
    first, *_ = slower(same | eager, host=40.0, base=same | compiled)
    assert first.startswith("+24.4% CompiledFxGraph, Pregraph bytecode -> mean, copy_, mul"), first
    assert first.endswith(", with the host time between")


def test_a_sleep_is_time_of_the_host() -> None:
    assert slower(FUSED, host=20.0) == ["+10.0% host time between operators"]


def test_what_is_slower_without_other_calls() -> None:
    assert slower(FUSED | {"aten::mm": (211, 80.0)}) == ["+10.0% mm: slower, 211 calls a step"]


def test_small_changes_are_not_explained() -> None:
    many = {f"aten::op{number}": (1.0, 1.0) for number in range(100)}
    longer = {name: (calls, weight * 1.05) for name, (calls, weight) in many.items()}
    assert slower(longer, base=many) == ["+4.5% not explained"]


def test_a_changed_set_of_kernels() -> None:
    before, after = phase(SDPA | {"flash_fwd_splitkv": (30, 5.0)}), phase(SDPA | {"unified_attention_2d": (30, 5.0)})
    assert kernels_changed(before, after) == "flash_fwd_splitkv -> unified_attention_2d"
    assert kernels_changed(phase(SDPA), after) == "none -> unified_attention_2d"
    before = phase(SDPA | {"aten::tiny": (1, 0.2), "aten::item": (1, 0.001)})
    stored = Phase.from_stored(before.stored())
    after = phase(SDPA | {"aten::tiny": (1, 0.4), "aten::item": (1, 0.001)})
    assert kernels_changed(stored, after) == "", "it may be among the others"
    assert kernels_changed(phase(SDPA), after) == "none -> item, tiny"
    assert kernels_changed(Phase.from_stored(phase(SDPA).stored()), after) == "none -> item, tiny"


# Names


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Torch-Compiled Region: 3/1", "Torch-Compiled Region: 0/0"),
        ("## Call CompiledFxGraph fv3mb4dfrbqkxcxwqvw6dzwq ##", "## Call CompiledFxGraph fxk2 ##"),
        ("triton_poi_fused_add_mul_0", "triton_poi_fused_add_mul_17"),
        ("cpp_fused_add_mul_12", "cpp_fused_add_mul_3"),
        ("<function f at 0x7f00aa10>", "<function f at 0x7f11bb20>"),
        ("kernel_9f8e7d6c5b4a", "kernel_0a1b2c3d4e5f"),
    ],
)
def test_a_name_has_no_number_that_differs_between_processes(first: str, second: str) -> None:
    assert names.stable(first) == names.stable(second)


@pytest.mark.parametrize(
    ("whole", "short"),
    [
        ("aten::addmm", "addmm"),
        ("aten::as_strided", names.VIEWS),
        ("vllm::unified_attention_with_output", "unified_attention_with_output"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>, "
            "std::array<char*, 3ul> >(int, at::native::CUDAFunctor_add<c10::BFloat16>, std::array<char*, 3ul>)",
            "vectorized_elementwise_kernel<CUDAFunctor_add>",
        ),
        (
            "void flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128, 4> >(flash::Flash_fwd_params)",
            "flash_fwd_splitkv_kernel",
        ),
        ("void (anonymous namespace)::softmax_warp_forward<float, float, 9>(float*)", "softmax_warp_forward"),
        ("nvjet_tst_64x8_64x16_2x1_v_bz_TNT", "nvjet_tst_64x8_64x16_2x1_v_bz_TNT"),
        ("_ZN5aiter22paged_attention_kernelE", "paged_attention_kernel"),
        ("Memcpy DtoH (Device -> Pinned)", "Memcpy DtoH (Device -> Pinned)"),
        ("Cijk_Alik_Bljk_BBS_BH_MT128x128", "Cijk_Alik_Bljk_BBS_BH_MT128x128"),
        (
            "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
            "ncclDevKernel_AllReduce_Sum_bf16_RING_LL",
        ),
    ],
)
def test_names_that_people_read(whole: str, short: str) -> None:
    assert names.short(whole) == short


@given(st.text(min_size=1))
def test_any_name_has_a_short_one(name: str) -> None:
    assert len(names.short(f"x{name}")) <= names.LONGEST
