"""tp<N>: tensor parallelism, each layer's matrices and heads shared by N devices: dies, or processes on a CPU."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pytest_llmperf.backends.base import TIME_IN_COLLECTIVES, Backend

if TYPE_CHECKING:
    from pytest_llmperf.architecture import Architecture
    from pytest_llmperf.backends.transformers_engine import Profile

#: Engines that start their own ranks, when told the degree.
OWN_RANKS = ("vllm", "vllm-eager", "vllm-serve", "tgi")
#: Seconds that a collective waits for a rank that does not come, where nothing is compiled. A rank that died is seen at
#: once, by the parent; one that hangs only by this.
PATIENCE = 30
#: What a profile calls collectives: gloo's, and the kernels of NCCL and RCCL (whose operators would be counted twice).
COLLECTIVES = ("gloo:", "ncclDevKernel", "ncclKernel")


def extend(engine: type[Any]) -> type[Any]:
    """Shard transformers' model over the ranks; an engine that has ranks of its own reads the degree itself."""
    import os
    from datetime import timedelta

    import torch
    from torch import distributed

    from pytest_llmperf.backends.transformers_engine import TransformersEngine, loaded
    from pytest_llmperf.models import ModelError

    if not issubclass(engine, TransformersEngine):
        return engine

    class TensorParallel(engine):  # type: ignore[misc]
        expected = (*engine.expected, "two collectives in every layer")

        def load(self, **options: Any) -> Any:
            from transformers.distributed import DistributedConfig

            try:
                options["distributed_config"] = DistributedConfig(tp_size=self.spec.tp)
            except TypeError:
                raise ModelError("transformers is too old for --llm-tp: pip install 'transformers>=5.19'") from None
            rank = int(os.environ["RANK"])
            on_cpu = self.spec.device == "cpu"
            if not on_cpu:
                torch.cuda.set_device(rank)
            store = distributed.FileStore(  # type: ignore[attr-defined]
                os.environ["LLMPERF_RENDEZVOUS"], self.spec.tp
            )
            # Imports may take one of them long; once they are here, none has to wait long for another.
            store.set(f"rank {rank}", "")
            store.wait([f"rank {one}" for one in range(self.spec.tp)], timedelta(seconds=self.spec.timeout))
            distributed.init_process_group(
                "gloo" if on_cpu else "nccl",
                store=store,
                rank=rank,
                world_size=self.spec.tp,
                # Ranks that compile reach their first collectives as far apart as compiling takes.
                timeout=timedelta(seconds=self.spec.timeout if self.compiled else PATIENCE),
            )
            if self.spec.config is None:
                return loaded(self.spec.model, **options)
            # Every rank draws the same weights, all of them, on the host, and keeps its share of each.
            whole = self.drawn("cpu", dtype=options["dtype"])
            return type(whole).from_pretrained(None, config=whole.config, state_dict=whole.state_dict(), **options)

        def engaged(self, profile: Profile) -> bool:
            # One after attention and one after the FFN; the output head's is on top.
            enough = self.collectives(profile) >= 2 * self.layers * profile.steps
            return bool(super().engaged(profile) and enough)

        def collectives(self, profile: Profile) -> int:
            return sum(profile.count(name, prefix=True) for name in COLLECTIVES)

        def seen(self, profile: Profile) -> dict[str, Any]:
            waited = sum(profile.duration(name) for name in COLLECTIVES)
            return {
                **super().seen(profile),
                "tensor parallel degree": distributed.get_world_size(),
                "collectives": self.collectives(profile),
                TIME_IN_COLLECTIVES: round(waited / profile.seconds, 3),
            }

        def close(self) -> None:
            super().close()
            distributed.destroy_process_group()

    return TensorParallel


def part(name: str) -> Backend | None:
    """The backend of that name, or None if it is not ``tp`` and a degree above 1."""
    match = re.fullmatch(r"tp([1-9][0-9]*)", name)
    if match is None or match[1] == "1":
        return None
    return Backend(
        name=name,
        load=extend,
        slot="parallelism",
        engines=("transformers", *OWN_RANKS),
        optimizes="both",
        proof="two collectives in every layer of every step, or the engine's own account of its ranks",
        degree=int(match[1]),
    )


def why_not_sharded(model: Architecture, degree: int, own_ranks: bool) -> str | None:
    """Why a model cannot be shared by so many ranks, or None.

    Args:
        model: its sizes.
        degree: how many.
        own_ranks: whether the engine starts them itself: vLLM pads the vocabulary, and copies KV heads where there are
            fewer of them than ranks.
    """
    copied = own_ranks and model.kv_heads and degree % model.kv_heads == 0
    sizes = {"attention heads": model.heads, "FFN columns": model.ffn}
    sizes |= {} if copied else {"KV heads": model.kv_heads}
    sizes |= {} if own_ranks else {"tokens of vocabulary": model.vocabulary}
    for what, size in sizes.items():
        if size % degree:  # never of a size that is not known, which is 0
            return f"{size} {what} cannot be shared by {degree} ranks"
    return None
