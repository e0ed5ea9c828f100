"""Memory is gated as a latency is: by the stored baseline, in fresh processes, beside base, in words of its own."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from gated import SIM, gate, record, verdicts
from inner import SERVING, TESTS, Suite
from simulated import MIB

from pytest_llmperf.machine import fingerprint

MEMORY = "test_memory.py"
#: What a generation takes by the baseline, and what an engine takes that has grown.
RECORDED, GROWN = 64 * MIB, "Simulated(tpot=0.005, memory=int(64 * 1.2) * 2**20)"
VERSIONS = {"python": "3.11.9", "torch": "2.13.0"}


@pytest.fixture
def recorded(suite: Suite) -> Suite:
    """A suite whose baseline has one sitting of 64 MiB."""
    shutil.copy(TESTS.parent / "suites" / "test_memory.py", suite.path)
    suite.record({"sim/memory": RECORDED, "sim/tpot": 0.005})
    return suite


def memory(suite: Suite, *arguments: str) -> tuple[pytest.RunResult, dict[str, Any]]:
    return gate(suite, MEMORY, "--llm-backends=sim", *arguments)


def test_unchanged_memory_is_ok_by_one_process(recorded: Suite) -> None:
    result, said = memory(recorded)
    assert (result.ret, said["outcome"], said["basis"], recorded.loads["sim"]) == (0, "ok", "stored", 1)
    result.stdout.fnmatch_lines(["memory b1-p16-n8 sim *64.0 MiB *ok", "1 cases gated: 1 ok"])


def test_how_fast_the_machine_is_says_nothing_of_memory(recorded: Suite) -> None:
    recorded.record({"sim/memory": RECORDED}, rates={"flops": 2e15, "bandwidth": 2e15})
    assert memory(recorded)[1]["outcome"] == "ok"


def test_more_memory_is_a_regression_by_fresh_processes_without_a_base(recorded: Suite) -> None:
    recorded.backends(sim=GROWN)
    result, said = memory(recorded)
    assert (result.ret, said["outcome"], said["basis"], said["count"]) == (1, "regression", "stored", 3)
    assert said["reason"] == "18.8% more memory than the baseline in 3 fresh processes"
    result.stdout.fnmatch_lines(
        "*peak memory beyond what is loaded 76.0 MiB, baseline 64.0 MiB, +18.8%*, 12.0 MiB more, allowed *"
    )
    assert recorded.loads == {"ref": 0, "sim": 4}
    assert "slower" not in result.stdout.str().partition("To settle it")[0].partition("to accept it")[0]


def test_processes_that_took_more_once_are_no_regression(recorded: Suite) -> None:
    recorded.backends(sim="Simulated(memory=(80 if process == 1 else 64) * 2**20)")
    result, said = memory(recorded)
    assert (result.ret, said["outcome"], said["count"]) == (0, "ok", 3)


def test_less_memory_is_called_that(recorded: Suite) -> None:
    recorded.backends(sim="Simulated(memory=54 * 2**20)")
    result, said = memory(recorded, "--llm-report=r.md")
    assert said["outcome"] == "faster"
    assert said["reason"].startswith("15.6% less memory than the baseline in 1 process")
    result.stdout.fnmatch_lines(["memory b1-p16-n8 sim *less memory", "1 cases gated: 1 less memory"])
    for text in (result.stdout.str(), (recorded.path / "r.md").read_text()):
        assert "faster" not in text


def test_little_more_of_little_is_no_regression(recorded: Suite) -> None:
    recorded.record({"sim/memory": 2 * MIB})
    recorded.backends(sim="Simulated(memory=4 * 2**20)")
    assert memory(recorded)[1]["outcome"] == "ok"


def test_code_that_has_not_changed_cannot_take_more(recorded: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "everything_installed", lambda *_: dict(VERSIONS))
    recorded.git("init", "--quiet")
    (recorded.path / ".gitignore").write_text("*.pids\n*.json\n__pycache__\n.pytest_cache\n")
    recorded.backends(sim=GROWN)
    recorded.record({"sim/memory": RECORDED}, revision=recorded.commit(), versions=VERSIONS)
    result, said = memory(recorded)
    assert (result.ret, said["outcome"]) == (0, "inconclusive")
    assert "code and versions are those of the baseline: it is the machine" in said["reason"]
    assert "an increase of " in said["reason"]


def test_beside_a_named_base_it_is_compared_in_pairs(suite: Suite) -> None:
    shutil.copy(TESTS.parent / "suites" / "test_memory.py", suite.path)
    suite.git("init", "--quiet")
    (suite.path / ".gitignore").write_text("*.pids\n*.json\n__pycache__\n.pytest_cache\n")
    base = suite.commit()
    suite.backends(sim=GROWN)
    result, said = memory(suite, f"--llm-base={base}")
    assert (result.ret, said["outcome"], said["basis"]) == (1, "regression", "base")
    assert said["reason"].startswith("18.8% more memory than base in 4 pairs of fresh processes; base is ")


def test_a_run_with_larger_cases_than_recorded_tells_nothing(recorded: Suite) -> None:
    recorded.run(MEMORY, "--llm-backends=sim", "--llm-update-baselines", "--llm-invocations=3")
    recorded.backends(sim=GROWN)
    options = ("--llm-batch-sizes=1,4", "--llm-results=raw.json", "--llm-compare=never")
    recorded.run(MEMORY, "--llm-backends=sim", *options).assert_outcomes(passed=2)
    first, second = json.loads((recorded.path / "raw.json").read_text())["results"]
    assert first["verdict"]["outcome"] == "inconclusive"
    assert first["verdict"]["reason"].endswith(
        "recorded with room for 1 requests of 24 tokens, and this run has room for 4 requests of 24 tokens"
    )
    assert second["verdict"]["outcome"] == "no baseline"


def test_what_is_loaded_is_gated_by_a_metric_of_its_own(recorded: Suite) -> None:
    recorded.record({"sim/weights": 512 * MIB})
    recorded.test("def test_weights(llm_perf):\n    llm_perf.gate('weights')")
    recorded.backends(sim="Simulated(weights=2**30)")
    result, said = gate(recorded, "test_it.py", "--llm-backends=sim")
    assert (result.ret, said["outcome"]) == (1, "regression")
    result.stdout.fnmatch_lines("*memory when loaded 1.000 GiB, baseline 512.0 MiB, +100.0%*512.0 MiB more*")


def test_accepted_memory_is_in_the_baseline_and_in_reports(recorded: Suite) -> None:
    files = "--llm-report=r.html,r.md,r.csv,r.json"
    result = recorded.run(MEMORY, "--llm-backends=sim", "--llm-update-baselines", "--llm-invocations=3", files)
    (entry,) = recorded.stored()["entries"]["bfloat16/sim/b1-p16-n8/memory"]
    assert entry["unit"] == "B"
    assert entry["processes"] == pytest.approx([RECORDED] * 3, rel=1e-5)
    assert list(recorded.stored()["sittings"].values())[-1]["system"]["room"] == [1, 24]
    assert list(recorded.stored()["sittings"].values())[-1]["system"]["workloads"] == ["b1-p16-n8"]
    result.stdout.fnmatch_lines("memory b1-p16-n8 sim *64.0 MiB *64.0 MiB *+0.0% *")
    (row,) = json.loads((recorded.path / "r.json").read_text())["results"]
    assert (row["peak_memory"], row["loaded_memory"], row["speedup"]) == (576 * MIB, 512 * MIB, None)
    assert "64.0 MiB" in (recorded.path / "r.html").read_text()


def test_pytest_benchmark_has_no_row_of_bytes(recorded: Suite) -> None:
    options = ("--llm-backends=sim", "--benchmark-json=b.json")
    result = recorded.run(MEMORY, "suites/test_decode.py", *options)
    result.assert_outcomes(passed=2)
    assert "was not used" not in result.stdout.str()
    (row,) = json.loads((recorded.path / "b.json").read_text())["benchmarks"]
    assert row["fullname"].startswith("suites/test_decode.py")
    assert row["extra_info"]["loaded_memory"] == 512 * MIB


def test_the_self_test_leaves_memory_out(recorded: Suite) -> None:
    result = recorded.run(MEMORY, "--llm-backends=sim", "--llm-self-test", "--llm-budget=0.1", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines("*tries the gate on latencies*")


#: An engine that keeps ``memory`` of each workload that it has served.
KEEPING = (
    SERVING
    + """
class Keeping(Serving):
    def __init__(self, memory=64 * 2**20, **options):
        super().__init__(**options)
        from pytest_llmperf.machine import memory as meters
        self.memory, self.seen = memory, set()
        meters.meter = lambda *_: self

    def generate(self, prompts, max_new_tokens, on_token):
        self.seen.add(len(prompts))
        super().generate(prompts, max_new_tokens, on_token)

    def begin(self):
        pass

    def end(self, alone):
        pass

    def of(self, generate):
        from pytest_llmperf.machine.memory import Memory
        return Memory(2**29, 2**29 + self.memory * len(self.seen))
"""
)
TWO = ("--llm-backends=sim", "--llm-batch-sizes=4,1")


@pytest.mark.parametrize("memory_first", [True, False])
def test_memory_is_that_of_processes_that_measured_all(suite: Suite, memory_first: bool) -> None:
    shutil.copy(TESTS.parent / "suites" / "test_memory.py", suite.path)
    record(suite)
    suite.backends(sim="Keeping(tpot=0.005)", extra=KEEPING)
    suite.run(MEMORY, *TWO, "--llm-update-baselines=new", "--llm-invocations=3").assert_outcomes(passed=2)
    (entry,) = suite.stored()["entries"][f"{SIM}/memory"]
    assert entry["processes"] == pytest.approx([2 * RECORDED] * 3, rel=1e-5)
    (suite.path / "served").unlink()
    suite.backends(sim="Keeping(tpot=0.005 * 1.15, memory=80 * 2**20)", extra=KEEPING)
    files = [MEMORY, "suites/test_decode.py"]
    gate(suite, *(files if memory_first else files[::-1]), *TWO)
    said = verdicts(suite)
    assert said[f"{SIM}/memory"]["reason"] == "25.0% more memory than the baseline in 3 fresh processes"
    assert said[f"{SIM}/tpot"]["outcome"] == "regression"
    in_turns, as_sitting = [[1]] * 3, [[4, 1]] * 3
    assert suite.served == [[4, 1], *(as_sitting + in_turns if memory_first else in_turns + as_sitting)]


def test_a_workload_that_ends_its_process_is_left_out(recorded: Suite) -> None:
    recorded.backends(sim="Serving(lambda batch: batch == 4 and die(), memory=76 * 2**20)", extra=SERVING)
    recorded.record({"sim/memory": RECORDED})
    recorded.run(MEMORY, *TWO).assert_outcomes(failed=2)
    assert recorded.served[1:] == [[1]] * 4


def test_memory_that_cannot_be_read_skips_the_test_with_a_line(recorded: Suite) -> None:
    recorded.backends(sim="Unreadable()", extra=UNREADABLE)
    result = recorded.run(MEMORY, "--llm-backends=sim", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines("*sim/b1-p16-n8/memory: it is nowhere*")
    recorded.run(MEMORY, "--llm-backends=sim", "--llm-strict").assert_outcomes(failed=1)
    recorded.decode("--llm-report=r.md").assert_outcomes(passed=1)


def test_memory_that_cannot_be_read_is_unmeasured_only_if_it_has_a_baseline(recorded: Suite) -> None:
    recorded.backends(sim="Unreadable()", extra=UNREADABLE)

    def unmeasured() -> list[str]:
        options = ("--llm-backends=sim", "--llm-results=raw.json")
        result = recorded.run(MEMORY, "suites/test_decode.py", *options)
        result.stdout.fnmatch_lines("1 cases gated: *1 skipped*")
        return json.loads((recorded.path / "raw.json").read_text())["unmeasured"]  # type: ignore[no-any-return]

    (said,) = unmeasured()
    assert said.endswith("sim/b1-p16-n8/memory: it is nowhere")
    recorded.baseline.unlink()
    recorded.record({"sim/tpot": 0.005})
    assert unmeasured() == []


UNREADABLE = """
class Unreadable(Simulated):
    def __init__(self):
        super().__init__(tpot=0.005)
        from pytest_llmperf.machine import memory
        memory.meter = lambda *_: memory.Unknown("it is nowhere")
"""
