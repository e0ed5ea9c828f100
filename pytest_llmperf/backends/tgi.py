"""tgi: Text Generation Inference; +gptq: its weights of 4 bits."""

from __future__ import annotations

from pytest_llmperf.backends import arguments
from pytest_llmperf.backends.base import CLIENT, Backend
from pytest_llmperf.backends.toolchain import no_accelerator

BACKENDS = (
    Backend(
        name="tgi",
        load="pytest_llmperf.served.tgi:TgiEngine",
        optimizes="decode",
        proof="TGI streams the tokens asked for, by its own count",
        distributions=("aiohttp",),
        dtypes=("float16", "bfloat16"),
        boundary=CLIENT,
        attaches=True,
        launcher="text-generation-launcher",
        arguments=arguments.of_tgi,
        held=arguments.TGI_HELD,
    ),
    Backend(
        name="gptq",
        load="pytest_llmperf.served.tgi:gptq",
        slot="weights",
        engines=("tgi",),
        optimizes="decode",
        proof="it was started with --quantize gptq",
        requires=no_accelerator,
        weight_bytes=0.5,
    ),
)
