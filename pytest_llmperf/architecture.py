"""The sizes of a model, from which parameters, bytes and FLOPs follow. Pure.

Counting needs to know the layers of a model type, so `FORMS` has a row for each one that is counted. Every other type
has sizes as far as its configuration states them, but no parameter count: no roof and no memory verdict follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
#: Tokens of a model that has no longest sequence.
UNBOUNDED = 2**31
#: What some model types call a size that most call by the first name.
NAMES = {
    "hidden_size": ("n_embd", "d_model", "n_embed"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads",),
    "intermediate_size": ("ffn_dim", "n_inner", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length"),
    "num_experts": ("num_local_experts", "n_routed_experts"),
}


class Config:
    """A ``config.json``, with what its class assumes for what it leaves out.

    Args:
        stated: the file's content. A null that it states counts: it is how a model says that it has no window.
        assumed: the class's defaults.
    """

    def __init__(self, stated: Mapping[str, Any], assumed: Mapping[str, Any]) -> None:
        self._sources = (stated, assumed)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field under any of its names, or the default."""
        for source in self._sources:
            for key in (name, *NAMES.get(name, ())):
                if key in source:
                    return source[key]
        return default

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number; the default also where the value is null.

        Raises:
            KeyError: it is missing. ValueError: it is not a whole number, or not positive.
        """
        found = self.get(name)
        if found is None and default is not None:
            return default
        if found is None:
            raise KeyError(name)
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            raise ValueError(f"{name} is {found!r}")
        return found

    def count(self, what: int | Callable[[Config], int]) -> int:
        """A constant, or what a function says of the configuration."""
        return what if isinstance(what, int) else what(self)

    def says(self, what: bool | str) -> bool:
        """A constant, or the field of that name."""
        return bool(self.get(what, False)) if isinstance(what, str) else what


Windowed = Callable[[Config, int], bool]


def _all(config: Config, layer: int) -> bool:
    return True


def _all_but_every(default: int) -> Windowed:
    """All layers but every n-th."""

    def windowed(config: Config, layer: int) -> bool:
        return bool((layer + 1) % (config.get("sliding_window_pattern") or default))

    return windowed


def _if_used(config: Config, layer: int) -> bool:
    return config.says("use_sliding_window")


def _upper(config: Config, layer: int) -> bool:
    return config.says("use_sliding_window") and layer >= int(config.get("max_window_layers", 0))


def _without_positions(config: Config, layer: int) -> bool:
    return config.says("use_sliding_window") and (layer + 1) % int(config.get("no_rope_layer_interval") or 4) == 0


def _lower_odd(config: Config, layer: int) -> bool:
    used = config.says("use_sliding_window") and layer < int(config.get("max_window_layers", 0))
    return used and bool((layer + 1) % 2)


@dataclass(frozen=True)
class Form:
    """How the layers of a model type are built. The defaults are Llama's. A string names the field that says.

    Attributes:
        qkv_bias, out_bias, ffn_bias: whether these matrices have biases.
        matrices: of an FFN: three with a gate, else two.
        norms: of a layer. final_norms: after all layers. They may depend on the configuration.
        norm: vectors of a norm: a weight, or a weight and a bias, or none.
        head_norms: the norms of queries and keys: ``head`` for one that all heads share, ``all`` for a weight per
            element of all heads, empty for none. ``head_norms_if`` says whether they are there.
        kv_heads: how many there are, where a rule says so.
        positions: learned positions beyond the context's; None where positions are not learned.
        head_bias: whether the output head has a bias.
        extra: further vectors of the hidden size.
        windowed: which layers have the configuration's sliding window, where ``layer_types`` does not say.
        experts: whether layers have experts. expert_bias: whether those and their router have biases.
        sinks: whether a layer has a parameter for each head, which its softmax counts.
        latent: whether keys and values are stored as a latent (MLA).
    """

    qkv_bias: bool | str = "attention_bias"
    out_bias: bool | str = "attention_bias"
    ffn_bias: bool | str = "mlp_bias"
    matrices: int = 3
    norms: int | Callable[[Config], int] = 2
    final_norms: int | Callable[[Config], int] = 1
    norm: int = 1
    head_norms: str = ""
    head_norms_if: bool | str = True
    kv_heads: Callable[[Config, int], int] | None = None
    positions: int | None = None
    head_bias: bool = False
    extra: int = 0
    windowed: Windowed | None = None
    experts: bool = False
    expert_bias: bool = False
    sinks: bool = False
    latent: bool = False


def _falcon_norms(config: Config) -> int:
    if not config.says("parallel_attn"):
        return 2
    if config.says("new_decoder_architecture"):
        return int(config.get("num_ln_in_parallel_attn") or 2)
    return 1


def _falcon_kv_heads(config: Config, heads: int) -> int:
    if config.says("new_decoder_architecture"):
        return config.size("num_key_value_heads", heads)
    return 1 if config.says("multi_query") else heads


def _opt_final_norms(config: Config) -> int:
    return int(config.says("do_layer_norm_before") and not config.says("_remove_final_layer_norm"))


def _stablelm_norms(config: Config) -> int:
    return 1 if config.says("use_parallel_residual") else 2


def _as_many(config: Config, heads: int) -> int:
    return heads


def _one_if_shared(config: Config, heads: int) -> int:
    return 1 if config.says("multi_query") else heads


#: No biases.
_BARE = Form(qkv_bias=False, out_bias=False, ffn_bias=False)
#: Biases everywhere, an FFN without a gate, LayerNorm, keys and values for every head.
_GPT = Form(qkv_bias=True, out_bias=True, ffn_bias=True, matrices=2, norm=2, kv_heads=_as_many)
#: How each model type that is counted is built. Tests hold every row against transformers' own model.
FORMS: dict[str, Form] = {
    "arcee": Form(matrices=2),
    "bloom": replace(_GPT, extra=2),
    "cohere": Form(norms=1, head_norms="all", head_norms_if="use_qk_norm"),
    "deepseek_v2": Form(experts=True, latent=True),
    "deepseek_v3": Form(experts=True, latent=True),
    "exaone4": replace(_BARE, head_norms="head", windowed=_all_but_every(4)),
    "falcon": Form("bias", "bias", "bias", matrices=2, norm=2, norms=_falcon_norms, kv_heads=_falcon_kv_heads),
    "gemma": Form(),
    "gemma2": Form(norms=4, windowed=_all_but_every(2)),
    "gemma3_text": Form(norms=4, head_norms="head", windowed=_all_but_every(6)),
    "glm": Form(out_bias=False),
    "glm4": Form(out_bias=False, norms=4),
    "gpt2": replace(_GPT, positions=0),
    "gpt_bigcode": replace(_GPT, positions=0, kv_heads=_one_if_shared),
    "gpt_neox": replace(_GPT, qkv_bias="attention_bias", out_bias="attention_bias"),
    "gpt_oss": Form(windowed=_all_but_every(2), experts=True, expert_bias=True, sinks=True),
    "gptj": replace(_GPT, qkv_bias=False, out_bias=False, norms=1, head_bias=True),
    "granite": Form(),
    "helium": Form(out_bias=False),
    "llama": Form(),
    "ministral": replace(_BARE, windowed=_all),
    "mistral": replace(_BARE, windowed=_all),
    "mixtral": replace(_BARE, windowed=_all, experts=True),
    "mpt": replace(_BARE, matrices=2, kv_heads=_as_many),
    "nemotron": Form(matrices=2, norm=2),
    "olmo": Form(norm=0),
    "olmo2": Form(head_norms="all"),
    "olmoe": Form(head_norms="all", experts=True),
    "opt": replace(
        _GPT,
        qkv_bias="enable_bias",
        out_bias="enable_bias",
        ffn_bias="enable_bias",
        positions=2,
        final_norms=_opt_final_norms,
    ),
    "phi": replace(_GPT, norms=1, head_bias=True, head_norms="head", head_norms_if="qk_layernorm", kv_heads=None),
    "phi3": replace(_BARE, windowed=_all),
    "qwen2": replace(_BARE, qkv_bias=True, windowed=_upper),
    "qwen2_moe": replace(_BARE, qkv_bias="qkv_bias", windowed=_lower_odd, experts=True),
    "qwen3": Form(head_norms="head", windowed=_upper),
    "qwen3_moe": Form(head_norms="head", windowed=_if_used, experts=True),
    "seed_oss": Form(out_bias="attention_out_bias"),
    "smollm3": Form(windowed=_without_positions),
    "stablelm": replace(
        _BARE,
        qkv_bias="use_qkv_bias",
        norm=2,
        norms=_stablelm_norms,
        head_norms="all",
        head_norms_if="qk_layernorm",
    ),
    "starcoder2": Form("use_bias", "use_bias", "use_bias", matrices=2, norm=2, windowed=_all),
}


@dataclass(frozen=True)
class Attention:
    """One layer's attention.

    Attributes:
        matrices: parameters of its matrices. vectors: its other parameters.
        width: elements of all heads' queries and values, which scores and their sums multiply.
        stored: elements of a token's keys and values in the cache.
    """

    matrices: int
    vectors: int
    width: int
    stored: int


def _attention(form: Form, config: Config, hidden: int, heads: int, kv_heads: int, head_dim: int) -> Attention:
    extra = form.sinks * heads
    bias, out_bias = config.says(form.qkv_bias), config.says(form.out_bias)
    if form.latent:
        rope, value = config.size("qk_rope_head_dim"), config.size("v_head_dim")
        key, latent = config.size("qk_nope_head_dim") + rope, config.size("kv_lora_rank")
        low = config.get("q_lora_rank")
        queries = hidden * heads * key if low is None else low * (hidden + heads * key)
        values = hidden * (latent + rope) + latent * heads * (key - rope + value)
        vectors = latent + (low or 0)
        vectors += bias * ((low or 0) + latent + rope) + out_bias * hidden
        out = heads * value * hidden
        return Attention(queries + values + out, vectors + extra, heads * (key + value), latent + rope)
    all_heads, stored = heads * head_dim, 2 * kv_heads * head_dim
    norms = {"": 0, "head": 2 * form.norm * head_dim, "all": all_heads + stored // 2}
    vectors = norms[form.head_norms] * config.says(form.head_norms_if)
    vectors += bias * (all_heads + stored) + out_bias * hidden
    return Attention(hidden * (2 * all_heads + stored), vectors + extra, 2 * all_heads, stored)


@dataclass(frozen=True)
class Ffn:
    """One layer's FFN.

    Attributes:
        matrices: parameters of its matrices. active: those that a token is multiplied with. vectors: all others.
    """

    matrices: int
    active: int
    vectors: int


def _ffn(form: Form, config: Config, hidden: int, ffn: int, layer: int) -> Ffn:
    dense = form.matrices * hidden * ffn
    if not (form.experts and _sparse(config, layer)):
        bias = config.says(form.ffn_bias) * ((form.matrices - 1) * ffn + hidden)
        return Ffn(dense, dense, bias)
    experts, chosen = config.size("num_experts"), config.size("num_experts_per_tok", 1)
    width = config.size("moe_intermediate_size", ffn)
    each, router = form.matrices * hidden * width, experts * hidden
    together = width * int(config.get("n_shared_experts") or 0)
    shared = form.matrices * hidden * together
    if (beside := config.get("shared_expert_intermediate_size")) is not None:
        shared = form.matrices * hidden * beside + hidden  # and its gate
    vectors = experts * ((form.matrices - 1) * width + hidden + 1) if form.expert_bias else 0
    vectors += config.says(form.ffn_bias) * ((form.matrices - 1) * together + hidden) if together else 0
    return Ffn(experts * each + router + shared, min(chosen, experts) * each + router + shared, vectors)


def _sparse(config: Config, layer: int) -> bool:
    """Whether a layer has experts, in a model that has some."""
    if layer in (config.get("mlp_only_layers") or ()) or layer < int(config.get("first_k_dense_replace") or 0):
        return False
    return (layer + 1) % int(config.get("decoder_sparse_step") or 1) == 0


def _windows(form: Form, config: Config, layers: int) -> tuple[int | None, ...]:
    """How many tokens each layer's attention reaches back; None for all."""
    window, types = config.get("sliding_window"), config.get("layer_types")
    if form.windowed is None or window is None:
        return (None,) * layers
    if types:
        return tuple(int(window) if one == "sliding_attention" else None for one in types)
    return tuple(int(window) if form.windowed(config, layer) else None for layer in range(layers))


def _attends(layer_type: str) -> bool:
    """Whether layers of that type compute attention over keys and values that they store."""
    return "linear" not in layer_type and ("attention" in layer_type or layer_type.startswith("hybrid"))


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder. Those that an uncounted model type does not state are 0.

    Attributes:
        ffn: columns of a dense FFN.
        parameters: all of them, exactly; None for a model type that is not counted.
        context_length: the longest sequence, in tokens.
        tied_embeddings: whether the output head is the embedding.
        windows: how many tokens back each layer with attention reaches; None for all.
        matrix_parameters: N, parameters that a matrix product multiplies every token with: of the experts those that a
            token is sent to, of the embedding only what is tied to the head.
        head_parameters: parameters of the output head.
        read_parameters: parameters that a forward pass must read: no embedding that is only looked up, and no experts
            beyond those of one token.
        attended: elements of all heads' queries and values in a layer.
        stored: elements of a token's keys and values in a layer.
        quantized: the configuration names quantized weights, whose bytes are not those of the dtype.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    parameters: int | None
    context_length: int
    tied_embeddings: bool
    windows: tuple[int | None, ...]
    matrix_parameters: int
    head_parameters: int
    read_parameters: int
    attended: int
    stored: int
    quantized: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any], assumed: Mapping[str, Any] | None = None) -> Architecture:
        """From a Hugging Face ``config.json``.

        Args:
            config: its content. The sizes of a model of several kinds of input are those of its ``text_config``.
            assumed: defaults of the (text) configuration's class.

        Raises:
            KeyError: a size is missing. TypeError, ValueError: it is not a number.
        """
        text = text_config(config)
        fields = Config(text, assumed or {})
        quantized = bool(config.get("quantization_config") or text.get("quantization_config"))
        form = FORMS.get(str(text.get("model_type", ""))) if text is config else None
        return cls._known(form, fields, quantized) if form else cls._unknown(fields, quantized)

    @classmethod
    def _known(cls, form: Form, config: Config, quantized: bool) -> Architecture:
        hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
        layers, vocabulary = config.size("num_hidden_layers"), config.size("vocab_size")
        kv_heads = form.kv_heads(config, heads) if form.kv_heads else config.size("num_key_value_heads", heads)
        head_dim = config.size("head_dim", hidden // heads)
        ffn = config.size("intermediate_size", 4 * hidden)
        context = config.size("max_position_embeddings", UNBOUNDED)
        attention = _attention(form, config, hidden, heads, kv_heads, head_dim)
        ffns = [_ffn(form, config, hidden, ffn, layer) for layer in range(layers)]
        norms = layers * config.count(form.norms) + config.count(form.final_norms)
        width = config.size("word_embed_proj_dim", hidden)
        tied, embedding = config.says("tie_word_embeddings"), vocabulary * width
        projections = 2 * width * hidden if width != hidden else 0
        positions = 0 if form.positions is None else (context + form.positions) * hidden
        matrices = layers * attention.matrices + sum(one.matrices for one in ffns) + projections
        active = layers * attention.matrices + sum(one.active for one in ffns) + projections
        vectors = layers * attention.vectors + sum(one.vectors for one in ffns)
        vectors += (norms * form.norm + form.extra) * hidden + form.head_bias * vocabulary
        parameters = matrices + vectors + positions + embedding * (1 if tied else 2)
        return cls(
            hidden, layers, heads, kv_heads, head_dim, ffn, vocabulary, parameters, context, tied,
            windows=_windows(form, config, layers),
            matrix_parameters=active + embedding,
            head_parameters=embedding,
            read_parameters=active + vectors + embedding,
            attended=attention.width,
            stored=attention.stored,
            quantized=quantized,
        )  # fmt: skip

    @classmethod
    def _unknown(cls, config: Config, quantized: bool) -> Architecture:
        def stated(name: str, otherwise: int = 0) -> int:
            try:
                return config.size(name, otherwise)
            except (TypeError, ValueError):  # a size for each layer, say
                return otherwise

        hidden, heads, layers = stated("hidden_size"), stated("num_attention_heads"), stated("num_hidden_layers")
        kv_heads, head_dim = stated("num_key_value_heads", heads), stated("head_dim", hidden // heads if heads else 0)
        types = config.get("layer_types")
        attending = layers if types is None else sum(map(_attends, types))
        return cls(
            hidden, layers, heads, kv_heads, head_dim, stated("intermediate_size"), config.size("vocab_size"),
            None, stated("max_position_embeddings", UNBOUNDED), config.says("tie_word_embeddings"),
            windows=(None,) * (attending if heads else 0),
            matrix_parameters=0, head_parameters=0, read_parameters=0,
            attended=2 * heads * head_dim,
            stored=2 * kv_heads * head_dim,
            quantized=quantized,
        )  # fmt: skip

    @property
    def attention_layers(self) -> int:
        """Layers that store keys and values."""
        return len(self.windows)

    def reach(self, tokens: float) -> float:
        """Tokens that the newest of so many attends to, itself included, summed over the layers."""
        return sum(tokens if window is None else min(tokens, window) for window in self.windows)

    def pairs(self, tokens: int) -> int:
        """Pairs of a query and a key in a prefill of so many tokens, summed over the layers."""
        found = 0
        for window in self.windows:
            full = tokens if window is None else min(tokens, window)
            found += full * (full + 1) // 2 + (tokens - full) * full
        return found

    def weight_bytes(self, dtype: str) -> int | None:
        """Bytes of all weights; None where they are not known."""
        return None if self.parameters is None or self.quantized else self.parameters * BYTES[dtype]

    def kv_bytes(self, tokens: float, dtype: str) -> float:
        """Bytes of the keys and values that the next token of a request of so many tokens needs."""
        return self.stored * BYTES[dtype] * self.reach(tokens)

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of keys and values of one token, all layers: 2 L H_kv d bytes without latents."""
        return self.attention_layers * self.stored * BYTES[dtype]


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that is about text: a part of its own where a model takes images or sound too."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config
