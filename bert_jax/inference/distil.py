"""Distils a model into a table of token vectors (model2vec, Tulkens and van Dongen, 2024)."""

from __future__ import annotations

import re

import numpy as np

from bert_jax.data.layout import Layout
from bert_jax.data.plain_tokenizer import PlainTokenizer
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import InputError
from bert_jax.inference.embedder import Embedder
from bert_jax.modules import Embedding
from bert_jax.pooling import Pooling
from bert_jax.pretrained import Model
from bert_jax.static import StaticEmbedder

_DIMENSIONS = 256  # model2vec's default
_UNUSED = re.compile(r"[\[<]unused\d+[\]>]|madeupword\d+")  # entries that fill up vocabularies of BERT, ERNIE and RoBERTa
_ROWS = 8192  # vectors that are multiplied at a time


def to_static(model: Model, dimensions: int | None = None, sif: float | None = 1e-4) -> StaticEmbedder:
    """Distils a model into a table of token vectors, whose mean over a text is its embedding.

    The vector of a token is the mean of the hidden states of the text `[CLS] token [SEP]`, along the directions of most variance,
    with less weight for frequent tokens. Special and unused tokens have zeros: they do not turn an embedding. Prompts of the
    model are left out.

    Args:
      model: any model; retrievers and models of sentences give the best tables.
      dimensions: values of a vector. Default: 256, or all of a narrower model.
      sif: the frequency of a token at which its weight is a half, by Zipf's law for the ids; None: all weights are 1.

    Raises:
      InputError: `dimensions` exceeds the model's width, `sif` is not between 0 and 1, or the model has no tokenizer.
    """
    width = model.config.hidden_size
    size = min(_DIMENSIONS, width) if dimensions is None else dimensions
    if not 1 <= size <= width:
        raise InputError(f"dimensions={dimensions}: a vector has 1 to {width} values, the width of this model")
    if sif is not None and not 0 < sif < 1:
        raise InputError(f"sif={sif} is not between 0 and 1")
    tokenizer = model.need_tokenizer()
    kept = text_tokens(tokenizer)
    vectors = main_directions(_alone(model, kept), size)
    if sif is not None:
        vectors *= rarity_weights(len(kept), sif)[:, None]
    table = np.zeros((tokenizer.vocab_size, size), np.float32)
    table[kept] = vectors
    lowercase = isinstance(model.pooling, Embedding) and model.pooling.lowercase
    return StaticEmbedder(table, PlainTokenizer.of(tokenizer, lowercase), similarity_fn_name="cosine")


def text_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """Returns the ids that texts have, int32 [n], ascending: none of special and unused tokens."""
    special, names = set(tokenizer.special_ids), tokenizer.tokens(range(tokenizer.vocab_size))
    kept = [i for i, name in enumerate(names) if name and i not in special and not _UNUSED.fullmatch(name)]
    return np.array(kept, np.int32)


def _alone(model: Model, ids: np.ndarray) -> np.ndarray:
    """Returns the mean of the hidden states of each token alone between the special tokens, float32 [n, D]."""
    embedder, layout = Embedder(model, Pooling(normalize=False)), Layout(model.need_tokenizer(), model.config)
    results = embedder.run([layout.example([own]) for own in ids[:, None]])
    return np.array([result["vectors"][0] for result in results], np.float32)


def main_directions(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """Returns the coordinates of vectors [N, D] along the directions of most variance (PCA), float32 [N, dimensions].

    They are measured from the mean. The largest component of each direction is positive, as in scikit-learn.
    """
    mean = vectors.mean(axis=0, dtype=np.float64)[None]
    blocks = [slice(start, start + _ROWS) for start in range(0, len(vectors), _ROWS)]
    covariance = np.zeros((vectors.shape[1], vectors.shape[1]))
    for block in blocks:
        own = vectors[block] - mean
        covariance += own.T @ own
    directions = np.linalg.eigh(covariance)[1][:, ::-1][:, :dimensions]  # eigenvalues ascend
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(dimensions)])[None]
    return np.concatenate([np.asarray((vectors[block] - mean) @ directions, np.float32) for block in blocks])


def rarity_weights(count: int, sif: float) -> np.ndarray:
    """Returns the weights sif / (sif + p) of tokens (Arora et al., 2017, section 3), float32 [count].

    The frequency p of token i is in proportion to 1 / (i + 2), by Zipf's law: ids of a vocabulary ascend as tokens get rarer.
    """
    ranks = 1 / np.arange(2, count + 2)
    return np.asarray(sif / (sif + ranks / ranks.sum()), np.float32)
