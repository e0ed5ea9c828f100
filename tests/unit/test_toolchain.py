"""What an earlier run's compiler left half written in the caches of compiled kernels is compiled anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from inner import eventually

from pytest_llmperf.backends.toolchain import drop_unfinished, kernel_caches


def left(folder: Path, name: str, *files: str) -> Path:
    """What inductor leaves where it is killed while it compiles: its compiler's folder, and these files."""
    (place := folder / f"{name}_CxxBuild").mkdir(parents=True)
    for file in files:
        (folder / file).write_bytes(b"\x7fELF")
    return place


def test_files_whose_compiler_was_killed_are_removed_and_no_others(tmp_path: Path) -> None:
    left(tmp_path / "ab", "cabc.main", "cabc.main.so", "cabc.main.cpp", "cabd.main.so")
    left(tmp_path / "v" / "h1" / "rank_0_0", "cx.kernel", "cx.kernel.o")
    left(tmp_path / "headers", "ch.h", "ch.h.gch", "ch.h")
    left(tmp_path / "ef", "cnone.main")
    removed = drop_unfinished([tmp_path / "ab", tmp_path / "v", tmp_path / "headers", tmp_path / "ef", tmp_path / "no"])
    assert [file.name for file in removed] == ["cabc.main.so", "cx.kernel.o", "ch.h.gch"]
    assert not any(map(Path.exists, removed))
    kept = sorted(file.name for file in tmp_path.rglob("*") if file.is_file())
    assert kept == ["cabc.main.cpp", "cabd.main.so", "ch.h"]


def test_what_another_process_compiles_now_is_left_alone(tmp_path: Path) -> None:
    place = left(tmp_path, "cabc.main", "cabc.main.so")
    code = "import time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-ISc", code], cwd=place, stdout=subprocess.PIPE) as compiler:
        assert compiler.stdout is not None
        compiler.stdout.readline()
        assert drop_unfinished([tmp_path]) == []
        compiler.kill()
    assert eventually(lambda: [file.name for file in drop_unfinished([tmp_path])] == ["cabc.main.so"])


def test_what_another_process_has_just_compiled_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = left(tmp_path, "cabc.main", "cabc.main.so")

    def processes(attributes: list[str]) -> list[object]:
        place.rmdir()  # as the compiler does at its end
        return []

    monkeypatch.setattr("psutil.process_iter", processes)
    assert drop_unfinished([tmp_path]) == []
    assert (tmp_path / "cabc.main.so").exists()


def test_the_caches_are_inductor_s_its_headers_and_vllm_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("USER", "a:b")
    monkeypatch.setenv("LOGNAME", "a:b")
    environ = {"TORCHINDUCTOR_CACHE_DIR": "/k/inductor", "VLLM_CACHE_ROOT": "/k/vllm"}
    headers = tmp_path / "torchinductor_a_b"
    assert kernel_caches(environ) == [Path("/k/inductor"), headers, Path("/k/vllm/torch_compile_cache")]
    assert kernel_caches({})[0] == headers
    assert len(kernel_caches({})) == 2
