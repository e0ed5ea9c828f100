"""TunableOp around an engine: when it tunes, what it keeps, and when it counts as engaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_llmperf.backends import tunableop
from pytest_llmperf.backends.base import Engagement, EngineSpec, NotEngagedError
from pytest_llmperf.backends.tunableop import TunedEngine

VALIDATORS = (("PT_VERSION", "2.13.0"), ("GCN_ARCH_NAME", "gfx942"))
PROMPTS = [[1, 2, 3], [4, 5, 6]]


class NewTunable:
    """``torch.cuda.tunable`` as it is since `write_file` is gone: results are in the file as soon as they are found."""

    def __init__(self, validators: tuple[tuple[str, str], ...] = VALIDATORS) -> None:
        self.validators = validators
        self.enabled = False
        self.tuning = False
        self.file = Path()
        self.read: list[str] = []
        self.results: dict[tuple[str, str], str] = {}

    def enable(self, val: bool = True) -> None:
        self.enabled = val

    def tuning_enable(self, val: bool = True) -> None:
        self.tuning = val

    def set_filename(self, filename: str, insert_device_ordinal: bool = False) -> None:
        self.file = Path(filename)

    def read_file(self, filename: str) -> bool:
        self.read.append(filename)
        rows = (line.split(",") for line in Path(filename).read_text().splitlines())
        self.results |= {(op, shape): kernel for op, shape, kernel in rows}
        return True

    def get_results(self) -> tuple[tuple[str, str, str, float], ...]:
        return tuple((*key, kernel, 0.1) for key, kernel in self.results.items())

    def get_validators(self) -> tuple[tuple[str, str], ...]:
        return self.validators

    def save(self) -> None:
        self.file.write_text("".join(f"{op},{shape},{kernel}\n" for (op, shape), kernel in self.results.items()))

    def product(self, shape: str, kernel: str) -> None:
        """A matrix product: tuned if it may be and was not yet."""
        assert self.enabled
        if self.tuning:
            self.results.setdefault(("GemmTunableOp_BFloat16_TN", shape), kernel)
            self.save()


class Tunable(NewTunable):
    """As it was before."""

    def write_file(self, filename: str = "") -> None:
        assert Path(filename) == self.file
        self.file.write_text("".join(f"{op},{shape},{kernel}\n" for (op, shape), kernel in self.results.items()))

    def save(self) -> None:
        """Nothing: it is for the caller to do."""


class Blind:
    """An engine that shows no logits; each generation is one matrix product."""

    layers = 2

    def __init__(self, spec: EngineSpec, tunable: NewTunable, kernel: str = "Gemm_Hipblaslt_7") -> None:
        self.tunable = tunable
        self.kernel = kernel
        self.error: Exception | None = None
        self.tuned: list[bool] = [tunable.tuning]
        self.own = Engagement(True, "the engine's own", {"own": 1})
        tunable.product("loading", kernel)

    def generate(self, prompts: list[list[int]], max_new_tokens: int, on_token: Callable[[int, int], None]) -> None:
        self.tuned.append(self.tunable.tuning)
        if self.error:
            raise self.error
        self.tunable.product(f"{len(prompts)}x{len(prompts[0])}", self.kernel)
        for request in range(len(prompts)):
            on_token(request, 7)

    def evidence(self) -> Engagement:
        self.tuned.append(self.tunable.tuning)
        return self.own


class Inner(Blind):
    """One that does."""

    def observe(self, prompts: list[list[int]], max_new_tokens: int, leading: int) -> str:
        self.generate(prompts, max_new_tokens, lambda request, token: None)
        return f"{leading} logits"


def load(
    cache: Path, tunable: NewTunable | None = None, kind: type[Blind] = Inner, model: str = "tiny", **options: Any
) -> Any:
    tunable = tunable or Tunable()
    spec = EngineSpec(model, None, "bfloat16", "cuda", cache=str(cache))
    return TunedEngine(lambda spec: kind(spec, tunable, **options), spec, tunable)


def generate(engine: Any, prompts: list[list[int]] = PROMPTS, new: int = 1) -> list[tuple[int, int]]:
    tokens: list[tuple[int, int]] = []
    engine.generate(prompts, new, lambda request, token: tokens.append((request, token)))
    return tokens


# When it tunes


def test_it_tunes_while_loading_and_in_the_first_generation_of_a_shape(tmp_path: Path) -> None:
    engine = load(tmp_path)
    assert not engine.tunable.tuning
    for prompts, new in ((PROMPTS, 1), (PROMPTS, 1), (PROMPTS, 2), (PROMPTS[:1], 1), (PROMPTS, 2), (PROMPTS, 1)):
        generate(engine, prompts, new)
        assert not engine.tunable.tuning
    assert engine.tuned == [True, True, False, True, True, False, False]


def test_what_was_observed_is_tuned_already(tmp_path: Path) -> None:
    engine = load(tmp_path)
    assert engine.observe(PROMPTS, 1, 3) == "3 logits"
    generate(engine)
    assert engine.tuned == [True, True, False]


def test_tokens_are_the_engines(tmp_path: Path) -> None:
    engine = load(tmp_path)
    assert generate(engine) == generate(engine) == [(0, 7), (1, 7)]


def test_a_generation_that_fails_ends_tuning_and_is_tuned_again(tmp_path: Path) -> None:
    engine = load(tmp_path)
    engine._engine.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(engine)
    assert not engine.tunable.tuning
    engine._engine.error = None
    generate(engine)
    generate(engine)
    assert engine.tuned == [True, True, True, False]


def test_loading_that_fails_ends_tuning(tmp_path: Path) -> None:
    tunable = Tunable()

    def fail(spec: EngineSpec) -> Any:
        raise RuntimeError("no such model")

    with pytest.raises(RuntimeError, match="no such model"):
        TunedEngine(fail, EngineSpec("tiny", None, "bfloat16", "cuda", cache=str(tmp_path)), tunable)
    assert not tunable.tuning


# Engagement


def test_with_a_tuned_product_it_engages(tmp_path: Path) -> None:
    engine = load(tmp_path)
    generate(engine)
    found = engine.evidence()
    found.require()
    assert found.seen["own"] == 1
    assert found.seen["tuned products"] == "2 of 2"
    assert found.seen["kernels"] == ["Gemm_Hipblaslt_7"]
    assert engine.tuned[-1] is False  # evidence is not tuned


def test_with_nothing_but_the_default_it_does_not_engage(tmp_path: Path) -> None:
    engine = load(tmp_path, kernel="Default")
    generate(engine)
    with pytest.raises(NotEngagedError, match=r"tuned matrix products.*tuned products=0 of 2"):
        engine.evidence().require()


def test_without_any_product_it_does_not_engage(tmp_path: Path) -> None:
    engine = load(tmp_path)
    engine.tunable.results.clear()
    assert not engine.evidence().engaged


def test_what_was_tuned_while_timing_disproves_it(tmp_path: Path) -> None:
    engine = load(tmp_path)
    generate(engine)
    engine.tunable.results["GemmTunableOp_BFloat16_TN", "late"] = "Gemm_Rocblas_1"
    generate(engine)
    with pytest.raises(NotEngagedError, match="tuned while timing=1"):
        engine.evidence().require()


def test_an_engine_that_does_not_engage_by_itself_does_not_engage(tmp_path: Path) -> None:
    engine = load(tmp_path)
    engine._engine.own = Engagement(False, "the engine's own")
    assert not engine.evidence().engaged


# The file


def results(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.csv"))


def test_results_are_kept_and_read_by_the_next_process(tmp_path: Path) -> None:
    engine = load(tmp_path)
    generate(engine)
    (file,) = results(tmp_path)
    assert file.parent == tmp_path / "tunableop"
    assert engine.evidence().seen["results file"] == file.name
    assert engine.tunable.read == []
    after = load(tmp_path, Tunable(VALIDATORS[::-1]), kernel="Gemm_Rocblas_1")  # their order says nothing
    assert after.tunable.read == [str(file)]
    generate(after)
    assert after.tunable.results == engine.tunable.results
    assert results(tmp_path) == [file]


def test_another_device_or_version_has_another_file(tmp_path: Path) -> None:
    load(tmp_path)
    other = load(tmp_path, Tunable((VALIDATORS[0], ("GCN_ARCH_NAME", "gfx90a"))))
    assert other.tunable.read == []
    assert len(results(tmp_path)) == 2


def test_what_another_model_tuned_is_no_evidence_of_this_one(tmp_path: Path) -> None:
    generate(load(tmp_path))
    engine = load(tmp_path, model="other", kernel="Default")
    generate(engine)
    assert engine.tunable.read == []
    assert not engine.evidence().engaged


def test_results_of_a_failed_generation_are_kept(tmp_path: Path) -> None:
    engine = load(tmp_path)
    engine.tunable.results["GemmTunableOp_BFloat16_TN", "found before"] = "Gemm_Rocblas_1"
    engine._engine.error = RuntimeError
    with pytest.raises(RuntimeError):
        generate(engine)
    assert "found before" in results(tmp_path)[0].read_text()


def test_a_torch_that_keeps_results_itself_will_do(tmp_path: Path) -> None:
    engine = load(tmp_path, NewTunable())
    generate(engine)
    engine.evidence().require()
    assert "2x3" in results(tmp_path)[0].read_text()
    assert load(tmp_path, NewTunable()).tunable.results == engine.tunable.results


# The wrapping


def test_other_attributes_are_the_engines(tmp_path: Path) -> None:
    engine = load(tmp_path)
    assert engine.layers == 2
    assert not hasattr(engine, "statistics")
    with pytest.raises(AttributeError, match="nonsense"):
        _ = engine.nonsense


@pytest.mark.parametrize(
    ("kind", "shows"),
    [(Inner, True), (Blind, False)],
)
def test_it_shows_logits_only_where_the_engine_does(kind: type[Blind], shows: bool, tmp_path: Path) -> None:
    assert hasattr(load(tmp_path, kind=kind), "observe") is shows


def test_variables_that_would_overrule_it_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_TUNABLEOP_TUNING", "PYTORCH_TUNABLEOP_ENABLED", "PYTORCH_OTHER"):
        monkeypatch.setenv(name, "1")
    tunable = Tunable()
    monkeypatch.setattr(torch.cuda, "tunable", tunable)
    extended = tunableop.extend(lambda spec: Inner(spec, tunable))
    assert [name for name in os.environ if name.startswith("PYTORCH_TUNABLEOP_")] == []
    assert os.environ["PYTORCH_OTHER"] == "1"
    engine: Any = extended(EngineSpec("tiny", None, "bfloat16", "cuda", cache=str(tmp_path)))
    assert engine.tunable is tunable
    assert engine.tuned == [True]


@pytest.mark.parametrize("name", sorted(name for name in vars(NewTunable) if name.partition("_")[0] in (
    "enable", "tuning", "set", "read", "get"
)))  # fmt: skip
def test_torch_has_what_the_fake_has(name: str) -> None:
    assert callable(getattr(torch.cuda.tunable, name))
