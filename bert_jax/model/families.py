"""BERT and the encoders that are BERT with small differences: one row each. Names, no arrays; no jax in here.

A row says what the family's config.json, classes and tensors are called (transformers' modeling_*.py) against ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from bert_jax.errors import InputError, did_you_mean
from bert_jax.model.config import BertConfig, ModelType

Head = Literal[
    "encoder", "masked_lm", "pretraining", "next_sentence", "replaced_token", "sequence_classification",
    "token_classification", "question_answering", "multiple_choice",
]  # fmt: skip
HEADS: tuple[Head, ...] = get_args(Head)
Names = dict[str, str]  # our path -> their name, of a module or of a single array

_CLASSES: dict[Head, str] = {
    "encoder": "Model",
    "masked_lm": "ForMaskedLM",
    "pretraining": "ForPreTraining",
    "next_sentence": "ForNextSentencePrediction",
    "replaced_token": "ForPreTraining",
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "multiple_choice": "ForMultipleChoice",
}
_EMBEDDINGS = {
    "embeddings/word_embeddings/embedding": "embeddings.word_embeddings.weight",
    "embeddings/position_embeddings/embedding": "embeddings.position_embeddings.weight",
    "embeddings/token_type_embeddings/embedding": "embeddings.token_type_embeddings.weight",
    "embeddings/norm": "embeddings.LayerNorm",
}
_LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp/intermediate": "intermediate.dense",
    "mlp/output": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_COMMON_HEADS: dict[Head, Names] = {
    "token_classification": {"token_classifier": "classifier"},
    "question_answering": {"span_classifier": "qa_outputs"},
}


@dataclass(frozen=True)
class Family:
    """One row: `heads` maps each head that the family has to its names; names of the encoder come without `prefix`."""

    class_prefix: str
    prefix: str
    layer_prefix: str
    heads: dict[Head, Names]
    tied: Names  # what files may hold twice: their name -> the name that it must equal
    embeddings: Names = field(default_factory=lambda: _EMBEDDINGS)
    layer: Names = field(default_factory=lambda: _LAYER)
    renamed: Names = field(default_factory=dict)  # field of BertConfig -> key of their config.json
    fixed: Mapping[str, Any] = field(default_factory=dict)  # fields that their config.json does not have
    defaults: Mapping[str, Any] = field(default_factory=dict)  # where their default is not ours
    only: dict[str, Any] = field(default_factory=dict)  # keys of their config.json with the one value that is covered
    pooler_activation: Literal["tanh", "relu", "gelu"] = "tanh"
    masked_lm_activation: str | None = None  # None: hidden_act
    dropout_before_pooler: bool = False  # in sequence classification

    def head(self, head: Head) -> Names:
        """Names of a head. Raises InputError where the family has no such head."""
        if head not in self.heads:
            raise InputError(
                f"{self.class_prefix} has no head {head!r}{did_you_mean(head, self.heads)}; it has {', '.join(self.heads)}"
            )
        return self.heads[head]

    def architecture(self, head: Head) -> str:
        """The class of transformers that an encoder with `head` is."""
        self.head(head)
        return self.class_prefix + _CLASSES[head]

    def head_of(self, architecture: str) -> Head | None:
        """The inverse of `architecture`; None for a class that is not one of the family's."""
        return next((head for head in self.heads if self.architecture(head) == architecture), None)


def names(cfg: BertConfig, head: Head) -> Names:
    """Our path -> their name, for each module or single array of an encoder with `head`."""
    family = FAMILIES[cfg.model_type]
    groups = cfg.num_hidden_groups or cfg.num_hidden_layers
    encoder = {f"encoder/{ours}": family.prefix + theirs for ours, theirs in family.embeddings.items()}
    layers = {
        f"encoder/layer_{i}/{ours}": f"{family.prefix}{family.layer_prefix.format(i=i)}{theirs}"
        for i in range(groups)
        for ours, theirs in family.layer.items()
    }
    return encoder | layers | family.head(head) | (_untied_output(family, head) if not cfg.tie_word_embeddings else {})


def _untied_output(family: Family, head: Head) -> Names:
    if "masked_lm/dense" not in family.head(head):
        return {}
    return {"masked_lm/decoder/embedding": next(theirs for theirs in family.tied if theirs.endswith("weight"))}


def twins(cfg: BertConfig) -> Names:
    """Returns the tensors that files may repeat: their name -> the name that it must equal; not an output layer of its own."""
    tied = FAMILIES[cfg.model_type].tied
    return {theirs: name for theirs, name in tied.items() if cfg.tie_word_embeddings or theirs.endswith("bias")}


def head_names(family: Family) -> Iterator[str]:
    """Their names of everything outside the encoder that some head has."""
    for head in family.heads.values():
        yield from head.values()
    yield from family.tied


def _bert_pooler(prefix: str) -> Names:
    return {"pooler/dense": f"{prefix}pooler.dense"}


def _roberta(class_prefix: str, defaults: Mapping[str, Any]) -> Family:
    pooler = _bert_pooler("roberta.")
    return Family(
        class_prefix=class_prefix,
        prefix="roberta.",
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
            **_COMMON_HEADS,
        },
        tied={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        defaults={"pad_token_id": None, **defaults},
        masked_lm_activation="gelu",
        dropout_before_pooler=True,
    )


_BERT_MASKED_LM = {
    "masked_lm/dense": "cls.predictions.transform.dense",
    "masked_lm/norm": "cls.predictions.transform.LayerNorm",
    "masked_lm/bias": "cls.predictions.bias",
}
_BERT_NEXT_SENTENCE = _bert_pooler("bert.") | {"next_sentence": "cls.seq_relationship"}
_ALBERT_POOLER = {"pooler/dense": "albert.pooler"}
_ALBERT_MASKED_LM = {
    "masked_lm/dense": "predictions.dense",
    "masked_lm/norm": "predictions.LayerNorm",
    "masked_lm/bias": "predictions.bias",
}
_DISTILBERT_POOLER = {"pooler/dense": "pre_classifier"}

FAMILIES: dict[ModelType, Family] = {
    "bert": Family(
        class_prefix="Bert",
        prefix="bert.",
        layer_prefix="encoder.layer.{i}.",
        heads={
            "encoder": _bert_pooler("bert."),
            "masked_lm": _BERT_MASKED_LM,
            "pretraining": _BERT_MASKED_LM | _BERT_NEXT_SENTENCE,
            "next_sentence": _BERT_NEXT_SENTENCE,
            "sequence_classification": _bert_pooler("bert.") | {"sequence_classifier": "classifier"},
            "multiple_choice": _bert_pooler("bert.") | {"choice_classifier": "classifier"},
            **_COMMON_HEADS,
        },
        tied={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
    ),
    "roberta": _roberta("Roberta", {"vocab_size": 50265}),
    "xlm-roberta": _roberta("XLMRoberta", {}),
    "distilbert": Family(
        class_prefix="DistilBert",
        prefix="distilbert.",
        layer_prefix="transformer.layer.{i}.",
        heads={
            "encoder": {},
            "masked_lm": {
                "masked_lm/dense": "vocab_transform",
                "masked_lm/norm": "vocab_layer_norm",
                "masked_lm/bias": "vocab_projector.bias",
            },
            "sequence_classification": _DISTILBERT_POOLER | {"sequence_classifier": "classifier"},
            "multiple_choice": _DISTILBERT_POOLER | {"choice_classifier": "classifier"},
            **_COMMON_HEADS,
        },
        tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
        embeddings={ours: theirs for ours, theirs in _EMBEDDINGS.items() if "token_type" not in ours},
        layer={
            "attention/query": "attention.q_lin",
            "attention/key": "attention.k_lin",
            "attention/value": "attention.v_lin",
            "attention/output": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "mlp/intermediate": "ffn.lin1",
            "mlp/output": "ffn.lin2",
            "mlp_norm": "output_layer_norm",
        },
        renamed={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
            "hidden_dropout_prob": "dropout",
            "attention_probs_dropout_prob": "attention_dropout",
            "classifier_dropout": "seq_classif_dropout",
        },
        fixed={"type_vocab_size": 0, "layer_norm_eps": 1e-12},
        defaults={"num_hidden_layers": 6, "classifier_dropout": 0.2},
        pooler_activation="relu",
    ),
    "albert": Family(
        class_prefix="Albert",
        prefix="albert.",
        layer_prefix="encoder.albert_layer_groups.{i}.albert_layers.0.",
        heads={
            "encoder": _ALBERT_POOLER,
            "masked_lm": _ALBERT_MASKED_LM,
            "pretraining": _ALBERT_MASKED_LM | _ALBERT_POOLER | {"next_sentence": "sop_classifier.classifier"},
            "sequence_classification": _ALBERT_POOLER | {"sequence_classifier": "classifier"},
            "multiple_choice": _ALBERT_POOLER | {"choice_classifier": "classifier"},
            **_COMMON_HEADS,
        },
        tied={
            "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
            "predictions.decoder.bias": "predictions.bias",
        },
        embeddings=_EMBEDDINGS | {"projection": "encoder.embedding_hidden_mapping_in"},
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
        only={"inner_group_num": 1},
    ),
    "electra": Family(
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
            **_COMMON_HEADS,
        },
        tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
        embeddings=_EMBEDDINGS | {"projection": "embeddings_project"},
        defaults={"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
        only={"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"},
        pooler_activation="gelu",
        masked_lm_activation="gelu",
        dropout_before_pooler=True,
    ),
}  # fmt: skip
