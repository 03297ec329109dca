"""RemBERT (Chung et al., 2021): BERT with narrow embeddings and, in pretraining, a wide output layer of its own."""

from __future__ import annotations

from bert_jax.model.families.row import COMMON_HEADS, EMBEDDINGS, Family

_POOLER = {"pooler/dense": "rembert.pooler.dense"}

REMBERT = Family(
    class_prefix="RemBert",
    prefix="rembert.",
    layer_prefix="encoder.layer.{i}.",
    heads={
        "encoder": _POOLER,
        "masked_lm": {
            "masked_lm/dense": "cls.predictions.dense",
            "masked_lm/norm": "cls.predictions.LayerNorm",
            "masked_lm/decoder/embedding": "cls.predictions.decoder.weight",
            "masked_lm/bias": "cls.predictions.decoder.bias",
        },
        "sequence_classification": _POOLER | {"sequence_classifier": "classifier"},
        "multiple_choice": _POOLER | {"choice_classifier": "classifier"},
        **COMMON_HEADS,
    },
    tied={"cls.predictions.decoder.weight": "rembert.embeddings.word_embeddings.weight"},
    embeddings=EMBEDDINGS | {"projection": "encoder.embedding_hidden_mapping_in"},
    optional=frozenset(["embedding_size", "output_embedding_size"]),
    needs=("embedding_size", "output_embedding_size"),
    renamed={"embedding_size": "input_embedding_size", "classifier_dropout": "classifier_dropout_prob"},
    fixed={"tie_word_embeddings": False},  # transformers ties nothing, whatever the file says
    defaults={
        "vocab_size": 250300, "embedding_size": 256, "output_embedding_size": 1664, "hidden_size": 1152,
        "num_hidden_layers": 32, "num_attention_heads": 18, "intermediate_size": 4608, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.1,
    },
    write=lambda cfg: {"tie_word_embeddings": False},
)  # fmt: skip
