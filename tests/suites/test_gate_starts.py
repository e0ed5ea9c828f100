"""Starts, gated: fresh processes with emptied and with filled caches, and the part that got slower; end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gated import record, verdicts
from inner import Suite

SIM = "bfloat16/sim/b1-p16-n8"
COLD, WARM = f"{SIM}/cold-start", f"{SIM}/warm-start"
#: For the conftest.py: an engine that says how long loading took it, and notes the caches that its process has.
STARTING = """
NAMES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "TMPDIR")


class Starting(Simulated):
    def __init__(self, load=10.0, cache="", **options):
        super().__init__(**options)
        self.compile_seconds = load  # by which the scripted seconds come to pytest's process
        with open(HERE / "starts", "a") as file:
            there = [os.path.isdir(os.environ.get(name, "")) for name in NAMES]
            file.write(f"{os.getpid()} {cache} {all(there)} {' '.join(os.environ.get(name, '-') for name in NAMES)}\\n")


def pytest_sessionstart():
    from pytest_llmperf.measure import worker_pool

    real = worker_pool.Loading
    if real.__module__ == worker_pool.__name__:
        worker_pool.Loading = lambda ready, load, imports, compiled: real(2.0 + compiled, 1.0 + compiled, 1.0, 0.0)
"""
#: The parts of a start of it, in their order. The first generation takes a second longer.
PARTS = (2.0, 10.0, 1.0, 0.1)
ENGINE = "Starting(cache=spec.cache)"


@pytest.fixture
def startup(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    from pytest_llmperf.measure import worker_pool

    monkeypatch.setattr(worker_pool, "Loading", worker_pool.Loading)  # undone after the test
    suite.backends(sim=ENGINE, ref="Starting(cache=spec.cache)", extra=STARTING)
    return suite


def start(suite: Suite, *arguments: str, backends: str = "sim") -> pytest.RunResult:
    return suite.run("suites/test_startup.py", f"--llm-backends={backends}", "--llm-results=raw.json", *arguments)


def processes(suite: Suite) -> list[tuple[str, bool, list[str]]]:
    """Of each process its cache folder, whether the folders of its caches were there, and these."""
    lines = [line.split() for line in (suite.path / "starts").read_text().splitlines()]
    return [(cache, there == "True", folders) for _, cache, there, *folders in lines]


def results(suite: Suite) -> dict[str, dict[str, Any]]:
    return {one["case"]: one for one in json.loads((suite.path / "raw.json").read_text())["results"]}


# Which tests run


def test_starts_run_by_their_name_alone(suite: Suite) -> None:
    names = suite.run("suites", "--collect-only", "-q").stdout.str()
    assert "test_decode" in names
    assert "start" not in names
    suite.run("suites/test_startup.py", "--collect-only", "-q").stdout.fnmatch_lines(
        [
            "suites/test_startup.py::test_cold_start?ref-b1-p16-n8?",
            "suites/test_startup.py::test_warm_start?ref-b1-p16-n8?",
            "suites/test_startup.py::test_cold_start?sim-b1-p16-n8?",
            "suites/test_startup.py::test_warm_start?sim-b1-p16-n8?",
        ],
        consecutive=True,
    )


# Processes and caches


def test_a_cold_start_has_caches_of_its_own_and_a_warm_one_those_that_a_process_has_filled(startup: Suite) -> None:
    result = start(startup, "--llm-update-baselines", "--llm-invocations=3")
    assert result.ret == 0
    made = processes(startup)
    assert len(made) == 3 + 1 + 3, "one process fills the caches before warm starts"
    cold, warm = made[:3], made[3:]
    assert all(there for _, there, _ in cold)
    assert not any(Path(folder).exists() for cache, _, folders in cold for folder in (cache, *folders))
    assert len({folder for _, _, folders in cold for folder in folders}) == 12, "three processes, four folders each"
    assert len({cache for cache, _, _ in cold} | {cache for cache, _, _ in warm}) == 3 + 1
    assert len({tuple(folders) for _, _, folders in warm}) == 1


def test_an_update_records_starts_with_their_parts(startup: Suite) -> None:
    result = start(startup, "--llm-update-baselines", "--llm-invocations=3")
    entries = {key: row[0] for key, row in startup.stored()["entries"].items()}
    assert list(entries) == [COLD, WARM], "and no latency"
    for entry in entries.values():
        assert entry["parts"] == pytest.approx(PARTS)
        assert entry["processes"] == pytest.approx([sum(PARTS)] * 3)
    result.stdout.fnmatch_lines(
        [
            "cold-start b1-p16-n8 sim *13.10 s *new*",
            "start * import * load * compile * first token",
            "cold-start * sim * 2.00 s * 10.00 s * 1.00 s * 0.10 s",
            "warm-start * sim * 2.00 s * 10.00 s * 1.00 s * 0.10 s",
            "2 entries written to *",
        ]
    )
    assert start(startup).ret == 0
    assert {said["outcome"] for said in verdicts(startup).values()} == {"ok"}


def test_unchanged_starts_take_one_process_each_and_show_the_baseline(startup: Suite) -> None:
    record(startup, {"sim/cold-start": sum(PARTS), "sim/warm-start": sum(PARTS)}, parts=PARTS)
    result = start(startup, "--llm-report=r.md,r.html,r.csv")
    assert result.ret == 0
    assert len(processes(startup)) == 1 + 1 + 1
    raw = results(startup)[COLD]
    assert list(raw["start"].values()) == pytest.approx(PARTS)
    assert list(raw["baseline_start"].values()) == pytest.approx(PARTS)
    assert (raw["tolerance"], raw["tolerance_source"]) == (0.25, "default of cold-start on cpu")
    result.stdout.fnmatch_lines("cold-start * 2.00 s (2.00) * 10.00 s (10.00) *")
    for form in ("md", "html"):
        assert "10.00 s (10.00)" in (startup.path / f"r.{form}").read_text()
    assert "start_first_token" in (startup.path / "r.csv").read_text().splitlines()[0]


def test_the_reference_gives_a_speedup_of_its_own_start(startup: Suite) -> None:
    startup.backends(sim="Starting(load=23.1)", ref="Starting()", extra=STARTING)
    start(startup, "-k", "cold", backends="ref,sim")
    assert results(startup)[COLD]["speedup"] == pytest.approx(0.5)


# Regressions


def test_a_slower_load_is_a_regression_that_names_it(startup: Suite) -> None:
    """By the stored baseline, in fresh processes: nothing says which code recorded it."""
    record(startup, {"sim/cold-start": sum(PARTS), "ref/cold-start": sum(PARTS)}, parts=PARTS)
    startup.backends(sim="Starting(load=17.0)", ref="Starting()", extra=STARTING)
    result = start(startup, "-k", "cold")
    assert result.ret == 1
    assert verdicts(startup)[COLD]["basis"] == "stored"
    result.stdout.fnmatch_lines(
        [
            "*: regression: cold start 20.10 s, baseline 13.10 s, +53.4%*allowed 25% (default of cold-start *)*",
            "  +53.4% load: 10.00 s -> 17.00 s",
        ]
    )
    assert results(startup)[COLD]["slower"] == ["+53.4% load: 10.00 s -> 17.00 s"]


@pytest.mark.parametrize(
    ("sim", "line"),
    [
        ("Starting(load=15.0)", "+38.2% load: 10.00 s -> 15.00 s"),
        ("Starting(cold=6.0)", "+38.2% compile: 1.00 s -> 6.00 s"),
    ],
    ids=["load", "compile"],
)
def test_beside_its_own_code_a_single_sitting_is_enough(startup: Suite, sim: str, line: str) -> None:
    (startup.path / ".gitignore").write_text("*.pids\n*.json\nstarts\n__pycache__\n.pytest_cache\n")
    startup.git("init", "--quiet")
    revision = startup.commit()
    startup.record({"sim/warm-start": sum(PARTS)}, revision=revision, parts=PARTS)
    startup.backends(sim=sim, ref="Starting()", extra=STARTING)
    result = start(startup, "-k", "warm")
    said = verdicts(startup)[WARM]
    assert (said["outcome"], said["basis"], said["count"]) == ("regression", "base", 4)
    result.stdout.fnmatch_lines([f"  {line}"])
    (raw,) = json.loads((startup.path / "raw.json").read_text())["starts"]
    assert (raw["case"], len(raw["pairs"])) == (WARM, 4)
    assert list(raw["pairs"][0]["base"].values()) == pytest.approx(PARTS)
    assert len(processes(startup)) == 1 + 1 + 4, "those of head: to fill the caches, to screen, and in pairs"


def test_code_that_has_not_changed_has_no_slower_start(startup: Suite) -> None:
    (startup.path / ".gitignore").write_text("*.pids\n*.json\nstarts\n__pycache__\n.pytest_cache\n")
    startup.git("init", "--quiet")
    revision = startup.commit()
    startup.record({"sim/warm-start": sum(PARTS) / 2}, revision=revision, parts=tuple(one / 2 for one in PARTS))
    assert start(startup, "-k", "warm").ret == 0
    said = verdicts(startup)[WARM]
    assert said["outcome"] == "inconclusive"
    assert "code and versions are those of the baseline" in said["reason"]


# Tolerances and edges


def test_the_tolerance_of_latencies_is_not_that_of_starts(startup: Suite) -> None:
    startup.ini(llm_tolerances="*/cold-start = 40%")
    start(startup, "--llm-max-regression=1%")
    assert {key: one["tolerance"] for key, one in results(startup).items()} == {COLD: 0.4, WARM: 0.25}


@pytest.mark.parametrize("metric", ["cold-start", "warm-start"])
def test_a_server_that_runs_already_has_no_start(suite: Suite, metric: str) -> None:
    suite.test(f"def test_it(llm_perf):\n    llm_perf.gate('{metric}')\n")
    result = suite.run("test_it.py", "--llm-backends=server", "--llm-server=http://127.0.0.1:9", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines("SKIPPED *server*: the start of a server that runs already is over")


def test_the_self_test_leaves_starts_out(startup: Suite) -> None:
    result = start(startup, "--llm-self-test", "-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines("SKIPPED *: --llm-self-test * tries the gate on latencies")


def test_a_start_that_fails_says_why_once(startup: Suite) -> None:
    startup.backends(sim="1 / 0", extra=STARTING)
    result = start(startup)
    result.assert_outcomes(failed=2)
    assert result.stdout.str().count("ZeroDivisionError: division by zero") >= 1
    assert not list((startup.path / "baselines").glob("**/*"))


def test_latencies_and_starts_of_one_run_do_not_mix(startup: Suite) -> None:
    startup.test(
        "def test_decode(llm_perf):\n    llm_perf.gate('tpot')\n"
        "def test_start(llm_perf):\n    llm_perf.gate('warm-start')\n"
    )
    assert startup.run("test_it.py", "--llm-backends=sim", "--llm-results=raw.json").ret == 0
    found = results(startup)
    assert found[f"{SIM}/tpot"]["start"] == {}
    assert len(found[f"{SIM}/tpot"]["samples"]) > 1
    assert found[WARM]["samples"] == pytest.approx([sum(PARTS)])
