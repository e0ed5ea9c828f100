"""Devices: which product is which, what is found here, what identifies a machine, and who else uses it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.machine import detect, fingerprint, health
from pytest_llmperf.machine.fingerprint import Fingerprint
from pytest_llmperf.machine.table import DEVICES, HALF, MEASURED, device_for_product, device_of, kind_of

PRODUCTS = {
    "AMD Instinct MI210": "mi210",
    "AMD INSTINCT MI250 (MCM) OAM AC MBA": "mi250",
    "AMD Instinct MI250X": "mi250x",
    "AMD Instinct MI250X / MI250": "mi250",  # amdgpu.ids, PCI id 740c: seen on MI250s of 104 CUs a die
    "AMD Instinct MI300A": "mi300a",
    "AMD Instinct MI300X": "mi300x",
    "AMD Instinct MI300X VF": "mi300x",
    "AMD Instinct MI308X": "mi308x",
    "AMD Instinct MI325X": "mi325x",
    "AMD Instinct MI350X": "mi350x",
    "AMD Instinct MI350X VF": "mi350x",
    "AMD Instinct MI355X": "mi355x",
    "AMD Radeon RX 7900 XTX": "rx-7900-xtx",
    "NVIDIA A10": "a10",
    "NVIDIA A10-24Q": "a10",
    "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-PCIE-40GB": "a100-40",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 80GB HBM2e": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H200": "h200",
    "NVIDIA H200 NVL": "h200",
    "NVIDIA H20": "h20",
    "NVIDIA L4": "l4",
    "NVIDIA L40": "l40",
    "NVIDIA L40S": "l40s",
    "NVIDIA B200": "b200",
    "NVIDIA GB200": "gb200",
    "NVIDIA B300 SXM6 AC": "b300",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 5090": "rtx-5090",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtx-pro-6000",
}
#: Products of the two vendors that are no row's, by the name that each has as a device.
UNLISTED = {
    "AMD Instinct MI100": "amd-instinct-mi100",
    "AMD Instinct MI300X HF": "amd-instinct-mi300x-hf",
    "AMD Instinct MI308X HF": "amd-instinct-mi308x-hf",
    "AMD Radeon RX 7900 XT": "amd-radeon-rx-7900-xt",
    "AMD Radeon RX 7900 GRE": "amd-radeon-rx-7900-gre",
    "AMD Radeon RX 7900M": "amd-radeon-rx-7900m",
    "Navi 31 [Radeon RX 7900 XT/7900 XTX/7900M]": "navi-31-radeon-rx-7900-xt-7900-xtx-7900m",
    "NVIDIA A10G": "nvidia-a10g",
    "NVIDIA A800-SXM4-80GB": "nvidia-a800-sxm4-80gb",
    "NVIDIA B100": "nvidia-b100",
    "NVIDIA GB300": "nvidia-gb300",
    "NVIDIA GH200 480GB": "nvidia-gh200-480gb",
    "NVIDIA H20-3e": "nvidia-h20-3e",
    "NVIDIA H800": "nvidia-h800",
    "NVIDIA L40G": "nvidia-l40g",
    "NVIDIA GeForce RTX 4090 D": "nvidia-geforce-rtx-4090-d",
    "NVIDIA GeForce RTX 4090 Laptop GPU": "nvidia-geforce-rtx-4090-laptop-gpu",
    "NVIDIA GeForce RTX 5090 D v2": "nvidia-geforce-rtx-5090-d-v2",
    "NVIDIA RTX A6000": "nvidia-rtx-a6000",
    "NVIDIA RTX 6000 Ada Generation": "nvidia-rtx-6000-ada-generation",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": (
        "nvidia-rtx-pro-6000-blackwell-max-q-workstation-edition"
    ),
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "nvidia-rtx-pro-6000-blackwell-server-edition",
    "Tesla T4": "tesla-t4",
}
#: What torch cannot use here, whatever its build.
STRANGERS = ["Intel Arc", "Matrox G200", ""]


@pytest.mark.parametrize(("product", "name"), PRODUCTS.items())
def test_a_product_is_one_device(product: str, name: str) -> None:
    for spelling in (product, product.upper(), product.lower()):
        found = device_for_product(spelling)
        assert found is not None
        assert found.name == name


@pytest.mark.parametrize(("product", "name"), UNLISTED.items())
def test_a_product_that_only_resembles_one_is_a_device_of_its_own(product: str, name: str) -> None:
    assert device_for_product(product) is None
    found = device_of(product)
    assert found is not None
    assert found.name == name == found.name.lower()
    assert found.kind == ("cuda" if "NVIDIA" in product or "Tesla" in product else "rocm")
    assert (found.peak_flops, found.peak_bandwidth, found.memory_bytes, found.source) == (None, None, None, MEASURED)
    assert (found.dtypes, found.max_regression, found.torch_device) == (HALF, 0.05, "cuda")
    assert re.search(found.match, product)
    assert kind_of(name) == found.kind, "a marker or a baseline may name it on another machine"


@pytest.mark.parametrize("product", STRANGERS)
def test_what_is_no_product_of_the_two_vendors_is_no_device(product: str) -> None:
    assert device_for_product(product) is device_of(product) is kind_of(product) is None


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_listed_product_is_its_row(product: str) -> None:
    assert device_of(product) == device_for_product(product)
    assert kind_of(product) == DEVICES[PRODUCTS[product]].kind == kind_of(PRODUCTS[product])


@given(st.text(max_size=40))
def test_a_device_has_a_name_that_a_file_can_have(product: str) -> None:
    found = device_of(f"NVIDIA {product}")
    assert found is not None
    assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", found.name)
    assert detect.resolve(found.name.upper(), (f"NVIDIA {product}",)) == found


def test_every_device_is_complete() -> None:
    for name, device in DEVICES.items():
        assert device.name == name == name.lower()
        assert device.source
        assert device.dtypes
        accelerator = device.kind != "cpu"
        assert device.torch_device == ("cuda" if accelerator else "cpu")
        assert device.max_regression == (0.05 if accelerator else 0.10)
        assert (device.memory_bytes is not None and device.memory_bytes > 0) == accelerator
        peaks = (device.peak_flops, device.peak_bandwidth)
        assert peaks == (None, None) or all(peak is not None and peak > 0 for peak in peaks)
        assert (device.peak_flops is None) == device.source.startswith(MEASURED)
        assert device.kind == kind_of(name)
        if accelerator:
            assert re.match("measured|NVIDIA|AMD", device.source)
            assert ("AMD" in device.source) == (device.kind == "rocm")
    assert [name for name, device in DEVICES.items() if device.peak_flops is None] == ["mi308x", "cpu"]


@pytest.mark.parametrize("name", [name for name in DEVICES if name != "cpu"])
def test_a_narrower_type_is_at_least_as_fast(name: str) -> None:
    device = DEVICES[name]
    for dtype in device.dtypes:
        assert device.peak(dtype) == device.peak_flops
    assert device.narrow.keys() <= {"int8", "fp8"}
    # A GeForce multiplies half types, accumulated in FP32, at half the rate of its cores.
    most = 4.01 if name in ("rtx-4090", "rtx-5090") else 2.03
    for dtype, peak in device.narrow.items():
        assert device.peak_flops is not None
        assert device.peak(dtype) == peak
        assert device.peak_flops <= peak <= most * device.peak_flops, "a dense peak, not one of sparse matrices"
    assert device.peak("int3") is None


def test_the_page_of_devices_is_what_the_table_says() -> None:
    def rate(value: float | None) -> str:
        return "-" if value is None else f"{value / 1e12:g}"

    rows = []
    for device in DEVICES.values():
        if device.memory_bytes is not None:
            dies = f" (a die of {device.dies})" if device.dies > 1 else ""
            peaks = (device.peak_flops, device.narrow.get("int8"), device.narrow.get("fp8"), device.peak_bandwidth)
            memory = f"{device.memory_bytes / 1e9:g}"
            cells = (f"`{device.name}`{dies}", *map(rate, peaks), memory, device.source)
            rows.append(f"| {' | '.join(cells)} |")
    page = (Path(__file__).parents[2] / "docs/reference/devices.md").read_text().splitlines()
    assert [line for line in page if line.startswith("| `")] == rows


def test_a_variant_has_no_lower_roof_than_its_own() -> None:
    """What one card of a name may reach, its row allows: the fastest of them, or a margin."""
    assert {name for name, device in DEVICES.items() if not device.strict} == {
        "rx-7900-xtx",
        "h20",
        "rtx-4090",
        "rtx-5090",
        "rtx-pro-6000",
    }
    h100 = [DEVICES[name] for name in ("h100-pcie", "h100-nvl", "h100")]
    assert [device.peak_flops for device in h100] == sorted(device.peak_flops or 0 for device in h100)


def test_a_type_that_a_generation_does_not_have_has_no_peak() -> None:
    for name in ("a100", "a10", "mi210", "rx-7900-xtx"):
        assert DEVICES[name].peak("fp8") is None
    assert DEVICES["h100"].peak("fp8") == 1979e12


def test_the_cpu_has_no_float16() -> None:
    assert DEVICES["cpu"].dtypes == ("float32", "bfloat16")


def test_an_mi250_is_two_dies_and_its_peaks_are_of_one() -> None:
    assert (DEVICES["mi250"].dies, DEVICES["mi250x"].dies, DEVICES["mi210"].dies) == (2, 2, 1)
    assert DEVICES["mi250"].peak_flops == DEVICES["mi210"].peak_flops == pytest.approx(181e12)


# Detection


def files(root: Path, **texts: str) -> None:
    root.mkdir(parents=True)
    for name, text in texts.items():
        (root / name).write_text(text)


def test_nvidia_cards_are_read_from_the_driver(tmp_path: Path) -> None:
    text = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 255\nGPU UUID: \t GPU-0\nBus Type: \t PCIe\n"
    files(tmp_path / "0000:0a:00.0", information=text)
    files(tmp_path / "0000:1b:00.0", information=text)
    assert detect.nvidia_products(tmp_path) == ["NVIDIA H200"] * 2


def test_amd_cards_are_read_from_the_kernel(tmp_path: Path) -> None:
    files(tmp_path / "card0" / "device", vendor="0x1a03\n", product_name="ASPEED\n")  # the board's own display
    files(tmp_path / "card1" / "device", vendor="0x1002\n", product_name="AMD Instinct MI210\n")
    files(tmp_path / "card2" / "device", vendor="0x1002\n", product_name="\n")
    assert detect.amd_products(tmp_path) == ["AMD Instinct MI210"]


def test_amd_cards_are_read_from_rocm_smi() -> None:
    card = {"Card Model": "0x74a1", "Card Vendor": "Advanced Micro Devices, Inc. [AMD/ATI]", "GFX Version": "gfx942"}
    new = {"card0": {"Card Series": "AMD Instinct MI300X", **card}, "system": {"Driver version": "6.2.4"}}
    old = {"card0": {"Card series": "AMD INSTINCT MI250 (MCM) OAM AC MBA", "Card model": "0x0b0c"}}
    assert detect.rocm_smi_products(json.dumps(new)) == ["AMD Instinct MI300X"]
    assert detect.rocm_smi_products(json.dumps(old)) == ["AMD INSTINCT MI250 (MCM) OAM AC MBA"]


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_what_rocm_smi_never_says_is_no_card(text: str) -> None:
    assert detect.rocm_smi_products(text) == []


def test_without_drivers_nothing_is_found(tmp_path: Path) -> None:
    for products in (detect.nvidia_products, detect.amd_products, detect.kfd_products):
        assert products(tmp_path / "none") == []


def test_no_name_means_the_first_accelerator_that_the_table_knows() -> None:
    here = ("Intel Arc", "NVIDIA RTX A6000", "NVIDIA H200", "NVIDIA B200")
    assert detect.resolve(None, here).name == "h200"


def test_else_it_is_the_first_that_it_does_not_know() -> None:
    assert detect.resolve(None, ("Intel Arc", "Tesla T4", "NVIDIA RTX A6000")).name == "tesla-t4"


@pytest.mark.parametrize(
    ("torch", "name"),
    [
        ("2.13.0+cpu", "cpu"),
        ("2.13.0+cu128", "nvidia-rtx-a6000"),
        ("2.13.0+rocm6.4", "mi210"),
        ("2.13.0", "mi210"),
        ("2.13.0a0+gitc0ffee", "mi210"),
        (None, "mi210"),
    ],
)
def test_it_is_one_that_torch_can_use(torch: str | None, name: str) -> None:
    here = ("NVIDIA RTX A6000", "AMD Instinct MI210")
    assert detect.resolve(None, here, torch).name == name
    assert detect.resolve("mi210", here, torch).name == "mi210", "who names it is told by the doctor"


def test_a_product_that_is_here_may_be_named_by_its_name() -> None:
    here = ("NVIDIA H200", "NVIDIA RTX A6000")
    assert detect.resolve("NVIDIA-RTX-A6000", here) == device_of("NVIDIA RTX A6000")
    assert detect.resolve("nvidia-h200", here) == DEVICES["h200"]
    with pytest.raises(detect.UnknownDeviceError, match=r"known: mi210, .*, cpu, nvidia-rtx-a6000$"):
        detect.resolve("nvidia-rtx-a5000", here)


def test_devices_of_a_name_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "found", lambda: ("NVIDIA RTX A6000", "NVIDIA H200", "NVIDIA RTX A6000"))
    assert [detect.count(detect.resolve(name)) for name in ("nvidia-rtx-a6000", "h200")] == [2, 1]


@pytest.mark.parametrize("here", [(), ("Intel Arc",)])
def test_no_name_and_no_known_accelerator_means_the_cpu(here: tuple[str, ...]) -> None:
    assert detect.resolve(None, here).name == "cpu"


def test_the_cpu_may_be_asked_for_anywhere_and_in_capitals() -> None:
    assert detect.resolve("CPU", ("NVIDIA H200",)).name == "cpu"


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(detect.UnknownDeviceError) as caught:
        detect.resolve("mi999", ())
    message = str(caught.value)
    assert "\n" not in message
    assert "mi999" in message
    assert all(name in message for name in DEVICES)


@pytest.mark.parametrize(("here", "seen"), [((), "no accelerator"), (("NVIDIA H200",), "NVIDIA H200")])
def test_a_device_that_is_absent_says_what_is_here(here: tuple[str, ...], seen: str) -> None:
    with pytest.raises(detect.DeviceNotPresentError) as caught:
        detect.resolve("mi210", here)
    message = str(caught.value)
    assert "\n" not in message
    assert "mi210" in message
    assert seen in message


@pytest.mark.parametrize("name", ["mi250", "mi250x"])
def test_where_rocm_cannot_tell_two_products_apart_the_user_can(name: str) -> None:
    assert detect.resolve(name, ("AMD Instinct MI250X / MI250",)).name == name


def test_nothing_of_devices_imports_torch() -> None:
    code = "import sys; from pytest_llmperf.machine import fingerprint, health; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Fingerprint

MACHINE = Fingerprint("Some CPU (6/207/2)", ("amx_tile", "avx2"), 8, 31, "x86_64", "Linux", ("NVIDIA H200",))
INTEL = """processor\t: 0
cpu family\t: 6
model\t\t: 207
model name\t: Intel(R)  Xeon(R) Processor
stepping\t: 2
microcode\t: 0x1
cpu MHz\t\t: 2300.000
flags\t\t: fpu avx2 avx512f amx_tile hypervisor

processor\t: 1
cpu MHz\t\t: 2900.123
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve i8mm\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"

names = st.text(max_size=20)
sets = st.lists(names, max_size=3).map(tuple)
sizes = st.integers(1, 10**4)
machines = st.builds(Fingerprint, names, sets, sizes, sizes, names, names, sets)


@given(machines)
def test_a_fingerprint_survives_its_json(machine: Fingerprint) -> None:
    again = Fingerprint.from_dict(json.loads(json.dumps(machine.as_dict())))
    assert again == machine
    assert again.id == machine.id
    assert machine.difference(again) == []


@given(machines, machines)
def test_equal_ids_are_equal_machines(one: Fingerprint, other: Fingerprint) -> None:
    assert (one.id == other.id) == (one == other)
    assert re.fullmatch("[0-9a-f]{12}", one.id)


def test_an_id_is_the_same_in_every_process_and_version() -> None:
    assert MACHINE.id == "6a13615d42e0"  # stored beside latencies: to change it is to disown every baseline


@given(machines, machines)
def test_what_differs_is_named_whichever_way_one_asks(one: Fingerprint, other: Fingerprint) -> None:
    assert len(one.difference(other)) == len(other.difference(one))
    same_but_memory = replace(one, memory_gib=other.memory_gib) == other
    assert one.difference(other) or same_but_memory


@pytest.mark.parametrize("field", [field.name for field in fields(Fingerprint)])
def test_each_part_of_a_machine_matters(field: str) -> None:
    value: Any = getattr(MACHINE, field)
    other: Any = value * 2 if isinstance(value, int) else () if isinstance(value, tuple) else "another"
    lines = MACHINE.difference(replace(MACHINE, **{field: other}))
    assert len(lines) == 1
    assert ", not " in lines[0]


def test_a_difference_reads_as_this_not_that() -> None:
    assert MACHINE.difference(replace(MACHINE, cpus=4)) == ["CPUs: 8, not 4"]


@pytest.mark.parametrize(("gib", "same"), [(30, True), (28, True), (27, False), (35, False)])
def test_a_tenth_of_the_memory_is_the_kernels_to_reserve(gib: int, same: bool) -> None:
    assert (MACHINE.difference(replace(MACHINE, memory_gib=gib)) == []) == same


def test_cpuinfo_yields_model_numbers_and_fast_instructions() -> None:
    assert fingerprint.parse_cpuinfo(INTEL) == ("Intel(R) Xeon(R) Processor (6/207/2)", ("amx_tile", "avx2", "avx512f"))
    assert fingerprint.parse_cpuinfo(ARM) == ("0xd0c", ("asimd", "i8mm", "sve"))


def test_clocks_and_microcode_are_no_part_of_a_machine() -> None:
    later = INTEL.replace("2300.000", "1800.000").replace("0x1\n", "0x2b0\n")
    assert fingerprint.parse_cpuinfo(later) == fingerprint.parse_cpuinfo(INTEL)


def test_this_machine_has_a_fingerprint_without_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "found", lambda: ("NVIDIA H200",))
    taken = fingerprint.take.__wrapped__()
    assert taken.cpus >= 1
    assert taken.accelerators == ("NVIDIA H200",)
    assert set(taken.as_dict()) == {field.name for field in fields(Fingerprint)}
    assert "/" not in "".join(map(str, taken.as_dict().values())).replace(taken.cpu, "")


def test_versions_are_known_without_importing_what_they_are_of() -> None:
    versions = fingerprint.versions()
    assert {"python", "kernel"} <= versions.keys()
    assert all(isinstance(value, str) and value for value in versions.values())


# Contention

seconds = st.floats(0, 1e6)
snapshots = st.builds(health.Snapshot, seconds, seconds, seconds, seconds)
STAT = (
    "cpu  1000 100 500 9000 50 20 30 40 200 10\n"
    "cpu0 500 50 250 4500 25 10 15 20 100 5\n"
    "cpu1 500 50 250 4500 25 10 15 20 100 5\n"
    "intr 1\n"
)


def test_stat_counts_guests_once_and_steal_apart() -> None:
    assert health.parse_stat(STAT, 100, [0, 1]) == (16.5, 0.4)


def test_only_the_cpus_that_a_process_may_use_count() -> None:
    assert health.parse_stat(STAT, 100, [1]) == (8.25, 0.2)


@pytest.mark.parametrize("text", ["", "intr 1\n", "cpu0 1 2 3\n"])
def test_a_system_without_stat_shows_no_contention(text: str) -> None:
    assert health.parse_stat(text, 100, [0]) == (0.0, 0.0)


@given(st.floats(0.01, 1e3), st.floats(0, 64), st.floats(0, 64), st.floats(0, 64))
def test_contention_is_in_cores_without_ones_own(wall: float, own: float, others: float, steal: float) -> None:
    after = health.Snapshot(wall, (own + others) * wall, steal * wall, own * wall)
    found = health.contention(health.Snapshot(0.0, 0.0, 0.0, 0.0), after)
    assert found.others == pytest.approx(others, abs=1e-6)
    assert found.steal == pytest.approx(steal, abs=1e-6)


@given(snapshots, snapshots)
def test_contention_is_never_negative(before: health.Snapshot, after: health.Snapshot) -> None:
    found = health.contention(before, after)
    assert found.others >= 0
    assert found.steal >= 0


@given(snapshots)
def test_no_time_is_no_contention(at: health.Snapshot) -> None:
    assert health.contention(at, at) == health.Contention(0.0, 0.0)


def test_counters_only_grow() -> None:
    before, after = health.snapshot(), health.snapshot()
    for name in ("wall", "busy", "steal", "own"):
        assert getattr(after, name) >= getattr(before, name)
    assert all(share >= 0 for share in (health.stalls(before, after) or {}).values())
