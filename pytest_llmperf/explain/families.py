"""Which implementation a kernel belongs to, by its name: FlashAttention 3, Triton's unified attention, cuBLAS. Pure.

A library that falls back to another implementation says so in its log at best. The names of the kernels that ran say it
always. Names are those that profilers record on CUDA and ROCm, and PyTorch's operators on a CPU.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache

#: Parts of a kernel's name that finish another kernel's work, or prepare it.
_BESIDE = re.compile(r"(?i)combine|reduce|prepare|segments")
#: What has families.
KINDS = ("attention", "MoE", "GEMM")
#: Kind, family, and what a name has in it. The first that fits counts: an attention kernel may have "gemm" in its name.
_FAMILIES = [
    (kind, family, re.compile(pattern))
    for kind, family, pattern in (
        ("attention", "FlashMLA", r"flash_fwd_(splitkv_)?mla|flash_mla"),
        (
            "attention",
            "FlashAttention 4",
            r"FlashAttentionForward|flash_attncute|kernel_cutlass_kernel_(vllm)*_?flash_",
        ),
        ("attention", "FlashAttention 3", r"FlashAttnFwd"),
        ("attention", "FlashAttention 2", r"flash_fwd_(splitkv_)?(combine_)?kernel"),
        ("attention", "TensorRT-LLM", r"fmhaSm\d+\w*Kernel"),
        (
            "attention",
            "FlashInfer",
            r"(Batch|Single)?(Prefill|Decode)With\w*KVCache\w*Kernel|BatchAttentionWith|BatchDecodeWithPagedKVCacheMLA",
        ),
        ("attention", "Triton unified", r"kernel_unified_attention"),
        ("attention", "Triton paged", r"kernel_paged_attention_\dd"),
        ("attention", "ROCm paged", r"paged_attention_ll4mi"),
        ("attention", "vLLM paged", r"paged_attention_v[12]_"),
        (
            "attention",
            "AITER",
            r"(?<![A-Za-z_])(fmha_(fwd|v3_fwd)_\w*hd\d+|pa_(bf16|fp16|fp8|a16w8)\w*|mla_(a\d+w\d+|dec|pfl|stage)\w*)",
        ),
        ("attention", "Composable Kernel", r"Fmha(Fwd|BatchPrefill)\w*Kernel"),
        ("attention", "cuDNN", r"cudnn_generated\w*sdpa"),
        ("attention", "FlexAttention", r"flex_(attention|decoding)"),
        ("attention", "memory-efficient", r"fmha_cutlassF|PyTorchMemEffAttention|efficient_attention_forward_cutlass"),
        ("attention", "AOTriton", r"^(aotriton\w*::)?attn_fwd(\.kd)?$"),
        ("attention", "vLLM's of the CPU", r"cpu_attention_with_kv_cache"),
        ("attention", "PyTorch's flash of the CPU", r"_scaled_dot_product_flash_attention_for_cpu"),
        ("attention", "PyTorch's math", r"_scaled_dot_product_attention_math"),
        # But not the operators that call one of these, whole or short.
        (
            "attention",
            "unknown",
            r"(?i)^(?!\w+::|_?scaled_dot|_\w+_attention_forward|unified_attention_with|void at::)"
            r".*(attention|flash_attn|paged_attn|fmha)",
        ),
        ("MoE", "AITER", r"(?<![A-Za-z_])(fmoe_|moe_ck2stages|mfma_moe\d)"),
        ("MoE", "Marlin", r"marlin_moe"),
        ("MoE", "Triton", r"fused_moe_kernel"),
        ("MoE", "DeepGEMM", r"deep_gemm\w*.*([Gg]rouped|masked)"),
        ("MoE", "CUTLASS", r"GroupProblemShape"),
        ("MoE", "vLLM's of the CPU", r"cpu_fused_moe|fused_experts_cpu"),
        ("GEMM", "Marlin", r"[Mm]arlin(?!_moe)"),
        ("GEMM", "Machete", r"machete"),
        ("GEMM", "DeepGEMM", r"deep_gemm"),
        ("GEMM", "AITER", r"(?<![A-Za-z_])(bf16gemm_|fp8gemm_|f4gemm_|gemm_a\d+w\d+)"),
        ("GEMM", "Tensile", r"Cijk_"),  # of rocBLAS and hipBLASLt
        ("GEMM", "vLLM's for few rows", r"wvSplitK|LLMM1|LLGemm1"),
        (
            "GEMM",
            "cuBLAS",
            r"nvjet_|sm\d+_xmma_gemm|_s\d+gemm_|cutlass_\d+_(tensorop|wmma|simt)|[cC]ublas|gemv\w*[kK]ernel|gemmSN|gemmk1",
        ),
        ("GEMM", "Composable Kernel", r"kernel_(batched_)?gemm\w*xdl|(Universal|Grouped)GemmKernel"),
        ("GEMM", "CUTLASS", r"GemmUniversal|cutlass::gemm"),
        ("GEMM", "Triton", r"^triton_(tem_fused_)?\w*?(addmm|bmm|mm)|^triton_tem_|_scaled_mm_kernel|^matmul_kernel"),
        ("GEMM", "oneDNN", r"mkldnn|onednn"),
        ("GEMM", "MKL", r"_mkl_linear"),
        ("GEMM", "PyTorch's", r"^(aten::)?(addmm|addmv|baddbmm|bmm|mm|mv|_int_mm|_weight_int\dpack_mm\w*|_scaled_mm)$"),
    )
]


@cache
def family(name: str) -> tuple[str, str] | None:
    """One of `KINDS` and the implementation of a kernel, by its whole name or its short one; None of any other.

    AITER's copies of Triton's unified attention and of ROCm's paged one have the same names, and count as these.
    """
    return next(((kind, found) for kind, found, pattern in _FAMILIES if pattern.search(name)), None)


def calls(kind: str, counts: Mapping[str, int]) -> int:
    """How often kernels of a kind were called, by the number of calls of each name; of a reduction none."""
    return sum(
        number
        for name, number in counts.items()
        if (one := family(name)) is not None and one[0] == kind and not _BESIDE.search(name)
    )


def families(weights: Mapping[str, float]) -> dict[str, str]:
    """The implementations that ran, by kind, each list of them with the heaviest first: ``FlashAttention 3, cuDNN``.

    Args:
        weights: of kernels, by name: their share of the time, or how often they were called.
    """
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, weight in weights.items():
        if (one := family(name)) is not None:
            found[one[0]][one[1]] += weight
    ranked = {kind: sorted(found[kind], key=lambda one: (-found[kind][one], one)) for kind in KINDS if kind in found}
    return {kind: ", ".join(names) for kind, names in ranked.items()}


def changed(gone: Iterable[str], new: Iterable[str]) -> str:
    """Which implementations took another's place, as ``attention: FlashAttention 3 -> Triton unified``; empty if none.

    Args:
        gone: names of kernels that do not run any more.
        new: names of others that run now.
    """
    before, after = (families(dict.fromkeys(names, 1.0)) for names in (gone, new))
    return "; ".join(
        f"{kind}: {before[kind]} -> {after[kind]}"
        for kind in KINDS
        if kind in before and kind in after and before[kind] != after[kind]
    )
