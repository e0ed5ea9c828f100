"""Detection: sources that fail or disagree, and devices that resemble one another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_llmperf.machine import detect
from pytest_llmperf.machine.table import DEVICES, device_of


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


def test_amd_cards_without_a_name_have_that_of_their_ids(tmp_path: Path) -> None:
    for number, ids in enumerate((("0x75a0", "0x00"), ("0x744c", "0xc8"), ("0x744c", "0xcc"), ("0x1638", "0xc8"))):
        files(tmp_path / f"card{number}" / "device", vendor="0x1002\n", device=ids[0], revision=ids[1])
    names = ["AMD Instinct MI350X", "AMD Radeon RX 7900 XTX", "AMD Radeon RX 7900 XT"]
    assert detect.amd_products(tmp_path) == names


@pytest.mark.parametrize("name", sorted({*detect.AMD_IDS.values(), *detect.AMD_REVISIONS.values()}))
def test_what_has_an_id_is_a_device(name: str) -> None:
    found = device_of(name)
    assert found is not None
    assert found.kind == "rocm"


def test_every_amd_device_has_an_id() -> None:
    names = [*detect.AMD_IDS.values(), *detect.AMD_REVISIONS.values()]
    for device in DEVICES.values():
        assert device.kind != "rocm" or any(re.search(device.match, name) for name in names), device.name


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
        ("h100-pcie", "NVIDIA H100 NVL"),
        ("h20", "NVIDIA H20-3e"),
        ("h20", "NVIDIA H200"),
        ("l4", "NVIDIA L40"),
        ("l40", "NVIDIA L40S"),
        ("l40", "NVIDIA L40G"),
        ("a10", "NVIDIA A10G"),
        ("b200", "NVIDIA GB200"),
        ("b300", "NVIDIA GB300"),
        ("rtx-4090", "NVIDIA GeForce RTX 4090 D"),
        ("rtx-pro-6000", "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"),
        ("mi300x", "AMD Instinct MI300X HF"),
        ("mi300x", "AMD Instinct MI300A"),
        ("rx-7900-xtx", "AMD Radeon RX 7900 XT"),
        ("h100-pcie", "NVIDIA H100 80GB HBM3"),
        ("mi250", "AMD Instinct MI250X"),
        ("mi250x", "AMD INSTINCT MI250 (MCM) OAM AC MBA"),
    ],
)
def test_a_device_is_not_measured_against_its_siblings_roof(name: str, product: str) -> None:
    with pytest.raises(detect.DeviceNotPresentError):
        detect.resolve(name, (product,))
