"""Embeds texts, and searches for the nearest embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bert_jax.config import InputError
from bert_jax.inference.predictor import Predictor, as_list
from bert_jax.model.heads import TORCH_ACTIVATIONS, pool
from bert_jax.model.layers import AnyArray
from bert_jax.pooling import Pooling
from bert_jax.pretrained import Model


def sentence_vectors(
    pooling: Pooling, dense: Sequence[Sequence[ArrayLike]], hidden: jax.Array, sequence_ids: AnyArray, first: AnyArray
) -> jax.Array:
    """Pools hidden states into embeddings.

    Args:
      pooling: the pooling.
      dense: the arrays of `pooling.dense`, as arguments, because constants would be compiled in.
      hidden: hidden states, [B, L, D].
      sequence_ids: int [B, L].
      first: the first token that counts in each of the S sequences of a row, int [B, S].

    Returns:
      Embeddings, float32 [B, S, E].
    """
    vectors = pool(hidden, sequence_ids, first, pooling.modes).astype(jnp.float32)
    for layer, (kernel, *bias) in zip(pooling.dense, dense, strict=True):
        vectors = jnp.matmul(vectors, kernel, precision="highest")
        vectors = TORCH_ACTIVATIONS[layer.activation](vectors + jnp.asarray(bias[0])[None, None] if bias else vectors)
    if pooling.normalize:
        vectors /= jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return vectors[..., : pooling.truncate_dim]


class Embedder(Predictor):
    """Returns a vector for each text, for similarity, clustering and search."""

    def __init__(self, model: Model, pooling: Pooling | None = None, *, exact: bool = False) -> None:
        """Prepares the predictor.

        Args:
          model: any model.
          pooling: default: that of the model's sentence-transformers files, else the normalized mean.
          exact: as for `Predictor`.

        Raises:
          InputError: those files ask for a pooling that is not supported.
        """
        super().__init__(model, exact)
        chosen = pooling or model.pooling or Pooling()
        if not isinstance(chosen, Pooling):
            why = chosen if isinstance(chosen, str) else f"this model has {chosen.kind} embeddings"
            raise InputError(f"{why}; for other embeddings of this model, give a pooling: Embedder(model, Pooling(...))")
        self.pooling = chosen
        self._width = chosen.width(model.config.hidden_size)
        self._longest = min(self.pooling.max_length or self._longest, model.config.max_length)

    def _arguments(self, params: PyTree) -> PyTree:
        return params, jax.device_put(self.pooling.arrays)

    def _outputs(self, params: PyTree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        first, (params, dense) = batch.pop("places"), params
        hidden = self.model.apply(params, batch)["last_hidden_state"].astype(jnp.float32)
        return {"vectors": sentence_vectors(self.pooling, dense, hidden, batch["sequence_ids"], first)}

    def __call__(self, texts: Sequence[str], prompt_name: str | None = None) -> np.ndarray:
        """Embeds texts. Cuts texts that are too long, with a warning.

        Args:
          texts: N texts.
          prompt_name: the name in `pooling.prompts` of the prompt before each text, such as "query"; default: `pooling.prompt`.

        Returns:
          Vectors, float32 [N, E].
        """
        pooling = self.pooling if prompt_name is None else self.pooling.with_prompt(prompt_name)
        texts = [pooling.read(text) if isinstance(text, str) else text for text in as_list(texts)]
        first = pooling.first_place(self._layout)
        results = self.run([example.read_from(first) for example in self._encode(texts, pooling.max_length)])
        return np.array([result["vectors"][0] for result in results], np.float32).reshape(-1, self._width)


def nearest(queries: np.ndarray, corpus: np.ndarray, top_k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Finds the vectors of a corpus with the largest inner products, exactly.

    Inner products of normalized embeddings are cosine similarities.

    Args:
      queries: [Q, D].
      corpus: [N, D].
      top_k: vectors for each query; k is the smaller of this and N.

    Returns:
      Scores, float32 [Q, k], and indices, int64 [Q, k], the best first, ties by index.

    Raises:
      InputError: the widths differ.
    """
    if top_k < 1:
        raise InputError(f"top_k={top_k} is below 1")
    queries, corpus = (np.atleast_2d(np.asarray(x, np.float32)) for x in (queries, corpus))
    if queries.shape[1] != corpus.shape[1]:
        raise InputError(f"queries have {queries.shape[1]} dimensions, the corpus {corpus.shape[1]}: embed both with one model")
    top_k = min(top_k, len(corpus))
    scores = np.empty((len(queries), top_k), np.float32)
    indices = np.empty((len(queries), top_k), np.int64)
    block = max(1, 2**26 // max(1, len(corpus)))  # 256 MB of scores at a time
    for start in range(0, len(queries) if top_k else 0, block):
        some = queries[start : start + block] @ corpus.T
        best = _best_columns(some, top_k)
        order = np.lexsort((best, -np.take_along_axis(some, best, axis=1)), axis=1)
        best = np.take_along_axis(best, order, axis=1)
        indices[start : start + block] = best
        scores[start : start + block] = np.take_along_axis(some, best, axis=1)
    return scores, indices


def _best_columns(scores: np.ndarray, top_k: int) -> np.ndarray:
    """Returns the columns of the `top_k` largest values of each row in any order; ties go to the first columns."""
    if top_k == scores.shape[1]:
        return np.broadcast_to(np.arange(top_k), scores.shape)
    best = np.argpartition(-scores, top_k - 1, axis=1)[:, :top_k]
    values = np.take_along_axis(scores, best, axis=1)
    least = values.min(axis=1, keepdims=True)
    some_left_out = (scores == least).sum(axis=1) > (values == least).sum(axis=1)
    for row in np.flatnonzero(some_left_out):
        above, equal = np.flatnonzero(scores[row] > least[row]), np.flatnonzero(scores[row] == least[row])
        best[row] = np.concatenate([above, equal])[:top_k]
    return best
