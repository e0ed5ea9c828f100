"""Which devices a worker uses: the topology read from this machine, and the choice."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pytest_llmperf.machine import topology
from pytest_llmperf.machine.cgroup import contents
from pytest_llmperf.machine.detect import output
from pytest_llmperf.machine.table import Device
from pytest_llmperf.machine.topology import Choice, KfdLink, Topology, TopologyError

KFD = Path("/sys/class/kfd/kfd/topology/nodes")


def _numbers(file: Path) -> dict[str, int]:
    """A kernel file of lines of a name and a decimal number."""
    pairs = [line.split() for line in contents(file).splitlines()]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def kfd(root: Path = KFD, devices: Path = Path("/sys/bus/pci/devices")) -> Topology | None:
    """The topology that the kernel gives ROCm; None where it gives none. Dies are in ROCm's own order, as of its nodes.

    Raises:
        TopologyError: a pair of dies has no link.
    """
    properties = {int(node.name): _numbers(node / "properties") for node in root.glob("*") if node.name.isdecimal()}
    dies = sorted(node for node, found in properties.items() if found.get("simd_count"))
    if not dies:
        return None
    links = [
        KfdLink(
            one.get("node_from", -1),
            one.get("node_to", -1),
            one.get("type", 0),
            one.get("weight", 0),
            one.get("max_bandwidth", 0),
        )
        for node in dies
        for file in sorted(root.glob(f"{node}/*_links/*/properties"))
        for one in [_numbers(file)]
    ]
    numa: dict[int, int | None] = {}
    for position, node in enumerate(dies):
        place = properties[node].get("location_id", 0)  # bus, device and function
        domain = properties[node].get("domain", 0)
        address = f"{domain:04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 0x7:x}"
        stated = contents(devices / address / "numa_node").strip()
        numa[position] = int(stated) if stated.isdecimal() else None
    return topology.of_kfd(dies, links, numa)


def read(device: Device, ask: Callable[..., str] = output, root: Path = KFD) -> Topology:
    """The topology of the machine's devices, from whatever tells it first.

    Raises:
        TopologyError: nothing does; the line has what each said.
    """
    if device.kind == "cuda":
        sources: Sequence[tuple[str, Callable[[], Topology | None]]] = (
            ("nvidia-smi", lambda: _parsed(topology.parse_nvidia_smi, ask("nvidia-smi", "topo", "-m"))),
        )
    else:
        sources = (
            ("the kernel", lambda: kfd(root)),
            ("amd-smi", lambda: _parsed(topology.parse_amd_smi, ask("amd-smi", "topology", "--json"))),
            (
                "rocm-smi",
                lambda: _parsed(
                    lambda said: topology.parse_rocm_smi(said, device.dies), ask("rocm-smi", "--showtopo", "--json")
                ),
            ),
        )
    said = []
    for name, source in sources:
        try:
            found = source()
        except TopologyError as error:  # noqa: PERF203  three sources at most
            said.append(str(error))
        else:
            if found is not None:
                return found
            said.append(f"{name} said nothing")
    raise TopologyError(f"the links between devices cannot be read: {'; '.join(said)}; give --llm-topology=FILE")


def _parsed(parse: Callable[[str], Topology], said: str) -> Topology | None:
    return parse(said) if said.strip() else None


def choose(
    degree: int,
    device: Device,
    stated: Sequence[int] | None = None,
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    reader: Callable[[Device], Topology] = read,
) -> Choice:
    """The devices for ``degree`` ranks: those stated, else those with the best interconnect.

    Dies count: an MI250 is two. Indices are among what the user's variables leave visible; `environment` makes a
    worker's variables of them.

    Args:
        degree: how many.
        device: what they are.
        stated: of ``--llm-visible-devices``, which overrides; at least as many.
        file: of ``--llm-topology``, instead of asking the machine.
        environ: the user's variables.
        reader: asks the machine.

    Raises:
        TopologyError: there are too few, or their links cannot be told.
    """
    if device.kind == "cpu":
        if degree > 1:
            raise TopologyError(f"{degree} devices were asked for, and a CPU is one")
        return Choice((0,), "the CPU")
    if stated is not None:
        if len(stated) < degree:
            raise TopologyError(
                f"--llm-visible-devices={','.join(map(str, stated))}: {degree} devices are needed; name as many"
            )
        return Choice(tuple(stated[:degree]), "stated by --llm-visible-devices")
    seen = topology.visible(environ, device.kind)
    entries = seen.entries if seen.entries is not None else seen.physical
    if entries is not None and len(entries) == degree:
        return Choice(tuple(range(degree)), f"all that {seen.variable} leaves visible")
    if degree == 1 and file is None:
        return Choice((0,), "one device, the first")
    found = _from_file(file) if file is not None else reader(device)
    if seen.variable and seen.physical is None:
        raise TopologyError(
            f"{seen.variable} does not name its devices by index, so their links cannot be told; "
            "use indices, or --llm-visible-devices"
        )
    physical = seen.physical if seen.physical is not None else tuple(range(found.size))
    if beyond := [die for die in physical if die >= found.size]:
        raise TopologyError(f"{seen.variable} has device {beyond[0]}, and {found.source} knows {found.size}")
    chosen = topology.best(found, degree, physical)
    among = f" of those that {seen.variable} leaves visible" if seen.variable else ""
    return Choice(
        tuple(physical.index(die) for die in chosen),
        f"the best interconnect{among}: {topology.described(found, chosen)}",
    )


def _from_file(file: Path) -> Topology:
    try:
        said = file.read_text(encoding="utf-8")
    except OSError as error:
        raise TopologyError(f"--llm-topology={file}: {error.strerror}") from None
    return topology.parse_json(said, f"--llm-topology={file}")
