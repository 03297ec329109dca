"""EuroBERT (Boizard et al., 2025): Llama's layer without causality: RMSNorm, rotary, gated, grouped keys, no biases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bert_jax.model.families.row import Family, Fields, Form, Values, check_head_size, default_rope, rope_of

if TYPE_CHECKING:
    from bert_jax.model.config import BertConfig


def _read(values: Values) -> Fields:
    for key in ("rope_parameters", "rope_scaling"):
        default_rope(rope_of(values, key), key)
    rope = rope_of(values, "rope_parameters") or rope_of(values, "rope_scaling")
    check_head_size(values, "head_dim", 768, 12)
    fields: Fields = {"decoder_bias": bool(values.get("mlp_bias"))}
    if (theta := rope.get("rope_theta", values.get("rope_theta"))) is not None:
        fields["rope_theta"] = theta
    if values.get("classifier_pooling", "late") == "bos":
        fields["classifier_pooling"] = "cls"
    if values.get("num_key_value_heads") == values.get("num_attention_heads", 12):
        fields["num_key_value_heads"] = None
    return fields


def _write(cfg: BertConfig) -> Fields:
    pooling = "bos" if cfg.form.classifier_pooling == "cls" else cfg.form.classifier_pooling
    return {
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.form.rope_theta},
        "classifier_pooling": pooling,
        "num_key_value_heads": cfg.num_key_value_heads or cfg.num_attention_heads,
    }


EUROBERT = Family(
    class_prefix="EuroBert",
    prefix="model.",
    layer_prefix="layers.{i}.",
    heads={
        "encoder": {},
        "masked_lm": {"masked_lm/decoder/embedding": "lm_head.weight", "masked_lm/bias": "lm_head.bias"},
        "sequence_classification": {"pooler/dense": "dense", "sequence_classifier": "classifier"},
        "token_classification": {"token_classifier": "classifier"},
    },
    tied={"lm_head.weight": "model.embed_tokens.weight"},
    form=Form(
        norm_placement="pre", norm="rms_norm", embedding_norm=False, final_norm=True, gated_mlp=True, attention_bias=False,
        mlp_bias=False, position_table=False, relative_positions="rotary", rope_theta=10000.0, classifier_pooling="late",
        classifier_activation="gelu", decoder_bias=False, token_types="never",
    ),
    embeddings={"embeddings/word_embeddings/embedding": "embed_tokens.weight", "final_norm": "norm"},
    layer={
        "attention_norm": "input_layernorm",
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/output": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "mlp/gate": "mlp.gate_proj",
        "mlp/intermediate": "mlp.up_proj",
        "mlp/output": "mlp.down_proj",
    },
    optional=frozenset(["rope_theta", "num_key_value_heads", "attention_bias", "mlp_bias", "classifier_pooling", "decoder_bias"]),
    renamed={
        "layer_norm_eps": "rms_norm_eps", "attention_probs_dropout_prob": "attention_dropout", "rope_theta": (),
        "decoder_bias": (),
    },
    fixed={"type_vocab_size": 0, "hidden_dropout_prob": 0.0},
    defaults={
        "vocab_size": 128256, "hidden_act": "silu", "max_position_embeddings": 8192, "layer_norm_eps": 1e-5,
        "attention_probs_dropout_prob": 0.0, "tie_word_embeddings": False, "classifier_dropout": 0.0,
    },
    only={"position_embedding_type": (), "pretraining_tp": (1,)},
    read=_read,
    write=_write,
    special_ids={"bos_token_id": "cls_id", "eos_token_id": "sep_id", "mask_token_id": "mask_id"},
)  # fmt: skip
