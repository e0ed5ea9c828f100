"""An OpenAI-compatible server as an engine: vLLM, SGLang, llama.cpp, by ``/v1/completions``."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_llmperf.backends.base import SERVED_MODEL, EngineSpec, OnTokens
from pytest_llmperf.served.client import Answer, ServerError
from pytest_llmperf.served.engine import ServedEngine
from pytest_llmperf.served.reply import CompletionReply
from pytest_llmperf.served.texts import Texts

#: What asks for more than OpenAI's API has. A server that refuses one of these fields is asked without it.
HINTS = {
    "ignore_eos": True,
    "return_token_ids": True,  # vLLM from 0.10.2
    "cache_prompt": False,  # llama.cpp
    "n_probs": 1,  # llama.cpp: with each token its id
    "post_sampling_probs": True,  # llama.cpp: of the chosen token alone, which costs no softmax
}
#: vLLM: no other request's prefix is its own. New for each request.
SALT = "cache_salt"
#: Statuses by which servers refuse a request's form, and by which they say that a path is not there.
REFUSED, ABSENT = (400, 422), (404, 405, 501)
#: Names of models that an error lists.
LISTED = 8


def called(entries: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[Mapping[str, Any]]:
    """The entries of ``/v1/models`` with one of these names: those with a whole one, else with the last part of a path.

    Args:
        entries: each has an ``id``, and of vLLM a ``root``, which is where its weights are.
        names: what the model may be called. Case is ignored.

    Returns:
        Of those with the same ``id`` the first.
    """
    wanted = [name for name in names if name]

    def last(name: str) -> str:
        return name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()

    kinds: tuple[Callable[[str], str], ...] = (str.casefold, last)
    for alike in kinds:
        known = {alike(name) for name in wanted}
        found = [one for one in entries if known & {alike(str(one.get(key) or one["id"])) for key in ("id", "root")}]
        if found:
            return list({one["id"]: one for one in reversed(found)}.values())[::-1]
    return []


@dataclass(frozen=True)
class Form:
    """How a server is asked: without which of `HINTS` and `SALT`, and with prompts as text or as token ids. Pure."""

    without: frozenset[str] = frozenset()
    as_text: bool = False

    def plainer(self, refusal: Answer) -> Form | None:
        """The form to try after a server refused this one: without what it names, as text, without any hint.

        None if it did not refuse the form, or nothing plainer is left.
        """
        if refusal.status not in REFUSED:
            return None
        said = refusal.body.decode(errors="replace")
        left = frozenset((*HINTS, SALT)) - self.without
        if named := frozenset(name for name in left if name in said):
            return replace(self, without=self.without | named)
        if not self.as_text and "prompt" in said and re.search(r"\b(str|string|text)\b", said):
            return replace(self, as_text=True)
        return replace(self, without=self.without | left) if left else None


class CompletionsEngine(ServedEngine):
    """A server that runs already, or that a subclass starts."""

    path = "/v1/completions"
    metrics_path = "/metrics"
    histograms: Mapping[str, str] = {
        "queue time": "vllm:request_queue_time_seconds",
        "inference time": "vllm:request_inference_time_seconds",
        "time to first token": "vllm:time_to_first_token_seconds",
        "inter-token latency": "vllm:inter_token_latency_seconds",
    }
    counters = ("vllm:prefix_cache_hits_total", "vllm:num_preemptions_total", "vllm:generation_tokens_total")
    reply = CompletionReply

    def __init__(self, spec: EngineSpec) -> None:
        self.model = ""
        #: How the model's name was found where that is not by its name.
        self._how = ""
        self._form = Form()
        super().__init__(spec)

    def prepare(self) -> None:
        """Which of the server's models is asked, and that its context is long enough where the server says."""
        entries = self._models()
        if entries is None:
            self.model = self.spec.served_model or next(filter(None, self.spec.names), self.spec.model)
            self._how = " (the server has no /v1/models)"
            return
        entry = self._entry(entries)
        self.model = entry["id"]
        context = entry.get("max_model_len")
        if context is not None and context < self.spec.sequence_length:
            raise ServerError(
                f"{self.address} holds {context} tokens a request, and this run needs {self.spec.sequence_length}; "
                "lower --llm-prompt-lengths or --llm-max-new-tokens"
            )

    def _models(self) -> list[dict[str, Any]] | None:
        """The entries of ``/v1/models``; None where there is no such path."""
        try:
            answer = self.ask("/v1/models")
        except ServerError as error:
            if error.refusal is not None and error.refusal.status in ABSENT:
                return None
            raise
        entries = answer.get("data") if isinstance(answer, dict) else None
        usable = isinstance(entries, list) and all(isinstance(one, dict) and one.get("id") for one in entries)
        if not (entries and usable):
            raise self.client.failure("/v1/models", "names no model")
        return [{**one, "id": str(one["id"])} for one in entries]

    def _entry(self, entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """The model to measure: the one that the user names, else the one of the model's name, else the only one."""
        asked = self.spec.served_model
        names = (asked,) if asked else (*self.spec.names, self.spec.model)
        found = called(entries, names)
        if len(found) == 1:
            return found[0]
        if len(entries) == 1 and not asked:
            self._how = " (the only model there)"
            return entries[0]
        listed = [self.client.shown(one["id"]) for one in entries]
        more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
        raise ServerError(
            f"{self.address} serves {', '.join(listed[:LISTED])}{more}; {len(found) or 'none'} of them would be "
            f"{asked or next(filter(None, names))}: name one by --llm-served-model=NAME"
        )

    # A request

    def generate(self, prompts: list[list[int]], max_new_tokens: int, on_token: OnTokens) -> None:
        """See `Engine.generate`. A server that refuses the form of the requests is asked in a plainer one."""
        form = self._form
        while True:
            try:
                super().generate(prompts, max_new_tokens, on_token)
                break
            except ServerError as error:
                plainer = self._form.plainer(error.refusal) if error.refusal else None
                if plainer is None or any(reply.tokens for reply in self.replies):
                    self._form = form
                    raise
                self._form = plainer
        if self._form.as_text and any(reply.usage.get("prompt_tokens") is None for reply in self.replies):
            raise self.client.failure(
                self.path, "takes prompts as text and does not count their tokens: nobody knows which it computed"
            )

    def body(self, prompt: list[int], max_new_tokens: int) -> dict[str, Any]:
        """Greedy, past end-of-sequence, exactly so many tokens; a prompt that was sent before is computed again."""
        extra = {**HINTS, SALT: uuid.uuid4().hex}
        return {
            "model": self.model,
            "prompt": self._texts.of(prompt) if self._form.as_text else prompt,
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        } | {name: value for name, value in extra.items() if name not in self._form.without}

    @cached_property
    def _texts(self) -> Texts:
        return Texts(Path(self.spec.model), str(self.address))

    def seen(self) -> dict[str, Any]:
        """The model, how requests had to be made, and what the server counted."""
        counted = self.grown("vllm:generation_tokens_total")
        name = self.client.shown(str(self.model)) + self._how
        return {
            SERVED_MODEL if self.spec.server else "model": name,
            **({"prompts": "sent as text"} if self._form.as_text else {}),
            **({"refused fields": ", ".join(sorted(self._form.without))} if self._form.without else {}),
            **({"tokens counted": int(counted)} if counted is not None else {}),
        }
