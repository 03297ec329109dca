"""ELECTRA (Clark et al., 2020): BERT's encoder, pretrained to tell replaced tokens; its embeddings may be narrower."""

from __future__ import annotations

from bert_jax.model.families.row import COMMON_HEADS, EMBEDDINGS, Family

ELECTRA = Family(
    class_prefix="Electra",
    prefix="electra.",
    layer_prefix="encoder.layer.{i}.",
    heads={
        "encoder": {},
        "masked_lm": {
            "masked_lm/dense": "generator_predictions.dense",
            "masked_lm/norm": "generator_predictions.LayerNorm",
            "masked_lm/bias": "generator_lm_head.bias",
        },
        "replaced_token": {
            "replaced_token/dense": "discriminator_predictions.dense",
            "replaced_token/output": "discriminator_predictions.dense_prediction",
        },
        "sequence_classification": {
            "pooler/dense": "classifier.dense",
            "sequence_classifier": "classifier.out_proj",
        },
        "multiple_choice": {"pooler/dense": "sequence_summary.summary", "choice_classifier": "classifier"},
        **COMMON_HEADS,
    },
    tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    embeddings=EMBEDDINGS | {"projection": "embeddings_project"},
    defaults={"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    optional=frozenset(["embedding_size"]),
    only={"summary_type": ("first",), "summary_use_proj": (True,), "summary_activation": ("gelu",)},
    pooler_activation="gelu",
    masked_lm_activation="gelu",
    dropout_before_pooler=True,
)
