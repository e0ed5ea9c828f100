"""Does a red test name the cause of a slowdown? Causes that nobody had in mind when the code was written.

    python -m benchmarks.causes [--turns 1] [--only mask,cast] [--output FILE]

Each cause is a commit on top of a repository of its own, whose backend runs SmolLM2-135M with sdpa, or with vLLM. The
suite's test of decode compares the commit with the one before it, as a user would.

The criterion: the test fails, the first line names the cause, and the lines add up to the slowdown within a fifth of
it, what is not explained left out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import script
from benchmarks.gate.repository import BACKEND, NOTHING, git, repository

#: A conftest.py whose backend is vLLM, compiled or not.
VLLM = """\
import extra

from pytest_llmperf import Backend
from pytest_llmperf.backends.vllm import ENVIRONMENT


def load(spec):
    from pytest_llmperf.backends.vllm_engine import VllmEagerEngine, VllmEngine

    return (VllmEngine if extra.COMPILED else VllmEagerEngine)(spec)


def pytest_llmperf_backends():
    return [Backend("slowed", load, environment=ENVIRONMENT, compiles=True)]
"""
#: A mask of all positions in float32, in every layer at each step.
MASK = """\
import torch


def masked(module, arguments, named):
    hidden = named["hidden_states"]
    length = named["past_key_values"].get_seq_length(module.layer_idx) + hidden.shape[1]
    mask = torch.triu(torch.full((length, length), float("-inf")), diagonal=1)
    named["attention_mask"] = mask[None, None, -hidden.shape[1] :].to(hidden.dtype)
    return arguments, named


def prepare(engine):
    for layer in engine.model.model.layers:
        layer.self_attn.register_forward_pre_hook(masked, with_kwargs=True)
"""
#: The head's weights become float32 at each step: one copy, which is as large as the vocabulary.
CAST = """\
import torch


def prepare(engine):
    head = engine.model.lm_head
    head.forward = lambda hidden: torch.nn.functional.linear(hidden.float(), head.weight.float())
"""
#: Keys and values are put into new memory, with room for more, in every layer at each step.
CACHE = """\
import torch


def regrown(module, arguments, named, output):
    layer = named["past_key_values"].layers[module.layer_idx]
    for name in ("keys", "values"):
        held = getattr(layer, name)
        room = held.new_zeros(held.shape[0], held.shape[1], 256, held.shape[3])
        setattr(layer, name, torch.cat([held, room], dim=-2)[:, :, : held.shape[2]])


def prepare(engine):
    for layer in engine.model.model.layers:
        layer.self_attn.register_forward_hook(regrown, with_kwargs=True)
"""
#: Keys and values are repeated for all heads before each attention, as by models without grouped queries.
REPEATED = """\
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def repeated(module, query, key, value, mask, **named):
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=query.shape[2] > 1)
    return output.transpose(1, 2).contiguous(), None


def prepare(engine):
    ALL_ATTENTION_FUNCTIONS.register("sdpa", repeated)
"""
#: The activation by its formula instead of one operator.
ACTIVATION = """\
import torch


def prepare(engine):
    for layer in engine.model.model.layers:
        layer.mlp.act_fn.forward = lambda gate: gate / (1.0 + torch.exp(-gate.float()).to(gate.dtype))
"""
#: What the backend of the repository asks of its module.
DO = "\n\ndef do(batch_size, prompt_length):\n    pass\n"


@dataclass(frozen=True)
class Cause:
    """A commit that makes decode slower.

    Attributes:
        head: its ``extra.py``.
        first: what the first line has to say, as a regular expression.
        base: the ``extra.py`` of the commit before it.
        conftest: the backend's.
    """

    head: str
    first: str
    base: str = NOTHING
    conftest: str = script.SLOWED


CAUSES = {
    "mask": Cause(MASK + DO, r"\b(full|triu|fill_)\b.*: 30 more calls a step"),
    "cast": Cause(CAST + DO, r"\b(_to_copy|copy_)\b.*: \d+ -> \d+ calls a step"),
    "cache": Cause(CACHE + DO, r"\bcat\b.*: 60 more calls a step"),
    "repeated": Cause(REPEATED + DO, r"\b(repeat_interleave|index_select)\b.* 60 calls a step"),
    "activation": Cause(ACTIVATION + DO, r"\bsilu\b -> .*\b(exp|div|neg)\b"),
    "vllm": Cause("COMPILED = False\n", r"CompiledFxGraph|Torch-Compiled Region", "COMPILED = True\n", VLLM),
}


def compare(folder: Path, cause: Cause) -> dict[str, Any]:
    """The result of the suite's test of decode, head beside base; what pytest printed is printed."""
    repository(folder)
    for name, text in (("conftest.py", cause.conftest), ("extra.py", cause.base)):
        (folder / name).write_text(text)
    git(folder, "commit", "--quiet", "--all", "--allow-empty", "--message", "fast")
    git(folder, "tag", "fast")
    (folder / "extra.py").write_text(cause.head)
    git(folder, "commit", "--quiet", "--all", "--message", "slow")
    command = [sys.executable, "-m", "pytest", "-q", "suites/test_decode.py", "--llm-base=fast"]
    command += [f"--llm-backends={BACKEND}", "--llm-batch-sizes=1", "--llm-prompt-lengths=256"]
    command += ["--llm-max-new-tokens=16", "--llm-results=raw.json"]
    print("$ pytest", *command[3:], flush=True)
    subprocess.run(command, cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
    (result,) = json.loads((folder / "raw.json").read_text())["results"]
    return dict(result)


def judged(result: dict[str, Any], first: str) -> tuple[bool, bool]:
    """Whether the first line of a failed test names the cause, and whether the lines add up."""
    lines, slowdown = result["slower"], result["verdict"]["ratio"] - 1
    shares = [float(line.partition("%")[0]) / 100 for line in lines if "not explained" not in line]
    failed = result["verdict"]["outcome"] == "regression"
    named = failed and re.search(first, lines[0]) is not None
    return named, failed and abs(sum(shares) - slowdown) <= slowdown / 5


def main() -> int:
    """Try, print, write the data; 1 if a cause was not named."""
    parser = script.parser(__doc__, "turns", 1, "how often each cause is tried")
    parser.add_argument("--only", default=",".join(CAUSES), help="causes, in this order (default: all)")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for name in options.only.split(",") * options.turns:
        with tempfile.TemporaryDirectory() as folder:
            result = compare(Path(folder), CAUSES[name])
        named, adds_up = judged(result, CAUSES[name].first)
        print(f"{name}: {'named' if named else 'not named'}, {'adds up' if adds_up else 'does not add up'}", flush=True)
        kept = {"named": named, "adds up": adds_up, "slower": result["slower"]}
        found.setdefault(name, []).append(kept | {what: result["verdict"][what] for what in ("outcome", "ratio")})
    script.write(options.output, f"benchmarks.causes --turns {options.turns} --only {options.only}", causes=found)
    return int(not all(one["named"] and one["adds up"] for row in found.values() for one in row))


if __name__ == "__main__":
    sys.exit(main())
