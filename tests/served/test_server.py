"""The backend ``server`` in a whole run of pytest: gated, in parity, failing by itself, and silent on credentials."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inner import WORDLEVEL, Suite, usage_error
from loopback import DONE, HEAD, MODELS, Loopback, Request, event, jsons, plain, serving, usage
from simulated import Simulated

from pytest_llmperf import settings

PASSWORD, TOKEN, KEY = "pa55word", "sk-tok3n", "querykey1"
TESTS = """
def test_decode(llm_perf):
    llm_perf.gate("tpot")

def test_tokens(llm_parity):
    llm_parity.check()
"""


def right(position: int) -> int:
    """A token of the simulated reference's, of its first request."""
    return 1 + (position * position * 7 + position) % 997


class Model:
    """What the server generates.

    Attributes:
        ids: whether it says the tokens' ids.
        wrong: from which position on its tokens are other ones.
        broken: whether its stream breaks off.
    """

    ids = True
    wrong = 99
    broken = False

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        asked = request.json
        writer.write(HEAD)
        for position in range(asked["max_tokens"]):
            if self.broken and position == 2:
                return False
            token = right(position) + (position >= self.wrong)
            choice: dict[str, Any] = {"index": 0, "text": f" w{token}"}
            writer.write(event({"choices": [choice | ({"token_ids": [token]} if self.ids else {})]}))
            await writer.drain()
            await asyncio.sleep(0.003)
        writer.write(usage(len(asked["prompt"]), asked["max_tokens"]) + DONE + b"0\r\n\r\n")
        return True


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def server(model: Model) -> Iterator[Loopback]:
    with serving({"/v1/models": MODELS, "/v1/completions": model}) as found:
        yield found


@pytest.fixture(autouse=True)
def _suite(suite: Suite) -> None:
    tokenizer = WORDLEVEL | {
        "model": WORDLEVEL["model"] | {"vocab": {"[UNK]": 0} | {f"w{at}": at for at in range(1, 1000)}},  # type: ignore[operator]
        "pre_tokenizer": {"type": "WhitespaceSplit"},
    }
    (suite.path / "tiny" / "tokenizer.json").write_text(json.dumps(tokenizer))
    suite.test(TESTS)


def run(suite: Suite, server: Loopback, *arguments: str) -> pytest.RunResult:
    return suite.run(
        "test_it.py", "--llm-backends=server", f"--llm-server={server.url}", "--llm-timeout=20", *arguments
    )


def test_the_simulated_reference_says_what_the_server_says() -> None:
    simulated = Simulated.__new__(Simulated)  # making one scripts the clock of this process
    simulated.wrong_from = None
    assert [simulated.token(0, position) for position in range(9)] == [right(position) for position in range(9)]


def test_a_served_backend_is_gated_in_parity_and_says_its_boundary(suite: Suite, server: Loopback) -> None:
    done = run(suite, server, "--llm-results=r.json", "--llm-report=r.md,r.html,r.json.report.json")
    done.assert_outcomes(passed=2)
    done.stdout.fnmatch_lines(["tiny, bfloat16, cpu; server: client of a server; speedup over ref"])
    done.stdout.fnmatch_lines(["server *in parity*100.0%*"])
    (result,) = json.loads((suite.path / "r.json").read_text())["results"]
    assert result["boundary"] == "client of a server"
    assert result["utilization"] is None, "nobody knows the device behind it"
    assert result["engagement"]["seen"]["server"] == server.url
    assert "server: client of a server" in (suite.path / "r.md").read_text()
    assert "server: client of a server" in (suite.path / "r.html").read_text()


def test_a_server_is_not_held_against_itself(suite: Suite, server: Loopback) -> None:
    base = f"--llm-base-python={sys.executable}"
    done = run(suite, server, base, "--llm-compare=always", "--llm-results=r.json")
    (result,) = json.loads((suite.path / "r.json").read_text())["results"]
    assert result["verdict"]["outcome"] == "no baseline"
    assert "; base cannot be had: a server that runs already answers both base and head" in result["verdict"]["reason"]
    assert done.ret == 1, "nothing was compared"


def test_wrong_tokens_are_not_in_parity(suite: Suite, server: Loopback, model: Model) -> None:
    model.wrong = 5
    done = run(suite, server)
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["*not in parity with ref: a token is 5 logits worse*"])


def test_without_ids_parity_is_by_text_and_says_so(suite: Suite, server: Loopback, model: Model) -> None:
    model.ids = False
    done = run(suite, server, "--llm-results=r.json", "--llm-report=r.md")
    done.assert_outcomes(passed=2)
    done.stdout.fnmatch_lines(["server *in parity by text*100.0%*"])
    (parity,) = json.loads((suite.path / "r.json").read_text())["parity"]
    assert parity["by_text"]
    assert "in parity by text" in (suite.path / "r.md").read_text()


def test_a_text_that_parts_is_shown_where(suite: Suite, server: Loopback, model: Model) -> None:
    model.ids, model.wrong = False, 5
    done = run(suite, server)
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["*its text parts from the reference's at character * instead of *near tie*"])


def test_one_test_fails_and_the_rest_go_on(suite: Suite, server: Loopback, model: Model) -> None:
    suite.test(TESTS + "\ndef test_also(llm_perf):\n    llm_perf.gate('ttft')\n")
    model.broken = True
    done = suite.run("test_it.py", "--llm-backends=sim,server", f"--llm-server={server.url}", "--llm-timeout=20")
    done.assert_outcomes(passed=3, failed=3)
    done.stdout.fnmatch_lines([f"ServerError: request 0: {server.url}/v1/completions cut the stream after 2 events"])
    done.stdout.no_fnmatch_line("*Traceback*")


def test_without_a_server_it_is_skipped_with_what_to_give(suite: Suite) -> None:
    done = suite.run("test_it.py", "--llm-backends=server", "-rs")
    done.assert_outcomes(skipped=2)
    done.stdout.fnmatch_lines(
        ["*server: no server is named; name one that already runs, as in --llm-server=http://127.0.0.1:8000"]
    )


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--llm-server=ftp://pa55word@h", "*argument --llm-server: a server is a URL*"),
        ("--llm-server=http://u:pa55word@", "*argument --llm-server: the URL of server has no host*"),
        ("--llm-server=http://u:pa55word@h:99999", "*the URL of server has no host, a wrong port*"),
        ("--llm-server=http://a,http://pa55word@b", "*server is named twice*"),
        ("--llm-server=http://h#pa55word", "*or a fragment*"),
        (
            "--llm-server=vllm=http://pa55word@h",
            "*--llm-server=vllm=...: vllm cannot connect to a server*; server, tgi can",
        ),
        ("--llm-server=warp=http://pa55word@h", "*unknown backend 'warp'*"),
        ("--llm-server-header=pa55word", "*argument --llm-server-header: a header is 'Name: value'*"),
        ("--llm-server-header=A: pa55word\N{BELL}", "*the value of the header A has characters*"),
    ],
)
def test_what_cannot_be_a_server_is_said_without_quoting_it(suite: Suite, option: str, said: str) -> None:
    done = suite.run("test_it.py", option)
    pytest.LineMatcher([usage_error(done)]).fnmatch_lines([said])
    assert PASSWORD not in done.stdout.str() + done.stderr.str()


def test_several_servers_are_told_apart_by_their_backend() -> None:
    found = settings._servers("http://h:1/?a=b,c=d, tgi=https://u:p@i/x/")
    assert [(name, url.reveal()) for name, url in found] == [
        ("server", "http://h:1/?a=b,c=d"),
        ("tgi", "https://u:p@i/x"),
    ]


# Credentials


def echoing(request: Request) -> bytes:
    """A server's message that repeats whatever it was sent."""
    said = f"{request.path} {dict(request.headers)}"
    return json.dumps({"error": {"message": f"not for {said}"}}).encode()


async def refuse(request: Request, writer: asyncio.StreamWriter) -> None:
    await plain(echoing(request), "401 Unauthorized")(request, writer)


async def repeat(request: Request, writer: asyncio.StreamWriter) -> bool:
    writer.write(HEAD + event(echoing(request)))
    return False


async def garble(request: Request, writer: asyncio.StreamWriter) -> bool:
    writer.write(HEAD + event(b"{" + echoing(request)))
    return False


async def send_away(request: Request, writer: asyncio.StreamWriter) -> None:
    await plain(b"", "302 Found", extra=f"Location: http://u:{PASSWORD}@other/?{KEY}\r\n")(request, writer)


@pytest.mark.parametrize(
    "how", ["good", refuse, repeat, garble, send_away, "models", "gone"], ids=lambda how: getattr(how, "__name__", how)
)
@pytest.mark.parametrize("showing", [(), ("--showlocals", "--tb=long", "--full-trace", "-vv", "-rA")], ids=["", "all"])
def test_credentials_are_in_nothing_that_a_run_writes(
    suite: Suite, server: Loopback, monkeypatch: pytest.MonkeyPatch, how: Any, showing: tuple[str, ...]
) -> None:
    # Whatever else this machine does, the figures are accepted: the baseline is to be looked at too.
    monkeypatch.setattr("pytest_llmperf.machine.fitness.culprits", lambda records: [None] * len(records))
    monkeypatch.setattr("pytest_llmperf.measure.sampling.SETTLED", 100.0)
    monkeypatch.setenv("LLMPERF_SERVER", server.url.replace("//", f"//us3r:{PASSWORD}@") + f"/?api_key={KEY}")
    monkeypatch.setenv("LLMPERF_SERVER_HEADER", f"X-Token: Bearer {TOKEN}\nX-Other: 0therSecret")
    if callable(how):
        server.scripts["/v1/completions"] = how
    elif how == "models":
        server.scripts["/v1/models"] = jsons({"data": [{"id": f"tiny {PASSWORD}", "max_model_len": 3}]})
    elif how == "gone":
        server.scripts["/v1/completions"] = refuse
        monkeypatch.setenv("LLMPERF_SERVER", f"http://us3r:{PASSWORD}@nowhere.invalid/?api_key={KEY}")
    suite.test(TESTS + "\ndef test_settings(llm_engine):\n    run = llm_engine._run\n"
               "    assert run.settings is None, (run.settings, run.scope.servers)\n")  # fmt: skip
    done = suite.run(
        "test_it.py", "--llm-backends=server", "--llm-timeout=20", "--llm-results=r.json", "--llm-invocations=3",
        "--llm-report=r.md,r.html,r.csv,all.json", "--benchmark-json=b.json", "--junitxml=j.xml",
        "--llm-update-baselines", *showing,
    )  # fmt: skip
    done.assert_outcomes(passed=2 if how == "good" else 0, failed=1 if how == "good" else 3)
    if how != "gone":
        assert any(TOKEN in request.headers["x-token"] for request in server.requests), "they were sent"
    written = done.stdout.str() + done.stderr.str()
    files = [file for file in suite.path.rglob("*") if file.is_file() and file.suffix not in (".pyc", ".py")]
    assert {"r.json", "r.html", "j.xml"} <= {file.name for file in files}
    assert suite.baseline.exists() == (how == "good")
    written += "".join(file.read_text(errors="replace") for file in files)
    for secret in (PASSWORD, TOKEN, KEY, "0therSecret", "us3r:", "dXMzcjpwYTU1d29yZA"):
        where = [line for line in written.splitlines() if secret in line]
        assert where == [], f"{secret}: {where[:3]}"


def test_a_worker_s_environment_has_no_credentials(
    suite: Suite, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMPERF_SERVER_HEADER", f"X-Token: {TOKEN}")
    suite.backends(sim="open(HERE / 'seen', 'w').write(repr(dict(os.environ))) and Simulated()")
    suite.run("test_it.py", "--llm-backends=sim").assert_outcomes(passed=2)
    assert TOKEN not in Path(suite.path / "seen").read_text()
