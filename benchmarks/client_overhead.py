"""Measure the cost of the streaming client: a server process replays fixed timings to concurrent streams.

    python -m benchmarks.client_overhead [--generations 20] [--output benchmarks/data/client_overhead.json]

Every 20 ms the server writes one event with token ids, shaped as vLLM's, to each of 32 streams, and notes the time.
Both clocks are the machine's monotonic clock. The script shows three figures:

- the client's CPU time per token (criterion: under 0.2 ms);
- the time from writing a token to stamping it: all 32 are written at once, so the last waits for 31 others;
- the difference between the stamped TPOT and the server's own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from statistics import fmean, median, quantiles

from benchmarks import script
from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.served.completions import CompletionsEngine
from pytest_llmperf.worker.recorder import Recorder

STREAMS, TOKENS, GAP = 32, 64, 0.020
PROMPT = list(range(256))
LIMIT = 0.2e-3


def _chunk(value: object) -> bytes:
    data = b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


class Replay:
    """The server. It starts the streams of a batch when it has all their requests."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.StreamWriter] = []
        self.written: list[list[float]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        while True:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-l")), 0)
            await reader.readexactly(length)
            path = head.split()[1]
            if path == "/v1/completions":
                self.waiting.append(writer)
                if len(self.waiting) == STREAMS:
                    await self.replay()
                continue
            known = {"/v1/models": {"data": [{"id": "replay"}]}, "/written": self.written}
            body = json.dumps(known.get(path, {})).encode()
            status = b"200 OK" if path in known else b"404 Not Found"
            writer.write(
                b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
            )
            writer.write(body)

    async def replay(self) -> None:
        """Write the streams of one batch."""
        writers, self.waiting = self.waiting, []
        self.written = []
        for writer in writers:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        start = time.perf_counter()
        for index in range(TOKENS):
            await asyncio.sleep(max(0.0, start + (index + 1) * GAP - time.perf_counter()))
            choice = {"index": 0, "text": " word", "logprobs": None, "finish_reason": None, "stop_reason": None,
                      "token_ids": [1000 + index], "prompt_token_ids": PROMPT if index == 0 else None}  # fmt: skip
            event = _chunk({"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1, "model": "replay",
                            "choices": [choice], "usage": None})  # fmt: skip
            times = []
            for writer in writers:
                times.append(time.perf_counter())
                writer.write(event)
            self.written.append(times)
        usage = {"prompt_tokens": len(PROMPT), "total_tokens": len(PROMPT) + TOKENS, "completion_tokens": TOKENS}
        for writer in writers:
            writer.write(_chunk({"choices": [], "usage": usage}) + _chunk(b"[DONE]") + b"0\r\n\r\n")


async def _serve() -> None:
    server = await asyncio.start_server(Replay().serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the parent closes it


def generation(engine: CompletionsEngine) -> dict[str, float]:
    """Generate one batch: CPU time per token, delays from writing to stamping, TPOT stamped and written; all in s."""
    recorder = Recorder(STREAMS)
    before = time.process_time()
    engine.generate([PROMPT] * STREAMS, TOKENS, recorder)
    cpu = (time.process_time() - before) / (STREAMS * TOKENS)
    written = engine.ask("/written")
    # Streams and requests are matched by their order within a step. Which of the 32 is which does not matter.
    steps = zip(*([recorder._started + at for at in row] for row in recorder.times), strict=True)
    delays = [
        stamped - wrote
        for step, times in zip(steps, written, strict=True)
        for stamped, wrote in zip(sorted(step), times, strict=True)
    ]
    spans = [(row[-1] - row[0]) / (TOKENS - 1) for row in recorder.times]
    return {
        "cpu": cpu,
        "delay median": median(delays),
        "delay mean": fmean(delays),
        "delay 99 %": quantiles(delays, n=100)[-1],
        "tpot stamped": fmean(spans),
        "tpot written": fmean(b - a for a, b in zip(written[0], written[-1], strict=True)) / (TOKENS - 1),
    }


def main() -> int:
    """Measure, print, write the data; return 1 if the criterion is not met."""
    if sys.argv[1:] == ["--serve"]:
        asyncio.run(_serve())
        return 0
    options = script.options(__doc__, "generations", 20, "batches, after one to warm up")
    server = subprocess.Popen([sys.executable, "-m", "benchmarks.client_overhead", "--serve"], stdin=-1, stdout=-1)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        engine = CompletionsEngine(EngineSpec("replay", None, "float32", "cpu", timeout=60.0, server=url))
        generation(engine)
        made = [generation(engine) for _ in range(options.generations)]
        engine.close()
    finally:
        server.stdin.close()
        server.wait(10)
    found = {name: median(one[name] for one in made) for name in made[0]}
    off = median(one["tpot stamped"] / one["tpot written"] - 1 for one in made)
    print(f"{STREAMS} streams, {TOKENS} tokens each, one every {GAP * 1e3:g} ms; medians of {len(made)} batches")
    print(f"CPU time of the client per token: {found['cpu'] * 1e3:.3f} ms, limit {LIMIT * 1e3:g} ms")
    print(
        f"from written to stamped: mean {found['delay mean'] * 1e3:.3f} ms, median {found['delay median'] * 1e3:.3f}, "
        f"99 % {found['delay 99 %'] * 1e3:.3f}; TPOT {off:+.3%}"
    )
    command = f"benchmarks.client_overhead --generations {options.generations}"
    script.write(options.output, command, streams=STREAMS, tokens=TOKENS, gap=GAP, generations=made)
    return 0 if found["cpu"] < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
