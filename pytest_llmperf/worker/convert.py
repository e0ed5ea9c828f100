"""Unpack a GGUF into a folder of safetensors with its tokenizer, which every engine can read."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

from pytest_llmperf.models import loading


def convert(source: Path, target: Path) -> None:
    """Read a GGUF and write config, weights (bfloat16) and tokenizer into ``target``.

    The weights are stored in bfloat16 so that a float32 and a bfloat16 run compute with the same numbers, and differ
    by arithmetic alone.

    Raises:
        ModelError: it cannot be read.
    """
    place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    with loading("transformers", str(source)):
        tokenizer = AutoTokenizer.from_pretrained(**place)
        model = AutoModelForCausalLM.from_pretrained(
            **place, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    # It is a dense model now; what says "quantized" would stop it from being saved and read as one.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model = model.to(torch.bfloat16)
    model.config.dtype = "bfloat16"
    model.config._name_or_path = source.stem
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
