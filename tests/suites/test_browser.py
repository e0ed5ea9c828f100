"""The page as a browser shows it, on a phone and on a desk: one of everything, and one of a real run.

python -m pytest tests/suites/test_browser.py --page=results/bench.html    # the report of that run instead
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from inner import OUTER
from reports import full

from pytest_llmperf.report import write
from pytest_llmperf.report.figures import COLOURS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
SUITES = Path(__file__).parent.parent.parent / "suites"
#: Looks at the page in frames of two widths, sorts and filters its table, and says what it found.
PROBE = """
<script>
const found = {};
const frames = [360, 1440].map(width => {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:900px;border:0`;
  frame.srcdoc = PAGE;
  document.body.append(frame);
  return frame;
});
window.addEventListener("load", () => {
  for (const frame of frames) {
    const page = frame.contentDocument, view = frame.contentWindow, width = parseInt(frame.style.width);
    const sizes = [...page.querySelectorAll("svg text")].map(text => {
      const svg = text.ownerSVGElement;
      const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
      return parseFloat(view.getComputedStyle(text).fontSize) * scale;
    });
    const table = page.getElementById("cases");
    const rows = [...table.tBodies[0].rows];
    const columns = [...table.tHead.rows[0].cells].map((cell, index) => {
      const keys = () => [...table.tBodies[0].rows].map(row => row.cells[index].dataset.key);
      cell.firstElementChild.click();
      const up = keys();
      cell.firstElementChild.click();
      return { name: cell.textContent.trim(), up, down: keys() };
    });
    const input = page.getElementById("filter");
    const shown = words => {
      input.value = words;
      input.dispatchEvent(new view.Event("input"));
      return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.textContent.toLowerCase());
    };
    const texts = rows.map(row => row.textContent.toLowerCase());
    const backend = rows[0].cells[2].textContent.trim();
    found[width] = {
      overflows: page.documentElement.scrollWidth > page.documentElement.clientWidth,
      smallest: Math.min(...sizes),
      body: parseFloat(view.getComputedStyle(page.body).fontSize),
      figures: [...page.querySelectorAll("figure")].map(figure => ({
        title: figure.querySelector("h3").textContent,
        height: figure.querySelector("svg").getBoundingClientRect().height,
        marks: [...figure.querySelectorAll("svg [style]")].filter(mark =>
          COLOURS.some(colour => mark.getAttribute("style").toLowerCase().includes(colour))).length,
        data: [...figure.querySelectorAll("tbody tr")].map(row => [...row.cells].map(cell => cell.textContent.trim())),
      })),
      rows: rows.length,
      columns,
      left: shown("TTFT " + backend).sort(),
      wanted: texts.filter(text => text.includes("ttft") && text.includes(backend.toLowerCase())).sort(),
      requests: view.performance.getEntriesByType("resource").map(entry => entry.name),
    };
  }
  const said = document.createElement("pre");
  said.textContent = "FOUND" + JSON.stringify(found) + "END";
  document.body.append(said);
});
</script>
"""


def look(page: str, folder: Path) -> dict[str, Any]:
    """What the probe found, by width; nothing of the page has been said on the console."""
    shown = json.dumps(page).replace("<", "\\u003c")
    colours = json.dumps([colour.lower() for colour in COLOURS])
    (folder / "probe.html").write_text(
        "<!doctype html><body>" + PROBE.replace("COLOURS", colours).replace("PAGE", shown)
    )
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}"),
        *("--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", (folder / "probe.html").as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert not re.findall(r".*CONSOLE.*", done.stderr)
    found: dict[str, Any] = json.loads(html.unescape(done.stdout.partition("<pre>FOUND")[2].partition("END</pre>")[0]))
    assert set(found) == {"360", "1440"}
    return found


def assert_readable(found: dict[str, Any], titles: Sequence[str] = ()) -> None:
    """As it should be at both widths, with a figure for each of the titles at least."""
    for at in found.values():
        assert not at["overflows"]
        assert at["body"] >= 14
        assert at["smallest"] >= 9
        assert at["requests"] == []
        assert set(titles) <= {one["title"] for one in at["figures"]}
        for one in at["figures"]:
            assert one["height"] > 100
            assert one["marks"] > 0, one["title"]
            assert one["data"]
            assert all(any(digit.isdigit() for cell in row[1:] for digit in cell) for row in one["data"])
        numbers = [column for column in at["columns"] if any(column["up"])]
        assert len(numbers) >= 3
        for column in numbers:
            up, down = ([float(key) for key in column[way] if key] for way in ("up", "down"))
            assert up == sorted(up), column["name"]
            assert down == up[::-1], column["name"]
        assert at["left"] == at["wanted"]
        assert 0 < len(at["wanted"]) < at["rows"]


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The report of a run: the one that ``--page`` names, or of a short one, of real weights, made here."""
    named = request.config.getoption("page")
    if named is not None:
        return Path(named)
    request.getfixturevalue("bundled_model")
    page = tmp_path / "bench.html"
    options = ["--llm-device=cpu", "--llm-backends=eager,sdpa", "--llm-batch-sizes=1", "--llm-prompt-lengths=16"]
    command = [sys.executable, "-m", "pytest", str(SUITES), *options, f"--llm-report={page}", "-p", "no:cacheprovider"]
    command += ["--llm-max-new-tokens=8", "-p", "no:xdist"]
    command += [f"--llm-baseline-dir={tmp_path / 'baselines'}"]
    environment = {name: value for name, value in os.environ.items() if name not in OUTER}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
    # Beside other tests a figure may come out as impossible, or a thread as lost; what was measured is in the page.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert page.exists(), done.stdout + done.stderr
    return page


def test_one_of_everything(tmp_path: Path) -> None:
    found = look(write.FORMS[".html"](full(2)), tmp_path)
    assert len(found["360"]["figures"]) == 9
    assert_readable(found)


def test_a_run_of_the_suites(bench: Path, tmp_path: Path) -> None:
    found = look(bench.read_text(), tmp_path)
    metrics = ("Prefill latency (mean TTFT)", "Decode latency (mean TPOT)")
    speedups = (f"Speedup over eager, {metric[0].lower()}{metric[1:]}" for metric in metrics)
    assert_readable(found, [*metrics, *speedups, "Inter-token latency", "Roofline"])
