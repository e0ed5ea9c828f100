"""The engine behind every transformers backend: the real ``model.generate`` with a streamer.

A backend subclasses it and names an attention implementation, prepares the model (compiles it, say), and says what a
profile of one generation must show.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from pytest_llmperf.backends.base import Engagement, EngineSpec, Observation, OnToken, Score

#: Forward passes that `evidence` profiles: the prefill, the first decode step (whose cache has other strides), and
#: one as they go on.
PROFILED = 3
#: Logits kept per position where the caller does not say which: a token further down is never chosen by rounding.
LEADING = 8


class TokenStreamer(BaseStreamer):  # type: ignore[misc]
    """Hands every new token of a batch on. The first ``put`` is the prompt; ``end`` brings no token."""

    def __init__(self, on_token: OnToken) -> None:
        self._on_token = on_token
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """One step: token ids of shape (B,), already on the host."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for request, token in enumerate(value.tolist()):
            self._on_token(request, token)

    def end(self) -> None:
        """Nothing: it would add a time stamp without a token."""


@dataclass(frozen=True)
class Profile:
    """Operator counts of one profiled generation of ``steps`` forward passes."""

    counts: Counter[str]
    steps: int

    def count(self, name: str, prefix: bool = False) -> int:
        if not prefix:
            return self.counts[name]
        return sum(count for key, count in self.counts.items() if key.startswith(name))


def decoder_layers(model: Any) -> Sequence[Any]:
    """The decoder layers of a causal language model, which most architectures keep in ``model.model.layers``."""
    return model.get_decoder().layers  # type: ignore[no-any-return]


class TransformersEngine:
    """Greedy ``generate`` on one device. Subclasses set `attention` and may override the four methods below it."""

    attention = "sdpa"
    expected = "nothing in particular"

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        dtype = getattr(torch, spec.dtype)
        options = {"dtype": dtype, "attn_implementation": self.attention}
        if spec.config is None:
            self.model = AutoModelForCausalLM.from_pretrained(spec.model, **options)
        else:
            torch.manual_seed(spec.seed)
            kind = dict(spec.config)
            config = AutoConfig.for_model(kind.pop("model_type"), **kind)
            with torch.device(spec.device):
                self.model = AutoModelForCausalLM.from_config(config, **options)
        self.model = self.model.to(spec.device).eval()
        # generate() fills what a call leaves None from the model's own generation config, which may sample and has
        # end-of-sequence ids: replace it, so that greedy means greedy and no token is suppressed.
        self.model.generation_config = GenerationConfig(pad_token_id=0)
        self.layers = int(self.model.config.num_hidden_layers)
        self._exact: Any = None
        self._last: list[list[int]] = []
        self._last_new_tokens = 0
        self.prepare()

    def prepare(self) -> None:
        """Change the loaded model: compile it, replace modules."""

    def generation_options(self) -> dict[str, Any]:
        """Further fields of the `GenerationConfig`."""
        return {}

    def engaged(self, profile: Profile) -> bool:
        """Whether a profile of one generation shows the optimization."""
        return True

    def generate(self, prompts: list[list[int]], max_new_tokens: int, on_token: OnToken) -> None:
        """See `Engine.generate`. Prompts of unequal length are padded on the left and masked."""
        self._generate(prompts, max_new_tokens, on_token)

    def _generate(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        on_token: OnToken,
        processors: Sequence[LogitsProcessor] = (),
        stopping: Sequence[StoppingCriteria] = (),
    ) -> None:
        self._last, self._last_new_tokens = prompts, max_new_tokens
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=None,
            pad_token_id=0,
            use_cache=True,
            **self.generation_options(),
        )
        with torch.inference_mode():
            self.model.generate(
                ids.to(self.spec.device),
                attention_mask=mask.to(self.spec.device),
                generation_config=config,
                streamer=TokenStreamer(on_token),
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList(stopping),
            )

    def observe(self, prompts: list[list[int]], max_new_tokens: int, leading: int) -> list[Observation]:
        """See `Observable.observe`."""
        kept: list[Any] = []

        def keep(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            kept.append(scores.topk(leading, dim=-1))
            return scores

        tokens: list[list[int]] = [[] for _ in prompts]
        self._generate(prompts, max_new_tokens, lambda request, token: tokens[request].append(token), [keep])
        return [
            Observation(
                tokens=row,
                candidates=[step.indices[request].tolist() for step in kept],
                logits=[step.values[request].tolist() for step in kept],
            )
            for request, row in enumerate(tokens)
        ]

    def score(
        self, prompts: list[list[int]], continuations: list[list[int]], candidates: list[list[list[int]]] | None
    ) -> list[Score]:
        """See `Reference.score`. One row at a time, so that no padding is involved."""
        if self._exact is None:
            exact = torch.float64 if self.spec.dtype == "float32" else torch.float32
            self._exact = copy.deepcopy(self.model).to(exact)
        asked = candidates or [None] * len(prompts)  # type: ignore[list-item]
        return [self._score(*row) for row in zip(prompts, continuations, asked, strict=True)]

    def _score(self, prompt: list[int], continuation: list[int], candidates: list[list[int]] | None) -> Score:
        ids = torch.tensor([prompt + continuation[:-1]], device=self.spec.device)
        with torch.inference_mode():
            keep = {"use_cache": False, "logits_to_keep": len(continuation)}
            logits = self.model(ids, **keep).logits[0].double()
            exact = self._exact(ids, **keep).logits[0].double()
        chosen = torch.tensor(continuation, device=ids.device)
        leading = exact.topk(LEADING).indices if candidates is None else torch.tensor(candidates, device=ids.device)
        return Score(
            regret=(logits.max(dim=-1).values - logits.gather(1, chosen[:, None])[:, 0]).tolist(),
            candidates=leading.tolist(),
            logits=logits.gather(1, leading).tolist(),
            exact=exact.gather(1, leading).tolist(),
        )

    def evidence(self) -> Engagement:
        """See `Engine.evidence`: a profile of how the last prompts' generation begins.

        It is the same generation, stopped early: where a cache is static, fewer tokens would be another shape.
        """
        steps = min(PROFILED, self._last_new_tokens)
        enough = max(len(prompt) for prompt in self._last) + steps

        def stop(ids: torch.Tensor, scores: Any) -> torch.Tensor:
            return torch.full((ids.shape[0],), ids.shape[1] >= enough, device=ids.device)

        activities = [ProfilerActivity.CPU]
        if self.spec.device != "cpu":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities, acc_events=True) as profiler:
            self._generate(self._last, self._last_new_tokens, lambda request, token: None, stopping=[stop])
        seen = Profile(Counter({event.key: event.count for event in profiler.key_averages()}), steps)
        resolved = str(self.model.config._attn_implementation)
        attention = {
            name: count
            for name, count in sorted(seen.counts.items())
            if name.startswith(("aten::_scaled_dot_product", "aten::scaled_dot_product", "aten::_softmax"))
        }
        return Engagement(
            engaged=resolved == self.attention and self.engaged(seen),
            expected=f"attn_implementation {self.attention}, and {self.expected} ({self.layers} layers, {steps} steps)",
            seen={
                "attn_implementation": resolved,
                **attention,
                "compiled regions": seen.count("Torch-Compiled Region", prefix=True),
                "graphs": int(torch._dynamo.utils.counters["stats"]["unique_graphs"]),
            },
        )

    def close(self) -> None:
        """Nothing: the process's end gives everything back."""


def peaks(device: str, dtype: str, buffer_bytes: int, seconds: float = 0.4) -> dict[str, float]:
    """The machine's measured roofs: the best GEMM rate (FLOP/s) and memory read rate (bytes/s) seen.

    The memory buffer is as large as the model's weights, since a decode step reads those: where they fit a
    last-level cache, that is the honest roof. The best of several kernels and repetitions is taken.
    """
    kind = getattr(torch, dtype)
    synchronize: Callable[[], Any] = torch.cuda.synchronize if device != "cpu" else (lambda: None)

    def best(work: Any, amount: float) -> float:
        rate, until = 0.0, time.perf_counter() + seconds
        while True:
            synchronize()
            start = time.perf_counter()
            work()
            synchronize()
            stop = time.perf_counter()
            rate = max(rate, amount / (stop - start))
            if stop > until:
                return rate

    side = 8192 if device != "cpu" else 1024
    a, b = (torch.randn(side, side, dtype=kind, device=device) for _ in range(2))
    flops = best(lambda: a @ b, 2.0 * side**3)
    rows = max(1, buffer_bytes // (4 * 4096))
    matrix = torch.randn(rows, 4096, device=device)
    vector = torch.randn(4096, device=device)
    half = matrix.to(kind)
    half_vector = vector.to(kind)
    size = float(matrix.numel() * matrix.element_size())
    bandwidth = max(
        best(lambda: matrix @ vector, size),
        best(matrix.sum, size),
        best(lambda: half @ half_vector, float(half.numel() * half.element_size())),
    )
    return {"flops": flops, "bandwidth": bandwidth}
