"""Which dies to use together: the links between them, and the set with the best interconnect. Pure.

Only ratios of the bandwidths below matter, since links of one machine are compared. GB/s, one way:

* XGMI: 50 a link on MI200 (16 lanes, 25 GT/s; AMD, MI250 microarchitecture), four of them between the two dies of a
  package (200) and one or two between packages; 64 a link on MI300X (AMD data sheet). Where the driver states the
  bandwidth of a pair, that is taken.
* NVLink: 25 a link from the second to the fourth generation, 50 in the fifth (NVIDIA data sheets); a pair's links add
  up.
* PCIe 4.0 x16: 32 within one switch. Across several switches, a host bridge and NUMA nodes less, of which the order
  alone is meant; across sockets half, as NCCL has it (QPI_WIDTH and PCI_WIDTH in its topo.h).
* A pair that XGMI joins over h hops has a link's share of 1/h, since the path takes a link of others at every hop.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from pytest_llmperf.output import ESCAPE

XGMI_LINK, IN_PACKAGE, NVLINK = 50.0, 4, 25.0
#: What ``nvidia-smi topo -m`` calls a path, and what that is; ``NV<n>`` comes on top.
PATHS = {
    "PIX": ("one PCIe switch", 32.0),
    "PXB": ("several PCIe switches", 28.0),
    "PHB": ("host bridge", 24.0),
    "NODE": ("host bridges of a NUMA node", 20.0),
    "SYS": ("across sockets", 16.0),
}
#: Sets to look at before the search is no longer exhaustive: 8 of 16 dies are 12,870, 8 of 24 are 735,471.
EXHAUSTIVE = 20_000


class TopologyError(ValueError):
    """The links cannot be told, or do not allow what was asked; one line says why."""


@dataclass(frozen=True)
class Link:
    """How two dies are joined.

    Attributes:
        kind: in words, such as ``XGMI`` or ``across sockets``.
        bandwidth: GB/s, one way; see the module.
        hops: links on the way.
    """

    kind: str
    bandwidth: float
    hops: int = 1


@dataclass(frozen=True)
class Topology:
    """The links of n dies.

    Attributes:
        links: n x n, symmetric; None on the diagonal.
        numa: the NUMA node of each die, or None.
        source: what told it.
    """

    links: tuple[tuple[Link | None, ...], ...]
    numa: tuple[int | None, ...]
    source: str = "the matrix given"

    def __post_init__(self) -> None:
        size = len(self.links)
        if any(len(row) != size for row in self.links) or len(self.numa) != size:
            raise TopologyError("the link matrix is not n x n with a NUMA node each")
        for i, j in combinations(range(size), 2):
            if self.links[i][j] is None or self.links[i][j] != self.links[j][i]:
                raise TopologyError(f"the link between {i} and {j} is missing, or not the same both ways")

    def link(self, i: int, j: int) -> Link:
        """The link of two dies; they differ."""
        found = self.links[i][j]
        assert found is not None
        return found

    @property
    def size(self) -> int:
        return len(self.links)

    def links_of(self, dies: Sequence[int]) -> list[Link]:
        """Those among a set of dies."""
        return [self.link(i, j) for i, j in combinations(dies, 2)]

    def quality(self, dies: Sequence[int]) -> tuple[float, float, int]:
        """What a set is ranked by, more is better: the weakest link, the sum of all, and minus its NUMA nodes."""
        widths = [link.bandwidth for link in self.links_of(dies)]
        nodes = {self.numa[die] for die in dies}
        return min(widths, default=math.inf), round(math.fsum(widths), 6), -len(nodes)


@dataclass(frozen=True)
class Choice:
    """The dies to use, and why.

    Attributes:
        devices: their indices; where the user had made only some visible, among those.
        reason: in one sentence.
    """

    devices: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        return f"{','.join(map(str, self.devices))}: {self.reason}"


def best(topology: Topology, degree: int, among: Collection[int] | None = None) -> tuple[int, ...]:
    """The ``degree`` dies with the best interconnect, ascending; of equals the lowest indices.

    Exact by trying every set where there are no more than `EXHAUSTIVE`; beyond that each die in turn is the first one
    of a set that grows by the die that leaves it best, and the best of those sets is taken: it may miss a better one.

    Args:
        topology: the links.
        degree: how many dies.
        among: the dies to choose from; all if None.

    Raises:
        TopologyError: there are not as many.
    """
    dies = sorted(range(topology.size) if among is None else set(among))
    if not 0 < degree <= len(dies):
        raise TopologyError(f"{degree} devices were asked for and {len(dies)} are here")
    if math.comb(len(dies), degree) <= EXHAUSTIVE:
        sets: Iterable[tuple[int, ...]] = combinations(dies, degree)
    else:
        sets = (_grown(topology, first, degree, dies) for first in dies)
    return max(sets, key=lambda chosen: (topology.quality(chosen), [-die for die in chosen]))


def _grown(topology: Topology, first: int, degree: int, dies: Sequence[int]) -> tuple[int, ...]:
    chosen: tuple[int, ...] = (first,)
    while len(chosen) < degree:
        left = [die for die in dies if die not in chosen]
        chosen = (*chosen, max(left, key=lambda die: (topology.quality((*chosen, die)), -die)))
    return tuple(sorted(chosen))


def described(topology: Topology, dies: Sequence[int]) -> str:
    """Why a set was chosen: its links, the weakest, its NUMA nodes."""
    links = topology.links_of(dies)
    if not links:
        return "one device, the first"
    weakest = min(links, key=lambda link: link.bandwidth)
    hops = f" over {weakest.hops} hops" if weakest.hops > 1 else ""
    nodes = {topology.numa[die] for die in dies}
    where = "NUMA nodes unknown" if None in nodes else f"{len(nodes)} NUMA node{'s' * (len(nodes) > 1)}"
    total = sum(link.bandwidth for link in links)
    return (
        f"weakest link {weakest.kind}{hops} ({weakest.bandwidth:g} GB/s), {total:g} GB/s in all, {where}; "
        f"by {topology.source}"
    )


# What tells the links


def _matrix(size: int, pairs: Mapping[tuple[int, int], Link], numa: Mapping[int, int | None], source: str) -> Topology:
    if missing := [pair for pair in combinations(range(size), 2) if pair not in pairs]:
        raise TopologyError(f"{source} says nothing of the link between {missing[0][0]} and {missing[0][1]}")
    rows = tuple(
        tuple(None if i == j else pairs[min(i, j), max(i, j)] for j in range(size)) for i in range(size)
    )  # fmt: skip
    return Topology(rows, tuple(numa.get(die) for die in range(size)), source)


def _amd(kind: str, hops: int, megabytes: float = 0.0, package: bool = False) -> Link:
    """A link as AMD's tools give it: the type, the hops, MB/s of a pair that is joined directly or 0."""
    if kind == "XGMI":
        width = megabytes / 1e3 or XGMI_LINK * (IN_PACKAGE if package else 1)
        return Link("XGMI", width / max(1, hops), max(1, hops))
    if kind == "PCIE":  # its hops are not those of PCIe; two and less do not leave the socket
        name, width = PATHS["SYS" if hops > 2 else "PHB"]
        return Link(name, width)
    raise TopologyError(f"unknown link type {kind!r}")


def parse_rocm_smi(text: str, dies: int = 1) -> Topology:
    """Of ``rocm-smi --showtopo --json``, whose weights are 15 a hop of XGMI and tell no bandwidth.

    So that the two dies of a package are found, dies 2k and 2k+1 of a product with two are taken for one, which is how
    ROCm numbers an MI250's.

    Args:
        text: its output.
        dies: per product.

    Raises:
        TopologyError: it is something else.
    """
    source = "rocm-smi --showtopo"
    found = _json(text, source)
    system = found.get("system") if isinstance(found, dict) else None
    if not isinstance(system, dict):
        raise TopologyError(f"{source} --json has no 'system' with links")
    kinds: dict[tuple[int, int], str] = {}
    hops: dict[tuple[int, int], int] = {}
    for name, value in system.items():
        match = re.fullmatch(r"\(Topology\) (Link type|Hops) between DRM devices (\d+) and (\d+)", name)
        if match:
            pair = int(match[2]), int(match[3])
            if match[1] == "Hops":
                hops[pair] = int(value) if str(value).isdecimal() else 1
            else:
                kinds[pair] = str(value)
    numa = {
        int(card.removeprefix("card")): _node(fields.get("(Topology) Numa Node"))
        for card, fields in found.items()
        if re.fullmatch(r"card\d+", card)
    }
    links = {
        pair: _amd(kind, hops.get(pair, 1), package=dies == 2 and pair[1] == pair[0] + 1 and pair[0] % 2 == 0)
        for pair, kind in kinds.items()
    }
    return _matrix(_count(links, numa), links, numa, source)


def parse_amd_smi(text: str, numa: Mapping[int, int | None] | None = None) -> Topology:
    """Of ``amd-smi topology --json``: a list of GPUs, each with its ``links`` (type, hops, ``min-max`` MB/s).

    Raises:
        TopologyError: it is something else.
    """
    source = "amd-smi topology"
    links: dict[tuple[int, int], Link] = {}
    found = _json(text, source)
    try:
        for gpu in found:
            for one in gpu["links"]:
                if one["link_type"] == "SELF" or int(one["gpu"]) <= int(gpu["gpu"]):
                    continue
                width = re.fullmatch(r"\d+-(\d+)", str(one["bandwidth"]))
                links[int(gpu["gpu"]), int(one["gpu"])] = _amd(
                    str(one["link_type"]), int(one["num_hops"]), float(width[1]) if width else 0.0
                )
    except (KeyError, TypeError, ValueError) as error:
        raise TopologyError(f"{source} --json is not as documented ({type(error).__name__}: {error})") from None
    return _matrix(_count(links, numa or {}), links, numa or {}, source)


#: The kernel's numbers for the kinds of links (CRAT_IOLINK_TYPE_*).
KFD_KINDS = {2: "PCIE", 11: "XGMI"}
#: The kernel's weight of one XGMI hop (KFD_CRAT_XGMI_WEIGHT).
KFD_HOP = 15


@dataclass(frozen=True)
class KfdLink:
    """A link in the kernel driver's topology: ``io_links`` and ``p2p_links``; MB/s, 0 where it is none of one hop."""

    start: int
    end: int
    kind: int
    weight: int
    megabytes: int


def of_kfd(nodes: Sequence[int], links: Iterable[KfdLink], numa: Mapping[int, int | None]) -> Topology:
    """Of the kernel driver's topology, which needs no tool, has every pair's bandwidth and ROCm's own order.

    Args:
        nodes: the nodes that are dies, in order.
        links: between nodes.
        numa: NUMA nodes by position.

    Raises:
        TopologyError: a pair is missing, or of an unknown kind.
    """
    position = {node: index for index, node in enumerate(nodes)}
    found: dict[tuple[int, int], Link] = {}
    for one in links:
        if one.start in position and one.end in position and one.start != one.end:
            pair = sorted((position[one.start], position[one.end]))
            kind = KFD_KINDS.get(one.kind, str(one.kind))
            hops = max(1, round(one.weight / KFD_HOP)) if kind == "XGMI" else 1 if one.weight <= 40 else 3
            link = _amd(kind, hops, one.megabytes if kind == "XGMI" else 0)
            known = found.get((pair[0], pair[1]))
            if known is None or link.bandwidth > known.bandwidth:
                found[pair[0], pair[1]] = link
    return _matrix(len(nodes), found, numa, "the kernel's topology")


def parse_nvidia_smi(text: str) -> Topology:
    """Of ``nvidia-smi topo -m``: a row a GPU, with ``NV<n>`` or a path of `PATHS`, then affinities.

    Raises:
        TopologyError: it is something else.
    """
    source = "nvidia-smi topo -m"
    lines = [ESCAPE.sub("", line) for line in text.splitlines()]  # it underlines its header
    header = next((line for line in lines if re.match(r"\s+GPU0\b", line)), None)
    if header is None:
        raise TopologyError(f"{source} has no row of GPUs")
    size = len(re.findall(r"\bGPU\d+\b", header))
    titles = [title.strip() for title in header.split("\t")]
    column = titles.index("NUMA Affinity") if "NUMA Affinity" in titles else None
    links: dict[tuple[int, int], Link] = {}
    numa: dict[int, int | None] = {}
    for line in lines:
        match = re.match(r"GPU(\d+)\s", line)
        if not match:
            continue
        i, cells = int(match[1]), line.split()[1:]
        fields = [cell.strip() for cell in line.split("\t")]
        if column is not None and column < len(fields):
            numa[i] = _node(fields[column])
        else:  # blanks alone between columns, as when it was pasted
            numa[i] = _node(cells[-1]) if "NUMA" in header else None
        for j, cell in enumerate(cells[:size]):
            if i < j:
                links[i, j] = _nvidia(cell)
    return _matrix(size, links, numa, source)


def _nvidia(cell: str) -> Link:
    if match := re.fullmatch(r"NV(\d+)", cell):
        return Link(f"NVLink x{match[1]}", NVLINK * int(match[1]))
    if cell not in PATHS:
        raise TopologyError(f"nvidia-smi topo -m: unknown link {cell!r}")
    return Link(*PATHS[cell])


def parse_json(text: str, source: str = "the file") -> Topology:
    """Of ``--llm-topology``: ``{"links": [[null, {"kind": "XGMI", "bandwidth": 200}], ...], "numa": [0, ...]}``.

    A link may be a number (GB/s, one way) as well; ``numa`` may be left out.

    Raises:
        TopologyError: it is something else.
    """
    try:
        data = _json(text, source)
        rows = tuple(
            tuple(None if i == j else _stated(cell) for j, cell in enumerate(row))
            for i, row in enumerate(data["links"])
        )
        numa = tuple(None if node is None else int(node) for node in data.get("numa") or [None] * len(rows))
        return Topology(rows, numa, source)
    except TopologyError as error:
        raise TopologyError(f"{source}: {error}" if not str(error).startswith(source) else str(error)) from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TopologyError(f"{source}: no link matrix ({type(error).__name__}: {error})") from None


def _stated(cell: Any) -> Link:
    known = {"kind": "link", "bandwidth": cell} if isinstance(cell, int | float) else dict(cell)
    link = Link(str(known["kind"]), float(known["bandwidth"]), int(known.get("hops", 1)))
    if not 0 < link.bandwidth < math.inf:
        raise TopologyError(f"a bandwidth of {link.bandwidth:g} GB/s; it must be above 0")
    return link


def _json(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise TopologyError(f"{source}: no JSON") from None


def _node(value: Any) -> int | None:
    """A NUMA node; -1 and ``N/A`` are unknown. Of a range such as ``0-1`` nothing is said either."""
    text = str(value).strip()
    return int(text) if text.isdecimal() else None


def _count(links: Mapping[tuple[int, int], Link], numa: Mapping[int, int | None]) -> int:
    return max([1 + max(pair) for pair in links] + [1 + die for die in numa] + [1])


# What a worker sees


@dataclass(frozen=True)
class Visible:
    """What the user's variables leave visible.

    Attributes:
        entries: the user's own entries (indices or UUIDs) of the variable that ``environment`` sets; None if unset.
        physical: indices of the machine's dies that they mean, in order; None where that cannot be told.
    """

    entries: tuple[str, ...] | None = None
    physical: tuple[int, ...] | None = None
    variable: str = field(default="", compare=False)


#: Set for a worker, the first of them read for what the user has set. HIP takes ``CUDA_VISIBLE_DEVICES`` too, and vLLM
#: refuses to start where the two differ.
VARIABLES = {"cuda": ("CUDA_VISIBLE_DEVICES",), "rocm": ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")}


def visible(environ: Mapping[str, str], kind: str) -> Visible:
    """What the user's variables leave visible.

    On ROCm ``ROCR_VISIBLE_DEVICES`` comes first, below HIP, whose own variable then counts what that left.
    """
    # An empty variable hides every device from CUDA, and nothing from ROCm.
    variable = next((name for name in VARIABLES[kind] if environ.get(name) or (kind == "cuda" and name in environ)), "")
    entries = _entries(environ[variable]) if variable else None
    rocr = environ.get("ROCR_VISIBLE_DEVICES", "") if kind == "rocm" else ""
    below = _entries(rocr) if rocr else None
    if entries is None and below is None:
        return Visible()
    physical = None if below is None else _indices(below)
    if entries is None:
        return Visible(None, physical, "ROCR_VISIBLE_DEVICES")
    own = _indices(entries)
    if below is None:
        return Visible(entries, own, variable)
    known = own is not None and physical is not None and all(index < len(physical) for index in own)
    return Visible(entries, tuple(physical[index] for index in own) if known else None, variable)  # type: ignore[index, union-attr]


def _entries(text: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.split(",") if entry.strip())


def _indices(entries: Sequence[str]) -> tuple[int, ...] | None:
    return tuple(map(int, entries)) if all(entry.isdecimal() for entry in entries) else None


def environment(choice: Choice, kind: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables for a worker that is to see the chosen devices alone.

    On ROCm ``HIP_VISIBLE_DEVICES``, not ``ROCR_VISIBLE_DEVICES``: schedulers set the latter, HIP's counts what it left,
    and torch and vLLM count devices by HIP's. On CUDA the order becomes that of ``nvidia-smi``, by which they count.

    Args:
        choice: whose indices are among what the user's variables leave visible.
        kind: ``cuda`` or ``rocm``; for a CPU there are none.
        environ: the user's variables.

    Raises:
        TopologyError: an index is beyond what the user has made visible.
    """
    if kind not in VARIABLES:
        return {}
    entries = visible(environ, kind).entries
    if entries is not None and max(choice.devices) >= len(entries):
        raise TopologyError(f"device {max(choice.devices)} of the {len(entries)} that are visible")
    stated = ",".join(str(die) if entries is None else entries[die] for die in choice.devices)
    found = dict.fromkeys(VARIABLES[kind], stated)
    if kind == "cuda" and entries is None:
        found["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return found
