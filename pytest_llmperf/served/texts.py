"""Prompts as text, for servers that take no token ids."""

from __future__ import annotations

from pathlib import Path

from pytest_llmperf.prompts import comes_back, load_tokenizer
from pytest_llmperf.served.client import ServerError


class Texts:
    """Makes the text of a prompt.

    Args:
        folder: the model's, with its tokenizer.
        server: who takes text, in errors.

    Raises:
        ServerError: there is no tokenizer.
    """

    def __init__(self, folder: Path, server: str) -> None:
        self._server = server
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ServerError(
                f"{server} takes prompts as text, not as token ids, and the model's folder has no tokenizer.json to "
                "make it with"
            )
        self._tokenizer = load_tokenizer(file)

    def of(self, prompt: list[int]) -> str:
        """The text that becomes these tokens.

        Raises:
            ServerError: there is none: the text would become other tokens.
        """
        text: str = self._tokenizer.decode(prompt, skip_special_tokens=True)
        if not comes_back(self._tokenizer, prompt):
            raise ServerError(
                f"{self._server} takes prompts as text, and this prompt's text becomes "
                f"{len(self._tokenizer.encode(text).ids)} tokens that are not the {len(prompt)} meant; choose another "
                "--llm-prompt-lengths"
            )
        return text
