"""ALBERT (Lan et al., 2019): BERT with narrow embeddings, whose layers share their parameters."""

from __future__ import annotations

from bert_jax.model.families.row import COMMON_HEADS, EMBEDDINGS, Family

_POOLER = {"pooler/dense": "albert.pooler"}
_MASKED_LM = {
    "masked_lm/dense": "predictions.dense",
    "masked_lm/norm": "predictions.LayerNorm",
    "masked_lm/bias": "predictions.bias",
}

ALBERT = Family(
    class_prefix="Albert",
    prefix="albert.",
    layer_prefix="encoder.albert_layer_groups.{i}.albert_layers.0.",
    heads={
        "encoder": _POOLER,
        "masked_lm": _MASKED_LM,
        "pretraining": _MASKED_LM | _POOLER | {"next_sentence": "sop_classifier.classifier"},
        "sequence_classification": _POOLER | {"sequence_classifier": "classifier"},
        "multiple_choice": _POOLER | {"choice_classifier": "classifier"},
        **COMMON_HEADS,
    },
    tied={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    embeddings=EMBEDDINGS | {"projection": "encoder.embedding_hidden_mapping_in"},
    layer={
        "attention/query": "attention.query",
        "attention/key": "attention.key",
        "attention/value": "attention.value",
        "attention/output": "attention.dense",
        "attention_norm": "attention.LayerNorm",
        "mlp/intermediate": "ffn",
        "mlp/output": "ffn_output",
        "mlp_norm": "full_layer_layer_norm",
    },
    renamed={"classifier_dropout": "classifier_dropout_prob"},
    defaults={
        "vocab_size": 30000, "embedding_size": 128, "hidden_size": 4096, "num_attention_heads": 64,
        "intermediate_size": 16384, "num_hidden_groups": 1, "hidden_act": "gelu_new", "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.1,
    },
    optional=frozenset(["embedding_size", "num_hidden_groups"]),
    needs=("embedding_size", "num_hidden_groups"),
    only={"inner_group_num": (1,)},
)  # fmt: skip
