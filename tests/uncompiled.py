"""``vllm serve`` without the minutes that compiling takes."""

from __future__ import annotations

from pytest_llmperf.served.vllm import VllmServeEngine


class Uncompiled(VllmServeEngine):
    compiled = False
