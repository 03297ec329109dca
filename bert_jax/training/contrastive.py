"""The loss of retrievers: each query's document among those of the whole batch, and the scores of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from bert_jax.model.layers import AnyArray
from bert_jax.training.losses import MASKED, Sum, unit, weighted_sum

Distillation = Literal["kl", "margin_mse"]


class Known(NamedTuple):
    """The texts of a batch by number, which tell the false negatives: equal texts have equal numbers.

    Attributes:
      queries: The number of each query.
      documents: The number of each document.
      positives: The numbers of all documents that are known to answer each query; -1 fills the rest.
    """

    queries: Int[AnyArray, " N"]
    documents: Int[AnyArray, "N C"]
    positives: Int[AnyArray, "N P"]


def known_of_pairs(texts: Int[AnyArray, "N K"]) -> Known:
    """Returns the numbers of pairs, or of triplets, whose first two texts may stand in either order.

    The documents of all pairs that share a text with the pair of a query are known to answer it. sentence-transformers'
    NO_DUPLICATES sampler keeps such pairs out of a batch instead.
    """
    pair = jnp.asarray(texts)[:, :2]
    related = jnp.any(pair[:, None, :, None] == pair[None, :, None, :], axis=(2, 3))
    return Known(texts[:, 0], texts[:, 1:], jnp.where(related, pair[None, :, 1], -1))


class Scoring(NamedTuple):
    """A way to score queries and documents, each a tree of arrays with the texts on the first axis.

    Attributes:
      prepare: (texts, number of leading dimensions to keep or None for all) -> what the other two take, in float32.
      documents: (a query, M documents) -> their scores [M].
      queries: (a document, M queries) -> their scores [M].
      cells: (queries, documents) -> float32 numbers that the computation of one query's score of one document holds.
    """

    prepare: Callable[[PyTree, int | None], PyTree]
    documents: Callable[[PyTree, PyTree], Float[Array, " M"]]
    queries: Callable[[PyTree, PyTree], Float[Array, " M"]]
    cells: Callable[[PyTree, PyTree], int]


def _inner(anchor: Float[Array, " D"], candidates: Float[Array, "M D"]) -> Float[Array, " M"]:
    return jnp.matmul(candidates, anchor, precision="highest")


COSINE = Scoring(lambda x, size: unit(x[..., :size]), _inner, _inner, lambda queries, documents: 1)
DOT = Scoring(lambda x, size: jnp.asarray(x[..., :size], jnp.float32), _inner, _inner, lambda queries, documents: 1)


class Vectors(NamedTuple):
    """A vector for each token of a text; `present` is false for tokens that do not count."""

    vectors: Float[AnyArray, "*B T D"]
    present: Bool[AnyArray, "*B T"]


def _prepare_tokens(x: Vectors, size: int | None) -> Vectors:
    return Vectors(unit(x.vectors[..., :size]), x.present)


def _max_sim(scores: Float[Array, "M T U"], query: Bool[AnyArray, "M T"], document: Bool[AnyArray, "M U"]) -> Float[Array, " M"]:
    """Returns the sum over the T tokens of a query of the largest score with the U tokens of a document."""
    best = jnp.max(jnp.where(document[:, None, :], scores, MASKED), axis=-1)
    return jnp.sum(jnp.where(query, best, 0), axis=-1)


def _of_query(query: Vectors, documents: Vectors) -> Float[Array, " M"]:
    scores = jnp.einsum("td,mud->mtu", query.vectors, documents.vectors, precision="highest")
    return _max_sim(scores, jnp.broadcast_to(query.present[None], scores.shape[:2]), documents.present)


def _of_document(document: Vectors, queries: Vectors) -> Float[Array, " M"]:
    scores = jnp.einsum("ud,mtd->mtu", document.vectors, queries.vectors, precision="highest")
    return _max_sim(scores, queries.present, jnp.broadcast_to(document.present[None], (scores.shape[0], scores.shape[2])))


# ColBERT's late interaction (Khattab and Zaharia, 2020, equation 3) of `Vectors`.
MAX_SIM = Scoring(
    _prepare_tokens, _of_query, _of_document, lambda queries, documents: queries.present.shape[1] * documents.present.shape[1]
)
_MOST_CELLS = 2**26  # float32 numbers of scores, or comparisons of texts, that are computed at a time
_FEW = 16  # positives of a query that are compared one by one


def contrastive_loss(
    queries: PyTree,
    documents: PyTree,
    weights: Float[AnyArray, " N"],
    temperature: float | Float[Array, ""] = 0.05,
    *,
    scoring: Scoring = COSINE,
    in_batch: bool = True,
    both_directions: bool = False,
    dimensions: Sequence[int] = (),
    known: Known | None = None,
    distillation: Distillation | None = None,
    teacher_scores: Float[AnyArray, "N C"] | None = None,
    block: int = 1024,
) -> Sum:
    """Returns the loss of each query, in nats; scores are those of `scoring` divided by `temperature`.

    In-batch negatives (Henderson et al., 2017, section 4.4): the negative log-likelihood of a query's positive among the N x C
    documents of the batch. The documents of one query stay together, so that no order of devices can take a hard negative for a
    positive. Distillation compares the scores of a query's own C documents with a teacher's: "kl" is the divergence of their
    softmax from the teacher's (Hinton et al., 2015, without the factor temperature^2), "margin_mse" the mean squared difference
    of the margins by which the positive exceeds each negative (Hofstätter et al., 2020). By `known`, copies of the positive among
    its negatives are none and do not count, as those that fill up rows with fewer.

    Args:
      queries: Embeddings of N queries: [N, D], of any length, or a tree of arrays [N, ...] that `scoring` takes.
      documents: Embeddings of C documents for each query: [N, C, D], or a tree of arrays [N, C, ...]; the positive, then C - 1
        hard negatives.
      weights: 0 or 1; the documents of a query of weight 0 are no other query's negatives.
      temperature: Divides the scores; an array may be trained.
      scoring: Scores a query and a document; default: by the cosine of their embeddings.
      in_batch: Add the loss of in-batch negatives.
      both_directions: Average it with that of each positive's query among the queries of the batch.
      dimensions: Sum the loss over embeddings that are cut to these leading dimensions (Kusupati et al., 2022); empty: whole
        embeddings alone.
      known: Leaves out false negatives: documents that are known to answer the query, copies of these, and the query itself.
      distillation: Add this loss; it needs `teacher_scores`.
      teacher_scores: The teacher's scores of each query's documents.
      block: Most queries that are compared with all documents at a time. It bounds the memory, which is that of block x N x C
        scores; scores that take more than a number each are computed for fewer queries at a time.
    """
    count, each = jax.tree.leaves(documents)[0].shape[:2]
    total = jnp.zeros((count,), jnp.float32)
    for size in dimensions or (None,):
        q, d = scoring.prepare(queries, size), scoring.prepare(documents, size)
        if in_batch:
            own, first = jnp.arange(count), jax.tree.map(lambda x: x[:, 0], d)
            flat = jax.tree.map(lambda x: x.reshape(count * each, *x.shape[2:]), d)
            block = min(block, max(1, _MOST_CELLS // (count * each * scoring.cells(q, flat))))
            wrong = None if known is None else _FalseNegatives(known.queries, known.positives, known.documents.reshape(-1))
            of_all = jnp.repeat(weights, each)
            nats = _nats(scoring.documents, q, flat, own * each, of_all, temperature, wrong, block)
            if both_directions:
                back = None if known is None else _FalseQueries(known.documents[:, 0], known.queries, known.positives)
                compared = 1 if known is None else known.positives.shape[1]
                fewer = min(block, max(1, _MOST_CELLS // (count * compared)))
                nats = (nats + _nats(scoring.queries, first, q, own, weights, temperature, back, fewer)) / 2
            total += nats
        if distillation is not None:
            assert teacher_scores is not None
            scores, present = jax.vmap(scoring.documents)(q, d) / temperature, jnp.ones((count, each), bool)
            if known is not None:
                present = (jnp.asarray(known.documents) != known.documents[:, :1]).at[:, 0].set(True)
            total += _distillation(scores, jnp.asarray(teacher_scores, jnp.float32), present, distillation)
    return weighted_sum(total, weights)


def flops(vectors: Float[AnyArray, "N V"], weights: Float[AnyArray, " N"]) -> Sum:
    """Returns the sum over V of the squared mean over N: the cost of a sparse search (Paria et al., 2020, equation 4).

    Args:
      vectors: Sparse vectors, none below 0.
      weights: 0 or 1; a vector of weight 0 does not count.
    """
    mean = jnp.sum(vectors * weights[:, None], axis=0) / jnp.maximum(jnp.sum(weights), 1)
    return Sum(jnp.sum(jnp.square(mean)), jnp.ones(()))


class _FalseNegatives(NamedTuple):
    """Query n has the number anchors[n] and the positives own[n]; candidates are documents."""

    anchors: Int[AnyArray, " N"]
    own: Int[AnyArray, "N P"]
    candidates: Int[AnyArray, " M"]

    def of(self, n: Int[Array, ""]) -> Bool[Array, " M"]:
        """Marks the documents that are no negatives of query n."""
        candidates = jnp.asarray(self.candidates)
        own = jnp.asarray(self.own)[n]
        method = "compare_all" if own.shape[0] <= _FEW else "binary_search"  # without M x P comparisons for each query
        return jnp.isin(candidates, own, method=method) | (candidates == jnp.asarray(self.anchors)[n])


class _FalseQueries(NamedTuple):
    """Document n has the number anchors[n]; candidates are queries with these positives."""

    anchors: Int[AnyArray, " N"]
    candidates: Int[AnyArray, " M"]
    positives: Int[AnyArray, "M P"]

    def of(self, n: Int[Array, ""]) -> Bool[Array, " M"]:
        """Marks the queries that document n answers, or is a copy of."""
        anchor = jnp.asarray(self.anchors)[n]
        return jnp.any(jnp.asarray(self.positives) == anchor, axis=1) | (jnp.asarray(self.candidates) == anchor)


def _nats(
    score: Callable[[PyTree, PyTree], Float[Array, " M"]],
    anchors: PyTree,
    candidates: PyTree,
    own: Int[Array, " N"],
    weights: Float[AnyArray, " M"],
    temperature: float | Float[Array, ""],
    wrong: _FalseNegatives | _FalseQueries | None,
    block: int,
) -> Float[Array, " N"]:
    """Returns the negative log-likelihood of candidate own[n] among the candidates of anchor n."""
    counted = jnp.asarray(weights) > 0

    def one(place: tuple[Array, Any, Array]) -> Float[Array, ""]:
        n, anchor, right = place
        allowed = counted if wrong is None else counted & ~wrong.of(n)
        allowed |= jnp.arange(len(counted)) == right
        scores = score(anchor, candidates) / temperature
        return jax.nn.logsumexp(jnp.where(allowed, scores, MASKED)) - scores[right]

    # Recomputed in the backward pass, so that no [N, M] scores are ever kept.
    return jax.lax.map(jax.checkpoint(one), (jnp.arange(own.shape[0]), anchors, own), batch_size=block)


def _distillation(
    scores: Float[Array, "N C"], teacher: Float[Array, "N C"], present: Bool[Array, "N C"], kind: Distillation
) -> Float[Array, " N"]:  # fmt: skip
    """Returns the loss of the documents that are present; 0 where that is the positive alone."""
    if kind == "margin_mse":
        margins, right = scores[:, :1] - scores[:, 1:], teacher[:, :1] - teacher[:, 1:]
        errors = jnp.where(present[:, 1:], jnp.square(margins - right), 0)
        return jnp.sum(errors, axis=-1) / jnp.maximum(jnp.sum(present[:, 1:], axis=-1), 1)
    right, found = (jax.nn.log_softmax(jnp.where(present, x, MASKED)) for x in (teacher, scores))
    return jnp.sum(jnp.exp(right) * (right - found), axis=-1)
