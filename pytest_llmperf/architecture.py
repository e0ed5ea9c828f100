"""The sizes of a model, from which parameters, bytes and FLOPs follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer of the Llama kind (RMS norms, gated FFN, grouped-query attention).

    Attributes:
        parameters: all of them, exactly.
        context_length: the longest sequence, in tokens.
        tied_embeddings: whether the output head is the embedding.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    parameters: int
    context_length: int
    tied_embeddings: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """From a Hugging Face ``config.json``.

        Raises:
            KeyError: a size is missing. TypeError, ValueError: it is not a number.
        """
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        layers, ffn = int(config["num_hidden_layers"]), int(config["intermediate_size"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or hidden // heads)
        vocabulary = int(config["vocab_size"])
        tied = bool(config.get("tie_word_embeddings", False))
        kind = str(config.get("model_type", ""))
        attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
        if config.get("attention_bias") or kind == "qwen2":
            attention += (heads + 2 * kv_heads) * head_dim + (hidden if kind != "qwen2" else 0)
        if kind in ("qwen3", "qwen3_moe"):
            attention += 2 * head_dim  # the norms of queries and keys
        layer = attention + 3 * hidden * ffn + 2 * hidden
        parameters = layers * layer + hidden + vocabulary * hidden * (1 if tied else 2)
        context = int(config.get("max_position_embeddings") or 2**31)
        return cls(hidden, layers, heads, kv_heads, head_dim, ffn, vocabulary, parameters, context, tied)

    @property
    def matrix_parameters(self) -> int:
        """N: parameters that a matrix product reads for every token; of the embedding only what is tied to the head."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.ffn) + self.head_parameters

    @property
    def head_parameters(self) -> int:
        """Parameters of the output head."""
        return self.vocabulary * self.hidden

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of all weights."""
        return self.parameters * BYTES[dtype]

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of keys and values of one token, all layers: 2 L H_kv d bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES[dtype]
