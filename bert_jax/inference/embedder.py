"""Embeds texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bert_jax.config import InputError
from bert_jax.data.passages import PassageSize, passage_room, passages
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

    def passages(
        self, texts: Sequence[str], tokens: int, overlap: int = 0, prompt_name: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeds long texts in passages of whole words, for `nearest(..., documents=...)`.

        Args:
          texts: N texts.
          tokens: tokens of a passage at most, with the prompt and the special tokens.
          overlap: tokens of the passage before that a passage repeats at most.
          prompt_name: as in a call; the prompt stands before each passage.

        Returns:
          Vectors, float32 [P, E], and the number of the text of each, int64 [P], ascending.

        Raises:
          InputError: the model cannot read as many tokens, or no room is left for words of the text.
        """
        pooling = self.pooling if prompt_name is None else self.pooling.with_prompt(prompt_name)
        room = passage_room(PassageSize(tokens, overlap), replace(self._layout, limit=self._longest), pooling.read)
        found = list(passages(as_list(texts), self.tokenizer, room, overlap))
        vectors = self([passage for own in found for passage in own], prompt_name)
        return vectors, np.repeat(np.arange(len(found)), [len(own) for own in found])
