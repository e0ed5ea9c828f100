"""Detection: sources that fail or disagree, and devices that resemble one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llmperf.machine import detect


def files(root: Path, **texts: str) -> None:
    root.mkdir(parents=True)
    for name, text in texts.items():
        (root / name).write_text(text)


def test_amd_dies_are_read_from_the_compute_topology_in_its_order(tmp_path: Path) -> None:
    files(tmp_path / "0", properties="cpu_cores_count 64\nsimd_count 0\nvendor_id 0\ndevice_id 0\n")
    for node, device in (("10", 0x740C), ("2", 0x740F), ("3", 0x66AF)):  # the last is a Radeon VII
        files(
            tmp_path / node,
            properties=f"simd_count 416\ngfx_target_version 90010\nvendor_id 4098\ndevice_id {device}\n",
        )
    assert detect.kfd_products(tmp_path) == ["AMD Instinct MI210", "AMD Instinct MI250X / MI250"]


def test_what_cannot_be_read_is_not_found(tmp_path: Path) -> None:
    for unreadable in ("0/information", "card0/device/vendor", "0/properties"):
        (tmp_path / unreadable).mkdir(parents=True)
    for products in (detect.nvidia_products, detect.amd_products, detect.kfd_products):
        assert products(tmp_path) == []


def test_a_gpu_that_its_driver_has_not_started_has_no_name_yet(tmp_path: Path) -> None:
    files(tmp_path / "0000:0a:00.0", information="Model: \t\t Unknown\n")
    assert detect.nvidia_products(tmp_path) == []


@pytest.mark.parametrize(
    ("answers", "names"),
    [
        ([["AMD Instinct MI210"], None], ["AMD Instinct MI210"]),  # None: not to be asked
        ([["AMD INSTINCT MI200 (MCM) OAM LC MBA HPE C2"], ["AMD Instinct MI250X"], None], ["AMD Instinct MI250X"]),
        ([["Radeon"], [], []], ["Radeon"]),
        ([[], []], []),
    ],
)
def test_a_source_is_asked_only_until_one_knows(answers: list[list[str] | None], names: list[str]) -> None:
    def source(answer: list[str] | None) -> list[str]:
        assert answer is not None
        return answer

    assert detect.first_known(*(lambda answer=answer: source(answer) for answer in answers)) == names


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("a100", "NVIDIA A100-SXM4-40GB"),
        ("a100-40", "NVIDIA A100-SXM4-80GB"),
        ("h100", "NVIDIA H100 PCIe"),
        ("h100", "NVIDIA H100 NVL"),
        ("h100-pcie", "NVIDIA H100 80GB HBM3"),
        ("mi250", "AMD Instinct MI250X"),
        ("mi250x", "AMD INSTINCT MI250 (MCM) OAM AC MBA"),
    ],
)
def test_a_device_is_not_measured_against_its_siblings_roof(name: str, product: str) -> None:
    with pytest.raises(detect.DeviceNotPresentError):
        detect.resolve(name, (product,))
