"""The engine behind every transformers backend: the real ``model.generate`` with a streamer.

An optimization subclasses it: it names an attention implementation, or prepares the model (compiles it, say), and says
what a profile of one generation must show. Each calls ``super()``, so that several can be stacked.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
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

from pytest_llmperf.backends.arguments import GENERATION, LOADING
from pytest_llmperf.backends.base import (
    LEADING,
    Engagement,
    EngineSpec,
    NotEngagedError,
    Observation,
    OnToken,
    Score,
)
from pytest_llmperf.backends.profiling import Profiler, mark
from pytest_llmperf.models import ModelError, loading
from pytest_llmperf.weights import unlike

#: Forward passes that `evidence` profiles: the prefill, the first decode step (whose cache has other strides), and
#: one as they go on.
PROFILED = 3
#: Bytes of logits that a reference keeps. Most backends generate the same tokens, whose exact logits, in a type that a
#: device multiplies slowly, take longer than all else in a judgement.
KEPT_LOGITS = 2**28


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
    """One profiled generation of ``steps`` forward passes: counts of operators, and how long each kind took.

    Attributes:
        durations: seconds by operator, on the device or else of the CPU, with all that it called or waited for.
        seconds: that the whole generation took.
        scores: softmaxes of scores (B, H, Sq, Sk). Those of a router of experts have fewer dimensions.
        phases: what the prefill and a decode step spend their time on, as `Engagement.profile` has it.
    """

    counts: Counter[str]
    steps: int
    durations: Mapping[str, float]
    seconds: float
    scores: int = 0
    phases: Mapping[str, Any] = field(default_factory=dict)

    def count(self, name: str, prefix: bool = False) -> int:
        if not prefix:
            return self.counts[name]
        return sum(count for key, count in self.counts.items() if key.startswith(name))

    def duration(self, prefix: str) -> float:
        """Seconds of all operators of that prefix."""
        return sum(seconds for key, seconds in self.durations.items() if key.startswith(prefix))


def attentions(model: Any) -> list[str]:
    """The names of a causal language model's attention modules, each without what is in it.

    transformers names their classes so, while the attribute is `self_attn`, `attn`, `attention` and more. A tower for
    images is no part of the decoder.
    """
    decoder = model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    found: list[str] = []
    for name, module in model.named_modules():
        attention = id(module) in inside and "Attention" in type(module).__name__ and module is not decoder
        if attention and not any(name.startswith(f"{one}.") for one in found):
            found.append(name)
    return found


def attending(cache: Any) -> int:
    """How many layers of a cache hold keys. Layers without attention hold other states, or nothing."""
    own = getattr(cache, "self_attention_cache", cache)  # a decoder's that could look at an encoder too
    return sum(getattr(layer, "keys", None) is not None for layer in getattr(own, "layers", ()))


def loaded(folder: str, **options: Any) -> Any:
    """The model of a folder, all of whose weights are the checkpoint's.

    Raises:
        ModelError: some are not there, are of another shape, or have no place. transformers draws such at random.
    """
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with loading("transformers", folder):
        model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)
    other = [one if isinstance(one, str) else one[0] for one in info["mismatched_keys"]]
    if (why := unlike(info["missing_keys"], info["unexpected_keys"], other)) is not None:
        raise ModelError(f"{folder} is no checkpoint of {type(model).__name__}: it {why}; download it again")
    return model


class TransformersEngine:
    """Greedy ``generate`` on one device.

    Attributes:
        attention: transformers' name of the attention implementation.
        compiled: whether some of the model is compiled, so that single operators may not show in a profile.
        expected: what a profile must show, a phrase for each optimization.
        layers: how many have attention: all, until `evidence` has seen a generation's cache.
    """

    attention = "sdpa"
    compiled = False
    pausable = True
    expected: tuple[str, ...] = ()

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        #: What a variant gives to `generate`. Arguments of other names than these are a subclass's own.
        self._varied = {name: value for name, value in spec.arguments.items() if name in GENERATION}
        more = {name: value for name, value in spec.arguments.items() if name in LOADING}
        self.model = self.load(dtype=getattr(torch, spec.dtype), attn_implementation=self.attention, **more)
        if self.resolved != self.attention:
            raise NotEngagedError(
                f"transformers serves {self.attention} by {self.resolved}; a substitute is measured only under its "
                "own name"
            )
        self.model = self.model.to(spec.device).eval()
        # generate() fills what a call leaves None from the model's own generation config, which may sample and has
        # end-of-sequence ids: replace it, so that greedy means greedy and no token is suppressed.
        self.model.generation_config = GenerationConfig(pad_token_id=0)
        self.layers = int(self.model.config.get_text_config(decoder=True).num_hidden_layers)
        self._examined = False
        self._exact: Any = None
        self._keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self._logits: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._last: list[list[int]] = []
        self._last_new_tokens = 0
        self.prepare()

    def load(self, **options: Any) -> Any:
        """The model, with those options of ``from_pretrained``."""
        if self.spec.config is None:
            return loaded(self.spec.model, **options)
        return self.drawn(self.spec.device, **options)

    def drawn(self, device: str, **options: Any) -> Any:
        """A model of seeded random weights on a device."""
        assert self.spec.config is not None
        torch.manual_seed(self.spec.seed)
        kind = dict(self.spec.config)
        with loading("transformers", self.spec.model), torch.device(device):
            config = AutoConfig.for_model(kind.pop("model_type"), **kind)
            return AutoModelForCausalLM.from_config(config, **options)

    @property
    def resolved(self) -> str:
        """The attention implementation that transformers settled on."""
        return str(self.model.config._attn_implementation)

    def prepare(self) -> None:
        """Change the loaded model: compile it, replace modules."""

    def generation_options(self) -> dict[str, Any]:
        """Further fields of the `GenerationConfig`."""
        return {}

    def engaged(self, profile: Profile) -> bool:
        """Whether a profile of one generation shows the optimization."""
        return True

    def seen(self, profile: Profile) -> dict[str, Any]:
        """What a profile shows that is worth recording."""
        attention = ("aten::_scaled_dot_product", "aten::scaled_dot_product", "aten::_softmax")
        return {
            "attn_implementation": self.resolved,
            **{name: count for name, count in sorted(profile.counts.items()) if name.startswith(attention)},
            "compiled regions": profile.count("Torch-Compiled Region", prefix=True),
            "graphs": int(torch._dynamo.utils.counters["stats"]["unique_graphs"]),
        }

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
            return_dict_in_generate=self._examined,
            **self.generation_options() | self._varied,
        )
        with torch.inference_mode():
            result = self.model.generate(
                ids.to(self.spec.device),
                attention_mask=mask.to(self.spec.device),
                generation_config=config,
                streamer=TokenStreamer(on_token),
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList(stopping),
            )
        if self._examined:
            self.layers = attending(result.past_key_values)

    def observe(self, prompts: list[list[int]], max_new_tokens: int, leading: int) -> list[Observation]:
        """See `Observable.observe`."""
        kept: list[Any] = []

        def keep(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            kept.append(scores.topk(min(leading, scores.shape[-1]), dim=-1))
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
            if self._exact._can_set_experts_implementation():
                self._exact.set_experts_implementation("eager")  # grouped products have no float64
        asked = candidates or [None] * len(prompts)  # type: ignore[list-item]
        return [self._score(*row) for row in zip(prompts, continuations, asked, strict=True)]

    def _score(self, prompt: list[int], continuation: list[int], candidates: list[list[int]] | None) -> Score:
        logits, exact = self._logits_of(prompt, continuation)
        chosen = torch.tensor(continuation, device=logits.device)
        most = min(LEADING, exact.shape[-1])
        leading = exact.topk(most).indices if candidates is None else torch.tensor(candidates, device=logits.device)
        return Score(
            regret=(logits.max(dim=-1).values - logits.gather(1, chosen[:, None])[:, 0]).tolist(),
            candidates=leading.tolist(),
            logits=logits.gather(1, leading).tolist(),
            exact=exact.gather(1, leading).tolist(),
        )

    def _logits_of(self, prompt: list[int], continuation: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's logits of a continuation of n tokens and the exact ones, each of shape (n, V)."""
        key = (len(prompt), *prompt, *continuation[:-1])
        if key not in self._logits:
            ids = torch.tensor([key[1:]], device=self.spec.device)
            kept = len(continuation)
            keep = {"use_cache": False} | ({"logits_to_keep": kept} if self._keeps else {})
            with torch.inference_mode():
                own, exact = (model(ids, **keep).logits[0, -kept:] for model in (self.model, self._exact))
            self._logits[key] = own, exact
            while len(self._logits) > 1 and sum(one.nbytes for one in chain(*self._logits.values())) > KEPT_LOGITS:
                del self._logits[next(iter(self._logits))]
        own, exact = self._logits[key]
        return own.double(), exact.double()

    def evidence(self) -> Engagement:
        """See `Engine.evidence`: a profile of how the last prompts' generation begins."""
        seen = self.profiled(min(PROFILED, self._last_new_tokens))
        expected = ", and ".join((f"attn_implementation {self.attention}", *self.expected))
        return Engagement(
            engaged=self.resolved == self.attention and self.engaged(seen),
            expected=f"{expected} ({self.layers} layers, {seen.steps} steps)",
            seen=self.seen(seen),
            profile=seen.phases,
        )

    def profiled(self, steps: int) -> Profile:
        """Operators of the first ``steps`` forward passes for the last prompts."""
        profiler = Profiler(self.spec.device, shapes=True)
        with profiler:
            self.shortened(steps)
        events = profiler.averages()
        softmaxes = [event for event in profiler.events if event.name == "aten::_softmax" and event.input_shapes]
        return Profile(
            Counter({event.key: event.count for event in events}),
            steps,
            {event.key: (event.device_time_total or event.cpu_time_total) / 1e6 for event in events},
            profiler.seconds,
            sum(len(event.input_shapes[0]) == 4 for event in softmaxes),
            profiler.phases(),
        )

    def shortened(self, steps: int) -> None:
        """The last prompts' generation, stopped early: where a cache is static, fewer tokens would be another shape."""
        enough = max(len(prompt) for prompt in self._last) + steps

        def stop(ids: torch.Tensor, scores: Any) -> torch.Tensor:
            return torch.full((ids.shape[0],), ids.shape[1] >= enough, device=ids.device)

        def at_each_step(request: int, token: int) -> None:
            if request == 0:
                mark()

        self._examined = True  # a returned cache changes how generate ends, so never where it is timed
        try:
            self._generate(self._last, self._last_new_tokens, at_each_step, stopping=[stop])
        finally:
            self._examined = False

    def in_effect(self) -> dict[str, Any]:
        """See `Adjustable.in_effect`: what the model's configuration has."""
        config = self.model.config
        names = ((name, own) for name in LOADING if name in self.spec.arguments for own in (name, f"_{name}"))
        return {name: getattr(config, own) for name, own in names if getattr(config, own, None) is not None}

    def close(self) -> None:
        """Nothing: the process's end gives everything back."""
