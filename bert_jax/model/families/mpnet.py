"""MPNet (Song et al., 2020): BERT without token types, with one table of relative biases for all layers."""

from __future__ import annotations

from bert_jax.model.families.row import COMMON_HEADS, EMBEDDINGS, Family, Form

_POOLER = {"pooler/dense": "mpnet.pooler.dense"}

MPNET = Family(
    class_prefix="MPNet",
    prefix="mpnet.",
    layer_prefix="encoder.layer.{i}.",
    heads={
        "encoder": _POOLER,
        "masked_lm": {
            "masked_lm/dense": "lm_head.dense",
            "masked_lm/norm": "lm_head.layer_norm",
            "masked_lm/bias": "lm_head.bias",
        },
        "sequence_classification": {
            "pooler/dense": "classifier.dense",
            "sequence_classifier": "classifier.out_proj",
        },
        "multiple_choice": _POOLER | {"choice_classifier": "classifier"},
        **COMMON_HEADS,
    },
    tied={"lm_head.decoder.weight": "mpnet.embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"},
    form=Form(positions_from_padding=True, relative_positions="bias", token_types="never"),
    embeddings={ours: theirs for ours, theirs in EMBEDDINGS.items() if "token_type" not in ours}
    | {"relative_attention_bias/embedding": "encoder.relative_attention_bias.weight"},
    layer={
        "attention/query": "attention.attn.q",
        "attention/key": "attention.attn.k",
        "attention/value": "attention.attn.v",
        "attention/output": "attention.attn.o",
        "attention_norm": "attention.LayerNorm",
        "mlp/intermediate": "intermediate.dense",
        "mlp/output": "output.dense",
        "mlp_norm": "output.LayerNorm",
    },
    fixed={"type_vocab_size": 0},
    defaults={"vocab_size": 30527},
    only={"relative_attention_num_buckets": (32,)},
    masked_lm_activation="gelu",
    dropout_before_pooler=True,
)
