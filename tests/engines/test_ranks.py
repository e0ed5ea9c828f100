"""Ranks: processes that run one engine together; the real ones exchange data over gloo."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from inner import Suite, eventually, running, usage_error

from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.measure.ranks import Ranks
from pytest_llmperf.measure.worker_process import Arm, WorkerFailedError, WorkerHungError, WorkerLostError
from pytest_llmperf.models import Model, ModelError
from pytest_llmperf.report import document

ENGINE = """\
import os, time

RANK = int(os.environ["RANK"])


class Scripted:
    def __init__(self, spec):
        self.spec = spec

    def generate(self, prompts, max_new_tokens, on_token):
        for position in range(max_new_tokens):
            time.sleep(0.001)
            for request in range(len(prompts)):
                on_token(request, 100 * RANK + position)
        {happens}

    def close(self):
        pass
"""


@pytest.fixture
def ranks(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ranks]:
    file = tmp_path / "scripted.py"
    file.write_text(ENGINE.format(happens=getattr(request, "param", "pass")))
    found = Ranks(3, Arm(), {})
    spec = {"model": "none", "config": None, "dtype": "float32", "device": "cpu", "tp": 3}
    reference = {"module": "scripted", "name": "Scripted", "file": str(file)}
    found.call("load", 60, backend=[reference], spec=spec, ranks=found.pids)
    yield found
    found.kill()


def generate(ranks: Ranks, timeout: float = 30) -> dict[str, list[list[int]]]:
    return ranks.call("generate", timeout, prompts=[[1], [2]], max_new_tokens=3)  # type: ignore[no-any-return]


def gone(pids: list[int]) -> bool:
    return eventually(lambda: not any(map(running, pids)), 5)


def test_the_first_rank_answers_for_all(ranks: Ranks) -> None:
    answer = generate(ranks)
    assert answer["tokens"] == [[0, 1, 2], [0, 1, 2]]
    pids = ranks.pids
    assert len(set(pids)) == 3
    ranks.close()
    assert gone(pids)


@pytest.mark.parametrize("ranks", ["if RANK == 1: os.kill(os.getpid(), 9)\n        time.sleep(60)"], indirect=True)
def test_a_rank_that_dies_ends_all_at_once(ranks: Ranks) -> None:
    start = time.monotonic()
    with pytest.raises(WorkerLostError, match=r"^rank 1 of 3: worker died during generate: killed by signal 9"):
        generate(ranks)
    assert time.monotonic() - start < 10
    assert gone(ranks.pids)


@pytest.mark.parametrize("ranks", ["if RANK == 2: raise MemoryError('no room')\n        time.sleep(60)"], indirect=True)
def test_a_rank_that_fails_alone_ends_all(ranks: Ranks) -> None:
    with pytest.raises(WorkerLostError, match=r"rank 2 of 3 failed and 0, 1 did not come back .* no room"):
        generate(ranks)
    assert gone(ranks.pids)


@pytest.mark.parametrize("ranks", ["raise MemoryError('no room')"], indirect=True)
def test_what_all_ranks_raise_is_one_failure_and_they_live_on(ranks: Ranks) -> None:
    with pytest.raises(WorkerFailedError, match="no room") as caught:
        generate(ranks)
    assert caught.value.kind == "MemoryError"
    assert ranks.alive


@pytest.mark.parametrize("ranks", ["if RANK == 0: time.sleep(60)"], indirect=True)
def test_a_rank_that_hangs_is_named(ranks: Ranks) -> None:
    with pytest.raises(WorkerHungError, match=r"no answer from 0 of 3 to generate within 2 s"):
        generate(ranks, 2)
    assert gone(ranks.pids)


def test_a_rank_killed_while_nothing_is_asked_is_seen_at_the_next_call(ranks: Ranks) -> None:
    os.kill(ranks.pids[2], signal.SIGKILL)
    assert eventually(lambda: not ranks.alive)
    with pytest.raises(WorkerLostError, match="rank 2 of 3"):
        generate(ranks)
    assert gone(ranks.pids)


# The real thing: gloo, transformers' own sharding


TOKENS = """\
def test_tokens(llm_engine):
    prompts = [[(7 * i + 3) % 1000 for i in range(40)], [(11 * i + 5) % 1000 for i in range(17)]]
    found = llm_engine.generate(prompts, 12).tokens
    print("TOKENS", llm_engine.backend, found)
    print("EVIDENCE", llm_engine.evidence()["seen"])
"""
#: Weights of transformers' usual 0.02 say one token over and over.
VARIED = {"num_attention_heads": 8, "num_key_value_heads": 2, "initializer_range": 0.5}


def lines(result: pytest.RunResult, word: str) -> list[str]:
    return [line.partition(word)[2].strip() for line in result.outlines if word in line]


def test_two_ranks_say_what_one_says_and_reports_have_what_they_bring(suite: Suite) -> None:
    """The other attention, sdpa, is tried on three ranks."""
    suite.model(**VARIED)
    suite.test(TOKENS)
    result = suite.run(
        "test_it.py", "suites/test_decode.py", "-s", "--llm-random-weights", "--llm-dtype=float32", "--llm-tp=1,2",
        "--llm-backends=eager", "--llm-reference=eager", "--llm-report=out.html,out.md,out.json",
    )  # fmt: skip
    result.assert_outcomes(passed=4)
    one, two = (line.partition(" ") for line in lines(result, "TOKENS"))
    assert (one[0], two[0]) == ("eager", "eager+tp2")
    assert one[2] == two[2]
    assert len(set(eval(one[2])[0])) > 4, "a model that repeats itself proves nothing"
    seen = [eval(line) for line in lines(result, "EVIDENCE")]
    assert "collectives" not in seen[0]
    assert seen[1]["tensor parallel degree"] == 2
    assert seen[1]["collectives"] >= 2 * 2 * 3  # two a layer, two layers, three steps
    assert 0 < seen[1]["share of time in collectives"] < 1
    result.stdout.fnmatch_lines(["* dies * efficiency * in collectives", "*eager+tp2 * 2 * ms * *%*%"])
    assert "Decode latency (mean TPOT) by tensor-parallel degree" in (suite.path / "out.html").read_text()
    assert "Tensor parallelism" in (suite.path / "out.md").read_text()
    alone, shared = document.of(json.loads((suite.path / "out.json").read_text())).rows
    assert (alone.tp, alone.collectives, shared.tp) == (1, None, 2)
    assert shared.collectives is not None
    assert 0 < shared.collectives < 1


def test_smollm2_on_three_ranks_is_in_parity_with_one_process(suite: Suite, shallow: Model) -> None:
    """9 heads, 3 KV heads."""
    suite.ini(
        llm_model=str(shallow.folder), llm_reference="", llm_dtype="float32",
        llm_prompt_lengths="48", llm_max_new_tokens="16",
    )  # fmt: skip
    suite.test(
        "def test_engaged(llm_engine):\n"
        "    llm_engine.generate([[1, 2, 3]], 4)\n"
        "    assert llm_engine.evidence()['seen']['collectives'] >= 2 * 10 * 3, 'two a layer and step'\n"
    )
    arguments = ("--llm-tp=3", "--llm-backends=sdpa", "--llm-results=out.json")
    suite.run("test_it.py", "suites/test_greedy_parity.py", *arguments).assert_outcomes(passed=2)
    (found,) = json.loads((suite.path / "out.json").read_text())["parity"]
    assert (found["backend"], found["exact_match"], found["passed"]) == ("sdpa+tp3", 1.0, True)


#: A backend whose ranks wait a few seconds for one another, and no half minute.
IMPATIENT = """
def impatient(engine):
    from pytest_llmperf.backends import tensor_parallel
    tensor_parallel.PATIENCE = 6
    return engine
"""
HARMED = """\
import os, signal, threading, time

HARM = {"sdpa+tp2": signal.SIGKILL, "impatient+tp2": signal.SIGSTOP}


def test_it(llm_engine):
    llm_engine.generate([[1, 2, 3]], 4)
    if harm := HARM.get(llm_engine.backend):
        pids = llm_engine._run.engines._loaded[llm_engine.backend].host.pids
        threading.Timer(0.3, os.kill, (pids[1], harm)).start()
        print("PIDS", *pids)
    start = time.monotonic()
    try:
        llm_engine.generate([[1, 2, 3]], 400)
    finally:
        print("SECONDS", time.monotonic() - start)
"""


def test_a_rank_lost_while_it_decodes_fails_that_case_alone_and_soon(suite: Suite) -> None:
    suite.model(**VARIED)
    suite.ini(llm_max_new_tokens="400", llm_reference="")
    others = 'Backend("ref", load_ref), Backend("impatient", impatient, slot="attention")'
    suite.backends(extra=IMPATIENT, backends=f"[{others}]")
    suite.test(HARMED)
    result = suite.run(
        "test_it.py", "-s", "--llm-random-weights", "--llm-dtype=float32",
        "--llm-backends=sdpa+tp2,impatient+tp2,ref",
    )  # fmt: skip
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines_random(
        [
            "*rank 1 of 2: worker died during generate: killed by signal 9*",
            # Stopped, it is alive; what tells is that the other waits for it in vain, as PATIENCE and GRACE say.
            "*rank 0 of 2 failed and 1 did not come back from generate, so all were ended: *imed out*",
        ]
    )
    assert gone([int(pid) for line in lines(result, "PIDS") for pid in line.split()])
    killed, stopped, _ = map(float, lines(result, "SECONDS"))
    assert killed < 10
    assert stopped < 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--llm-tp=0",), "0 is not a positive whole number"),
        (("--llm-backends=compile+tp2,sdpa+tp2+tp4",), "tp2 and tp4 both are degrees; keep one"),
        (("--llm-backends=sdpa+tp1",), "unknown backend 'tp1'"),
        (("--llm-backends=transformers-paged", "--llm-tp=2"), "tp2 changes transformers or vllm"),
        (("--llm-reference=eager+tp2",), "the reference is always one process; leave out tp2"),
    ],
)
def test_degrees_that_make_no_sense_are_refused(suite: Suite, arguments: tuple[str, ...], said: str) -> None:
    assert said in usage_error(suite.decode(*arguments, backends="sdpa"))


@pytest.mark.parametrize(
    ("changes", "degree", "said"),
    [
        ({}, 3, "4 attention heads cannot be shared by 3 ranks"),
        ({"num_attention_heads": 6, "num_key_value_heads": 2}, 3, "128 FFN columns cannot be shared by 3 ranks"),
        ({}, 4, "2 KV heads cannot be shared by 4 ranks"),
        ({"vocab_size": 1001}, 2, "1001 tokens of vocabulary cannot be shared by 2 ranks"),
    ],
)
def test_a_model_that_cannot_be_shared_is_skipped_with_the_reason(
    suite: Suite, changes: dict[str, int], degree: int, said: str
) -> None:
    suite.model(**changes)
    result = suite.decode(f"--llm-tp={degree}", "--llm-random-weights", backends="sdpa")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines([f"skipped: sdpa+tp{degree}: {said}"])
    assert said in usage_error(
        suite.decode(f"--llm-tp={degree}", "--llm-random-weights", "--llm-strict", backends="sdpa")
    )


def test_a_transformers_without_tensor_parallelism_by_configuration_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import distributed

    from pytest_llmperf.backends.tensor_parallel import extend
    from pytest_llmperf.backends.transformers_engine import TransformersEngine

    class Engine(TransformersEngine):
        spec = EngineSpec("none", None, "float32", "cpu", tp=3)

        def __init__(self) -> None:
            self.load()

    monkeypatch.setattr(distributed, "DistributedConfig", type("DistributedConfig", (), {}))
    with pytest.raises(ModelError, match=r"too old for --llm-tp: pip install 'transformers>=5\.19'"):
        extend(Engine)()
