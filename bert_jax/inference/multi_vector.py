"""Embeds texts as a vector for each token (ColBERT), and scores them by late interaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bert_jax.config import InputError
from bert_jax.data.batching import Example
from bert_jax.data.layout import Query
from bert_jax.inference.predictor import Predictor, as_list
from bert_jax.model.heads import unseen_masks
from bert_jax.modules import DOCUMENT_PROMPTS, QUERY_PROMPTS, first_of
from bert_jax.pooling import TokenVectors
from bert_jax.pretrained import Model


class MultiVector(Predictor):
    """Returns vectors of length 1 for the tokens of queries and documents, as PyLate's ColBERT does."""

    needs = ("token_vectors",)
    per_token = frozenset(["vectors", "counts"])

    def __init__(self, model: Model, *, max_length: int | None = None, exact: bool = False) -> None:
        """Prepares the predictor.

        Args:
          model: a model such as `finetune --task retrieval --form multi_vector` trains.
          max_length: tokens of a document, marker and special tokens included; default: as the model's files say.
          exact: as for `Predictor`.

        Raises:
          InputError: the model has no vectors of tokens, or its vocabulary lacks a marker.
        """
        super().__init__(model, exact, max_length)
        if not isinstance(model.pooling, TokenVectors):
            why = model.pooling if isinstance(model.pooling, str) else "its files say nothing of markers and lengths"
            raise InputError(f"{why}: dataclasses.replace(model, pooling=TokenVectors(...)) gives them")
        self.pooling = model.pooling
        self._limit = max_length or self.pooling.max_length
        longest = max(self._limit or self._longest, self.pooling.query_length)
        self._longest = min(longest, model.config.max_length)
        self._layout = self.pooling.layout(self.tokenizer, model.config)
        self._skipped = self.pooling.skipped_ids(self.tokenizer)

    def _outputs(self, params: PyTree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        del batch["places"]
        ids, counts = batch["input_ids"], ~jnp.isin(batch["input_ids"], self._skipped)
        if self.pooling.expand and not self.pooling.attend_to_expansion:
            batch["sequence_ids"] = unseen_masks(batch["sequence_ids"], ids, self.tokenizer.mask_id)
        vectors = self.model.apply(params, batch)["token_vectors"]
        return {"vectors": vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12), "counts": counts}

    def queries(self, texts: Sequence[str], prompt_name: str | None = None) -> list[np.ndarray]:
        """Embeds queries. Cuts those that are too long, with a warning.

        Args:
          texts: N texts.
          prompt_name: the name in `pooling.prompts` of the prompt before each text; default: "query" if there is one, else
            `pooling.prompt`.

        Returns:
          N arrays, float32 [T, E], with a row for each token, mask tokens included.
        """
        read = [Query(text) if isinstance(text, str) else text for text in self._read(texts, prompt_name, QUERY_PROMPTS)]
        return self.vectors(self._encode(read, self.pooling.query_length))

    def documents(self, texts: Sequence[str], prompt_name: str | None = None) -> list[np.ndarray]:
        """Embeds documents. Cuts those that are too long, with a warning.

        Args:
          texts: N texts.
          prompt_name: as for `queries`; default: the first of "document", "passage" and "corpus" that there is.

        Returns:
          N arrays, float32 [T, E], with a row for each token that is not skipped.
        """
        return self.vectors(self._encode(self._read(texts, prompt_name, DOCUMENT_PROMPTS), self._limit), documents=True)

    def _read(self, texts: Sequence[str], prompt_name: str | None, usual: Sequence[str]) -> list[str]:
        name = first_of(self.pooling.prompts, usual) if prompt_name is None else prompt_name
        pooling = self.pooling if name is None else self.pooling.with_prompt(name)
        return [pooling.read(text) if isinstance(text, str) else text for text in as_list(texts)]

    def vectors(self, examples: Sequence[Example], params: PyTree = None, documents: bool = False) -> list[np.ndarray]:
        """Returns the vectors of tokenized texts, without skipped tokens of `documents`; for `params` see `run`."""
        results = self.run(examples, params)
        return [each["vectors"][each["counts"]] if documents else each["vectors"] for each in results]

    def scores(self, queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the score of each query and each document, float32 [Q, N], from their vectors."""
        return np.array(list(max_sim(queries, documents)), np.float32).reshape(len(queries), len(documents))


def max_sim(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the scores of each query [T, E] with the documents [U, E]: the sum of the best inner product of each query's row."""
    sizes = [len(document) for document in documents]
    if not sizes or not min(sizes):
        raise InputError("a document has no vectors") if sizes else InputError("there are no documents")
    tokens, starts = np.concatenate(documents), np.cumsum([0, *sizes[:-1]])
    for query in queries:
        yield np.maximum.reduceat(query @ tokens.T, starts, axis=1).sum(axis=0)
