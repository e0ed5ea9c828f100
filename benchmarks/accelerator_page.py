"""Write the tables and figures of docs/results-<device>.md from the data of ``benchmarks.accelerator``.

    python -m benchmarks.accelerator_page DATA docs/results-h200.md

DATA is a folder that is named after the device, such as benchmarks/data/h200. The script replaces the text between
``<!-- table: NAME -->`` and ``<!-- end -->`` in the page, and the figures in ``images/`` beside it. All other text
stays. A table whose data are missing stays too. Where the page does not exist, the script creates it.

Names: machine, prefill, decode, speedup, memory, engaged, parity, stamps, waits, gate, baseline, sittings, figures.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pytest_llmperf.cases import Case
from pytest_llmperf.machine.fitness import CANARY_SLOWER
from pytest_llmperf.report import document, figures

Data = dict[str, dict[str, Any]]
MS, GIB = 1e3, 2**30
WIDTH = 100
#: Kernel names longer than this are cut.
LONGEST_NAME = 60
BLOCK = re.compile(r"(<!-- table: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)
#: The figures of each process of every sitting. The replay of the gate reads them too.
SITTINGS = "gate/data/{device}-sittings.json"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def item(text: str) -> str:
    """A Markdown list item, wrapped."""
    return textwrap.fill(
        text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def parsed(case: str) -> Case:
    """The case of a key such as ``bfloat16/sdpa/b8-p2048-n16/ttft``."""
    return Case.parse("", case)


def parts(case: str) -> tuple[str, int, str]:
    """Backend, batch size and metric of a case's key."""
    found = parsed(case)
    return found.backend, found.workload.batch_size, found.metric


def grid(what: str, cells: dict[tuple[str, int], str]) -> str:
    """A row per name, a column per batch size."""
    names = list(dict.fromkeys(name for name, _ in cells))
    batches = sorted({batch for _, batch in cells})
    rows = [[name, *(cells.get((name, batch), "-") for batch in batches)] for name in names]
    return table([what, *(f"batch {batch}" for batch in batches)], rows)


def by_backend(data: Data, metric: str, cell: Callable[[dict[str, Any]], str]) -> str:
    """A grid of the sweep's results for one metric."""
    cells = {}
    for one in data["sweep"]["results"]:
        backend, batch, of = parts(one["case"])
        if of == metric:
            cells[f"`{backend}`", batch] = cell(one)
    return grid("backend", cells)


def slow_core(data: Data) -> set[tuple[str, int]]:
    """Backend and batch size of the measurements whose canaries show a slow host core."""
    measured = data["sweep"]["measurements"]
    fastest: dict[tuple[Any, str], float] = {}
    for one in measured:
        process = (one.get("sitting"), one["backend"])
        canaries = [seconds for sample in one["samples"] for seconds in sample["fitness"]["canaries"]]
        fastest[process] = min([*canaries, fastest.get(process, float("inf"))])
    return {
        (one["backend"], one["workload"]["batch_size"])
        for one in measured
        if median(min(sample["fitness"]["canaries"]) for sample in one["samples"])
        > CANARY_SLOWER * fastest[one.get("sitting"), one["backend"]]
    }


def latencies(data: Data, metric: str) -> str:
    """Median in ms, and half the distance between the quartiles in per cent of it."""
    slow = slow_core(data)

    def cell(one: dict[str, Any]) -> str:
        spread = one["spread"]
        star = "\\*" if parts(one["case"])[:2] in slow else ""
        return f"{spread['median'] * MS:.4g} ±{(spread['q3'] - spread['q1']) / 2 / spread['median'] * 100:.1f}{star}"

    return by_backend(data, metric, cell)


def of_roofs(data: Data, metric: str, roof: str) -> str:
    """Shares of the data sheet's peak and of the measured peak."""
    stated, measured = data["sweep"]["environment"]["peaks"][roof], data["machine"]["peaks"][roof]

    def cell(one: dict[str, Any]) -> str:
        fraction = one["utilization"]["fraction"]
        return f"{fraction:.0%} / {fraction * stated / measured:.0%}"

    return by_backend(data, metric, cell)


def machine(data: Data) -> str:
    """Versions, GPU, CPU and peaks."""
    found = data["machine"]
    stated = data["sweep"]["environment"]["peaks"]
    rows = [[name, str(value)] for name, value in found["versions"].items() if name != "pytest-llmperf"]
    rows += [["GPU", ", ".join(found["machine"]["accelerators"])]]
    rows += [["CPU", f"{found['machine']['cpu']}, {found['machine']['cpus']} CPUs"]]
    rows += [
        [f"peak of {what}", f"{stated[roof] / 1e12:.4g} {unit} stated, {found['peaks'][roof] / 1e12:.4g} measured"]
        for what, roof, unit in (("compute", "flops", "TFLOP/s"), ("memory", "bandwidth", "TB/s"))
    ]
    return table(["", "value"], rows)


def against_roof(data: Data, metric: str, said: str, utilization: str, roof: str) -> str:
    """The latencies of a metric, and the share of a peak that they reach."""
    return "\n\n".join(
        (
            f"{said} in ms: median, ± half the distance between the quartiles in %. \\* marks a slow host core.",
            latencies(data, metric),
            f"{utilization} of the stated peak and of the measured peak:",
            of_roofs(data, metric, roof),
        )
    )


def prefill(data: Data) -> str:
    """TTFT and MFU."""
    return against_roof(data, "ttft", "TTFT", "MFU", "flops")


def decode(data: Data) -> str:
    """TPOT and MBU."""
    return against_roof(data, "tpot", "TPOT", "MBU", "bandwidth")


def speedup(data: Data) -> str:
    """Speedup over the eager of the same run, or, marked by a dagger, over the eager of the tables above."""
    eager = {parts(one["case"])[1:]: one for one in data["sweep"]["results"] if parts(one["case"])[0] == "eager"}

    def cell(one: dict[str, Any]) -> str:
        if one["speedup"] is not None:
            return f"{one['speedup']:.2f}"
        other = eager.get(parts(one["case"])[1:])
        return "-" if other is None else f"{other['spread']['median'] / one['spread']['median']:.2f}†"

    said = (("Prefill", "ttft"), ("Decode", "tpot"))
    tables = [f"{name}, speedup over `eager`:\n\n{by_backend(data, metric, cell)}" for name, metric in said]
    return "\n\n".join([*tables, "† over `eager` of another run."] if "†" in "".join(tables) else tables)


def memory(data: Data) -> str:
    """Peak memory, and the seconds of loading and of the first generation, which an older version called cold start."""

    def cell(one: dict[str, Any]) -> str:
        return f"{one['peak_memory'] / GIB:.0f} / {one['cold_start']:.0f}"

    return f"Peak memory in GiB / load and first generation in s:\n\n{by_backend(data, 'ttft', cell)}"


def engaged(data: Data) -> str:
    """What each backend had to show in the profile, and what the profile has."""
    evidence = {parts(one["case"])[0]: one["engagement"] for one in data["sweep"]["results"] if "engagement" in one}

    def name_of(kernel: str) -> str:
        return kernel if len(kernel) <= LONGEST_NAME else f"{kernel[:LONGEST_NAME]}..."

    def line(backend: str, one: dict[str, Any]) -> str:
        seen = ", ".join(f"`{name_of(name)}` ({value})" for name, value in one["seen"].items() if value not in (0, ""))
        return item(f"`{backend}` had to show: {one['expected']}. The profile has {seen}.")

    return "\n".join(line(backend, one) for backend, one in evidence.items())


def parity(data: Data) -> str:
    """The verdict on each backend's tokens, and its figures."""
    rows = [
        [
            f"`{one['backend']}`",
            one["workload"],
            "in parity" if one["passed"] else f"not in parity: {one['reason']}",
            f"{one['exact_match']:.1%}",
            f"{one['largest_regret']:.3g} of {one['tolerance']:.3g}",
            f"{one['error_ratio']:.2f}",
            f"{one['informative']} of {one['tokens']}",
        ]
        for one in data["parity"]["parity"]
    ]
    return table(["backend", "workload", "verdict", "exact", "regret", "error", "informative"], rows)


def stamps(data: Data) -> str:
    """How far the worker's stamps are from CUDA events."""

    def share(one: dict[str, float]) -> str:
        return f"{one['median']:+.3%} ({one['low']:+.3%} to {one['high']:+.3%})"

    rows = [
        [f"`{one['backend']}`", *(share(one["difference"][name]) for name in ("ttft", "tpot"))]
        for one in data["stamps"]["backends"]
    ]
    return table(["backend", "TTFT, stamps over events", "TPOT, stamps over events"], rows)


def waits(data: Data) -> str:
    """Where the host waits for the device in each decode step."""

    def line(one: dict[str, Any]) -> str:
        places = (f"`{where}` ({rate:.0f})" for where, rate in one["waits per step"].items() if rate > 0.5)
        return item(f"`{one['backend']}`: {', '.join(places)}")

    return "\n".join(map(line, data["stamps"]["backends"]))


def gate(data: Data) -> str:
    """What the gate said of unchanged code and of code slowed by 5 %."""
    rows = [
        [
            str(one.get("trial", 1)),
            f"{case.metric} {case.workload}",
            str(one["pairs"]),
            f"{one['false_alarms']:.0%}",
            f"{one['undecided']:.0%}",
            f"{one['power']:.0%}",
            "-" if one["resolution"] is None else f"{one['resolution']:.1%}",
        ]
        for one in data["gate"]["self_test"]
        for case in [parsed(one["case"])]
    ]
    header = ["trial", "case", "pairs", "false alarms", "inconclusive", "+5 % caught", "resolution"]
    return table(header, rows)


def baseline(data: Data) -> str:
    """The median of each process, and how far the processes are apart."""
    results = data["baseline"]["results"]
    most = max(len(one["invocations"]) for one in results)
    rows = []
    for one in results:
        medians = [median(samples) for samples in one["invocations"]]
        cells = [*(f"{value * MS:.4g}" for value in medians), *["-"] * (most - len(medians))]
        case = parsed(one["case"])
        rows.append([f"`{case.backend}`", f"{case.metric} b{case.workload.batch_size}", *cells])
        rows[-1].append(f"{max(medians) / min(medians) - 1:.1%}")
    return table(["backend", "case", *(f"process {number + 1}" for number in range(most)), "apart"], rows)


def sittings(data: Data) -> str:
    """Eager in every sitting: a process's median, or the lowest and the highest of several."""

    def of(metric: str) -> str:
        cells = {}
        for one in data["sittings"]["sittings"]:
            for key, medians in one["cases"].items():
                backend, batch, of = parts(key)
                if (backend, of) != ("eager", metric):
                    continue
                ends = dict.fromkeys(f"{end * MS:.4g}" for end in (min(medians), max(medians)))
                star = "\\*" if key in one.get("disturbed", {}) else ""
                cells[one["label"], batch] = " to ".join(ends) + star
        return grid("", cells)

    said = (("TTFT", "ttft"), ("TPOT", "tpot"))
    return "\n\n".join(f"{name} of `eager` in ms:\n\n{of(metric)}" for name, metric in said)


#: By the name of each table: the steps whose data it needs, and the function that writes it.
TABLES: dict[str, tuple[set[str], Callable[[Data], str]]] = {
    "machine": ({"machine", "sweep"}, machine),
    "prefill": ({"machine", "sweep"}, prefill),
    "decode": ({"machine", "sweep"}, decode),
    **{one.__name__: ({"sweep"}, one) for one in (speedup, memory, engaged)},
    "waits": ({"stamps"}, waits),
    **{one.__name__: ({one.__name__}, one) for one in (parity, stamps, gate, baseline, sittings)},
}


def drawn(data: Data, page: Path) -> Iterator[str]:
    """Write the figures; yield a line of Markdown for each."""
    folder = page.parent / "images"
    folder.mkdir(exist_ok=True)
    sweep = data["sweep"]
    rows = document.ranked(map(document.Row, sweep["results"]))
    about = {name: sweep[name] for name in ("device", "model", "dtype", "reference", "environment")}
    for number, one in enumerate(figures.all_of(document.Document(**about, rows=tuple(rows))), 1):
        file = folder / f"{page.stem}-{number}.svg"
        file.write_text(one.svg)
        yield f"![{one.title}]({folder.name}/{file.name})"


def read(folder: Path) -> Data:
    """The data of every step, and the sittings of the device."""
    data = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    recorded = Path(__file__).parent / SITTINGS.format(device=folder.name)
    if recorded.exists():
        data["sittings"] = json.loads(recorded.read_text())
    return data


def write(folder: Path, page: Path) -> None:
    """Write the page from the data in a folder."""
    data = read(folder)
    needs = {name: steps for name, (steps, _) in TABLES.items()} | {"figures": {"sweep"}}
    names = [name for name, steps in needs.items() if steps <= set(data)]
    created = "\n\n".join(f"## {name}\n\n<!-- table: {name} -->\n<!-- end -->" for name in names)
    text = page.read_text() if page.exists() else f"# Results\n\n{created}\n"

    def written(block: re.Match[str]) -> str:
        name = block[2]
        if name not in names:
            return block[0]
        body = "\n\n".join(drawn(data, page)) if name == "figures" else TABLES[name][1](data)
        return f"{block[1]}\n{body}\n\n{block[3]}"

    page.write_text(BLOCK.sub(written, text))


def main() -> int:
    """Write the page named on the command line."""
    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    write(Path(sys.argv[1]), Path(sys.argv[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
