"""What an engine remembers of earlier generations does not help it: each generation of a run has prompts of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
from inner import Suite

#: For the conftest.py: an engine that takes 100 ms to prefill and 10 ms a token, and less for what it remembers of the
#: file, which other processes may have written too. The file keeps who was asked what.
REMEMBERING = """
import json
from statistics import fmean

class Remembering(Simulated):
    def __init__(self, file, what="nothing", **options):
        super().__init__(**options)
        self.file, self.what = HERE / file, what

    def generate(self, prompts, max_new_tokens, on_token):
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        known = [prompt for line in lines for prompt in json.loads(line)[1]]
        new = fmean(self.unknown(prompt, known) for prompt in prompts)
        self.ttft, self.tpot = 0.1 * new, 0.01 * (new if self.what == "answers" else 1)
        with open(self.file, "a") as file:
            file.write(json.dumps([os.getpid(), prompts]) + "\\n")
        super().generate(prompts, max_new_tokens, on_token)

    def unknown(self, prompt, known):
        if self.what == "answers":
            return 0.1 if prompt in known else 1.0
        if self.what == "prefixes":
            longest = max((len(os.path.commonprefix([prompt, other])) for other in known), default=0)
            return max(0.01, 1 - longest / len(prompt))
        return 1.0
"""
SUITES = ("suites/test_prefill.py", "suites/test_decode.py")


@pytest.fixture
def remembering(suite: Suite) -> Suite:
    """An engine that remembers nothing as the reference, and prompts of random ids."""
    (suite.path / "tiny" / "tokenizer.json").unlink()
    suite.ini(llm_seed="", llm_prompt_lengths="64,256")
    return suite


def remembers(suite: Suite, what: str, file: str = "f'sim-{process}.log'", **options: Any) -> None:
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    suite.backends(sim=f"Remembering({file}, {what!r}{given})", ref="Remembering('ref.log')", extra=REMEMBERING)


def run(suite: Suite, *arguments: str) -> dict[str, Any]:
    """What a run of the suites found, by case."""
    suite.run(*SUITES, "--llm-results=raw.json", *arguments)
    raw = json.loads((suite.path / "raw.json").read_text())
    return {one["case"]: one for one in raw["results"]}


def asked(suite: Suite, file: str) -> list[tuple[int, list[list[int]]]]:
    """What an engine's processes were asked, in order: their ids and the prompts."""
    return [tuple(json.loads(line)) for line in (suite.path / file).read_text().splitlines()]


def once(rows: Sequence[Any]) -> bool:
    return len(rows) == len(set(map(json.dumps, rows)))


@pytest.mark.parametrize("what", ["answers", "prefixes"])
def test_an_engine_that_remembers_gains_nothing(remembering: Suite, what: str) -> None:
    remembers(remembering, what)
    found = run(remembering)
    assert len(found) == 8
    for name, one in found.items():
        assert one["speedup"] == pytest.approx(1, abs=0.05), name


@pytest.mark.parametrize("what", ["answers", "prefixes"])
def test_nor_does_one_whose_memory_outlives_its_process(remembering: Suite, what: str) -> None:
    """As of a server that runs already, or of a cache on the disk: fresh processes and later runs are asked anew."""
    remembers(remembering, what, "'all.log'")
    for _ in range(2):
        found = run(remembering, "--llm-backends=sim", "--llm-update-baselines", "--llm-invocations=3")
        for name, one in found.items():
            expected = 0.1 if name.endswith("ttft") else 0.01
            assert [median(figures) for figures in one["invocations"]] == pytest.approx([expected] * 3, rel=0.05), name


def test_a_seed_repeats_the_prompts_and_so_shows_what_a_memory_would_bring(remembering: Suite) -> None:
    remembers(remembering, "answers", "'all.log'")
    medians = [
        run(remembering, "--llm-backends=sim", "--llm-seed=5")["bfloat16/sim/b1-p64-n8/tpot"]["spread"]["median"]
        for _ in range(2)
    ]
    assert medians == pytest.approx([0.01, 0.001])
    raw = json.loads((remembering.path / "raw.json").read_text())
    assert raw["environment"]["seed"] == 5


def test_every_backend_has_the_same_prompts_in_the_same_order(remembering: Suite) -> None:
    remembers(remembering, "nothing", "'sim.log'")
    run(remembering)
    mine, theirs = ([prompts for _, prompts in asked(remembering, file)] for file in ("sim.log", "ref.log"))
    assert len(mine) > 8
    assert mine == theirs
    assert once(mine)


def test_a_workload_s_prompts_do_not_begin_as_a_shorter_one_s(remembering: Suite) -> None:
    remembers(remembering, "nothing", "'sim.log'")
    run(remembering, "--llm-backends=sim", "--llm-prompt-lengths=16,64,256")
    rows = sorted(row for _, prompts in asked(remembering, "sim.log") for row in prompts)
    assert {len(row) for row in rows} == {16, 64, 256}
    assert all(one[:4] != other[:4] for one, other in pairwise(rows))


@pytest.mark.parametrize("pausable", [True, False])
def test_both_sides_of_a_turn_have_the_same_prompts_and_no_process_has_any_twice(
    remembering: Suite, pausable: bool
) -> None:
    """Head and head slowed are one process: what it made for one must not help it with the other."""
    remembers(remembering, "nothing", "'sim.log'", pausable=pausable)
    options = ("--llm-self-test", "--llm-budget=0.1", "--llm-prompt-lengths=64", "--llm-results=raw.json")
    remembering.decode(*options).assert_outcomes(passed=1)
    processes: dict[int, list[Any]] = {}
    for pid, prompts in asked(remembering, "sim.log"):
        processes.setdefault(pid, []).append(prompts)
    assert all(map(once, processes.values()))
    (comparison,) = json.loads((remembering.path / "raw.json").read_text())["comparisons"]
    turns = [turn for pair in comparison["pairs"] for turn in pair["turns"]]
    assert {frozenset(turn["samples"]) for turn in turns} == {frozenset({"base", "head"}), frozenset({"base", "slow"})}
    made = [[[one["generation"] for one in arm] for arm in turn["samples"].values()] for turn in turns]
    assert all(one == other for one, other in made)
    assert once([generations for generations, _ in made])


def test_a_load_has_prompts_that_nobody_was_sent(suite: Suite) -> None:
    server = """
class Server(Remembering):
    def serve(self, prompts, max_new_tokens, observer, due, concurrency):
        with open(self.file, "a") as file:
            file.write(json.dumps([os.getpid(), prompts]) + "\\n")
        for request in range(len(prompts)):
            observer.submitted(request)
            for position in range(max_new_tokens):
                self.now += 0.01
                observer(request, 5)

def load_server(spec):
    return Server("srv.log")
"""
    (suite.path / "tiny" / "tokenizer.json").unlink()
    suite.backends(
        extra="from pytest_llmperf.backends.base import CLIENT\n" + REMEMBERING + server,
        backends='[Backend("ref", load_ref), Backend("srv", load_server, boundary=CLIENT)]',
    )
    for seed in "12":
        options = ("--llm-backends=srv", "--llm-concurrency=1,2", "--llm-requests=8", f"--llm-seed={seed}")
        suite.run("suites/test_serving.py", *options).assert_outcomes(passed=2)
    rows = [row for _, prompts in asked(suite, "srv.log") for row in prompts]
    assert len(rows) == 2 * (8 + 1 + 8 + 2)
    assert once(rows)
