"""Embeds texts as weights of the tokens of the vocabulary (SPLADE)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import PyTree

from bert_jax.config import InputError
from bert_jax.data.batching import Example
from bert_jax.inference.predictor import Predictor, as_list
from bert_jax.model.heads import pool_words
from bert_jax.modules import DOCUMENT_PROMPTS, QUERY_PROMPTS, first_of
from bert_jax.pooling import SparsePooling
from bert_jax.pretrained import Model

if TYPE_CHECKING:
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

_TOGETHER = 256  # texts whose weights of all tokens are held at a time


class SparseEmbedder(Predictor):
    """Returns a sparse row for each text, as sentence-transformers' SparseEncoder does.

    The score of a query and a document is the inner product of their rows: `embed.queries(texts) @ embed.documents(texts).T`.
    """

    needs = ("masked_lm", "pretraining")

    def __init__(self, model: Model, *, max_length: int | None = None, exact: bool = False) -> None:
        """Prepares the predictor.

        Args:
          model: a model with a masked-LM head, such as `finetune --task retrieval --form sparse` trains.
          max_length: as for `Predictor`; default: that of the model's sentence-transformers files.
          exact: as for `Predictor`.

        Raises:
          InputError: those files describe embeddings that are not supported, or weights of another vocabulary.
        """
        super().__init__(model, exact, max_length)
        if isinstance(model.pooling, str):
            raise InputError(model.pooling)
        self.pooling = model.pooling if isinstance(model.pooling, SparsePooling) else SparsePooling()
        self._longest = min(max_length or self.pooling.max_length or self._longest, model.config.max_length)
        self._table = self.pooling.query_table(self.tokenizer, model.config)

    def _outputs(self, params: PyTree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        count = batch.pop("places").shape[1]
        logits = self.model.apply(params, batch)["masked_lm_logits"]
        return {"weights": pool_words(logits, batch["sequence_ids"], count, self.pooling.activation)}

    def _slots(self, length: int) -> int:
        return max(1, length // 16)  # each has a number for every token of the vocabulary

    def __call__(self, texts: Sequence[str], prompt_name: str | None = None) -> csr_array:
        """Embeds texts. Cuts texts that are too long, with a warning.

        Args:
          texts: N texts.
          prompt_name: the name in `pooling.prompts` of the prompt before each text, such as "query"; default: `pooling.prompt`.

        Returns:
          A scipy.sparse.csr_array, float32 [N, V]: `indices` are ids of tokens, `data` their weights, above 0.
        """
        return self.rows(self._encode(self._read(texts, prompt_name)))

    def queries(self, texts: Sequence[str], prompt_name: str | None = None) -> csr_array:
        """Embeds queries. With `pooling.query_weights`, looks up the weights of their tokens: the encoder does not run.

        Args:
          texts: N texts.
          prompt_name: as in a call; default: "query" if there is one, else `pooling.prompt`.

        Returns:
          As a call.
        """
        name = first_of(self.pooling.prompts, QUERY_PROMPTS) if prompt_name is None else prompt_name
        return self.rows(self._encode(self._read(texts, name)), queries=True)

    def documents(self, texts: Sequence[str], prompt_name: str | None = None) -> csr_array:
        """Embeds documents: as a call, but with their prompt.

        Args:
          texts: N texts.
          prompt_name: as in a call; default: the first of "document", "passage" and "corpus" that there is, else
            `pooling.prompt`.

        Returns:
          As a call.
        """
        return self(texts, first_of(self.pooling.prompts, DOCUMENT_PROMPTS) if prompt_name is None else prompt_name)

    def _read(self, texts: Sequence[str], prompt_name: str | None) -> list[str]:
        pooling = self.pooling if prompt_name is None else self.pooling.with_prompt(prompt_name)
        return [pooling.read(text) if isinstance(text, str) else text for text in as_list(texts)]

    def rows(self, examples: Sequence[Example], params: PyTree = None, queries: bool = False) -> csr_array:
        """Returns the rows of tokenized texts, which may be queries; for `params` see `run`."""
        from scipy.sparse import csr_array  # here: it takes long to import

        ids, weights, ends = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)], [0]
        table = self._table if queries else None
        for own, values in self._pooled(examples, params) if table is None else _looked_up(examples, table):
            ids.append(own)
            weights.append(values)
            ends.append(ends[-1] + len(own))
        parts = np.concatenate(weights), np.concatenate(ids), np.array(ends)
        return csr_array(parts, (len(examples), self.model.config.vocab_size))

    def _pooled(self, examples: Sequence[Example], params: PyTree) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the ids of the tokens of each text, ascending, and their weights."""
        for start in range(0, len(examples), _TOGETHER):
            for result in self.run(examples[start : start + _TOGETHER], params):
                ids = np.flatnonzero(result["weights"][0]).astype(np.int32)
                yield ids, result["weights"][0][ids]

    def words(self, rows: csr_array, top_k: int | None = None) -> list[dict[str, float]]:
        """Returns the tokens of each row with their weights, the largest first.

        Args:
          rows: [N, V], as this predictor returns them.
          top_k: tokens of a row that are returned; default: all.
        """
        found = []
        for start, stop in zip(rows.indptr[:-1].tolist(), rows.indptr[1:].tolist(), strict=True):
            order = np.argsort(-rows.data[start:stop], kind="stable")[:top_k] + start
            tokens = self.tokenizer.tokens(rows.indices[order].tolist())
            found.append(dict(zip(tokens, rows.data[order].tolist(), strict=True)))
        return found


def _looked_up(examples: Sequence[Example], table: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the ids of the tokens of each text that have a weight in the table, ascending, and these weights."""
    for example in examples:
        ids = np.unique(example.input_ids)
        ids = ids[table[ids] != 0].astype(np.int32)
        yield ids, table[ids]
