"""Text Generation Inference as an engine, by ``/generate_stream``: one that runs already, or started here.

Written to TGI 3.3.7's published API and sources, and run against a real one on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_llmperf.backends.base import SERVED_MODEL, Engagement, EngineSpec, NotEngagedError
from pytest_llmperf.served.client import Address, ServerError
from pytest_llmperf.served.reply import TgiReply
from pytest_llmperf.served.started import StartedEngine, spelled
from pytest_llmperf.served.texts import Texts

LAUNCHER = "text-generation-launcher"
#: Its prefix cache is on by default, and has no option.
ENVIRONMENT = {"PREFIX_CACHING": "0", "USAGE_STATS": "off"}


def command(spec: EngineSpec, port: int, quantize: str = "") -> list[str]:
    """The command line of the launcher. Pure.

    Raises:
        ServerError: it has no such weights: float32, or random ones.
    """
    if spec.config is not None:
        raise ServerError("TGI reads weights from a folder or the hub; it has no random ones")
    if spec.dtype == "float32":
        raise ServerError("TGI has no float32; choose --llm-dtype=float16 or bfloat16")
    return [
        LAUNCHER, "--model-id", spec.model, "--num-shard", str(spec.tp),
        "--hostname", "127.0.0.1", "--port", str(port),
        "--max-concurrent-requests", str(spec.batch_size),
        "--max-input-tokens", str(spec.sequence_length - 1), "--max-total-tokens", str(spec.sequence_length),
        # A step holds a whole batch's prefill.
        "--max-batch-prefill-tokens", str(spec.batch_size * spec.sequence_length),
        *(["--quantize", quantize] if quantize else ["--dtype", spec.dtype]),  # not both
        *flags(spec.arguments),
    ]  # fmt: skip


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments of a variant as the launcher's command line has them: a flag that is off is left out. Pure."""
    found = []
    for name, value in arguments.items():
        if value is not None and value is not False:
            found += [f"--{name.replace('_', '-')}", *([] if value is True else [spelled(value)])]
    return found


class TgiEngine(StartedEngine):
    """It has no prompts of token ids and no ignore_eos: prompts are sent as text, and an early end is one."""

    path = "/generate_stream"
    metrics_path = "/metrics"
    histograms: Mapping[str, str] = {
        "queue time": "tgi_request_queue_duration",
        "inference time": "tgi_request_inference_duration",
        "time per token": "tgi_request_mean_time_per_token_duration",
    }
    reply = TgiReply
    end = "eos_token"
    quantize = ""

    def __init__(self, spec: EngineSpec) -> None:
        self._info: dict[str, Any] = {}
        super().__init__(spec)

    def open(self) -> Address:
        """The server's address; where none is named it is started, and waited for."""
        if self.spec.server:
            return super().open()
        return self.start(LAUNCHER, lambda port: command(self.spec, port, self.quantize), ENVIRONMENT)

    def prepare(self) -> None:
        """What it is, that it takes prompts as long as they will be, and the model's tokenizer."""
        self._texts = Texts(Path(self.spec.model), "TGI")
        info = self.ask("/info")
        if not isinstance(info, dict) or "model_id" not in info:
            raise self.client.failure("/info", "does not say which model it serves, as TGI does")
        self._info = info
        longest = info.get("max_total_tokens")
        if isinstance(longest, int) and longest < self.spec.sequence_length:
            raise ServerError(
                f"{self.address} holds {longest} tokens a request, and this run needs {self.spec.sequence_length}; "
                "lower --llm-prompt-lengths or --llm-max-new-tokens"
            )

    def body(self, prompt: list[int], max_new_tokens: int) -> dict[str, Any]:
        """Greedy; ``details`` has the server's counts in the last event."""
        parameters = {"max_new_tokens": max_new_tokens, "do_sample": False, "details": True}
        return {"inputs": self._texts.of(prompt), "parameters": parameters}

    def seen(self) -> dict[str, Any]:
        """What it says of itself, and its times where its headers have them."""
        model = SERVED_MODEL if self.spec.server else "model"
        said: dict[str, Any] = {
            shown: self.client.shown(str(self._info[name]))
            for name, shown in (("model_id", model), ("version", "version"))
            if name in self._info
        }
        for name in ("x-queue-time", "x-inference-time", "x-time-per-token"):  # not of every version's streams
            found = [float(one[name]) for one in self.headers if one.get(name, "").replace(".", "", 1).isdigit()]
            if found:
                said[name] = f"{sum(found) / len(found):g} ms"
        return said


def gptq(engine: type[TgiEngine]) -> type[TgiEngine]:
    """The part: weights of 4 bits, quantized by GPTQ beforehand."""

    class Gptq(engine):  # type: ignore[valid-type, misc]
        quantize = "gptq"

        def open(self) -> Address:
            if self.spec.server:
                raise NotEngagedError("from outside nobody sees how a server's weights are quantized; leave out "
                                      "--llm-server=tgi=..., so that it is started with --quantize gptq")  # fmt: skip
            return super().open()  # type: ignore[no-any-return]

        def evidence(self) -> Engagement:
            found: Engagement = super().evidence()
            return Engagement(
                found.engaged, found.expected + ", by --quantize gptq", {**found.seen, "quantize": "gptq"}
            )

    return Gptq
