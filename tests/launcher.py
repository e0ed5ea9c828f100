"""A stand-in for TGI's launcher: a shard in a session of its own, a folder ``out`` where it works, coloured logs.

Neither process heeds SIGTERM, SIGHUP or SIGINT. `install` puts it on PATH as a program. With ``PANIC`` in its
environment it breaks while it answers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAME = "text-generation-launcher"
#: What the shard does: it takes 64 MiB.
SHARD = "import time; held = bytearray(b'x' * 2**26); time.sleep(3600)"


def install(folder: Path) -> None:
    """Write the program into a folder, for PATH."""
    folder.mkdir(exist_ok=True)
    program = folder / NAME
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {Path(__file__)} "$@"\n')
    program.chmod(0o755)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        info = {"model_id": sys.argv[2], "version": "3.3.7", "max_total_tokens": 4096}
        self._answer(info if self.path == "/info" else {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if os.environ.get("PANIC"):
            print("\x1b[2m12:00\x1b[0m \x1b[31mERROR\x1b[0m router panicked at 'no shard'", file=sys.stderr, flush=True)
            os._exit(101)
        wanted = asked["parameters"]["max_new_tokens"]
        for position in range(wanted):
            time.sleep(0.002)
            event = {"token": {"id": 1 + position % 3, "text": " the", "logprob": -0.5, "special": False}}
            if position == wanted - 1:
                counted = {"generated_tokens": wanted, "input_length": len(asked["inputs"].split())}
                event |= {"generated_text": " the" * wanted, "details": {"finish_reason": "length", **counted}}
            data = f"data:{json.dumps(event)}\n\n".encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")


def main() -> None:
    for ending in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(ending, signal.SIG_IGN)  # which children inherit
    shard = subprocess.Popen([sys.executable, "-IS", "-c", SHARD], start_new_session=True)
    Path("out").mkdir()
    print("\x1b[32mstarting\x1b[0m", sys.argv[1:], flush=True)
    if log := os.environ.get("LAUNCHED"):  # where to say which processes there are
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {shard.pid} {Path.cwd()}\n")
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
