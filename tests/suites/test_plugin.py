"""The plugin as pytest's guest: options, fixtures, markers, order, and the other plugins' reports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from inner import INI, RATES, Suite, pytest_process, usage_error

from pytest_llmperf.plugin import NO_BENCHMARK, REPLACED
from pytest_llmperf.secret import Secret
from pytest_llmperf.settings import OPTIONS, Settings
from pytest_llmperf.variants import table

CASES = "@pytest.mark.llm(backends=['sim'])"

# Options

VALUES = {
    "device": ("cpu", "cpu"),
    "model": ("tiny", "tiny"),
    "variant": ("fast = sim env:X=1", table(["fast = sim env:X=1"])),
    "backends": ("sim, ref", ("sim", "ref")),
    "python": ("sim=/opt/a, ref=/opt/b", (("sim", "/opt/a"), ("ref", "/opt/b"))),
    "tp": ("1, 2", (1, 2)),
    "executor": ("ray", "ray"),
    "visible-devices": ("0, 5", (0, 5)),
    "topology": ("links.json", "links.json"),
    "server": (
        "http://h:1, tgi=https://u:p@i/x",
        (("server", Secret.url("http://h:1")), ("tgi", Secret.url("https://u:p@i/x"))),
    ),
    "server-header": ("A: Bearer b", (("A", Secret.header("Bearer b")),)),
    "served-model": ("org/tiny", "org/tiny"),
    "reference": ("sim", "sim"),
    "dtype": ("bf16", "bfloat16"),
    "batch-sizes": ("1,4", (1, 4)),
    "prompt-lengths": ("16, 32", (16, 32)),
    "max-new-tokens": ("64", 64),
    "seed": ("7", 7),
    "random-weights": ("true", True),
    "baseline-dir": ("perf", "perf"),
    "update-baselines": ("new", "new"),
    "max-regression": ("8%", 0.08),
    "base": ("main", "main"),
    "head": ("topic", "topic"),
    "base-python": ("/opt/b/bin/python", "/opt/b/bin/python"),
    "compare": ("always", "always"),
    "budget": ("300", 300.0),
    "self-test": ("yes", True),
    "invocations": ("5", 5),
    "strict": ("on", True),
    "timeout": ("1.5", 1.5),
    "concurrency": ("1, 8", (1, 8)),
    "request-rates": ("0.5, 2", (0.5, 2.0)),
    "requests": ("200", 200),
    "slo": ("ttft=200ms, latency=1.5s", (("ttft", 0.2), ("latency", 1.5))),
    "results": ("raw.json", "raw.json"),
    "report": ("a.csv, b.md", ("a.csv", "b.md")),
}


def read(suite: Suite, *arguments: str) -> Settings:
    from pytest_llmperf import plugin

    return suite.pytester.parseconfigure("-p", "benchmark", "-p", "llmperf", *arguments).stash[plugin.KEY].settings


def test_every_option_has_a_case_below() -> None:
    assert VALUES.keys() == {option.name for option in OPTIONS}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
@pytest.mark.parametrize("where", ["command line", "ini"])
def test_every_option_can_be_set(suite: Suite, option, where: str) -> None:
    text, value = VALUES[option.name]
    if where == "ini":
        suite.ini(**{option.ini: text})
        settings = read(suite)
    else:
        suite.ini(**dict.fromkeys(INI, ""))
        switch = isinstance(value, bool)
        settings = read(suite, option.flag if switch else f"{option.flag}={text}")
    got = getattr(settings, option.field)
    if option.name == "model":
        value = str(suite.path / text)  # which is there
    if option.name == "report":
        got = tuple(str(path.relative_to(suite.path)) for path in got)
    assert got == (suite.path / text if isinstance(got, Path) else value)
    assert option.field in settings.stated


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.variable], ids=lambda option: option.name)
def test_what_may_be_secret_can_be_set_in_the_environment_and_the_command_line_wins(
    suite: Suite, option, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, value = VALUES[option.name]
    monkeypatch.setenv(option.variable, text)
    assert getattr(read(suite), option.field) == value
    other = {"server": "http://other", "server-header": "Other: x"}[option.name]
    assert getattr(read(suite, f"{option.flag}={other}"), option.field) != value
    monkeypatch.setenv(option.variable, "s3cret nonsense")
    with pytest.raises(pytest.UsageError, match=rf"{option.variable} \(environment\): a ") as caught:
        read(suite)
    assert "s3cret" not in str(caught.value)


def test_an_update_without_a_value_is_of_all(suite: Suite) -> None:
    assert read(suite, "--llm-update-baselines", "-q").update_baselines == "all"
    assert read(suite, "suites/", "--llm-update-baselines").update_baselines == "all"
    assert read(suite).update_baselines is None


def test_a_table_of_tolerances_is_read_line_by_line(suite: Suite) -> None:
    suite.ini(llm_tolerances="\n    */vllm/*/tpot = 3%\n    */b32-* = 0.08")
    assert read(suite).tolerances == (("*/vllm/*/tpot", 0.03), ("*/b32-*", 0.08))


def test_the_command_line_wins_over_ini(suite: Suite) -> None:
    suite.ini(llm_timeout="3")
    assert read(suite, "--llm-timeout=4").timeout == 4


def test_a_path_is_relative_to_what_stated_it(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    below = suite.path / "below"
    for folder in (suite.path, below):
        (folder / "models" / "mine").mkdir(parents=True)
        (folder / "models" / "mine" / "config.json").touch()
    suite.ini(llm_model="models/mine", llm_baseline_dir="perf", llm_results="raw.json", llm_report="a.csv, b.md")
    monkeypatch.chdir(below)
    here, typed = (suite.path, read(suite)), (below, read(suite, "--llm-model=models/mine", "--llm-baseline-dir=perf"))
    for root, settings in (here, typed):
        assert (settings.model, settings.baseline_dir) == (str(root / "models/mine"), root / "perf")
        assert (settings.results, *settings.report) == tuple(
            suite.path / name for name in ("raw.json", "a.csv", "b.md")
        )


def test_every_help_text_shows_default_and_example(suite: Suite) -> None:
    result = suite.run("--help")
    text = " ".join(result.stdout.str().split())
    for option in OPTIONS:
        (said,) = re.findall(rf" ({re.escape(option.flag)}(?: |=).*?Example: .*?{re.escape('--llm')}\S+)", text)[:1]
        assert re.findall(r"Default(?: on an? \w+)?: ", said), option.flag
    assert "Longest time" in text
    assert "SECONDS" in text
    assert "5% on an accelerator" in text
    assert "llm_max_regression (string)" in text


def test_the_plugin_is_found_by_itself_and_brings_no_torch(pytester: pytest.Pytester) -> None:
    code = "import pytest, sys; pytest.main(['--markers']); sys.exit(not {'torch', 'numpy'}.isdisjoint(sys.modules))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_DISABLE_PLUGIN_AUTOLOAD"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "@pytest.mark.llm(backends=None, batch_sizes=None" in done.stdout


# Fixtures


def test_the_suites_run_with_readable_ids(suite: Suite) -> None:
    result = suite.run("suites", "-v", "--llm-batch-sizes=1,2")
    result.assert_outcomes(passed=16, skipped=1)  # under load: none of them is a server
    result.stdout.fnmatch_lines("suites/test_decode.py::test_decode?sim-b2-p16-n8? PASSED*")
    result.stdout.fnmatch_lines("suites/test_prefill.py::test_prefill?ref-b1-p16-n8? PASSED*")


def test_an_engine_is_loaded_once_however_many_tests_use_it(suite: Suite) -> None:
    suite.run("suites", "--llm-batch-sizes=1,2", "--llm-prompt-lengths=16,32")
    assert suite.loads == {"ref": 1, "sim": 1}


def test_the_reference_comes_first_and_its_tests_stand_together(suite: Suite) -> None:
    result = suite.run("suites", "--collect-only", "-q", "--llm-backends=sim,ref")
    order = re.findall(r"\[(ref|sim)-", result.stdout.str())
    assert order == ["ref"] * 4 + ["sim"] * 4


def test_a_wrong_backend_fails_parity_alone(suite: Suite) -> None:
    suite.backends(sim="Simulated(wrong_from=2)")
    result = suite.run("suites")
    result.assert_outcomes(passed=7, failed=1, skipped=1)
    result.stdout.fnmatch_lines("sim b1-p16-n8: not in parity with ref: a token is 5 logits worse*")


def test_parity_alone_generates_its_own_tokens(suite: Suite) -> None:
    suite.run("suites/test_greedy_parity.py").assert_outcomes(passed=2)
    suite.backends(sim="Simulated(wrong_from=2)")
    suite.run("suites/test_greedy_parity.py").assert_outcomes(passed=1, failed=1)


def test_parity_skips_random_weights(suite: Suite) -> None:
    result = suite.run("suites", "--llm-random-weights", "-rs")
    result.assert_outcomes(passed=6, skipped=3)
    result.stdout.fnmatch_lines("SKIPPED*random weights emit one token over and over*")


@pytest.mark.parametrize("kind", ["mamba", "a type that nobody has seen"])
def test_a_model_type_that_nobody_counts_is_measured_without_a_roof(suite: Suite, kind: str) -> None:
    suite.model(model_type=kind)
    suite.backends(sim="Simulated(tpot=1e-12)")  # faster than any roof
    result = suite.run("suites/test_decode.py", "--llm-results=results.json")
    result.assert_outcomes(passed=2)
    note = f"*no roof and no memory verdict: the sizes of the model type '{kind}' are not known here*"
    result.stdout.fnmatch_lines(note)
    assert result.stdout.str().count("no roof and no memory verdict") == 1
    held = json.loads((suite.path / "results.json").read_text())
    assert [one["utilization"] for one in held["results"]] == [None, None]


def test_the_fixtures_for_tests_of_one_s_own(suite: Suite) -> None:
    suite.test(
        """
def test_engine(llm_engine, llm_device, llm_model, llm_backend):
    trace = llm_engine.generate([[1, 2], [3]], max_new_tokens=4)
    assert [len(row) for row in trace.tokens] == [4, 4]
    assert round(trace.ttft, 6) == 1.1, "the first generation is cold"
    assert round(trace.tpot, 6) == (0.010 if llm_backend == "ref" else 0.005)
    assert llm_engine.evidence()["engaged"]
    assert (llm_device.name, llm_model.name) == ("cpu", "tiny")
"""
    )
    suite.run("test_it.py").assert_outcomes(passed=2)


def test_metrics_of_one_workload_share_its_generations(suite: Suite) -> None:
    suite.backends(extra=COUNTING, sim="Counting()")
    suite.run("suites/test_decode.py", "suites/test_prefill.py", "suites/test_latency.py", "--llm-backends=sim")
    assert (suite.path / "generations").read_text() == "." * 11, "one of warm-up, ten samples"


COUNTING = """
class Counting(Simulated):
    def generate(self, prompts, max_new_tokens, on_token):
        with open(HERE / "generations", "a") as file:
            file.write(".")
        super().generate(prompts, max_new_tokens, on_token)
"""


def test_an_unknown_metric_is_the_test_s_mistake(suite: Suite) -> None:
    suite.test("def test_it(llm_perf):\n    llm_perf.gate('itl')")
    result = suite.run("test_it.py", "--llm-backends=sim")
    assert result.ret == 1
    result.stdout.fnmatch_lines("*unknown metric 'itl'; known: ttft, tpot, latency, memory, weights, *-start")


def test_a_suite_without_our_fixtures_is_left_alone(suite: Suite) -> None:
    suite.test("def test_plain():\n    pass\n")
    suite.ini(llm_model="no such model")
    result = suite.run("test_it.py")
    result.assert_outcomes(passed=1)
    assert "llmperf " not in result.stdout.str().partition("plugins:")[2].partition("\n")[2]


# The marker


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ("backends=['sim']", ["sim-b1-p16-n8"]),
        ("backends=['ref'], batch_sizes=[2, 3]", ["ref-b2-p16-n8", "ref-b3-p16-n8"]),
        ("backends=['ref'], prompt_lengths=[5]", ["ref-b1-p5-n8"]),
        ("backends=['ref'], max_new_tokens=4", ["ref-b1-p16-n4"]),
    ],
)
def test_the_marker_chooses_what_a_test_runs_with(suite: Suite, arguments: str, ids: list[str]) -> None:
    suite.test(f"import pytest\n@pytest.mark.llm({arguments})\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')")
    result = suite.run("test_it.py", "--collect-only", "-q")
    assert re.findall(r"test_it\[(.*)]", result.stdout.str()) == ids


@pytest.mark.parametrize(("devices", "skipped"), [("['h100', 'nvidia-rtx-a6000', 'rocm']", 1), ("['cpu']", 0)])
def test_a_test_for_other_devices_is_skipped(suite: Suite, devices: str, skipped: int) -> None:
    suite.test(f"import pytest\n@pytest.mark.llm(devices={devices})\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')")
    result = suite.run("test_it.py", "-rs", "--llm-backends=sim")
    result.assert_outcomes(passed=1 - skipped, skipped=skipped)
    if skipped:
        result.stdout.fnmatch_lines("SKIPPED*needs h100 or nvidia-rtx-a6000 or rocm, and this is cpu")
        assert suite.loads["sim"] == 0


def test_a_backend_without_the_runs_type_is_skipped_with_that_reason(suite: Suite) -> None:
    suite.backends(backends='[Backend("ref", load_ref), Backend("sim", load_sim, dtypes=("float16", "float32"))]')
    result = suite.run("suites/test_decode.py", "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines("SKIPPED*sim: sim does not support bfloat16; choose --llm-dtype=float32")
    suite.run("suites/test_decode.py", "--llm-dtype=float32").assert_outcomes(passed=2)


def test_a_backend_runs_in_the_interpreter_stated_for_it(suite: Suite) -> None:
    own = suite.path / "own"
    own.write_text(f'#!/bin/sh\nOWN=yes exec {sys.executable} "$@"\n')
    own.chmod(0o755)
    suite.backends(extra="""
class Asked(Simulated):
    def evidence(self):
        return Engagement(True, "its environment", {"own": os.environ.get("OWN", "no")})
""", ref="Asked()", sim="Asked()")  # fmt: skip
    result = suite.run("suites/test_decode.py", f"--llm-python=sim={own}", "--llm-results=raw.json")
    result.assert_outcomes(passed=2)
    raw = json.loads((suite.path / "raw.json").read_text())["results"]
    assert [one["engagement"]["seen"]["own"] for one in raw] == ["no", "yes"]


@pytest.mark.parametrize(
    ("section", "sizes"),
    [("pytest.ini_options", "[1, 4]"), ("pytest.ini_options", '"1,4"'), ("pytest", '"1,4"')],
)
def test_options_in_pyproject(suite: Suite, section: str, sizes: str) -> None:
    if section == "pytest" and pytest.version_tuple < (9,):
        pytest.skip("pytest 9 has such a table")
    lines = [f"{name} = {json.dumps(value)}" for name, value in INI.items() if name != "llm_batch_sizes"]
    text = "\n".join([f"[tool.{section}]", *lines, f"llm_batch_sizes = {sizes}", ""])
    (suite.path / "pytest.ini").unlink()
    (suite.path / "pyproject.toml").write_text(text)
    suite.run("suites/test_decode.py", "--llm-backends=sim").assert_outcomes(passed=2)


def test_a_backend_that_cannot_run_here_is_skipped_with_its_reason(suite: Suite) -> None:
    needy = 'Backend("sim", load_sim, requires=lambda device: f"needs a GPU, not a {device.name}")'
    suite.backends(backends=f'[Backend("ref", load_ref), {needy}]')
    result = suite.run("suites/test_decode.py", "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines("SKIPPED*sim: needs a GPU, not a cpu")
    said = usage_error(suite.run("suites/test_decode.py", "--llm-strict"))
    assert said == "ERROR: llmperf: backend sim cannot run here (--llm-strict): needs a GPU, not a cpu"


@pytest.mark.parametrize("arguments", ["batch_size=4", "['sim']"])
def test_a_marker_argument_that_does_not_exist_is_one_clear_line(suite: Suite, arguments: str) -> None:
    suite.test(f"import pytest\n@pytest.mark.llm({arguments})\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')")
    said = usage_error(suite.run("test_it.py"))
    assert said.startswith("ERROR: llmperf: test_it.py::test_it: the llm marker does not take ")
    assert suite.loads == {"ref": 0, "sim": 0}


# Pytest's own ways


def test_collecting_starts_no_worker(suite: Suite) -> None:
    result = suite.run("suites", "--collect-only")
    assert result.ret == 0
    assert suite.loads == {"ref": 0, "sim": 0}


def test_dash_k_measures_only_what_was_selected(suite: Suite) -> None:
    suite.run("suites", "-k", "decode and sim").assert_outcomes(passed=1, deselected=8)
    assert suite.loads == {"ref": 0, "sim": 1}


def test_last_failed_measures_only_what_failed(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.001})
    assert suite.run("suites/test_decode.py").ret == 1
    result = suite.run("suites/test_decode.py", "--lf", "-p", "cacheprovider")
    result.assert_outcomes(failed=1)
    assert suite.loads["ref"] == 1, "only in the first run"


def test_dash_x_stops_at_the_first_failure(suite: Suite) -> None:
    suite.record({"ref/tpot": 0.001})
    result = suite.run("suites/test_decode.py", "-x")
    result.assert_outcomes(failed=1)
    assert suite.loads["sim"] == 0


def test_dash_q_says_no_more_than_the_summary(suite: Suite) -> None:
    result = suite.run("suites/test_decode.py", "-q", "--llm-backends=sim")
    assert "loading" not in result.stdout.str()
    result.stdout.fnmatch_lines("tpot b1-p16-n8 sim*")


@pytest.mark.parametrize("option", ["--setup-only", "--setup-plan"])
def test_what_runs_no_test_writes_and_gates_nothing(suite: Suite, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setenv("CI", "1")
    (suite.path / "raw.json").write_text("of an earlier run")
    result = suite.run("suites", option, "--llm-results=raw.json", "--llm-report=report.md", "-p", "no:warnings")
    assert result.ret == 0
    assert (suite.path / "raw.json").read_text() == "of an earlier run"
    assert not (suite.path / "report.md").exists()
    result.stdout.no_fnmatch_line("*nothing was compared*")
    assert suite.loads == {"ref": 0, "sim": 0}


@pytest.mark.parametrize("off", ["capture", "terminal", "cacheprovider"])
def test_plugins_of_pytest_may_be_off(suite: Suite, off: str) -> None:
    options = ("--llm-results=raw.json", "--llm-report=report.md", "-p", f"no:{off}")
    with pytest_process("suites", "--llm-backends=sim", *options, cwd=suite.path) as run:
        said, _ = run.communicate(timeout=60)
    assert run.returncode == 0, said
    assert "Error" not in said
    assert len(json.loads((suite.path / "raw.json").read_text())["results"]) == 3
    assert (suite.path / "report.md").exists()


def test_junit_has_a_failure_for_a_regression(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.001})
    suite.run("suites/test_decode.py", "--junitxml=junit.xml")
    root = ElementTree.parse(suite.path / "junit.xml").getroot()
    (failure,) = root.iter("failure")
    assert "regression" in failure.attrib["message"]
    assert len(list(root.iter("testcase"))) == 2


# pytest-benchmark


def test_the_worker_s_durations_reach_the_benchmark_json_exactly(suite: Suite) -> None:
    suite.backends(sim="Simulated(tpot=lambda number: 0.005 + number / 2**14)")
    suite.test("def test_it(llm_perf):\n    llm_perf.gate('tpot')")
    suite.run("test_it.py", "--benchmark-json=bench.json", "--llm-results=raw.json")
    reference, simulated = json.loads((suite.path / "bench.json").read_text())["benchmarks"]
    raw = json.loads((suite.path / "raw.json").read_text())["results"]
    assert simulated["stats"]["data"] == raw[1]["samples"]
    assert simulated["stats"]["data"] == pytest.approx([0.005 + number / 2**14 for number in range(1, 11)])
    assert reference["stats"]["mean"] == pytest.approx(0.010)
    assert simulated["group"] == "decode latency (mean TPOT), b1-p16-n8"
    extra = simulated["extra_info"]
    assert extra["case"] == "tiny/bfloat16/sim/b1-p16-n8/tpot"
    assert extra["verdict"] == "no baseline"
    assert extra["speedup"] == pytest.approx(0.010 / simulated["stats"]["median"])
    assert extra["load"] > 0
    assert extra["start"] == {}
    assert extra["utilization"]["name"] == "MBU"


def test_benchmark_only_runs_the_measurements(suite: Suite) -> None:
    result = suite.run("suites", "--benchmark-only")
    result.assert_outcomes(passed=6, skipped=3)


def test_benchmark_skip_runs_the_rest(suite: Suite) -> None:
    result = suite.run("suites", "--benchmark-skip")
    result.assert_outcomes(passed=2, skipped=7)


def test_benchmark_disable_generates_once_and_judges_nothing(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.001})
    suite.backends(extra=COUNTING, sim="Counting()")
    result = suite.run("suites/test_decode.py", "--benchmark-disable", "--llm-backends=sim")
    result.assert_outcomes(passed=1)
    assert (suite.path / "generations").read_text() == "."


def failures(result: pytest.RunResult) -> list[str]:
    """What pytest's own list of failures says of each."""
    return [line.partition(" - ")[2] for line in result.outlines if line.startswith(("ERROR ", "FAILED "))]


def test_without_pytest_benchmark_a_latency_fails_in_one_line_and_parity_is_shown(suite: Suite) -> None:
    arguments = ("suites/test_decode.py", "suites/test_greedy_parity.py", "--llm-backends=sim", "--strict-markers")
    result = suite.run(*arguments, "-p", "no:benchmark")
    result.assert_outcomes(passed=1, errors=1)
    assert failures(result) == [f"Failed: {NO_BENCHMARK}"]
    assert "Traceback" not in result.stdout.str()
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


@pytest.mark.parametrize("disabled", [(), ("--benchmark-disable",)])
def test_a_benchmark_fixture_of_another_plugin_is_refused_in_one_line(suite: Suite, disabled: tuple[str, ...]) -> None:
    """As codspeed's, which replaces it; one that adds to it is as good."""
    other = """
class Other:
    __class__ = property(lambda one: __import__("pytest_benchmark.fixture").fixture.BenchmarkFixture)

    def pedantic(self, target, args=(), kwargs={}, setup=None, teardown=None, rounds=1): ...


@pytest.fixture
def benchmark(): return Other()
"""
    suite.test(f"import pytest\n{other}\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')")
    result = suite.run("test_it.py", "--llm-backends=sim", *disabled)
    result.assert_outcomes(errors=1)
    assert failures(result) == [f"Failed: {REPLACED.format('test_it')}"]
    assert "Traceback" not in result.stdout.str()
    adding = "@pytest.fixture\ndef benchmark(benchmark):\n    benchmark.extra_info['own'] = 1\n    return benchmark"
    suite.test(f"import pytest\n{adding}\n\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')")
    suite.run("test_it.py", "--llm-backends=sim", *disabled).assert_outcomes(passed=1)


def test_under_xdist_there_is_one_results_file_and_one_report_of_all(suite: Suite) -> None:
    """Parity may run under it; and its prompts are those of one seed, as in any other run."""
    suite.ini(llm_seed="", llm_backends="ref,sim", llm_prompt_lengths="16,24")
    suite.backends(sim="Simulated(wrong_from=3)")
    arguments = ("suites/test_greedy_parity.py", "--llm-results=raw.json", "--llm-report=report.md,report.csv")
    result = suite.run(*arguments, "-p", "xdist", "-n", "2")
    result.assert_outcomes(passed=2, failed=2)
    raw = json.loads((suite.path / "raw.json").read_text())
    shown = {(one["backend"], one["workload"]) for one in raw["parity"]}
    assert shown == {(backend, f"b1-p{length}-n8") for backend in ("ref", "sim") for length in (16, 24)}
    text = result.stdout.str()
    assert text.count("--llm-seed=") == text.count(f"--llm-seed={raw['environment']['seed']} ")
    assert (suite.path / "report.md").read_text().count("| sim |") >= 1
    result.stdout.fnmatch_lines(["*sim b1-p16-n8*not in parity*", "report written to *report.md"])


def test_what_a_process_of_xdist_that_dies_has_measured_is_said_to_be_lost(suite: Suite) -> None:
    suite.test("import os\n\ndef test_dies():\n    os._exit(3)")
    parity = "suites/test_greedy_parity.py"
    result = suite.run(parity, "test_it.py", "-p", "xdist", "-n", "1", "--llm-backends=sim", "--llm-results=raw.json")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines("ERROR: xdist's process gw0 died, so what it measured is lost; run with -n 0")


def test_under_xdist_a_latency_is_refused_in_one_line(suite: Suite) -> None:
    result = suite.decode("-p", "xdist", "-n", "1", "--llm-results=raw.json")
    assert result.ret == 1
    result.assert_outcomes(failed=0, errors=1)
    result.stdout.fnmatch_lines("latency cannot be measured under xdist*run with -n 0")
    assert json.loads((suite.path / "raw.json").read_text())["results"] == []
    assert suite.loads == {"ref": 0, "sim": 0}


# Results


def test_the_results_file_holds_every_token_s_time(suite: Suite) -> None:
    suite.run("suites/test_decode.py", "--llm-results=deep/raw.json", "--llm-backends=sim", "--llm-batch-sizes=2")
    raw = json.loads((suite.path / "deep" / "raw.json").read_text())
    (measurement,) = raw["measurements"]
    assert len(measurement["warm_up"]) == 1
    assert len(measurement["samples"]) == 10
    trace = measurement["samples"][0]["trace"]
    assert [len(row) for row in trace["times"]] == [8, 8]
    assert trace["times"][1] == pytest.approx([0.1 + 0.005 * position for position in range(8)])
    assert [len(row) for row in trace["tokens"]] == [8, 8]
    (result,) = raw["results"]
    assert result["verdict"]["outcome"] == "no baseline"
    assert result["unit"] == "s/token"
    assert raw["environment"]["peaks"] == {"flops": 1e15, "bandwidth": 1e15}
    assert raw["environment"]["rates"] == RATES
