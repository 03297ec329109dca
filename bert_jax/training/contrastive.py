"""The loss of retrievers: each query's document among those of the whole batch, and the scores of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bert_jax.model.layers import AnyArray
from bert_jax.training.losses import MASKED, Sum, weighted_sum

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


def contrastive_loss(
    queries: Float[AnyArray, "N D"],
    documents: Float[AnyArray, "N C D"],
    weights: Float[AnyArray, " N"],
    temperature: float | Float[Array, ""] = 0.05,
    *,
    in_batch: bool = True,
    both_directions: bool = False,
    dimensions: Sequence[int] = (),
    known: Known | None = None,
    distillation: Distillation | None = None,
    teacher_scores: Float[AnyArray, "N C"] | None = None,
    block: int = 1024,
) -> Sum:
    """Returns the loss of each query, in nats; scores are cosines divided by `temperature`.

    In-batch negatives (Henderson et al., 2017, section 4.4): the negative log-likelihood of a query's positive among the N x C
    documents of the batch. The documents of one query stay together, so that no order of devices can take a hard negative for a
    positive. Distillation compares the scores of a query's own C documents with a teacher's: "kl" is the divergence of their
    softmax from the teacher's (Hinton et al., 2015, without the factor temperature^2), "margin_mse" the mean squared difference
    of the margins by which the positive exceeds each negative (Hofstätter et al., 2020).

    Args:
      queries: Embeddings of N queries, of any length.
      documents: Embeddings of C documents for each query: the positive, then C - 1 hard negatives.
      weights: 0 or 1; the documents of a query of weight 0 are no other query's negatives.
      temperature: Divides the cosines; an array may be trained.
      in_batch: Add the loss of in-batch negatives.
      both_directions: Average it with that of each positive's query among the queries of the batch.
      dimensions: Sum the loss over embeddings that are cut to these leading dimensions (Kusupati et al., 2022); empty: whole
        embeddings alone.
      known: Leaves out false negatives: documents that are known to answer the query, copies of these, and the query itself.
      distillation: Add this loss; it needs `teacher_scores`.
      teacher_scores: The teacher's scores of each query's documents.
      block: Queries that are compared with all documents at a time. It bounds the memory, which is that of block x N x C scores.
    """
    count, each, width = documents.shape
    total = jnp.zeros((count,), jnp.float32)
    for size in dimensions or (width,):
        q, d = _unit(queries[:, :size]), _unit(documents[..., :size])
        if in_batch:
            own = jnp.arange(count)
            flat = d.reshape(count * each, -1)
            wrong = None if known is None else _FalseNegatives(known.queries, known.positives, known.documents.reshape(-1))
            nats = _nats(q, flat, own * each, jnp.repeat(weights, each), temperature, wrong, block)
            if both_directions:
                back = None if known is None else _FalseQueries(known.documents[:, 0], known.queries, known.positives)
                nats = (nats + _nats(d[:, 0], q, own, weights, temperature, back, block)) / 2
            total += nats
        if distillation is not None:
            assert teacher_scores is not None
            scores = jnp.einsum("nd,ncd->nc", q, d, precision="highest") / temperature
            total += _distillation(scores, jnp.asarray(teacher_scores, jnp.float32), distillation)
    return weighted_sum(total, weights)


class _FalseNegatives(NamedTuple):
    """Query n has the number anchors[n] and the positives own[n]; candidates are documents."""

    anchors: Int[AnyArray, " N"]
    own: Int[AnyArray, "N P"]
    candidates: Int[AnyArray, " M"]

    def of(self, n: Int[Array, ""]) -> Bool[Array, " M"]:
        """Marks the documents that are no negatives of query n."""
        candidates = jnp.asarray(self.candidates)
        positive = jnp.any(candidates[:, None] == jnp.asarray(self.own)[n][None], axis=1)
        return positive | (candidates == jnp.asarray(self.anchors)[n])


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
    anchors: Float[Array, "N D"],
    candidates: Float[Array, "M D"],
    own: Int[Array, " N"],
    weights: Float[AnyArray, " M"],
    temperature: float | Float[Array, ""],
    wrong: _FalseNegatives | _FalseQueries | None,
    block: int,
) -> Float[Array, " N"]:
    """Returns the negative log-likelihood of candidate own[n] among the candidates of anchor n."""
    counted = jnp.asarray(weights) > 0

    def one(place: tuple[Array, Array, Array]) -> Float[Array, ""]:
        n, anchor, right = place
        allowed = counted if wrong is None else counted & ~wrong.of(n)
        allowed |= jnp.arange(len(counted)) == right
        scores = jnp.matmul(candidates, anchor, precision="highest") / temperature
        return jax.nn.logsumexp(jnp.where(allowed, scores, MASKED))

    # Recomputed in the backward pass, so that no [N, M] scores are ever kept.
    totals = jax.lax.map(jax.checkpoint(one), (jnp.arange(len(anchors)), anchors, own), batch_size=block)
    return totals - jnp.sum(anchors * candidates[own], axis=-1) / temperature


def _distillation(scores: Float[Array, "N C"], teacher: Float[Array, "N C"], kind: Distillation) -> Float[Array, " N"]:
    if kind == "margin_mse":
        margins, right = scores[:, :1] - scores[:, 1:], teacher[:, :1] - teacher[:, 1:]
        return jnp.mean(jnp.square(margins - right), axis=-1)
    right = jax.nn.log_softmax(teacher)
    return jnp.sum(jnp.exp(right) * (right - jax.nn.log_softmax(scores)), axis=-1)


def _unit(x: Float[AnyArray, "*B D"]) -> Float[Array, "*B D"]:
    """Scales vectors to length 1, in float32; zeros stay zeros."""
    wide = jnp.asarray(x, jnp.float32)
    return wide * jax.lax.rsqrt(jnp.maximum(jnp.sum(wide * wide, axis=-1, keepdims=True), 1e-24))
