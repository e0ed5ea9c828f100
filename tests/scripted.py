"""Completions servers that misbehave in one way each, a token every `STEP` seconds."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from loopback import DONE, HEAD, MISSING, Request, Script, chunk, event, jsons, plain, usage

#: Seconds to a token.
STEP = 0.02
#: Fields that a strict server knows.
KNOWN = {"model", "prompt", "max_tokens", "temperature", "ignore_eos", "stream", "stream_options"}
AZURE = {
    "id": "",
    "object": "",
    "created": 0,
    "model": "",
    "choices": [],
    "prompt_filter_results": [{"prompt_index": 0}],
}


class Scripted:
    """The answers of a server.

    Args:
        mode: what it does otherwise than ``good`` does.
        together: how many tokens it writes at a time.

    Attributes:
        written: of each answer, when its tokens were written, in seconds since the request was read.
        prompts: what was computed.
    """

    def __init__(self, mode: str = "good", together: int = 1) -> None:
        self.mode, self.together = mode, together
        self.written: list[list[float]] = []
        self.prompts: list[Any] = []

    @property
    def scripts(self) -> dict[str, Script]:
        names = ["bge-embed", "tiny"] if self.mode == "twomodels" else ["tiny"]
        models = MISSING if self.mode == "nomodels" else jsons({"data": [{"id": name} for name in names]})
        return {"/v1/models": models, "/v1/completions": self}

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        start, asked, mode = time.perf_counter(), request.json, self.mode
        if refused := self._refusal(asked):
            await plain(json.dumps({"error": {"message": refused}}).encode(), "400 Bad Request")(request, writer)
            return True
        wanted, prompt = asked["max_tokens"], asked["prompt"]
        self.prompts.append(prompt)
        stamps: list[float] = []
        self.written.append(stamps)
        writer.write(HEAD + (event(AZURE) if mode == "azure" else b""))
        count = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
        tail = [usage(count, wanted), {"donespace": event(b"[DONE] "), "nodone": b""}.get(mode, DONE)]
        tail += [DONE] if mode == "doubledone" else []
        together = wanted if mode == "buffered" else self.together
        for at in range(0, wanted, together):
            size = min(together, wanted - at)
            await asyncio.sleep(size * STEP)
            last = b"".join(tail) if at + size == wanted and mode == "buffered" else b""
            writer.write(b"".join(event({"choices": [self.choice(at + one, wanted)]}) for one in range(size)) + last)
            stamps += [time.perf_counter() - start] * size
        writer.write(b"".join(tail if mode != "buffered" else []) + chunk(b""))
        await writer.drain()
        if mode == "hangup":  # without a "Connection: close", and when the next request may be on its way
            await asyncio.sleep(0.005)
        return mode != "hangup"

    def _refusal(self, asked: dict[str, Any]) -> str:
        if self.mode == "textonly" and not isinstance(asked["prompt"], str):
            return "prompt: Input should be a valid string"
        if self.mode == "strict" and (extra := sorted(set(asked) - KNOWN)):
            return f"extra_forbidden: body.{extra[0]}: Extra inputs are not permitted"
        if self.mode == "silentlystrict" and set(asked) - KNOWN:
            return "bad request"
        if self.mode == "twomodels" and asked["model"] != "tiny":
            return f"{asked['model']} does not support completions"
        return ""

    def choice(self, at: int, wanted: int) -> dict[str, Any]:
        end = "length" if at == wanted - 1 else None
        choice = {"index": 0, "text": f" w{at}", "finish_reason": end}
        if self.mode == "chatdelta":
            return {"index": 0, "delta": {"content": f" w{at}"}, "finish_reason": end}
        if self.mode == "emptyfirst":
            return choice | {"text": " w" if end else ""}
        if self.mode == "surrogate":
            return choice | {"text": "\ud83d\ude00"[at % 2]}
        if self.mode == "llamacpp":
            return choice | {"logprobs": {"content": [{"id": 100 + at, "token": f" w{at}", "prob": 1.0}]}}
        return choice | ({} if self.mode == "text" else {"token_ids": [100 + at]})
