"""Choosing dies: the best interconnect, whatever they are numbered, and what a worker is then told."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inner import Suite, usage_error

from pytest_llmperf.machine import placement, topology
from pytest_llmperf.machine.table import DEVICES
from pytest_llmperf.machine.topology import Choice, Link, Topology, TopologyError, best, environment

DATA = Path(__file__).parent.parent / "data"
#: Links between the dies of four MI250s, in numbers of XGMI links: of RCCL's rome_model_66.
MI250_X4 = [
    [0, 4, 0, 0, 2, 0, 1, 0],
    [4, 0, 0, 1, 0, 0, 0, 1],
    [0, 0, 0, 4, 1, 0, 2, 0],
    [0, 1, 4, 0, 0, 1, 0, 0],
    [2, 0, 1, 0, 0, 4, 0, 0],
    [0, 0, 0, 1, 4, 0, 0, 1],
    [1, 0, 2, 0, 0, 0, 0, 4],
    [0, 1, 0, 0, 0, 1, 4, 0],
]
MI250_NUMA = (1, 1, 1, 1, 3, 3, 3, 3)


def matrix(widths: list[list[float]], numa: tuple[int | None, ...] | None = None) -> Topology:
    rows = tuple(tuple(None if i == j else Link("x", w) for j, w in enumerate(row)) for i, row in enumerate(widths))
    return Topology(rows, numa or (None,) * len(widths))


def mi250() -> Topology:
    """In which two dies that no link joins are two hops apart: none of this machine's are further."""
    return matrix([[50.0 * n if n else 25.0 for n in row] for row in MI250_X4], MI250_NUMA)


def write_kfd(root: Path) -> tuple[Path, Path]:
    """The kernel's files of four MI250s in a host of two CPU nodes, and of their PCI devices."""
    nodes, devices = root / "nodes", root / "devices"
    for cpu in (0, 1):
        (nodes / str(cpu)).mkdir(parents=True)
        (nodes / str(cpu) / "properties").write_text("cpu_cores_count 64\nsimd_count 0\nvendor_id 0\n")
    for die, row in enumerate(MI250_X4):
        node = nodes / str(die + 2)
        bus = 0x29 + 3 * die
        node.mkdir()
        (node / "properties").write_text(
            f"simd_count 416\nvendor_id 4098\ndevice_id 29708\nlocation_id {bus << 8}\ndomain 0\n"
        )
        device = devices / f"0000:{bus:02x}:00.0"
        device.mkdir(parents=True)
        (device / "numa_node").write_text(f"{MI250_NUMA[die]}\n")
        to_cpu = {"type": 2, "node_from": die + 2, "node_to": 0, "weight": 20, "max_bandwidth": 0}
        peers = [
            {"type": 11, "node_from": die + 2, "node_to": j + 2, "weight": 15 if n else 30, "max_bandwidth": 50_000 * n}
            for j, n in enumerate(row)
            if j != die
        ]
        for index, link in enumerate([to_cpu, *peers]):
            folder = node / "io_links" / str(index)
            folder.mkdir(parents=True)
            (folder / "properties").write_text("".join(f"{name} {value}\n" for name, value in link.items()))
    return nodes, devices


def rocm_smi(counts: list[list[int]], numa: tuple[int, ...]) -> str:
    """As ``rocm-smi --showtopo --json`` prints it: every value is a string, and a pair is there once."""
    system = {}
    for title, of in (("Weight", lambda n: 15 if n else 30), ("Hops", lambda n: 1 if n else 2), ("Link type", None)):
        for i, j in combinations(range(len(counts)), 2):
            value = "XGMI" if of is None else str(of(counts[i][j]))
            system[f"(Topology) {title} between DRM devices {i} and {j}"] = value
    cards = {f"card{i}": {"(Topology) Numa Node": str(node), "(Topology) Numa Affinity": str(node)}
             for i, node in enumerate(numa)}  # fmt: skip
    return json.dumps({**cards, "system": system})


# The choice


def test_four_dies_of_four_mi250s_are_two_packages_that_two_links_join() -> None:
    assert best(mi250(), 4) == (0, 1, 4, 5)
    assert best(mi250(), 2) == (0, 1)
    assert best(mi250(), 8) == tuple(range(8))


def test_a_fixed_list_is_not_portable() -> None:
    """The same machine, its packages numbered in another order."""
    order = (0, 1, 4, 5, 2, 3, 6, 7)
    links = mi250().links
    other = Topology(tuple(tuple(links[i][j] for j in order) for i in order), tuple(MI250_NUMA[i] for i in order))
    assert best(other, 4) == (0, 1, 2, 3)


def test_where_all_dies_are_joined_alike_they_are_of_one_numa_node() -> None:
    mi300x = matrix([[64.0] * 8] * 8, (0, 1, 0, 1, 0, 1, 0, 1))
    assert best(mi300x, 4) == (0, 2, 4, 6)
    assert best(mi300x, 8) == tuple(range(8))


def test_dgx_h100_is_read_and_stays_on_a_socket() -> None:
    found = topology.parse_nvidia_smi((DATA / "h100-x8-topo.txt").read_text())
    assert (found.size, found.link(0, 7).kind, found.link(0, 7).bandwidth) == (8, "NVLink x18", 450.0)
    assert found.numa == (0, 0, 0, 0, 1, 1, 1, 1)
    assert best(found, 4) == (0, 1, 2, 3)
    assert best(found, 4, among=(1, 4, 5, 6, 7)) == (4, 5, 6, 7)


def test_the_header_of_a_terminal_is_underlined_and_network_cards_are_no_gpus() -> None:
    text = (DATA / "h100-x8-topo.txt").read_text()
    shown = text.replace("\tGPU0", "\t\x1b[4mGPU0", 1).replace("\tCPU Affinity", "\tNIC0\tCPU Affinity\x1b[0m", 1)
    shown = shown.replace("\t0-55", "\tPIX\t0-55").replace("\t56-111", "\tSYS\t56-111")
    assert topology.parse_nvidia_smi(shown) == topology.parse_nvidia_smi(text)


def test_cards_on_pcie_alone_stay_on_a_socket_and_under_a_switch() -> None:
    found = topology.parse_nvidia_smi((DATA / "pcie-x4-topo.txt").read_text())
    assert found.link(0, 3).kind == "across sockets"
    assert best(found, 2) == (2, 3)  # one switch; 0 and 1 are under a host bridge
    assert best(found, 3) == (0, 2, 3)  # the socket is crossed anyway


quantities = st.sampled_from([16.0, 25.0, 50.0, 100.0, 200.0])


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    size = draw(st.integers(2, 7))
    widths = [[0.0] * size for _ in range(size)]
    for i, j in combinations(range(size), 2):
        widths[i][j] = widths[j][i] = draw(quantities)
    return matrix(widths, tuple(draw(st.lists(st.none() | st.integers(0, 1), min_size=size, max_size=size))))


@given(topologies(), st.data())
def test_no_other_set_is_better(found: Topology, data: st.DataObject) -> None:
    degree = data.draw(st.integers(1, found.size))
    chosen = best(found, degree)
    assert len(set(chosen)) == degree
    assert chosen == tuple(sorted(chosen))
    qualities = {other: found.quality(other) for other in combinations(range(found.size), degree)}
    best_of_all = max(qualities.values())
    assert chosen == min(other for other, quality in qualities.items() if quality == best_of_all)


@given(topologies(), st.data())
def test_other_numbers_make_no_other_quality(found: Topology, data: st.DataObject) -> None:
    degree = data.draw(st.integers(1, found.size))
    order = data.draw(st.permutations(range(found.size)))
    links = tuple(tuple(found.links[i][j] for j in order) for i in order)
    other = Topology(links, tuple(found.numa[i] for i in order))
    assert other.quality(best(other, degree)) == found.quality(best(found, degree))


def test_beyond_what_can_be_tried_a_set_grows_from_each_die(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "EXHAUSTIVE", 0)
    assert best(mi250(), 4) == (0, 1, 4, 5)
    grown = best(matrix([[50.0] * 24] * 24, (0, 1) * 12), 8)
    assert grown == tuple(range(0, 16, 2))


@pytest.mark.parametrize("degree", [0, 9])
def test_more_devices_than_there_are_are_refused(degree: int) -> None:
    with pytest.raises(TopologyError, match=f"{degree} devices were asked for and 8 are here"):
        best(mi250(), degree)


# What tells the links


def test_the_kernel_knows_every_pair_s_bandwidth_and_the_nodes(tmp_path: Path) -> None:
    found = placement.kfd(*write_kfd(tmp_path))
    assert found is not None
    assert [link and link.bandwidth for link in found.links[0]] == [None, 200, 25, 25, 100, 25, 50, 25]
    assert (found.link(0, 2).hops, found.numa) == (2, MI250_NUMA)
    assert best(found, 4) == (0, 1, 4, 5)


def test_rocm_smi_tells_hops_and_packages_are_its_pairs() -> None:
    found = topology.parse_rocm_smi(rocm_smi(MI250_X4, MI250_NUMA), dies=2)
    assert [link and link.bandwidth for link in found.links[0]] == [None, 200, 25, 25, 50, 25, 50, 25]
    assert found.numa == MI250_NUMA
    # It does not tell that 0 and 4 are joined twice; the set with two direct links is as good as it can see.
    assert best(found, 4) == (0, 1, 6, 7)
    assert topology.parse_rocm_smi(rocm_smi(MI250_X4, MI250_NUMA)).link(0, 1).bandwidth == 50


def test_amd_smi_tells_the_bandwidth_too() -> None:
    gpus = [
        {"gpu": i, "bdf": "", "links": [
            {"gpu": j, "bdf": "", "weight": 0 if i == j else 15 if n else 30, "link_status": "ENABLED",
             "link_type": "SELF" if i == j else "XGMI", "num_hops": 0 if i == j else 1 if n else 2,
             "bandwidth": f"50000-{50000 * n}" if n else "N/A"}
            for j, n in enumerate(row)]}
        for i, row in enumerate(MI250_X4)
    ]  # fmt: skip
    assert topology.parse_amd_smi(json.dumps(gpus)).links == mi250_with_kinds()


def mi250_with_kinds() -> tuple[tuple[Link | None, ...], ...]:
    return tuple(
        tuple(None if i == j else Link("XGMI", 50.0 * n if n else 25.0, 1 if n else 2) for j, n in enumerate(row))
        for i, row in enumerate(MI250_X4)
    )


def test_a_file_may_have_bare_numbers() -> None:
    found = topology.parse_json('{"links": [[null, 50], [50, null]]}')
    assert (found.link(0, 1), found.numa) == (Link("link", 50.0), (None, None))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON"),
        ("[]", "no link matrix"),
        ('{"links": [[null, 1], [2, null]]}', "not the same both ways"),
        ('{"links": [[null, 1]]}', "not n x n"),
        ('{"links": [[null, 0], [0, null]]}', "must be above 0"),
        ('{"links": [[null, true, 3], [1, null], 4]}', "no link matrix"),
    ],
)
def test_a_file_that_is_no_matrix_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(TopologyError, match=said) as error:
        topology.parse_json(text, "t.json")
    assert str(error.value).startswith("t.json: ")


@pytest.mark.parametrize("parse", [topology.parse_rocm_smi, topology.parse_amd_smi, topology.parse_nvidia_smi])
@pytest.mark.parametrize("text", ["", "{}", '{"system": {}}', "[{}]", "GPU0 X\n", "No devices were found"])
def test_what_tells_no_links_is_an_error_or_one_device(parse: object, text: str) -> None:
    try:
        found = parse(text)  # type: ignore[operator]
    except TopologyError:
        return
    assert found.size <= 1


def test_a_missing_pair_is_named() -> None:
    said = json.loads(rocm_smi(MI250_X4, MI250_NUMA))
    del said["system"]["(Topology) Link type between DRM devices 2 and 5"]
    with pytest.raises(TopologyError, match="nothing of the link between 2 and 5"):
        topology.parse_rocm_smi(json.dumps(said))


def test_each_source_is_asked_in_turn_and_what_they_said_is_told(tmp_path: Path) -> None:
    answers = {"rocm-smi": rocm_smi(MI250_X4, MI250_NUMA), "amd-smi": "nonsense"}
    mi250 = DEVICES["mi250"]
    found = placement.read(mi250, lambda tool, *_: answers.get(tool, ""), tmp_path / "none")
    assert found.source == "rocm-smi --showtopo"
    del answers["rocm-smi"]
    said = "the kernel said nothing; amd-smi topology: no JSON; rocm-smi said nothing; give --llm-topology=FILE"
    with pytest.raises(TopologyError, match=said):
        placement.read(mi250, lambda tool, *_: answers.get(tool, ""), tmp_path / "none")


# The choice on a machine, and what a worker is told


def choose(degree: int, kind: str = "mi250", **arguments: object) -> Choice:
    arguments = {"environ": {}, "reader": lambda _: mi250()} | arguments
    return placement.choose(degree, DEVICES[kind], **arguments)  # type: ignore[arg-type]


def test_the_choice_says_why() -> None:
    chosen = choose(4)
    assert chosen.devices == (0, 1, 4, 5)
    assert "weakest link x (25 GB/s), 575 GB/s in all, 2 NUMA nodes" in chosen.reason


def test_what_is_stated_overrides() -> None:
    assert choose(4, stated=(0, 1, 2, 3)) == Choice((0, 1, 2, 3), "stated by --llm-visible-devices")
    assert choose(2, stated=(6, 7, 0)).devices == (6, 7)
    with pytest.raises(TopologyError, match="--llm-visible-devices=0,1: 4 devices are needed"):
        choose(4, stated=(0, 1))


def test_a_file_stands_for_the_machine(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"links": [[None, 1, 2], [1, None, 1], [2, 1, None]]}))
    assert choose(2, file=file).devices == (0, 2)
    with pytest.raises(TopologyError, match="No such file"):
        choose(2, file=tmp_path / "missing.json")


def test_one_device_needs_no_topology() -> None:
    def unread(_: object) -> Topology:
        raise AssertionError

    assert choose(1, reader=unread).devices == (0,)
    assert choose(1, "cpu", reader=unread).devices == (0,)
    assert choose(2, environ={"HIP_VISIBLE_DEVICES": "3,5"}, reader=unread).devices == (0, 1)
    with pytest.raises(TopologyError, match="a CPU is one"):
        choose(2, "cpu")


def test_indices_are_among_what_the_user_left_visible() -> None:
    environ = {"HIP_VISIBLE_DEVICES": "7,6,5,4,3,2"}
    chosen = choose(2, environ=environ)
    assert chosen.devices == (5, 4)  # dies 2 and 3, the package with the lowest numbers
    told = environment(chosen, "rocm", environ)
    assert told == {"HIP_VISIBLE_DEVICES": "2,3", "CUDA_VISIBLE_DEVICES": "2,3"}


def test_hip_s_indices_are_among_what_rocr_left() -> None:
    environ = {"ROCR_VISIBLE_DEVICES": "4,5,6,7"}
    chosen = choose(2, environ=environ)
    assert chosen.devices == (0, 1)  # dies 4 and 5
    assert environment(chosen, "rocm", environ)["HIP_VISIBLE_DEVICES"] == "0,1"
    both = environ | {"HIP_VISIBLE_DEVICES": "1,2,3"}
    assert topology.visible(both, "rocm").physical == (5, 6, 7)
    chosen = choose(2, environ=both)
    assert chosen.devices == (1, 2)
    assert environment(chosen, "rocm", both)["HIP_VISIBLE_DEVICES"] == "2,3"


def test_on_cuda_the_order_is_that_of_nvidia_smi() -> None:
    chosen = Choice((2, 3), "")
    assert environment(chosen, "cuda", {}) == {"CUDA_VISIBLE_DEVICES": "2,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    set_by_user = {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c,GPU-d"}
    assert environment(chosen, "cuda", set_by_user) == {"CUDA_VISIBLE_DEVICES": "GPU-c,GPU-d"}
    assert environment(Choice((0,), ""), "cpu", {}) == {}
    assert environment(chosen, "cuda", {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"})["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    with pytest.raises(TopologyError, match="device 3 of the 2 that are visible"):
        environment(chosen, "cuda", {"CUDA_VISIBLE_DEVICES": "0,1"})


def test_an_empty_variable_hides_every_device_from_cuda() -> None:
    with pytest.raises(TopologyError, match="2 devices were asked for and 0 are here"):
        choose(2, "h100", environ={"CUDA_VISIBLE_DEVICES": ""})
    assert choose(2, environ={"HIP_VISIBLE_DEVICES": ""}).devices == (0, 1)


def test_links_of_devices_named_otherwise_than_by_index_cannot_be_told() -> None:
    with pytest.raises(TopologyError, match="CUDA_VISIBLE_DEVICES does not name its devices by index"):
        choose(2, "h100", environ={"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c"})
    with pytest.raises(TopologyError, match="HIP_VISIBLE_DEVICES has device 8, and the matrix given knows 8"):
        choose(2, environ={"HIP_VISIBLE_DEVICES": "0,1,8"})


@given(st.permutations(range(8)), st.integers(1, 8), st.integers(1, 4))
def test_a_worker_sees_the_dies_that_were_chosen(order: list[int], count: int, degree: int) -> None:
    seen = order[:count]
    environ = {"HIP_VISIBLE_DEVICES": ",".join(map(str, seen))}
    if degree > count:
        with pytest.raises(TopologyError, match="asked for"):
            choose(degree, environ=environ)
        return
    told = environment(choose(degree, environ=environ), "rocm", environ)["HIP_VISIBLE_DEVICES"]
    dies = [int(entry) for entry in told.split(",")]
    assert len(set(dies)) == degree
    assert set(dies) <= set(seen)
    if 1 < degree < count:
        assert mi250().quality(dies) == max(mi250().quality(other) for other in combinations(seen, degree))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--llm-visible-devices=0,x", "'0,x' is not a list of device indices"),
        ("--llm-visible-devices=0,1,0", "names 0 twice"),
        ("--llm-visible-devices=", "is not a list of device indices"),
    ],
)
def test_bad_devices_are_refused_in_one_line(suite: Suite, option: str, said: str) -> None:
    assert said in usage_error(suite.run("suites", option))
