"""server: whatever runs already and speaks the OpenAI-compatible completions API."""

from __future__ import annotations

from pytest_llmperf.backends.base import CLIENT, Backend

BACKEND = Backend(
    name="server",
    load="pytest_llmperf.served.completions:CompletionsEngine",
    proof="the server streams the tokens asked for, by its own count; no prompt was found in a prefix cache",
    distributions=("aiohttp",),
    boundary=CLIENT,
    attaches=True,
)
