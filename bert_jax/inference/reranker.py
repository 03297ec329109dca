"""Scores documents for a query with a cross-encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from bert_jax.config import InputError
from bert_jax.inference.classifier import ACTIVATIONS, meaning
from bert_jax.inference.predictor import Predictor, as_list, is_pair
from bert_jax.pretrained import Model


class Ranked(NamedTuple):
    """A document in the order of its score.

    Attributes:
      document: its place in the list of documents.
      score: its score for the query.
    """

    document: int
    score: float


class Reranker(Predictor):
    """Returns a score for each pair of a query and a document, as sentence-transformers' CrossEncoder does."""

    needs = ("sequence_classification",)

    def __init__(self, model: Model, *, max_length: int | None = None, exact: bool = False) -> None:
        """Prepares the predictor.

        Args:
          model: a model whose head has one value. Its activation is that of the model's files, else the sigmoid.
          max_length: as for `Predictor`.
          exact: as for `Predictor`.

        Raises:
          InputError: the head has several classes.
        """
        super().__init__(model, exact, max_length)
        if len(model.labels) > 1:
            raise InputError(f"this model has the classes {', '.join(model.labels)}; a reranker has one value: use Classifier")
        self._activation = meaning(model, 1)[1]

    def _outputs(self, params: PyTree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        batch["cls_positions"] = batch.pop("places")
        return {"scores": ACTIVATIONS[self._activation](self.model.apply(params, batch, head_only=True)["logits"])[..., 0]}

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Scores pairs of a query and a document. Cuts those that are too long, with a warning.

        Args:
          pairs: N pairs.

        Returns:
          Scores, float32 [N].
        """
        for i, pair in enumerate(as_list(pairs, "pairs")):
            if not is_pair(pair):
                raise InputError(f"pairs[{i}] is {str(pair)[:60]!r}; expected a tuple of a query and a document")
        return np.array([result["scores"][0] for result in self.run(self._encode(pairs))], np.float32)

    def rank(self, query: str, documents: Sequence[str], top_k: int | None = None) -> list[Ranked]:
        """Orders documents by their score for a query.

        Args:
          query: the query.
          documents: the documents.
          top_k: documents that are returned; default: all.

        Returns:
          The documents, the best first; of equal scores, the earlier one.
        """
        scores = self([(query, document) for document in as_list(documents, "documents")])
        return [Ranked(int(i), float(scores[i])) for i in np.argsort(-scores, kind="stable")[:top_k]]
