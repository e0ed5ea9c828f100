"""Compare optimizations of Llama-2-7B's shape on an accelerator: every figure of docs/results-<device>.md.

    python -m benchmarks.accelerator --output DIR [--page docs/results-h200.md] [--steps sweep,parity,...]

Each step writes ``DIR/<step>.json`` and a log beside it. A step that fails does not stop the others. The steps:

machine   ``--llm-list``, ``--llm-doctor``, versions, and the measured peaks beside those of the data sheet
sweep     prefill and decode of Llama-2-7B with random weights (speed depends on the shape alone): 2,048 tokens,
          batch 1 to 32
parity    greedy tokens of SmolLM2's real weights against eager's, for equal and unequal prompts
control   TunableOp, which has one candidate on CUDA, its default (criterion: it does not count as engaged)
stamps    the worker's stamps beside CUDA events (criterion: within 1 %), and the waits within a generation
gate      the gate on unchanged code (criterion: no regression) and on code slowed by 5 % (criterion: every case is
          a regression)
fault     a backend that writes to an invalid address (criterion: its own tests fail, and no other)
baseline  the figures of three processes each, in the format of ``baselines/<device>/``

With ``--page`` it then writes the tables and figures of that page (``benchmarks.accelerator_page``, which needs the
extra ``report``). The environment needs this project and the libraries of the backends, such as xformers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pytest_llmperf.machine import detect
from pytest_llmperf.models import CONFIGS

ROOT = Path(__file__).parent.parent
#: Without test_serving.py: servers are not compared here.
SUITES = ("suites/test_prefill.py", "suites/test_decode.py", "suites/test_latency.py")
BACKENDS = "eager,sdpa,sdpa-flash,xformers,compile,compile-static"
LLAMA = ("--llm-model=llama-2-7b", "--llm-random-weights", "--llm-dtype=bfloat16")
#: The gate is tried with a model of this many layers, so that many processes take minutes.
FEW_LAYERS = 8
#: A backend whose kernel writes to an invalid address at the third token.
FAULTY = """\
import torch
import triton
import triton.language as tl

from pytest_llmperf import Backend


@triton.jit
def wild(pointer):
    tl.store(pointer + (1 << 45), 1.0)


class Faulty:
    def __init__(self, spec):
        from pytest_llmperf.backends.transformers_engine import TransformersEngine

        self.engine = TransformersEngine(spec)
        self.evidence, self.close = self.engine.evidence, self.engine.close

    def generate(self, prompts, max_new_tokens, on_token):
        made = 0

        def astray(request, token):
            nonlocal made
            made += 1
            if made == 3:
                wild[(1,)](torch.zeros(1, device="cuda"))
            on_token(request, token)

        self.engine.generate(prompts, max_new_tokens, astray)


def pytest_llmperf_backends():
    return [Backend("faulty", Faulty)]
"""


class Steps:
    """The steps, a method each, which returns 0 if the step met its criterion.

    Args:
        options: those of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._output: Path = options.output.resolve()
        self._device: str = options.device
        self._backends: str = options.backends
        self._new_tokens = f"--llm-max-new-tokens={options.max_new_tokens}"
        self._select: tuple[str, ...] = ("-k", options.select) if options.select else ()

    def _run(self, step: str, *arguments: str, folder: Path = ROOT) -> int:
        """Run one Python command; append its output to the step's log. SIGTERM ends it, and then this script."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
        with (self._output / f"{step}.log").open("a") as log:
            print("$ python", *arguments, file=log, flush=True)
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            signals: list[int] = []

            def pass_on(number: int, _: object) -> None:
                signals.append(number)
                process.send_signal(number)

            before = signal.signal(signal.SIGTERM, pass_on)
            code = process.wait()  # it writes its measurements before it ends
            signal.signal(signal.SIGTERM, before)
        if signals:
            sys.exit(f"{step}: stopped")
        return code

    def _pytest(self, step: str, *arguments: str, folder: Path = ROOT) -> int:
        results = self._output / f"{step}.json"
        common = (f"--llm-device={self._device}", f"--llm-results={results}", "-p", "no:cacheprovider")
        return self._run(step, "-m", "pytest", *arguments, *common, folder=folder)

    def machine(self) -> int:
        """Measure the peaks in a process of their own, which frees their memory when it ends."""
        for option in ("--llm-list", "--llm-doctor"):
            self._run("machine", "-m", "pytest", option, f"--llm-device={self._device}", *LLAMA)
        code = (
            "import sys; from pathlib import Path; from benchmarks import script; "
            "from pytest_llmperf.worker.rates import measure; "
            "peaks = measure('cuda', 'bfloat16', 13_476_831_232); "
            "script.write(Path(sys.argv[1]), 'benchmarks.accelerator', peaks=peaks)"
        )
        return self._run("machine", "-c", code, str(self._output / "machine.json"))

    def sweep(self) -> int:
        return self._pytest(
            "sweep",
            *SUITES,
            *LLAMA,
            f"--llm-backends={self._backends}",
            "--llm-compare=never",  # comparing costs minutes, and the sweep needs each of them
            self._new_tokens,
            *self._select,
        )

    def parity(self) -> int:
        return self._pytest(
            "parity",
            "suites/test_greedy_parity.py",
            f"--llm-backends={self._backends}",
            "--llm-batch-sizes=1,8",
            "--llm-prompt-lengths=512",
            "--llm-max-new-tokens=32",
            *self._select,
        )

    def control(self) -> int:
        code = self._pytest(
            "control",
            "suites/test_decode.py",
            *LLAMA,
            "--llm-backends=sdpa+tunableop",
            "--llm-batch-sizes=1",
            "--llm-max-new-tokens=8",
        )
        return int(code != 1 or "the optimization did not engage" not in self._said("control"))

    def stamps(self) -> int:
        return self._run(
            "stamps", "-m", "benchmarks.accelerator_stamps", self._backends, str(self._output / "stamps.json")
        )

    def gate(self) -> int:
        """Compare two prefills, and the same with one token more, unchanged and slowed, in five or six pairs.

        The device bounds both. Decode of few requests waits for the host, whose speed differs between processes.
        Prefills of 50 to 100 ms differ by 2 to 3 ms. In both, four pairs can be too few to see 5 %.
        """
        folder = self._output / f"llama-2-7b-{FEW_LAYERS}-layers"
        folder.mkdir(exist_ok=True)
        config = CONFIGS["llama-2-7b"] | {"num_hidden_layers": FEW_LAYERS}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        code = self._pytest(
            "gate",
            "suites/test_prefill.py",  # first: a pair ends as soon as TTFT is precise enough
            "suites/test_latency.py",
            f"--llm-model={folder}",
            *LLAMA[1:],
            "--llm-self-test",
            "--llm-backends=sdpa",
            "--llm-batch-sizes=16,24",
            "--llm-max-new-tokens=2",
            "--llm-budget=120",  # for each workload; both share a start
        )
        tried = json.loads((self._output / "gate.json").read_text())["self_test"] if not code else []
        return int(not tried or any(one["false_alarms"] > 0 or one["power"] < 1 for one in tried))

    def fault(self) -> int:
        """Run the faulty backend between two others."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "pytest.ini").write_text("[pytest]\n")
            (folder / "conftest.py").write_text(FAULTY)
            (folder / "suites").mkdir()
            for suite in ("test_prefill.py", "test_decode.py"):
                shutil.copy(ROOT / "suites" / suite, folder / "suites")
            self._pytest(
                "fault",
                "suites",
                *LLAMA,
                "--llm-backends=eager,faulty,sdpa",
                "--llm-batch-sizes=1",
                "--llm-prompt-lengths=256",
                "--llm-max-new-tokens=8",
                folder=folder,
            )
        return int("2 failed, 4 passed" not in self._said("fault"))

    def baseline(self) -> int:
        return self._pytest(
            "baseline",
            *SUITES,
            *LLAMA,
            f"--llm-backends={self._backends}",
            self._new_tokens,
            "--llm-update-baselines",
            "--llm-invocations=3",
            f"--llm-baseline-dir={self._output / 'baselines'}",
            *self._select,
        )

    def _said(self, step: str) -> str:
        return (self._output / f"{step}.log").read_text()


NAMES = ("machine", "sweep", "parity", "control", "stamps", "gate", "fault", "baseline")


def main() -> int:
    """Take the steps, write the page; return 1 if a step did not meet its criterion."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the data")
    parser.add_argument("--page", type=Path, help="page whose tables and figures to write from the data")
    parser.add_argument("--steps", default=",".join(NAMES), help="steps to take, comma-separated (default: all)")
    parser.add_argument(
        "--device", default=detect.resolve(None).name, help="--llm-device (default: the device of this machine)"
    )
    parser.add_argument("--backends", default=BACKENDS, help=f"backends to compare (default: {BACKENDS})")
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, help="tokens that each request generates (default: 128)"
    )
    parser.add_argument("--select", default="", help="pytest's -k for the steps sweep, parity and baseline")
    options = parser.parse_args()
    if unknown := set(options.steps.split(",")) - set(NAMES):
        parser.error(f"--steps: no such step: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    options.output.mkdir(parents=True, exist_ok=True)
    steps, wrong = Steps(options), False
    for name in options.steps.split(","):
        began = time.monotonic()
        (options.output / f"{name}.log").unlink(missing_ok=True)
        code = getattr(steps, name)()
        wrong |= bool(code)
        print(f"{name}: {'criterion not met, see its log' if code else 'ok'}, {time.monotonic() - began:.0f} s")
    if options.page:
        from benchmarks import accelerator_page  # needs the extra ``report``

        accelerator_page.write(options.output, options.page)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
