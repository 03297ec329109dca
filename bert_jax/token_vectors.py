"""Embeddings with a vector for each token (ColBERT): the settings in PyLate's and sentence-transformers' files. No JAX here."""

from __future__ import annotations

import contextlib
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bert_jax.data.layout import Layout, MarkedLayout
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import InputError
from bert_jax.model.config import BertConfig
from bert_jax.modules import (
    ACTIVATIONS,
    MODELS,
    PYLATE_DENSE,
    Dense,
    Embedding,
    Module,
    check_names,
    json_object,
    read_dense,
    read_library,
    read_modules,
    read_transformer,
    typed,
)

_NATIVE = "MultiVectorEncoder"  # the class of sentence-transformers
_LATE = ["Transformer", "Dense", "MultiVectorMask", "Normalize"]  # modules of a MultiVectorEncoder; PyLate's are the first two


@dataclass(frozen=True)
class TokenVectors(Embedding):
    """Settings of an embedding with a vector for each token (ColBERT, Khattab and Zaharia, 2020).

    A linear layer without bias maps the hidden state of each token to a vector, which is scaled to length 1. The score of a query
    and a document is the sum over the query's tokens of the largest inner product with a token of the document. A marker follows
    the first token of every text.

    Attributes:
      width: values of a vector.
      query_marker: the token that marks queries; the empty text: none; None: to be chosen by training.
      document_marker: the token that marks documents.
      query_length: tokens of a query, marker and special tokens included; the rest is cut.
      expand: fill up shorter queries with mask tokens, whose vectors count.
      attend_to_expansion: the tokens of the text attend to these mask tokens, too.
      skipped: tokens of documents whose vectors do not count.
      max_length: as in `Pooling`, like the other fields; it is the length of documents.
    """

    kind: ClassVar[str] = "multi_vector"
    width: int = 128
    query_marker: str | None = None
    document_marker: str | None = None
    query_length: int = 32
    expand: bool = True
    attend_to_expansion: bool = False
    skipped: tuple[str, ...] = tuple(string.punctuation)
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.query_length < 4:
            raise InputError(f"TokenVectors: query_length={self.query_length} leaves no token of a query")

    def layout(self, tokenizer: Tokenizer, cfg: BertConfig, limit: int | None = None) -> Layout:
        """Returns the layout of queries and documents. Raises InputError where the vocabulary lacks a marker."""
        plain = super().layout(tokenizer, cfg, limit)
        vocabulary = tokenizer.vocabulary()

        def id_of(marker: str | None) -> int | None:
            if marker and marker not in vocabulary:
                raise InputError(f"the marker {marker!r} is not a token of this tokenizer: give one of its tokens")
            return vocabulary[marker] if marker else None

        query, document = id_of(self.query_marker), id_of(self.document_marker)
        if self.query_length > cfg.max_length:
            raise InputError(f"query_length={self.query_length}, but the model takes at most {cfg.max_length} tokens")
        roles = plain.read, plain.roles
        return MarkedLayout(tokenizer, cfg, limit, *roles, query, document, self.query_length, self.expand)

    def skipped_ids(self, tokenizer: Tokenizer) -> np.ndarray:
        """Returns the ids of `skipped`, int32 [n]; words that are not tokens have none."""
        vocabulary = tokenizer.vocabulary()
        return np.array([vocabulary[word] for word in self.skipped if word in vocabulary], np.int32)

    def modules(self, cfg: BertConfig, params: Mapping[str, Any]) -> list[Module]:
        """Returns the modules that PyLate reads: Transformer and its Dense."""
        kernel = np.asarray(params["token_projection"]["kernel"])
        config = {
            "in_features": kernel.shape[0],
            "out_features": kernel.shape[1],
            "bias": False,
            "activation_function": ACTIVATIONS["Identity"],
        }
        return [Module(f"{MODELS}.Transformer"), Module(PYLATE_DENSE, config, {"linear.weight": kernel.T})]

    def library(self) -> dict[str, object]:
        """Returns the settings by PyLate's names."""
        return {
            "model_type": "ColBERT",
            "similarity_fn_name": "MaxSim",
            "query_prefix": self.query_marker or "",
            "document_prefix": self.document_marker or "",
            "query_length": self.query_length,
            "document_length": self.max_length,
            "do_query_expansion": self.expand,
            "attend_to_expansion_tokens": self.attend_to_expansion,
            "skiplist_words": list(self.skipped),
        }


def is_late(directory: Path, kinds: list[str]) -> bool:
    """Tells if the modules are those of a model with vectors of tokens, PyLate's or sentence-transformers'."""
    library = json_object(directory / "config_sentence_transformers.json")
    return (kinds == _LATE[:2] and "query_prefix" in library) or (kinds == _LATE and library.get("model_type") == _NATIVE)


def read_projection(directory: Path) -> dict[str, np.ndarray]:
    """Returns the tensor `linear.weight` of a directory in PyLate's layout; nothing for other directories."""
    with contextlib.suppress(InputError):  # read_pooling tells
        modules = read_modules(directory)
        if is_late(directory, [kind for kind, _ in modules]):
            return {"linear.weight": _late_dense(modules[1][1]).kernel.T}
    return {}


def _late_dense(folder: Path) -> Dense:
    """Returns PyLate's projection of tokens."""
    dense = read_dense(folder, "token_embeddings", "Identity")
    if dense.bias is not None or dense.activation != "Identity":
        raise InputError(f"{folder}/config.json: a bias and an activation are not supported in a model with vectors of tokens")
    return dense


def read_late(directory: Path, modules: list[tuple[str, Path]]) -> TokenVectors:
    """Returns the settings of a directory in PyLate's layout, or in that of sentence-transformers' MultiVectorEncoder."""
    if len(modules) == len(_LATE):
        return _read_native(directory, modules)
    path = directory / "config_sentence_transformers.json"
    library = read_library(path, ["ColBERT", "SentenceTransformer"])[1]
    config = json_object(path)
    _, lowercase = read_transformer(modules[0][1], "SentenceTransformer")
    words = typed(config, "skiplist_words", list, list(string.punctuation), path)
    return TokenVectors(
        _late_dense(modules[1][1]).kernel.shape[1],
        typed(config, "query_prefix", str, "[Q] ", path),
        typed(config, "document_prefix", str, "[D] ", path),
        typed(config, "query_length", int, 32, path),
        typed(config, "do_query_expansion", bool, True, path),
        typed(config, "attend_to_expansion_tokens", bool, False, path),
        tuple(map(str, words)),
        typed(config, "document_length", int, 180, path),
        lowercase,
        library["prompt"],
        library["prompts"],
    )


def _read_native(directory: Path, modules: list[tuple[str, Path]]) -> TokenVectors:
    """Returns the settings of a MultiVectorEncoder, whose markers are prompts."""
    transformer, dense, mask, normalize = (folder for _, folder in modules)
    path = directory / "config_sentence_transformers.json"
    library = read_library(path, [_NATIVE])[1]
    if library["similarity_fn_name"] not in (None, "maxsim"):
        raise InputError(f"{path}: similarity_fn_name={library['similarity_fn_name']!r} is not supported, only 'maxsim'")
    check_names(json_object(normalize / "config.json"), normalize / "config.json", "token_embeddings")
    words = json_object(mask / "config.json")
    _only(words, {"skiplist_tasks": ["document"], "keep_only_token_ids": None}, mask / "config.json")
    length, lowercase = read_transformer(transformer, _NATIVE, {"query_length", "document_length", "query_expansion"})
    path = transformer / "sentence_bert_config.json"
    config = json_object(path)
    expansion = typed(config, "query_expansion", dict, {}, path)
    _only(expansion, {"strategy": "fixed", "token": None}, path)
    asked = typed(expansion, "length", int, None, path) or typed(config, "query_length", int, None, path) or length
    return TokenVectors(
        _late_dense(dense).kernel.shape[1],
        "",
        "",
        TokenVectors.query_length if asked is None else asked,
        bool(expansion),
        typed(expansion, "attend", bool, False, path),
        tuple(map(str, typed(words, "skiplist_words", list, [], mask / "config.json"))),
        typed(config, "document_length", int, length, path),
        lowercase,
        library["prompt"],
        library["prompts"],
    )


def _only(config: Mapping[str, object], values: Mapping[str, object], path: Path) -> None:
    """Raises InputError where a setting has another value."""
    for name, value in values.items():
        if config.get(name, value) != value:
            raise InputError(f"{path}: {name}={config[name]!r} is not supported, only {value!r}")
