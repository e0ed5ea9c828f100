"""What a run covers: types, names and sizes that the device, the registry and the tests decide."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inner import Suite

from pytest_llmperf import availability
from pytest_llmperf.availability import UnusableError
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.cases import Case, Workload
from pytest_llmperf.gate.baseline import Baseline, Entry, Sitting
from pytest_llmperf.gate.checkout import Base
from pytest_llmperf.gate.priors import ACCELERATOR_DECODE
from pytest_llmperf.gate.rule import Outcome, Verdict, nothing
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.machine import cards, detect, fingerprint
from pytest_llmperf.plan import Plan
from pytest_llmperf.secret import Secret

REGISTRY = Registry(BUILT_IN)


@pytest.fixture
def make(suite: Suite, tmp_path: Path) -> Any:
    """A plan of the command line's settings and these."""
    from pytest_llmperf import plugin

    def plan(*arguments: str, **changes: Any) -> Plan:
        (suite.path / "tiny" / "pytorch_model.bin").touch()  # the weights, which nobody reads here
        suite.ini(llm_dtype="", llm_backends="", llm_reference="", llm_batch_sizes="", llm_max_new_tokens="")
        config = suite.pytester.parseconfigure("-p", "benchmark", "-p", "llmperf", *arguments)
        return Plan(replace(config.stash[plugin.KEY].settings, **changes), REGISTRY, tmp_path, tmp_path)

    return plan


@pytest.mark.parametrize(
    ("isa", "dtype"),
    [(("avx2",), "float32"), (("avx2", "avx512_bf16"), "bfloat16"), (("amx_bf16",), "bfloat16"), ((), "float32")],
)
def test_a_cpu_is_measured_in_the_type_that_it_multiplies(
    make: Any, isa: tuple[str, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(fingerprint.take(), isa=isa)
    monkeypatch.setattr(fingerprint, "take", lambda: here)
    assert make().dtype == dtype
    assert make("--llm-dtype=bfloat16").dtype == "bfloat16"


def test_one_combination_is_measured_once_under_its_own_name(make: Any) -> None:
    plan = make("--llm-backends=int8+compile-static,compile-static+int8,sdpa+compile,eager")
    assert plan.backends == ("eager", "compile-static+int8", "compile")


def test_the_reference_goes_by_its_own_name(make: Any) -> None:
    with pytest.raises(UnusableError, match=r"--llm-reference=sdpa\+compile: this backend is called compile; "):
        make("--llm-reference=sdpa+compile")


def test_the_largest_workload_is_that_of_all_tests_so_far(make: Any) -> None:
    plan = make("--llm-batch-sizes=1,4", "--llm-prompt-lengths=16,64", "--llm-max-new-tokens=8")
    assert plan.largest == Workload(4, 64, 8)
    plan.workloads(batch_sizes=[8], prompt_lengths=[32])
    assert plan.largest == Workload(8, 64, 8)


CASE = Case("m", "bfloat16", "compile-static+int8", Workload(32, 256, 64), "tpot")


@pytest.mark.parametrize(
    ("lines", "marker", "option", "allowed"),
    [
        ((), None, None, (0.10, "default of cpu")),
        ((("*/b32-*", 0.2),), None, None, (0.2, "llm_tolerances: */b32-*")),
        ((("*/b3-*", 0.2), ("*/ttft", 0.01), ("float32/*", 0.01)), None, None, (0.10, "default of cpu")),
        ((("*int8*/tpot", 0.03), ("*", 0.05)), 0.04, "--llm-max-regression=6%", (0.03, "llm_tolerances: *int8*/tpot")),
        ((("*", 0.05),), 0.04, "--llm-max-regression=6%", (0.04, "marker")),
        ((("*", 0.05),), None, "--llm-max-regression=2%", (0.02, "--llm-max-regression")),
    ],
)
def test_the_strictest_tolerance_stated_counts_and_says_where_it_was(
    make: Any, lines: Any, marker: float | None, option: str | None, allowed: tuple[float, str]
) -> None:
    found = make(*filter(None, [option]), tolerances=lines).allowed(CASE, marker)
    assert found.by_baseline == allowed
    assert found.beside_base == ((0.03, "default with a base") if allowed[1].startswith("default") else allowed)
    assert (found.stored, found.usual) == (allowed[0], allowed[0]), "no base is named"


@pytest.mark.parametrize(
    ("option", "lines", "marker", "allowed"),
    [
        ("", (), None, (0.05, "default of memory on cpu")),
        ("--llm-max-regression=1%", (), None, (0.05, "default of memory on cpu")),
        ("", (("*/memory", 0.2),), None, (0.2, "llm_tolerances: */memory")),
        ("", (("*/memory", 0.2),), 0.1, (0.1, "marker")),
    ],
)
def test_memory_is_allowed_what_is_stated_of_it(
    make: Any, option: str, lines: Any, marker: float | None, allowed: tuple[float, str]
) -> None:
    found = make(*filter(None, [option]), tolerances=lines).allowed(replace(CASE, metric="memory"), marker)
    assert found.by_baseline == found.beside_base == allowed


def test_cases_that_are_not_those_recorded_are_known(make: Any) -> None:
    plan = make()
    plan.cover([Workload(4, 256, 32)])
    plan.complete([("compile", ONE), ("compile", TWO)])

    def said(**system: Any) -> str | None:
        return plan.other_cases("compile", Sitting("2026-01-31", None, {}, {}, system, {}))  # type: ignore[no-any-return]

    assert said() is None, "an older sitting does not say"
    assert said(room=[4, 288]) is said(room=[4, 288], workloads=[str(ONE), str(TWO)]) is None
    assert str(said(room=[8, 288])).startswith("recorded with room for 8 requests of 288 tokens, and")
    assert said(room=[4, 288], workloads=[str(TWO)]) == (
        f"recorded by processes that measured {TWO}, and those of this run measure {ONE}, {TWO}"
    )
    assert said(room=[1, 288]) == (
        "recorded with room for 1 requests of 288 tokens, and this run has room for 4 requests of 288 tokens"
    )


def test_beside_a_named_base_less_is_allowed_unless_it_cannot_be_had(make: Any, tmp_path: Path) -> None:
    plan = make()
    plan.base = Base(tmp_path, None, None, sys.executable)
    found = plan.allowed(CASE, None)
    assert (found.stored, found.usual) == (0.10, 0.03)
    assert found.of(Verdict(Outcome.OK, tolerance=0.03)) == (0.03, "default with a base")
    assert found.of(Verdict(Outcome.OK, tolerance=0.10)) == (0.10, "default of cpu")
    assert found.of(nothing(Outcome.NEW, "base cannot run it")) == (0.03, "default with a base")


def test_a_line_of_the_table_that_matches_nothing_is_known(make: Any) -> None:
    plan = make(tolerances=(("*/tpot", 0.1), ("tpot/*", 0.1)))
    assert plan.idle([CASE]) == ["tpot/*"]


def test_without_a_test_that_says_so_the_largest_workload_is_the_default(make: Any) -> None:
    assert make("--llm-prompt-lengths=32").largest == Workload(4, 32, 32)


# What becomes of each case


ONE, TWO = Workload(1, 256, 32), Workload(4, 256, 32)
TESTS = (("sdpa+compile", ONE), ("compile", TWO), ("eager", TWO), ("compile", ONE))


def with_baseline(plan: Plan, *cases: Case) -> None:
    """The cases have a baseline of this machine."""
    sitting = Sitting("2026-01-31", None, fingerprint.take().as_dict(), {}, {}, {})
    entries = {one.key: (Entry(sitting.id, "s", (0.005,) * 3),) for one in cases}
    plan.stored = Baseline("cpu", plan.model.name, {sitting.id: sitting}, entries)


def complete(plan: Plan) -> Plan:
    plan.complete(TESTS)
    return plan


def test_tests_gate_each_workload_of_a_backend_once_in_their_order(make: Any) -> None:
    plan = complete(make())
    assert {name: plan.gated(name) for name in ("compile", "eager", "sdpa")} == {
        "compile": (ONE, TWO),
        "eager": (TWO,),
        "sdpa": (),
    }


def test_nothing_is_accepted_that_nobody_asked_for(make: Any) -> None:
    assert complete(make()).accepted("compile") == []


@pytest.mark.parametrize("which", ["all", "slower", "add"])
def test_all_that_is_gated_is_accepted(make: Any, which: str) -> None:
    plan = complete(make(f"--llm-update-baselines={which}"))
    with_baseline(plan, plan.case("compile", ONE, "tpot"))
    assert plan.accepted("compile") == [ONE, TWO]


def test_of_new_ones_those_are_accepted_that_have_no_baseline_of_any_metric(make: Any) -> None:
    plan = complete(make("--llm-update-baselines=new"))
    known = plan.case("compile", ONE, "tpot")
    with_baseline(plan, known)
    assert plan.accepted("compile") == [TWO]
    assert [plan.accepts(one) for one in (known, replace(known, metric="ttft"))] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "base", "compared"),
    [
        ((), False, []),
        ((), True, [TWO]),
        (("--llm-compare=unresolved",), True, [TWO]),
        (("--llm-compare=always",), False, [ONE, TWO]),
        (("--llm-compare=always",), True, [ONE, TWO]),
        (("--llm-compare=always", "--llm-update-baselines=new"), False, [ONE]),  # figures that are accepted are not
        (("--llm-compare=always", "--llm-update-baselines=new"), True, [ONE, TWO]),  # unless beside a named base
        (("--llm-compare=never",), True, []),
        (("--llm-self-test",), False, [ONE, TWO]),
    ],
)
def test_what_is_compared_whatever_its_figures_are(
    make: Any, tmp_path: Path, arguments: tuple[str, ...], base: bool, compared: list[Workload]
) -> None:
    """With a named base, what has no baseline that could settle it."""
    plan = complete(make(*arguments))
    plan.base = Base(tmp_path, None, None, sys.executable) if base else None
    with_baseline(plan, plan.case("compile", ONE, "tpot"))
    assert plan.compared("compile") == compared


def test_the_repository_s_own_code_is_no_version_wherever_its_suites_are(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(_: Interpreter) -> dict[str, dict[str, str]]:
        folders = {"stack": tmp_path / "src", "other": tmp_path.parent / "other"}
        return {name: {"version": "1", "folder": str(folder), "revision": "c0ffee"} for name, folder in folders.items()}

    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setattr(Interpreter, "installed", installed)
    plan = make()
    plan.root = tmp_path / "suites"
    plan.root.mkdir()
    assert plan.installed("eager") == {"other": "1 (c0ffee)"}


# Devices


@pytest.fixture
def four_mi250(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight dies, two a package; links as RCCL has them of a chassis in which not every package is linked."""
    monkeypatch.setattr(detect, "found", lambda: ("AMD Instinct MI250X / MI250",) * 8)
    for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"):
        monkeypatch.delenv(name, raising=False)


def links(path: Path) -> Path:
    """As JSON: 200 GB/s within a package, 50 between packages 0 and 2, and 1 and 3, and 10 elsewhere."""
    linked = {frozenset((0, 2)), frozenset((1, 3))}

    def rate(one: int, other: int) -> float:
        packages = frozenset((one // 2, other // 2))
        return 200.0 if len(packages) == 1 else 50.0 if packages in linked else 10.0

    path.write_text(json.dumps({"links": [[rate(one, other) for other in range(8)] for one in range(8)]}))
    return path


GPU_RUN = ("--llm-device=mi250", "--llm-model=llama-2-7b", "--llm-random-weights", "--llm-backends=sdpa")


@pytest.mark.usefixtures("four_mi250")
def test_ranks_use_the_dies_with_the_best_links_and_the_baseline_says_so(make: Any, tmp_path: Path) -> None:
    plan = make(*GPU_RUN, "--llm-tp=1,4", f"--llm-topology={links(tmp_path / 'links.json')}")
    assert plan.backends == ("sdpa", "sdpa+tp4")
    one, four = (REGISTRY[name] for name in plan.backends)
    assert plan.devices(one) is None
    assert plan.device_variables(one) == {}
    assert plan.devices(four).devices == (0, 1, 4, 5)
    assert plan.device_variables(four)["HIP_VISIBLE_DEVICES"] == "0,1,4,5"
    assert str(plan.devices(four)).startswith("0,1,4,5: the best interconnect")


@pytest.mark.usefixtures("four_mi250")
def test_what_is_stated_overrides_the_choice_also_of_one_device(make: Any) -> None:
    plan = make(*GPU_RUN, "--llm-tp=1,2", "--llm-visible-devices=6,3")
    one, two = (REGISTRY[name] for name in plan.backends)
    assert plan.device_variables(one)["HIP_VISIBLE_DEVICES"] == "6"
    assert plan.device_variables(two)["HIP_VISIBLE_DEVICES"] == "6,3"


@pytest.mark.usefixtures("four_mi250")
def test_why_ranks_cannot_be_placed_is_said(make: Any, tmp_path: Path) -> None:
    plan = make(*GPU_RUN, "--llm-tp=16", f"--llm-topology={links(tmp_path / 'links.json')}")
    with_reason = {"sdpa+tp16": "16 ranks need 16 mi250 dies, and this machine has 8"}
    assert {name: plan._too_few(REGISTRY[name]) for name in plan.backends} == with_reason
    plan = make(*GPU_RUN, "--llm-tp=4", "--llm-visible-devices=0,1")
    assert "4 devices are needed" in str(plan._unplaced(REGISTRY["sdpa+tp4"]))


@pytest.mark.usefixtures("four_mi250")
def test_a_share_that_does_not_fit_a_die_is_said(make: Any, tmp_path: Path) -> None:
    arguments = ("--llm-model=llama-2-70b", f"--llm-topology={links(tmp_path / 'links.json')}")
    small, large = (make(*GPU_RUN, *arguments, f"--llm-tp={degree}") for degree in (2, 4))
    assert "each rank's share of the weights and the KV cache is" in str(small._too_few(REGISTRY["sdpa+tp2"]))
    assert large._too_few(REGISTRY["sdpa+tp4"]) is None
    ray = make(*GPU_RUN, *arguments, "--llm-backends=vllm,sdpa", "--llm-tp=16", "--llm-executor=ray")
    assert ray._too_few(REGISTRY["vllm+tp16"]) is None, "its ranks may be on other hosts"
    assert ray._too_few(REGISTRY["sdpa+tp16"]) is not None


# An accelerator that nobody listed


@pytest.fixture
def two_a6000(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Bytes of their memory, in a list."""
    memory: list[int | None] = [48 * 2**30]
    monkeypatch.setattr(detect, "found", lambda: ("NVIDIA RTX A6000",) * 2)
    monkeypatch.setattr(cards, "memory", lambda device: None if device.kind == "cpu" else memory[0])
    monkeypatch.setattr(availability, "torch_of", lambda *_: "2.13.0+cu128")
    return memory


A6000_RUN = ("--llm-device=nvidia-rtx-a6000", *GPU_RUN[1:])


@pytest.mark.usefixtures("two_a6000")
def test_an_unlisted_accelerator_is_an_accelerator_under_its_product_s_name(make: Any) -> None:
    plan = make(*A6000_RUN)
    assert (plan.device.name, plan.device.kind, plan.device.memory_bytes) == ("nvidia-rtx-a6000", "cuda", 48 * 2**30)
    assert plan.dtype == "float16"
    assert plan.largest.batch_size > 1
    assert plan.passed_over == ""
    assert plan.baseline_path.parent.name == "nvidia-rtx-a6000"
    case = Case("llama-2-7b", "float16", "sdpa", Workload(1, 8, 8), "tpot")
    assert plan.prior(case) == ACCELERATOR_DECODE
    assert plan.allowed(case, None).by_baseline[0] == 0.05
    assert make(*A6000_RUN[1:], device=None).device == plan.device


@pytest.mark.parametrize(("gib", "twice"), [(80, True), (48, False), (None, False)])
def test_its_memory_is_the_driver_s(make: Any, two_a6000: list[int | None], gib: int | None, twice: bool) -> None:
    two_a6000[0] = gib and gib * 2**30
    assert make(*A6000_RUN).fits_twice == twice, "and never the host's"


def test_its_ranks_need_devices_also_where_the_memory_is_unknown(make: Any, two_a6000: list[int | None]) -> None:
    two_a6000[0] = None
    plan = make(*A6000_RUN)
    assert plan._too_few(REGISTRY["sdpa+tp2"]) is None
    assert plan._too_few(REGISTRY["sdpa+tp4"]) == "4 ranks need 4 nvidia-rtx-a6000 dies, and this machine has 2"


def test_ray_on_a_cpu_is_skipped_with_the_reason(make: Any) -> None:
    plan = make("--llm-device=cpu", "--llm-executor=ray", "--llm-backends=vllm,sdpa", "--llm-tp=2")
    assert plan._too_few(REGISTRY["vllm+tp2"]) == "vLLM does not run over Ray on a CPU"
    assert plan._too_few(REGISTRY["sdpa+tp2"]) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--llm-executor=ray", "--llm-backends=sdpa"), "no backend of this run is vLLM"),
        (("--llm-device=cpu", "--llm-visible-devices=0,1"), "the CPU is one device"),
        (("--llm-device=cpu", "--llm-topology=links.json"), "the CPU is one device"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(make: Any, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UnusableError, match=said):
        make(*arguments)


@pytest.mark.parametrize("kind", ["bloom", "mpt", "mamba"])
def test_an_attention_that_transformers_has_not_for_a_model_is_skipped_with_the_reason(
    make: Any, suite: Suite, kind: str
) -> None:
    suite.model(model_type=kind)
    plan = make("--llm-device=cpu", "--llm-backends=eager,sdpa,transformers-paged")
    assert plan.missing("eager") is None
    reason = f"transformers has no sdpa attention for the model type '{kind}'; "
    assert plan._not_in_transformers(REGISTRY["sdpa"]) == plan.missing("sdpa") == reason + "eager may run"
    static = plan._not_in_transformers(REGISTRY["compile-static"])
    assert static == reason + "eager+compile-static may run"


@pytest.mark.parametrize("kind", ["t5", "lama", "clip"])
def test_a_model_type_that_transformers_does_not_know_is_refused_where_nothing_else_runs(
    make: Any, suite: Suite, kind: str
) -> None:
    suite.model(model_type=kind)
    with pytest.raises(UnusableError, match=f"has no causal language model of the type '{kind}'") as caught:
        make("--llm-device=cpu", "--llm-backends=eager,sdpa")
    assert len(str(caught.value)) < 300
    server = ("--llm-backends=server", "--llm-server=http://127.0.0.1:1")
    plan = make("--llm-device=cpu", *server)  # whose own affair it is
    assert plan.missing("server") is None


@pytest.mark.parametrize("kind", ["gemma2", "vaultgemma"])
def test_an_attention_that_leaves_out_a_cap_of_the_scores_is_skipped_with_the_reason(
    make: Any, suite: Suite, kind: str
) -> None:
    suite.model(model_type=kind)
    plan = make("--llm-device=cpu", "--llm-backends=eager,sdpa,compile-static,eager+compile,transformers-paged")
    assert plan.missing("eager") is plan.missing("eager+compile") is None
    said = f"{kind} caps its attention scores (attn_logit_softcapping is 50), which sdpa leaves out, so its tokens"
    assert plan.missing("sdpa") == f"{said} would be wrong; eager may run"
    assert plan.missing("compile-static") == f"{said} would be wrong; eager+compile-static may run"
    for name in ("transformers-paged", "eager+transformers-paged"):  # paged attention knows no cap at all
        assert plan.missing(name).endswith(" leaves out, so its tokens would be wrong")
    assert "xformers leaves out" in plan._not_in_transformers(REGISTRY["xformers"])
    assert plan._not_in_transformers(REGISTRY["flash-attention-2"]) is None  # is handed the cap
    suite.model(model_type=kind, attn_logit_softcapping=None)
    assert make("--llm-device=cpu", "--llm-backends=eager,sdpa").missing("sdpa") is None


def test_a_model_without_weights_is_refused_where_nothing_else_runs(make: Any, suite: Suite) -> None:
    plan = make("--llm-device=cpu", "--llm-backends=eager,sdpa")
    (suite.path / "tiny" / "pytorch_model.bin").rename(suite.path / "tiny" / "consolidated.pt")
    said = f"{suite.path / 'tiny'} has no weights (model.safetensors, say)"
    assert plan.missing("eager").startswith(said)
    assert plan._not_loadable(REGISTRY["vllm"]) is None  # which takes files of other names
    (suite.path / "tiny" / "consolidated.pt").rename(suite.path / "tiny" / "model.gguf")
    assert "; transformers can convert its GGUF" in plan.missing("eager")
    (suite.path / "tiny" / "model.gguf").unlink()
    assert "; download it again, or use --llm-random-weights" in plan.missing("eager")
    assert plan._not_loadable(REGISTRY["vllm"]).startswith(said)
    attached = replace(plan.settings, server=(("tgi", Secret.url("http://127.0.0.1:1")),))
    server = Plan(replace(attached, backends=("tgi",)), REGISTRY, suite.path, suite.path)
    assert server._not_loadable(REGISTRY["tgi"]) is None  # the weights are with the server
    with pytest.raises(UnusableError, match=r"model tiny: \S+ has no weights .*; no backend of this run can load it"):
        Plan(plan.settings, REGISTRY, suite.path, suite.path)


def test_what_vllm_cannot_read_the_configuration_of_is_known_without_it(make: Any, suite: Suite) -> None:
    suite.model(model_type="clip")
    plan = make("--llm-device=cpu", "--llm-backends=eager,vllm", dtype="float32", strict=True)
    assert "has no causal language model" in plan._not_loadable(REGISTRY["eager"])
    assert plan._not_loadable(REGISTRY["vllm"]) is None  # may have one of its own
    suite.model(model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    plan = make("--llm-device=cpu", "--llm-backends=server", "--llm-server=http://127.0.0.1:1")
    assert "is never run" in plan._not_loadable(REGISTRY["vllm"])
    assert plan._not_loadable(REGISTRY["tgi"]) is None


def test_sizes_that_are_not_known_forbid_nothing(make: Any, suite: Suite) -> None:
    suite.model(model_type="jamba")
    plan = make("--llm-device=cpu", "--llm-backends=eager", "--llm-tp=2")
    assert plan.need.weights is None
    assert not plan.fits_twice
    assert plan.uncounted == "the sizes of the model type 'jamba' are not known here"
    assert plan.model.architecture.heads == 4
