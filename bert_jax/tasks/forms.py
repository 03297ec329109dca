"""The forms of a retriever: a row for each, with an object that says how texts become embeddings and how these are compared."""

from __future__ import annotations

import dataclasses
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bert_jax import inference
from bert_jax.data.batching import Example
from bert_jax.errors import InputError
from bert_jax.inference import Best, Embedder, MultiVector, Precision, SparseEmbedder, cuts, max_sim
from bert_jax.model.families import Head
from bert_jax.model.heads import pool_words, unseen_masks
from bert_jax.pooling import Embedding, Pooling, SparsePooling, TokenVectors
from bert_jax.pretrained import Model
from bert_jax.tasks.common import of_items
from bert_jax.tasks.query_weights import token_weights
from bert_jax.tasks.ranking import Ranking
from bert_jax.tasks.similarity import pooling_notes, sequence_vectors
from bert_jax.tasks.task import Options
from bert_jax.training.contrastive import COSINE, DOT, MAX_SIM, Scoring, Vectors, flops
from bert_jax.training.losses import Sum, weighted_sum
from bert_jax.training.steps import Batch

E = TypeVar("E")  # the embeddings of many texts, on the host
D = TypeVar("D", contravariant=True)
_WARMUP = 1 / 3  # share of the steps over which the weights of regularizers rise (Formal et al., 2021: 50,000 of 150,000)


class Search(Protocol[D]):
    """The best documents of queries among those that were added so far."""

    def add(self, documents: D, numbers: range | np.ndarray) -> None:
        """Adds the embeddings of documents, or of their passages, with the number of the document of each, ascending."""

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scores and the numbers of the best documents, [Q, k]; of equal scores, the smaller number first."""


class Searcher(ABC, Generic[E]):
    """Ranks tokenized documents for tokenized queries, with any parameters of a model.

    Attributes:
      block: documents that are embedded and compared at a time, which bounds the memory.
    """

    block: int = 8192

    @abstractmethod
    def embed(self, sequences: Sequence[Example], params: PyTree, documents: bool) -> E:
        """Returns the embeddings of sequences, which are queries or documents."""

    @abstractmethod
    def search(self, queries: E, depth: int) -> Search[E]:
        """Begins the search for the best documents of queries."""

    def rank(
        self, sequences: Sequence[Example], queries: Sequence[int], documents: Sequence[int], numbers: range | np.ndarray,
        params: PyTree, depth: int,
    ) -> list[Ranking]:  # fmt: skip
        """Returns the best documents for each query.

        Args:
          sequences: all tokenized texts.
          queries: the numbers of the sequences that are queries.
          documents: the numbers of those that are documents, or passages of documents.
          numbers: the document of each of these, ascending. A document has the score of its best passage.
          params: the parameters.
          depth: documents of a ranking.
        """
        search = self.search(self.embed([sequences[i] for i in queries], params, documents=False), depth)
        for part in cuts(numbers, self.block):
            search.add(self.embed([sequences[i] for i in documents[part]], params, documents=True), numbers[part])
        return [Ranking(found, scores) for scores, found in zip(*search.found(), strict=True)]


class ByScores(Generic[E]):
    """A search by functions of documents, which return the scores of some queries after others, float32 [R, N]."""

    def __init__(self, queries: int, depth: int, scores: Callable[[E], Iterable[np.ndarray]]) -> None:
        self._best, self._scores = Best(queries, depth), scores

    def add(self, documents: E, numbers: range | np.ndarray) -> None:
        first = 0
        for own in self._scores(documents):
            self._best.add(own, numbers, first)
            first += len(own)

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        return self._best.found()


class Form(ABC):
    """A form of retriever.

    Attributes:
      embedding: the settings of embeddings, where the model's files have none; its `kind` is the name of the form.
      head: the head that the model needs.
      scoring: how the loss scores a query and a document.
      options: the fields of Options that this form reads and others may not.
      defaults: fields of FinetuneConfig whose usual value differs from the general one.
      reads_progress: the loss reads `progress`, the share of the steps that are done.
    """

    embedding: Embedding
    head: Head
    scoring: Scoring
    options: frozenset[str] = frozenset()
    defaults: ClassVar[Mapping[str, object]] = {}
    reads_progress: bool = False

    @property
    def name(self) -> str:
        """The name on the command line."""
        return self.embedding.kind

    def adapt(
        self, embedding: Any, model: Model, options: Options, documents: Iterable[str]
    ) -> tuple[Embedding, list[str]]:  # fmt: skip
        """Returns the settings that are trained and exported, and lines to show; may read the `documents` that are searched.

        Raises InputError if the options do not fit.
        """
        return embedding, []

    @abstractmethod
    def reduce(self, outputs: dict[str, jax.Array], rows: Batch, model: Model) -> dict[str, jax.Array]:
        """Returns what the loss reads of the outputs for some rows of a batch."""

    def inputs(self, rows: Batch, model: Model) -> Batch:
        """Returns what the encoder reads of some rows of a batch."""
        return rows

    def items(self, outputs: dict[str, jax.Array], batch: Batch, model: Model) -> tuple[PyTree, PyTree]:
        """Returns the N queries and their C documents each, as `scoring` takes them."""
        own = of_items(outputs["vectors"], batch)
        return own[:, 0], own[:, 1:]

    def penalties(self, queries: PyTree, documents: PyTree, batch: Batch, options: Options) -> dict[str, Sum]:
        """Returns further sums: losses to add, whose names end in `_loss`, and values to show."""
        return {}

    @abstractmethod
    def searcher(self, model: Model) -> Searcher:
        """Returns the searcher of a model, whose texts are already cut."""


class _DenseSearcher(Searcher[np.ndarray]):
    def __init__(self, model: Model, begin: Callable[[np.ndarray, int], Search[np.ndarray]]) -> None:
        assert isinstance(model.pooling, Pooling)
        self._embedder, self._begin = Embedder(model, model.pooling.replace(max_length=None)), begin

    def embed(self, sequences: Sequence[Example], params: PyTree, documents: bool) -> np.ndarray:
        results = self._embedder.run(sequences, params)
        vectors = np.array([result["vectors"][0] for result in results], np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)

    def search(self, queries: np.ndarray, depth: int) -> Search[np.ndarray]:
        return self._begin(queries, depth)


class Dense(Form):
    """A vector for each text, compared by the cosine (Reimers and Gurevych, 2019).

    In evaluation, documents may be stored in less memory: in `precision`, of which the best `rescore` of each query are ordered
    again by float vectors and the others left out (None: all are kept as they were found).
    """

    embedding = Pooling()
    head = "encoder"
    scoring = COSINE
    options = frozenset(["dimensions", "learn_temperature"])

    def __init__(self, precision: Precision = "float32", rescore: int | None = None) -> None:
        self.precision, self.rescore = precision, rescore

    def adapt(
        self, embedding: Pooling, model: Model, options: Options, documents: Iterable[str]
    ) -> tuple[Embedding, list[str]]:  # fmt: skip
        width = embedding.width(model.config.hidden_size)
        if options.dimensions and max(options.dimensions) > width:
            raise InputError(f"dimensions={options.dimensions} has more than the {width} of this model's embeddings")
        embedding = dataclasses.replace(embedding, similarity_fn_name="cosine")
        return embedding, [note for note in pooling_notes(embedding) if "prompt" not in note]

    def search(self, queries: np.ndarray, depth: int) -> Search[np.ndarray]:
        """Begins the search for the best documents of queries; all vectors have length 1."""
        if self.precision == "float32":
            return inference.Search(queries, depth)
        return inference.CompressedSearch(queries, depth, self.precision, self.rescore)

    def reduce(self, outputs: dict[str, jax.Array], rows: Batch, model: Model) -> dict[str, jax.Array]:
        """Returns `vectors` [B, S, D] of the sequences."""
        return sequence_vectors(outputs, rows, model)

    def searcher(self, model: Model) -> Searcher:
        return _DenseSearcher(model, self.search)


class _SparseSearcher(Searcher[Any]):
    """Embeddings are a csr_array of SciPy, [texts, vocabulary]."""

    def __init__(self, model: Model) -> None:
        self._embedder = SparseEmbedder(model)

    def embed(self, sequences: Sequence[Example], params: PyTree, documents: bool) -> Any:
        return self._embedder.rows(sequences, params, queries=not documents)

    def search(self, queries: Any, depth: int) -> Search[Any]:
        def scores(documents: Any) -> Iterator[np.ndarray]:
            inverted = documents.T.tocsr()
            return ((queries[[row]] @ inverted).toarray() for row in range(queries.shape[0]))

        return ByScores(queries.shape[0], depth, scores)


class Sparse(Form):
    """A weight for each token of the vocabulary, compared by the inner product (SPLADE v2, Formal et al., 2021)."""

    embedding = SparsePooling()
    head = "masked_lm"
    scoring = DOT
    options = frozenset(["query_regularizer_weight", "document_regularizer_weight", "query_weights"])
    defaults: ClassVar[Mapping[str, object]] = {"temperature": 1.0}
    reads_progress = True

    def adapt(
        self, embedding: SparsePooling, model: Model, options: Options, documents: Iterable[str]
    ) -> tuple[Embedding, list[str]]:  # fmt: skip
        """Returns the settings with the weights of queries that are asked for; by default, those of the model."""
        tokenizer, size = model.need_tokenizer(), model.config.vocab_size
        if options.query_weights == "encoder":
            embedding = embedding.replace(query_weights=None)
        elif options.query_weights is not None:
            embedding = embedding.replace(query_weights=token_weights(options.query_weights, documents, tokenizer, size))
        table = embedding.query_table(tokenizer, model.config)
        if table is None:
            return embedding, []
        if options.query_regularizer_weight != Options.query_regularizer_weight:
            raise InputError("query_regularizer_weight is for queries that the encoder reads: give --query-weights encoder")
        return embedding, [f"queries have the weights of a table, {np.count_nonzero(table)} tokens; the encoder reads documents"]

    def reduce(self, outputs: dict[str, jax.Array], rows: Batch, model: Model) -> dict[str, jax.Array]:
        """Returns `vectors` [B, S, V] of the sequences, and the tokens of the rows where those of queries are looked up."""
        count, pooling = rows["cls_positions"].shape[1], _settings(model)
        vectors = pool_words(outputs["masked_lm_logits"], rows["sequence_ids"], count, pooling.activation)
        tokens = () if pooling.query_weights is None else ("input_ids", "sequence_ids")
        return {"vectors": vectors} | {name: jnp.asarray(rows[name]) for name in tokens}

    def items(self, outputs: dict[str, jax.Array], batch: Batch, model: Model) -> tuple[jax.Array, jax.Array]:
        """Returns the vectors of queries [N, V] and documents [N, C, V]."""
        own = of_items(outputs["vectors"], batch)
        table = _settings(model).query_table(model.need_tokenizer(), model.config)
        if table is None:
            return own[:, 0], own[:, 1:]
        row, slot = jnp.divmod(jnp.asarray(batch["slots"])[:, 0], outputs["vectors"].shape[1])
        ids, inside = outputs["input_ids"][row], outputs["sequence_ids"][row] == slot[:, None] + 1
        present = jnp.zeros((own.shape[0], own.shape[2]), jnp.float32)
        present = present.at[jnp.arange(own.shape[0])[:, None], ids].max(inside.astype(jnp.float32))
        return present * jnp.asarray(table)[None], own[:, 1:]

    def penalties(self, queries: jax.Array, documents: jax.Array, batch: Batch, options: Options) -> dict[str, Sum]:
        """Returns the regularizers, whose weights rise quadratically (section 3.2), and the numbers of tokens with a weight."""
        scale, weights = jnp.square(jnp.minimum(1, batch["progress"] / _WARMUP)), batch["weights"]
        count, each = documents.shape[:2]
        sides = {
            "query": (queries, weights, options.query_regularizer_weight),
            "document": (documents.reshape(count * each, -1), jnp.repeat(weights, each), options.document_regularizer_weight),
        }
        sums = {}
        for name, (vectors, own, weight) in sides.items():
            total, one = flops(vectors, own)
            sums[f"{name}_flops_loss"] = Sum(weight * scale * total, one)
            sums[f"{name}_tokens"] = weighted_sum(jnp.sum(vectors > 0, axis=-1).astype(jnp.float32), own)
        return sums

    def searcher(self, model: Model) -> Searcher:
        return _SparseSearcher(model)


def _settings(model: Model) -> SparsePooling:
    assert isinstance(model.pooling, SparsePooling)
    return model.pooling


class _MultiVectorSearcher(Searcher[list[np.ndarray]]):
    block = 1024  # documents of some hundred vectors each

    def __init__(self, model: Model) -> None:
        self._embedder = MultiVector(model)

    def embed(self, sequences: Sequence[Example], params: PyTree, documents: bool) -> list[np.ndarray]:
        return self._embedder.vectors(sequences, params, documents)

    def search(self, queries: list[np.ndarray], depth: int) -> Search[list[np.ndarray]]:
        return ByScores(len(queries), depth, lambda documents: (scores[None] for scores in max_sim(queries, documents)))


_UNUSED = ("[unused0]", "[unused1]")  # the markers of Stanford's ColBERT


class MultiVectors(Form):
    """A vector for each token, compared by the sum of each query token's largest cosine (ColBERT)."""

    embedding = TokenVectors()
    head = "token_vectors"
    scoring = MAX_SIM
    options = frozenset(["markers", "query_length", "expand_queries", "skip_punctuation", "learn_temperature"])
    defaults: ClassVar[Mapping[str, object]] = {"temperature": 1.0}

    def adapt(
        self, embedding: TokenVectors, model: Model, options: Options, documents: Iterable[str]
    ) -> tuple[Embedding, list[str]]:  # fmt: skip
        """Returns the settings with those that are given; a new model marks texts by unused tokens of its vocabulary."""
        markers = options.markers
        if markers is None and embedding.query_marker is None:
            vocabulary = model.need_tokenizer().vocabulary()
            markers = _UNUSED if all(token in vocabulary for token in _UNUSED) else ("", "")
        markers = markers or (embedding.query_marker or "", embedding.document_marker or "")
        given = {
            "query_length": options.query_length,
            "expand": options.expand_queries,
            "skipped": None if options.skip_punctuation is None else tuple(string.punctuation) * options.skip_punctuation,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        embedding = embedding.replace(query_marker=markers[0], document_marker=markers[1], **changes)
        embedding.layout(model.need_tokenizer(), model.config)  # checks the markers
        marked = f"marked by {markers[0]} and {markers[1]}" if any(markers) else "not marked: the vocabulary has no [unused0]"
        expanded = "filled up with mask tokens" if embedding.expand else "not filled up"
        return embedding, [f"queries of {embedding.query_length} tokens, {expanded}; queries and documents are {marked}"]

    def inputs(self, rows: Batch, model: Model) -> Batch:
        assert isinstance(model.pooling, TokenVectors)
        if not model.pooling.expand or model.pooling.attend_to_expansion:
            return rows
        return {**rows, "sequence_ids": unseen_masks(rows["sequence_ids"], rows["input_ids"], model.need_tokenizer().mask_id)}

    def reduce(self, outputs: dict[str, jax.Array], rows: Batch, model: Model) -> dict[str, jax.Array]:
        """Returns the vectors of all tokens [B, L, D], and which of them count where and belong to which sequence."""
        assert isinstance(model.pooling, TokenVectors)
        ids = jnp.abs(jnp.asarray(rows["sequence_ids"]))
        skipped = jnp.isin(jnp.asarray(rows["input_ids"]), model.pooling.skipped_ids(model.need_tokenizer()))
        vectors, starts = outputs["token_vectors"], jnp.asarray(rows["cls_positions"])
        return {"vectors": vectors, "sequence_ids": ids, "skipped": skipped, "starts": starts}

    def items(self, outputs: dict[str, jax.Array], batch: Batch, model: Model) -> tuple[Vectors, Vectors]:
        """Returns the vectors of the tokens of queries [N, T, D] and documents [N, C, U, D]."""
        assert isinstance(model.pooling, TokenVectors)
        row, slot = jnp.divmod(jnp.asarray(batch["slots"]), outputs["starts"].shape[1])
        length = outputs["vectors"].shape[1]

        def tokens(row: jax.Array, slot: jax.Array, most: int, skips: bool) -> Vectors:
            places = jnp.arange(most).reshape(*[1] * slot.ndim, most) + outputs["starts"][row, slot][..., None]
            inside = jnp.minimum(places, length - 1)
            row = jnp.broadcast_to(row[..., None], inside.shape)
            present = (places < length) & (outputs["sequence_ids"][row, inside] == slot[..., None] + 1)
            present &= ~outputs["skipped"][row, inside] if skips else True
            return Vectors(outputs["vectors"][row, inside], present)

        most = min(length, model.pooling.query_length)
        return tokens(row[:, 0], slot[:, 0], most, False), tokens(row[:, 1:], slot[:, 1:], length, True)

    def searcher(self, model: Model) -> Searcher:
        return _MultiVectorSearcher(model)


FORMS: dict[str, Form] = {form.name: form for form in (Dense(), Sparse(), MultiVectors())}


def form_of(model: Model) -> str:
    """Returns the name of the form that the files of a model describe; dense where they describe none."""
    return model.pooling.kind if isinstance(model.pooling, Embedding) else "dense"
