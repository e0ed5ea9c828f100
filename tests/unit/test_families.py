"""Families of kernels, by names as profilers of CUDA and ROCm record them."""

from __future__ import annotations

from itertools import permutations

import pytest

from pytest_llmperf.backends import vllm_engine
from pytest_llmperf.explain.difference import kernels_changed, lines
from pytest_llmperf.explain.families import calls, changed, families, family
from pytest_llmperf.explain.names import short
from pytest_llmperf.explain.profiles import Phase, Row

FLASH_ATTENTION_3 = (
    "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90<"
    "2, cute::tuple<cute::C<1>, cute::C<1>, cute::C<1> >, cute::tuple<cute::C<128>, cute::C<176>, cute::C<128> >, 128, "
    "cutlass::bfloat16_t, float, cutlass::arch::Sm90, false, false, false, false, false, false, false, false, true, "
    "true, false, false, false, cutlass::bfloat16_t, false, 1>, flash::CollectiveEpilogueFwd<cute::tuple<cute::C<128>, "
    "cute::C<128>, cute::C<176> >, cute::tuple<cute::C<1>, cute::C<1>, cute::C<1> >, cutlass::bfloat16_t, "
    "cutlass::arch::Sm90, 256, false, false, false, false>, flash::StaticPersistentTileScheduler<false> > > >("
    "flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90<2> > >::Params)"
)
#: Names of attention kernels, by implementation.
ATTENTION = {
    "FlashAttention 2": [
        "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64, 64, 4, false, false, cutlass::bfloat16_t, "
        "Flash_kernel_traits<128, 64, 64, 4, cutlass::bfloat16_t> >, false, true, false, false, true, true, false, "
        "false>(flash::Flash_fwd_params)",
        "void flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128, 4, false, false, cutlass::half_t>, false, "
        "false, false, false, false, true, true>(Flash_fwd_params)",
        "_ZN5flash24flash_fwd_splitkv_kernelI23Flash_fwd_kernel_traitsILi64ELi64ELi256ELi4ELb0ELb0EN7cutlass6half_tE19"
        "Flash_kernel_traitsILi64E",
        "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<64, 128, 128, 4> >("
        "pytorch_flash::Flash_fwd_params)",
    ],
    "FlashAttention 3": [FLASH_ATTENTION_3],
    "FlashAttention 4": [
        "kernel_cutlass_kernel_flash_attncuteflash_fwd_sm100FlashAttentionForwardSm100_object_at__tensor000o111012_"
        "tensor000o111012_tensor000o101112_tensorptrbf16gmemalign16oi64div81i64div8_None_t_0",
        "kernel_cutlass_kernel_vllmvllm_flash_attncuteflash_fwd_sm90FlashAttentionForwardSm90_object_at__tensor_0",
    ],
    "Triton unified": ["kernel_unified_attention_2d", "kernel_unified_attention_3d.kd", "kernel_unified_attention"],
    "Triton paged": ["kernel_paged_attention_2d"],
    "ROCm paged": [
        "void paged_attention_ll4mi_QKV_mfma16_kernel<__hip_bfloat16, __hip_bfloat16, (vllm::Fp8KVCacheDataType)0, "
        "__hip_bfloat16, 16, 128, 256, false, 4>(__hip_bfloat16 const*)",
    ],
    "AITER": [
        "_ZN5aiter32fmha_fwd_hd192_hd128_bf16_causalE",
        "aiter::fmha_fwd_hd256_fp8_causal_group_gfx950",
        "_ZN5aiter42pa_bf16_pertokenFp8_gqa10_1tg_4w_mtp3_msk1E",
    ],
    "Composable Kernel": [
        "void ck_tile::kentry<256, 2, ck_tile::FmhaFwdKernel<ck_tile::FmhaFwdTilePartitioner<int> > >"
    ],
    "FlashInfer": [
        "void flashinfer::BatchPrefillWithPagedKVCacheKernel<flashinfer::KernelTraits<(flashinfer::MaskMode)1, 128u, "
        "2u, 2u, 8u, 8u, 4u, 1u, (flashinfer::PosEncodingMode)0, __nv_bfloat16, __nv_bfloat16, __nv_bfloat16, float, "
        "int, flashinfer::DefaultAttention<false, false, false, false> > >(flashinfer::BatchPrefillPagedParams)",
        "_ZN10flashinfer33BatchDecodeWithPagedKVCacheKernelILNS_15PosEncodingModeE0ELj2ELj4ELj8ELj8ELj1ELj16ENS_16"
        "DefaultAttentionILb0ELb0ELb0ELb0EEE6ParamsEEvT7_",
        "void flashinfer::PrefillWithKVCacheKernel<flashinfer::CollectiveMainloop<int> >(int)",
    ],
    "TensorRT-LLM": ["fmhaSm100fKernel_QkvBfloat16OBfloat16H64PagedKvCausalP64VarSeqQ128Kv128PersistentContext"],
    "memory-efficient": ["fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<int>)"],
    "cuDNN": ["cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_kernel0_0"],
    "vLLM's of the CPU": ["_C::cpu_attention_with_kv_cache"],
    "PyTorch's flash of the CPU": ["aten::_scaled_dot_product_flash_attention_for_cpu"],
    "unknown": ["void somebody::attention_of_their_own_kernel<int>(int)"],
}
MOE = {
    "Triton": ["fused_moe_kernel"],
    "Marlin": ["void marlin_moe_wna16::Marlin<__nv_bfloat16, 1125899906909960, 256>(int4 const*)"],
    "AITER": ["_ZN5aiter59fmoe_stage1_bf16_pertokenFp8_blockscale_g1u1_32x128_3tg_pf3E"],
}
GEMM = {
    "cuBLAS": [
        "nvjet_sm90_tst_192x208_64x4_2x1_v_bz_coopB_bias_TNT",
        "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn",
        "sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize64x64x128_warpgroupsize1x1x1_execute_kernel__5x_cublas",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8>(T1::Params)",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>(cublasLt::cublasSplitKParams<float>)",
    ],
    "Tensile": ["Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT256x256x64_MI16x16x1_SN_LDSB1_GRPM1_GSU1_ISA950"],
    "Marlin": ["void marlin::Marlin<__nv_bfloat16, 1125899906909960, 256, 4, 16, 4, 4, 4, false>(int4 const*)"],
    "AITER": ["_ZN5aiter42fp8gemm_bf16_blockscale_BpreShuffle_32x128E"],
    "CUTLASS": [
        "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cute::tuple<int, int, int, int> > >()"
    ],
    "oneDNN": ["mkldnn::_linear_pointwise", "_C::onednn_mm"],
    "PyTorch's": ["aten::addmm", "aten::mm"],
}
KINDS = {"attention": ATTENTION, "MoE": MOE, "GEMM": GEMM}
RECORDED = [(kind, name, one) for kind, found in KINDS.items() for name, every in found.items() for one in every]


@pytest.mark.parametrize(("kind", "implementation", "name"), RECORDED)
def test_a_recorded_name_is_of_its_implementation_whole_and_short(kind: str, implementation: str, name: str) -> None:
    assert family(name) == family(short(name)) == (kind, implementation)


@pytest.mark.parametrize(
    "name",
    [
        "vllm::unified_attention_with_output",
        "aten::scaled_dot_product_attention",
        "aten::_flash_attention_forward",
        "void flashinfer::sampling::TopKTopPSamplingFromProbKernel<1024u>(float*)",
        "_ZN4vllm30reshape_and_cache_flash_kernelIttLNS_18Fp8KVCacheDataTypeE0EEE",
        "_ZN4vllm25fused_add_rms_norm_kernelIN3c104HalfEEEv",
        "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, false>(int)",
        "ncclDevKernel_AllReduce_Sum_f16_RING_LL",
        "triton_poi_fused_add_mul_0",
    ],
)
def test_what_only_calls_attention_or_does_something_else_has_no_family(name: str) -> None:
    assert family(name) is None
    assert family(short(name)) is None


@pytest.mark.parametrize("kernels", list(ATTENTION.values()))
def test_vllm_s_attention_on_a_gpu_is_counted_whatever_namespace_its_kernel_has(kernels: list[str]) -> None:
    if any("cpu" in name for name in kernels):
        return
    layers, steps = 32, 3
    counts = {kernels[0]: layers * steps, "vllm::unified_attention_with_output": 1, "nvjet_tst_64x8": 500}
    assert calls("attention", vllm_engine.attention_calls(counts, "cuda")) == layers * steps


def test_reductions_do_not_count_as_attention() -> None:
    combined = {
        FLASH_ATTENTION_3: 32,
        "void cutlass::device_kernel<flash::FlashAttnFwdCombine<float> >(int)": 32,
        "void paged_attention_ll4mi_reduce_kernel<int>(int)": 32,
        "void flash::flash_fwd_splitkv_combine_kernel<int>(int)": 32,
    }
    assert calls("attention", combined) == 32


@pytest.mark.parametrize(("base", "head"), list(permutations(ATTENTION, 2)))
def test_a_fallback_to_another_attention_is_said_by_name(base: str, head: str) -> None:
    """vllm-project/vllm#39965: a silent fallback made prefill 5.5 times slower."""
    before, after = (
        Phase(0.5, {short(ATTENTION[one][0]): Row(32, 0.3), "nvjet": Row(64, 0.2)}, kernels=True, seconds=0.01)
        for one in (base, head)
    )
    assert f"attention: {base} -> {head} (" in kernels_changed(before, after)
    assert f"attention: {base} -> {head} (" in lines(before, after, 1.5)[0]


def test_another_tile_of_the_same_library_is_no_other_implementation() -> None:
    assert changed(["nvjet_tst_64x8_64x16_2x1_v_bz_TNT"], ["nvjet_tst_128x8_64x12_4x1_v_bz_TNT"]) == ""
    assert changed([], ["nvjet_tst_64x8_64x16_2x1_v_bz_TNT"]) == ""


def test_the_heaviest_implementation_comes_first() -> None:
    weights = {FLASH_ATTENTION_3: 0.2, "kernel_unified_attention_2d": 0.5, "aten::mm": 0.1, "aten::add": 0.1}
    assert families(weights) == {"attention": "Triton unified, FlashAttention 3", "GEMM": "PyTorch's"}
