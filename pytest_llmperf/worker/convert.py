"""Unpack a GGUF into a folder of safetensors with its tokenizer, which every engine can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import import_utils, quantization_config

from pytest_llmperf.models import loading


def convert(source: Path, target: Path) -> None:
    """Read a GGUF and write config, weights (bfloat16) and tokenizer into ``target``.

    The weights are stored in bfloat16 so that a float32 and a bfloat16 run compute with the same numbers, and differ
    by arithmetic alone.

    Raises:
        ModelError: it cannot be read.
    """
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    # On Python 3.10, versions before 5.17 do not see which distribution the package gguf is of.
    getattr(import_utils, "PACKAGE_DISTRIBUTION_MAPPING", {}).setdefault("gguf", ["gguf"])
    with loading("transformers", str(source)):
        tokenizer = AutoTokenizer.from_pretrained(**place)
        # Versions before 5.17 unpack every GGUF; newer ones do if they are asked to.
        if newer := getattr(quantization_config, "GgufConfig", None):
            place["quantization_config"] = newer(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    # It is a dense model now; what says "quantized" would stop it from being saved and read as one.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model = model.to(torch.bfloat16)
    model.config.dtype = "bfloat16"
    model.config._name_or_path = source.stem
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
