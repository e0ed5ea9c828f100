"""Variants end to end: a row, a baseline and evidence of its own for each; what they are is in every report."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest
from inner import Suite, usage_error

from pytest_llmperf.machine import detect
from pytest_llmperf.variants import parse

#: An engine whose speed is an argument, and whose profile names one kernel.
ENGINE = """
class Varied(Simulated):
    def __init__(self, spec):
        self.spec = spec
        row = {"seconds": 0.1, "kernels": True, "host": 0.0, "rows": {"flash::fwd": [1.0, 0.9, 0.9]}, "counts": {}}
        evidence = Engagement(True, "scripted", {"speed": spec.arguments.get("tpot")}, {"prefill": row, "decode": row})
        super().__init__(tpot=spec.arguments.get("tpot", 0.005), evidence=evidence)

    def in_effect(self):
        return {"size": 128} if "size" in self.spec.arguments else {}
"""
BACKENDS = '[Backend("ref", load_ref), Backend("sim", load_sim, arguments=("tpot", "size"))]'
FAST, SLOW = "fast = sim tpot=0.004 env:OURS=1", "slow = sim tpot=0.006 proof:kernel=flash::fwd"


@pytest.fixture
def varied(suite: Suite) -> Suite:
    suite.backends(sim="Varied(spec)", extra=ENGINE, backends=BACKENDS)
    suite.ini(llm_variants=f"\n    {FAST}\n    {SLOW}", llm_results="raw.json")
    return suite


def results(suite: Suite) -> dict[str, Any]:
    """The cases of the last run by their backend."""
    found = json.loads((suite.path / "raw.json").read_text())["results"]
    return {one["case"].split("/")[1]: one for one in found}


def test_each_variant_has_its_own_row_baseline_evidence_and_content(varied: Suite) -> None:
    fast, slow = (parse(line) for line in (FAST, SLOW))
    record = "--llm-update-baselines", "--llm-invocations=3"
    assert varied.decode(*record, backends="sim,fast,slow").ret == 0
    names = {key.split("/")[1] for key in varied.stored()["entries"]}
    assert names == {"sim", fast.id, slow.id}
    contents = {one["system"].get("variant", "") for one in varied.stored()["sittings"].values()}
    assert contents == {"", fast.said, slow.said}

    result = varied.decode("--llm-report=report.md,report.html,report.csv,report.json", backends="sim,fast,slow")
    assert result.ret == 0
    found = results(varied)
    assert {name: one["verdict"]["outcome"] for name, one in found.items()} == dict.fromkeys(names, "ok")
    assert {name: one["spread"]["median"] for name, one in found.items()} == pytest.approx(
        {"sim": 0.005, fast.id: 0.004, slow.id: 0.006}
    )
    assert found[fast.id]["engine"]["variant"] == "sim tpot=0.004 env:OURS=1"
    assert found[fast.id]["engine"]["environment"] == {"OURS": "1"}
    evidence = found[slow.id]["engagement"]
    assert evidence["expected"] == "scripted, and a kernel that matches 'flash::fwd'"
    assert evidence["seen"] == {"speed": 0.006}
    result.stdout.fnmatch_lines([f"{fast.id} is sim tpot=0.004 env:OURS=1 (tpot b1-p16-n8 {fast.id})"])
    for report in ("report.md", "report.html", "report.json"):
        shown = (varied.path / report).read_text().replace("&#64;", "@")
        assert fast.id in shown
        assert "tpot=0.004 env:OURS=1" in shown
    rows = list(csv.DictReader((varied.path / "report.csv").read_text().splitlines()))
    assert {row["backend"]: row["variant"] for row in rows} == {"sim": "", fast.id: fast.said, slow.id: slow.said}


def test_another_content_has_no_baseline_and_the_command_line_replaces_a_line(varied: Suite) -> None:
    assert varied.decode("--llm-update-baselines", "--llm-invocations=3", backends="fast").ret == 0
    other = "fast = sim tpot=0.0041"
    varied.decode("--llm-variant", other, "--llm-variant=more = sim tpot=0.002", backends="fast,more,slow")
    found = results(varied)
    ids = [parse(line).id for line in (other, "more = sim tpot=0.002", SLOW)]
    assert [found[name]["verdict"]["outcome"] for name in ids] == ["no baseline"] * 3
    assert found[ids[0]]["spread"]["median"] == pytest.approx(0.0041)


def test_a_conftest_may_state_variants(varied: Suite) -> None:
    hook = (
        "from pytest_llmperf import Variant\n\n"
        "def pytest_llmperf_variants():\n"
        "    return [Variant('hooked', 'sim', {'tpot': 0.003}), Variant('fast', 'sim', {'tpot': 1.0})]\n"
    )
    varied.backends(sim="Varied(spec)", extra=ENGINE + hook, backends=BACKENDS)
    assert varied.decode(backends="hooked,fast").ret == 0
    medians = {name.partition("@")[0]: one["spread"]["median"] for name, one in results(varied).items()}
    assert medians == pytest.approx({"hooked": 0.003, "fast": 0.004}), "ini comes before a conftest.py"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "odd = sim proof:kernel=triton",
            "the optimization did not engage: expected scripted, and a kernel that matches 'triton'; "
            "seen: speed=None, kernels=flash::fwd",
        ),
        ("odd = sim size=16", "expected scripted, and size=16; seen: speed=None, size=128"),
        ("odd = sim proof:speed=0.004", "and speed that matches '0.004'; seen: speed=None"),
    ],
)
def test_a_variant_whose_proof_is_not_seen_is_an_error_with_what_was(varied: Suite, line: str, said: str) -> None:
    result = varied.decode("--llm-variant", line, backends="odd")
    assert result.ret == 1
    assert said in result.stdout.str()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--llm-backends=odd", "--llm-variant=odd = sim tpt=1"],
         "llmperf: variant odd: sim takes no argument 'tpt' of a variant, did you mean 'tpot'?"),
        (["--llm-backends=odd", "--llm-variant=odd = ref tpot=1"],
         "llmperf: variant odd: ref takes no argument 'tpot' of a variant; a backend names those that it takes in "
         "Backend(arguments=...)"),
        (["--llm-backends=odd", "--llm-variant=odd = server x=1", "--llm-server=http://127.0.0.1:1"],
         "llmperf: variant odd: the server of --llm-server=server=... runs already, with arguments of its own"),
        (["--llm-variant=odd = smi x=1"], "llmperf: variant odd: unknown backend 'smi', did you mean 'sim'?"),
        (["--llm-variant=odd"], "'odd' is not 'name = backend key=value ...'"),
        (["--llm-variant=odd = sim x"], "variant odd: 'x' is not key=value"),
        (["--llm-backends=fsat"], "llmperf: unknown backend 'fsat', did you mean 'fast'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_before_anything_is_loaded(varied: Suite, arguments: list[str], said: str) -> None:
    assert said in usage_error(varied.run("suites/test_decode.py", *arguments))
    assert varied.loads == {"ref": 0, "sim": 0}


def test_a_malformed_line_of_ini_and_a_marker_s_variant_are_one_line_too(varied: Suite) -> None:
    varied.test(
        "import pytest\n\n@pytest.mark.llm(backends=['odd'])\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')\n"
    )
    assert "takes no argument 'tpt'" in usage_error(varied.run("test_it.py", "--llm-variant=odd = sim tpt=1"))
    varied.ini(llm_variants="a = sim tpot")
    assert usage_error(varied.run("suites")).endswith(
        "llm_variants (ini): variant a: 'tpot' is not key=value; the whole is as in 'vllm-triton = vllm "
        "attention_backend=TRITON_ATTN'"
    )


def test_the_listing_says_what_variants_are(varied: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "found", tuple)
    monkeypatch.setenv("COLUMNS", "4000")
    result = varied.run("--llm-list", "--llm-variant=odd = sim tpt=1")
    found = {line.split()[0]: line for line in result.outlines if line.strip()}
    assert result.ret == 0
    assert found[parse(FAST).id].split()[1:5] == ["yes", "sim", "tpot=0.004", "env:OURS=1"]
    assert "kernel that matches 'flash::fwd'" in found[parse(SLOW).id]
    assert "no: sim takes no argument 'tpt'" in found[parse("odd = sim tpt=1").id]


def test_base_measures_the_same_variant(varied: Suite) -> None:
    varied.git("init", "--quiet")
    (varied.path / ".gitignore").write_text("*.pids\n*.json\n__pycache__\n.pytest_cache\n")
    varied.commit()
    slower = ENGINE.replace('get("tpot", 0.005)', 'get("tpot", 0.005) * 1.08')
    varied.backends(sim="Varied(spec)", extra=slower, backends=BACKENDS)
    result = varied.decode("--llm-base=HEAD", backends="slow")
    verdict = results(varied)[parse(SLOW).id]["verdict"]
    assert (result.ret, verdict["outcome"]) == (1, "regression")
    assert (verdict["baseline"], verdict["head"]) == pytest.approx((0.006, 0.006 * 1.08))
