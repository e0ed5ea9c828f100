"""Whether a run is a job of CI, by the variable CI."""

from __future__ import annotations

import pytest

from pytest_llmperf.settings import in_ci


@pytest.mark.parametrize("value", ["true", "1", "True", "yes", "woodpecker"])
def test_a_job_of_ci_sets_the_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CI", value)
    assert in_ci()


@pytest.mark.parametrize("value", [None, "", " ", "false", "False", "0", "no", "off"])
def test_a_word_for_no_is_no_ci(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("CI", raising=False)
    if value is not None:
        monkeypatch.setenv("CI", value)
    assert not in_ci()
