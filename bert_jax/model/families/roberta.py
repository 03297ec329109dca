"""RoBERTa (Liu et al., 2019) and the families that are RoBERTa under other names."""

from __future__ import annotations

from bert_jax.model.families.row import COMMON_HEADS, Family, Form, Values


def roberta(class_prefix: str, defaults: Values, prefix: str = "roberta.") -> Family:
    """Returns the row of a family that is RoBERTa under other names."""
    pooler = {"pooler/dense": f"{prefix}pooler.dense"}
    return Family(
        class_prefix=class_prefix,
        prefix=prefix,
        layer_prefix="encoder.layer.{i}.",
        heads={
            "encoder": pooler,
            "masked_lm": {
                "masked_lm/dense": "lm_head.dense",
                "masked_lm/norm": "lm_head.layer_norm",
                "masked_lm/bias": "lm_head.bias",
            },
            "sequence_classification": {
                "pooler/dense": "classifier.dense",
                "sequence_classifier": "classifier.out_proj",
            },
            "multiple_choice": pooler | {"choice_classifier": "classifier"},
            **COMMON_HEADS,
        },
        tied={
            "lm_head.decoder.weight": f"{prefix}embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        form=Form(positions_from_padding=True),
        optional=frozenset(["pad_token_id"]),
        defaults=defaults,
        masked_lm_activation="gelu",
        dropout_before_pooler=True,
    )


ROBERTA = roberta("Roberta", {"vocab_size": 50265})
XLM_ROBERTA = roberta("XLMRoberta", {})
CAMEMBERT = roberta("Camembert", {})
DATA2VEC_TEXT = roberta("Data2VecText", {}, "data2vec_text.")
