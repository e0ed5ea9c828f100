"""Continuous batching inside the worker: transformers' own manager, whose thread generates while this one receives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from pytest_llmperf.backends.base import EngineSpec, Observation, OnToken
from pytest_llmperf.backends.profiling import mark
from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine

#: Seconds after which the thread that generates is looked at, should no token have come.
PATIENCE = 1.0


class TransformersPagedEngine(TransformersEngine):
    """Greedy generation by a `ContinuousBatchingManager` that lives as long as the engine."""

    expected = ("keys and values written to the paged cache in every layer",)
    pausable = False  # the manager's thread goes on

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        # One request may need a page more than its tokens fill, and the manager keeps a few.
        page = ContinuousBatchingConfig().page_size
        pages = spec.batch_size * (-(-spec.sequence_length // page) + 1) + 2
        self.manager = self.model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, num_beams=1, pad_token_id=0, eos_token_id=-1),
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=pages,
                max_batch_tokens=spec.batch_size * spec.sequence_length,
                max_requests_per_batch=spec.batch_size,
                allow_block_sharing=False,  # a prefix found in the cache is not a prefill
                auto_switch_to_flash=False,  # what is measured is what was asked for
                use_cuda_graph=False,  # a replayed graph writes to the pages unseen
            ),
        )
        self.manager.start()
        self._writes = 0

    @property
    def resolved(self) -> str:
        # Continuous batching has an eager attention of its own, which writes to the pages itself.
        return super().resolved.removeprefix("paged|")

    def _generate(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        on_token: OnToken,
        processors: Sequence[Any] = (),
        stopping: Sequence[Any] = (),
    ) -> None:
        if len(prompts) > self.spec.batch_size:
            raise ValueError(
                f"{len(prompts)} requests were submitted to an engine that was loaded for {self.spec.batch_size}: "
                "some would run after the others"
            )
        self._last, self._last_new_tokens = prompts, max_new_tokens
        # Paused, so that the batch is scheduled together, as it was submitted, and not the first request alone.
        with self.manager.pause():
            indices = {
                self.manager.add_request(prompt, max_new_tokens=max_new_tokens, streaming=True, eos_token_id=-1): index
                for index, prompt in enumerate(prompts)
            }
        try:
            self._receive(indices, on_token)
        except BaseException:
            for name in indices:  # or they would be in the next batch's steps
                self.manager.cancel_request(name)
            raise

    def _receive(self, indices: dict[str, int], on_token: OnToken) -> None:
        """Hand over the requests' tokens as they come, until all are complete."""
        given = [0] * len(indices)
        left = len(indices)
        while left:
            output = self.manager.get_result(timeout=PATIENCE)
            if output is None:
                if not self.manager.is_running():
                    fatal = self.manager.background_thread_status.fatal_error
                    raise RuntimeError(f"continuous batching ended: {fatal or 'its thread is gone'}")
                continue
            if output.request_id not in indices:  # of a batch that failed
                continue
            if output.error is not None:
                raise RuntimeError(f"continuous batching failed a request: {output.error}")
            index = indices[output.request_id]
            for token in output.generated_tokens[given[index] :]:
                on_token(index, token)
            given[index] = len(output.generated_tokens)
            left -= output.is_finished()

    def observe(self, prompts: list[list[int]], max_new_tokens: int, leading: int) -> list[Observation]:
        """See `Observable.observe`. Tokens are handed over in the order of the output head's rows, which are kept."""
        rows: list[Any] = []
        order: list[tuple[int, int]] = []

        def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
            logits = output.detach().reshape(-1, output.shape[-1])
            best = logits.topk(min(leading, logits.shape[-1]), dim=-1)
            rows.extend(zip(best.indices.tolist(), best.values.tolist(), strict=True))

        hook = self.model.get_output_embeddings().register_forward_hook(keep)
        try:
            self._generate(prompts, max_new_tokens, lambda index, token: order.append((index, token)))
        finally:
            hook.remove()
        observed: list[Observation] = [Observation([], [], []) for _ in prompts]
        # Where the head was asked for more rows than there are tokens, or for others, nothing is known of the logits.
        known = len(rows) == len(order) and all(
            token == ids[0] for (_, token), (ids, _) in zip(order, rows, strict=True)
        )
        for position, (index, token) in enumerate(order):
            one = observed[index]
            observed[index] = Observation(
                [*one.tokens, token],
                [*one.candidates, rows[position][0]] if known else [],
                [*one.logits, rows[position][1]] if known else [],
            )
        return observed

    def score(self, *arguments: Any, **more: Any) -> Any:
        """Never: its model computes attention over pages alone."""
        raise TypeError("transformers-paged cannot be the reference; leave --llm-reference out, or choose another")

    def profiled(self, steps: int) -> Profile:
        update = PagedAttentionCache.update
        self._writes = 0

        def counted(cache: Any, *arguments: Any, **more: Any) -> Any:
            self._writes += 1
            return update(cache, *arguments, **more)

        with patch.object(PagedAttentionCache, "update", counted):
            return super().profiled(steps)

    def shortened(self, steps: int) -> None:
        new_tokens, forward = self._last_new_tokens, self.model.get_decoder().forward
        begun = 0

        def marked(*arguments: Any, **more: Any) -> Any:
            nonlocal begun
            if begun:  # in the thread that generates: this one sees a token when the next step has begun
                mark()
            begun += 1
            return forward(*arguments, **more)

        with patch.object(self.model.get_decoder(), "forward", marked):
            self._generate(self._last, steps, lambda index, token: None)
        mark()
        self._last_new_tokens = new_tokens

    def engaged(self, profile: Profile) -> bool:
        return super().engaged(profile) and self._writes >= self.layers * profile.steps

    def seen(self, profile: Profile) -> dict[str, Any]:
        cache = self.manager.batch_processor.cache
        return {
            **super().seen(profile),
            "writes to the paged cache": self._writes,
            "page size": self.manager.continuous_batching_config.page_size,
            "pages": cache.num_blocks,
        }

    def close(self) -> None:
        """Stop the thread that generates."""
        self.manager.stop(block=True, timeout=PATIENCE, hard_stop=True)
