"""The tables and figures of docs/results-<device>.md, from the data of ``benchmarks.accelerator``.

    python -m benchmarks.accelerator_page DATA docs/results-h200.md

What lies between ``<!-- table: NAME -->`` and ``<!-- end -->`` in the page is written anew, and the figures beside it
in ``images/``; what is said around them is kept. A page that is not there is begun. The names: machine, prefill,
decode, speedup, memory, engaged, parity, stamps, gate, baseline, figures.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pytest_llmperf.cases import Case, Workload
from pytest_llmperf.gate.verdict import noise_floor
from pytest_llmperf.machine.fitness import CANARY_SLOWER
from pytest_llmperf.report import document, figures

Data = dict[str, dict[str, Any]]
MS, GIB = 1e3, 2**30
BLOCK = re.compile(r"(<!-- table: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def sittings(data: Data, step: str) -> Data:
    """What there is of a step, which may have been taken in parts: ``stamps.json``, ``stamps-2.json``."""
    return {name: found for name, found in data.items() if name.partition("-")[0] == step}


def taken(data: Data, step: str, what: str) -> list[dict[str, Any]]:
    """All that a step found."""
    return [one for found in sittings(data, step).values() for one in found[what]]


def whole(data: Data) -> dict[str, Any]:
    """The sweep, of all its sittings.

    What two sittings measured is of the one that judged more of its metrics, or else of the first.
    """
    swept = sittings(data, "sweep")
    judged: dict[tuple[str, Workload], Counter[str]] = {}
    for name, part in swept.items():
        for one in part["results"]:
            judged.setdefault(workload_of(one["case"]), Counter())[name] += 1
    chosen = {key: max(found, key=lambda name: found[name]) for key, found in judged.items()}
    results, measurements = [], []
    for name, part in swept.items():
        results += [one for one in part["results"] if chosen[workload_of(one["case"])] == name]
        measurements += [
            one | {"sitting": name}
            for one in part["measurements"]
            if chosen.get((one["backend"], Workload(**one["workload"]))) == name
        ]
    return next(iter(swept.values())) | {"results": results, "measurements": measurements}


def parsed(case: str) -> Case:
    """Of a file's one model, which needs no name."""
    return Case.parse("", case)


def workload_of(case: str) -> tuple[str, Workload]:
    """Backend and workload of ``bfloat16/sdpa/b8-p2048-n16/ttft``."""
    found = parsed(case)
    return found.backend, found.workload


def parts(case: str) -> tuple[str, int, str]:
    """Backend, batch size and metric of ``bfloat16/sdpa/b8-p2048-n16/ttft``."""
    found = parsed(case)
    return found.backend, found.workload.batch_size, found.metric


def grid(results: Sequence[dict[str, Any]], metric: str, cell: Callable[[dict[str, Any]], str]) -> str:
    """A row for each backend, a column for each batch size."""
    found = {parts(one["case"])[:2]: cell(one) for one in results if parts(one["case"])[2] == metric}
    backends = list(dict.fromkeys(backend for backend, _ in found))
    batches = sorted({batch for _, batch in found})
    rows = [[f"`{backend}`", *(found.get((backend, batch), "-") for batch in batches)] for backend in backends]
    return table(["backend", *(f"batch {batch}" for batch in batches)], rows)


def slow_core(data: Data) -> set[tuple[str, int]]:
    """Backend and batch size of what was measured while the host's core was slow, by the canaries beside it."""
    measured = data["sweep"]["measurements"]
    fastest: dict[tuple[str, str], float] = {}
    for one in measured:
        process = (one["sitting"], one["backend"])
        canaries = [seconds for sample in one["samples"] for seconds in sample["fitness"]["canaries"]]
        fastest[process] = min([*canaries, fastest.get(process, float("inf"))])
    return {
        (one["backend"], one["workload"]["batch_size"])
        for one in measured
        if median(min(sample["fitness"]["canaries"]) for sample in one["samples"])
        > CANARY_SLOWER * fastest[one["sitting"], one["backend"]]
    }


def latencies(data: Data, metric: str) -> str:
    """Median in ms, half the distance between the quartiles as a share of it, and a star for a slow core."""
    slow = slow_core(data)

    def cell(one: dict[str, Any]) -> str:
        spread = one["spread"]
        star = "\\*" if parts(one["case"])[:2] in slow else ""
        return f"{spread['median'] * MS:.4g} ±{(spread['q3'] - spread['q1']) / 2 / spread['median']:.1%}{star}"

    return grid(data["sweep"]["results"], metric, cell)


def of_roofs(data: Data, metric: str, roof: str) -> str:
    """Share of the data sheet's roof, and of the one that was measured."""
    stated, measured = data["sweep"]["environment"]["peaks"][roof], data["machine"]["peaks"][roof]

    def cell(one: dict[str, Any]) -> str:
        fraction = one["utilization"]["fraction"]
        return f"{fraction:.0%} / {fraction * stated / measured:.0%}"

    return grid(data["sweep"]["results"], metric, cell)


def machine(data: Data) -> str:
    found = data["machine"]
    stated = data["sweep"]["environment"]["peaks"]
    rows = [[name, str(value)] for name, value in found["versions"].items() if name != "pytest-llmperf"]
    rows += [["GPU", ", ".join(found["machine"]["accelerators"])]]
    rows += [["CPU", f"{found['machine']['cpu']}, {found['machine']['cpus']} of them"]]
    rows += [
        [f"roof of {what}", f"{stated[roof] / 1e12:.4g} {unit} stated, {found['peaks'][roof] / 1e12:.4g} measured"]
        for what, roof, unit in (("compute", "flops", "TFLOP/s"), ("memory", "bandwidth", "TB/s"))
    ]
    return table(["what", "which"], rows)


def against_roof(data: Data, metric: str, said: str, utilization: str, roof: str) -> str:
    """A metric's latencies, and what share of a roof they mean."""
    return "\n\n".join(
        (
            f"{said}, ms (median, half the distance between the quartiles; \\* beside a slow core):",
            latencies(data, metric),
            f"{utilization}, of the stated roof and of the measured one:",
            of_roofs(data, metric, roof),
        )
    )


def prefill(data: Data) -> str:
    return against_roof(data, "ttft", "TTFT", "MFU", "flops")


def decode(data: Data) -> str:
    return against_roof(data, "tpot", "TPOT", "MBU", "bandwidth")


def speedup(data: Data) -> str:
    """Over the eager of the same run, or, with a dagger, over that of these tables, which another run measured."""
    results = data["sweep"]["results"]
    eager = {parts(one["case"])[1:]: one for one in results if parts(one["case"])[0] == "eager"}

    def cell(one: dict[str, Any]) -> str:
        if one["speedup"] is not None:
            return f"{one['speedup']:.2f}"
        other = eager.get(parts(one["case"])[1:])
        return "-" if other is None else f"{other['spread']['median'] / one['spread']['median']:.2f}†"

    said = (("Prefill", "ttft"), ("Decode", "tpot"))
    tables = [f"{name}, times eager's speed:\n\n{grid(results, metric, cell)}" for name, metric in said]
    return "\n\n".join([*tables, "† over the eager of another run."] if "†" in "".join(tables) else tables)


def memory(data: Data) -> str:
    def cell(one: dict[str, Any]) -> str:
        return f"{one['peak_memory'] / GIB:.0f} GiB, {one['cold_start']:.0f} s"

    return grid(data["sweep"]["results"], "ttft", cell)


def engaged(data: Data) -> str:
    """What a profile of three steps at the largest batch saw."""
    seen = {parts(one["case"])[0]: one["engagement"] for one in data["sweep"]["results"]}
    rows = []
    for backend, one in seen.items():
        what = ", ".join(f"{name}: {value}" for name, value in one["seen"].items() if value not in (0, ""))
        rows.append([f"`{backend}`", one["expected"], what])
    return table(["backend", "what had to be seen", "what was seen"], rows)


def parity(data: Data) -> str:
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
        for one in taken(data, "parity", "parity")
    ]
    header = ["backend", "workload", "", "exact", "largest regret of what rounding explains, logits"]
    header += ["logit error, times the reference's", "informative tokens"]
    return table(header, rows)


def stamps(data: Data) -> str:
    def share(one: dict[str, float]) -> str:
        return f"{one['median']:+.3%} ({one['low']:+.3%} to {one['high']:+.3%})"

    rows = []
    for one in taken(data, "stamps", "backends"):
        waits = {where: rate for where, rate in one["waits per step"].items() if rate > 0.5}
        said = ", ".join(f"{where} ({rate:.0f})" for where, rate in waits.items())
        rows.append([f"`{one['backend']}`", *(share(one["difference"][name]) for name in ("ttft", "tpot")), said])
    return table(["backend", "TTFT, stamps over events", "TPOT, stamps over events", "waits in each step"], rows)


def gate(data: Data) -> str:
    rows = [
        [
            str(number),
            f"{case.metric} {case.workload}",
            str(one["pairs"]),
            f"{one['false_alarms']:.0%}",
            f"{one['undecided']:.0%}",
            f"{one['power']:.0%}",
            "-" if one["resolution"] is None else f"{one['resolution']:.1%}",
            "-" if one["recommended"] is None else f"{one['recommended']:.1%}",
            f"{one['noise']:.1%}",
        ]
        for number, trial in enumerate(sittings(data, "gate").values(), 1)
        for one in trial["self_test"]
        for case in [parsed(one["case"])]
    ]
    header = ["trial", "case", "pairs", "false alarms", "undecided", "+5 % caught", "resolution"]
    header += ["least tolerance that serves", "a stored baseline has to allow"]
    return table(header, rows)


def baseline(data: Data) -> str:
    """How far processes differ."""
    rows = []
    results = taken(data, "baseline", "results")
    most = max(len(one["invocations"]) for one in results)
    for one in results:
        medians = [median(samples) for samples in one["invocations"]]
        apart = max(medians) / min(medians) - 1
        cells = [*(f"{value * MS:.4g}" for value in medians), *["-"] * (most - len(medians))]
        rows.append([f"`{one['case']}`", *cells, f"{apart:.1%}", f"{noise_floor(one['invocations']):.1%}"])
    return table(["case, ms", *(f"process {number + 1}" for number in range(most)), "apart", "noise floor"], rows)


#: What each table is made of, by its name: the steps, and how.
TABLES: dict[str, tuple[set[str], Callable[[Data], str]]] = {
    "machine": ({"machine", "sweep"}, machine),
    "prefill": ({"machine", "sweep"}, prefill),
    "decode": ({"machine", "sweep"}, decode),
    **{one.__name__: ({"sweep"}, one) for one in (speedup, memory, engaged)},
    **{one.__name__: ({one.__name__}, one) for one in (parity, stamps, gate, baseline)},
}


def drawn(data: Data, page: Path) -> Iterator[str]:
    """Writes the figures; a line of Markdown for each."""
    folder = page.parent / "images"
    folder.mkdir(exist_ok=True)
    shown = document.of(data["sweep"])
    told = [one for one in figures.all_of(shown) if not one.title.startswith("Inter-token")]
    for number, one in enumerate(told, 1):
        file = folder / f"{page.stem}-{number}.svg"
        file.write_text(one.svg)
        yield f"![{one.title}]({folder.name}/{file.name})"


def read(folder: Path) -> Data:
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"), key=lambda one: one.stem)}


def main() -> int:
    """Write the page."""
    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    data, page = read(Path(sys.argv[1])), Path(sys.argv[2])
    taken_steps = {name.partition("-")[0] for name in data}
    if "sweep" in taken_steps:
        data["sweep"] = whole(data)
    made_of = {name: steps for name, (steps, _) in TABLES.items()} | {"figures": {"sweep"}}
    names = [name for name, steps in made_of.items() if steps <= taken_steps]
    begun = "\n\n".join(f"## {name}\n\n<!-- table: {name} -->\n<!-- end -->" for name in names)
    text = page.read_text() if page.exists() else f"# Results\n\n{begun}\n"

    def written(block: re.Match[str]) -> str:
        name = block[2]
        if name not in names:  # what was not taken this time is as it was
            return block[0]
        body = "\n\n".join(drawn(data, page)) if name == "figures" else TABLES[name][1](data)
        return f"{block[1]}\n{body}\n\n{block[3]}"

    page.write_text(BLOCK.sub(written, text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
