"""BERT (Devlin et al., 2018), and families that rename it or add a table to it."""

from __future__ import annotations

from dataclasses import replace

from bert_jax.model.families.row import COMMON_HEADS, Family, Names


def _pooler(prefix: str) -> Names:
    return {"pooler/dense": f"{prefix}pooler.dense"}


_MASKED_LM = {
    "masked_lm/dense": "cls.predictions.transform.dense",
    "masked_lm/norm": "cls.predictions.transform.LayerNorm",
    "masked_lm/bias": "cls.predictions.bias",
}


def bert(class_prefix: str, prefix: str) -> Family:
    """Returns the row of a family that is BERT under other names."""
    pooler = _pooler(prefix)
    next_sentence = pooler | {"next_sentence": "cls.seq_relationship"}
    return Family(
        class_prefix=class_prefix,
        prefix=prefix,
        layer_prefix="encoder.layer.{i}.",
        heads={
            "encoder": pooler,
            "masked_lm": _MASKED_LM,
            "pretraining": _MASKED_LM | next_sentence,
            "next_sentence": next_sentence,
            "sequence_classification": pooler | {"sequence_classifier": "classifier"},
            "multiple_choice": pooler | {"choice_classifier": "classifier"},
            **COMMON_HEADS,
        },
        tied={
            "cls.predictions.decoder.weight": f"{prefix}embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
    )


BERT = bert("Bert", "bert.")
ERNIE = replace(
    bert("Ernie", "ernie."),  # the task's embedding, always that of task 0, is one with the positions'
    folded={"embeddings.task_type_embeddings.weight": "embeddings.position_embeddings.weight"},
)
