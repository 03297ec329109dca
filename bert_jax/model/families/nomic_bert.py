"""NomicBERT (Nussbaum et al., 2024): BERT with rotary positions, gated feed-forward layers and few biases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bert_jax.model.families.row import Family, Fields, Form, Values, check_head_size, default_rope, rope_of

if TYPE_CHECKING:
    from bert_jax.model.config import BertConfig

_POOLER = {"pooler/dense": "nomic_bert.pooler.dense"}
_NO = (False, None)
_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu"}  # by the names of the hub's own code


def _read(values: Values) -> Fields:
    fields: Fields = {}
    if values.get("activation_function") in _ACTIVATIONS and "hidden_act" not in values:
        fields["hidden_act"] = _ACTIVATIONS[values["activation_function"]]
    rope = rope_of(values, "rope_parameters")
    default_rope(rope_of(values, "rope_scaling"), "rope_scaling")
    dynamic = rope.get("rope_type") == "dynamic" or values.get("rotary_scaling_factor") is not None
    if not dynamic:
        default_rope(rope, "rope_parameters")
    theta = rope.get("rope_theta", values.get("rotary_emb_base"))
    fields |= {} if theta is None else {"rope_theta": theta}
    longest = values.get("max_position_embeddings", values.get("n_positions", 2048))
    trained = values.get("max_trained_positions") or 2048
    if (
        dynamic and isinstance(longest, int) and isinstance(trained, int)
    ):  # its angles change past the trained length, and are the plain ones up to it
        fields["max_position_embeddings"] = min(longest, trained)
    check_head_size(values, "head_dim", 768, 12)
    return fields


def _write(cfg: BertConfig) -> Fields:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": cfg.form.rope_theta}}


NOMIC_BERT = Family(
    class_prefix="NomicBert",
    prefix="nomic_bert.",
    layer_prefix="encoder.layers.{i}.",
    heads={
        "encoder": {},
        "masked_lm": {
            "masked_lm/dense": "cls.predictions.transform.dense",
            "masked_lm/norm": "cls.predictions.transform.layer_norm",
            "masked_lm/bias": "cls.predictions.bias",
        },
        "sequence_classification": _POOLER | {"sequence_classifier": "classifier"},
        "token_classification": {"token_classifier": "classifier"},
    },
    tied={
        "cls.predictions.decoder.weight": "nomic_bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    form=Form(
        gated_mlp=True, attention_bias=False, mlp_bias=False, position_table=False, relative_positions="rotary",
        rope_theta=1000.0,
    ),
    embeddings={
        "embeddings/word_embeddings/embedding": "embeddings.word_embeddings.weight",
        "embeddings/token_type_embeddings/embedding": "embeddings.token_type_embeddings.weight",
        "embeddings/norm": "emb_ln",
    },
    layer={
        "attention/query": "attn.Wqkv[0]",
        "attention/key": "attn.Wqkv[1]",
        "attention/value": "attn.Wqkv[2]",
        "attention/output": "attn.out_proj",
        "attention_norm": "norm1",
        "mlp/gate": "mlp.fc12",
        "mlp/intermediate": "mlp.fc11",
        "mlp/output": "mlp.fc2",
        "mlp_norm": "norm2",
    },
    fused={"attn.Wqkv": 3},
    optional=frozenset(["rope_theta"]),
    renamed={
        "hidden_size": ("hidden_size", "n_embd"), "num_hidden_layers": ("num_hidden_layers", "n_layer"),
        "num_attention_heads": ("num_attention_heads", "n_head"), "intermediate_size": ("intermediate_size", "n_inner"),
        "max_position_embeddings": ("max_position_embeddings", "n_positions"),
        "layer_norm_eps": ("layer_norm_eps", "layer_norm_epsilon"),
        "hidden_dropout_prob": ("hidden_dropout_prob", "resid_pdrop"),
        "attention_probs_dropout_prob": ("attention_probs_dropout_prob", "attn_pdrop"), "rope_theta": (),
    },
    defaults={
        "vocab_size": 30528, "max_position_embeddings": 2048, "hidden_act": "silu", "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    only={
        "position_embedding_type": (), "rotary_emb_fraction": (1.0, None), "rotary_emb_interleaved": _NO,
        "rotary_emb_scale_base": (None,), "qkv_proj_bias": _NO, "mlp_fc1_bias": _NO, "mlp_fc2_bias": _NO, "prenorm": _NO,
        "parallel_block": _NO, "use_rms_norm": _NO, "causal": _NO, "num_experts": (0, None), "moe_every_n_layers": (0, -1, None),
    },
    other_prefixes=("bert.",),  # nomic-bert-2048, by the hub's own code
    renamed_tensors={"cls.predictions.transform.LayerNorm": "cls.predictions.transform.layer_norm"},
    read=_read,
    write=_write,
)  # fmt: skip
