"""Losses: against NumPy, and against jax's own log-softmax."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model.layers import Decoder
from bert_jax.training import decoded, reranking
from bert_jax.training.contrastive import contrastive_loss, known_of_pairs
from bert_jax.training.losses import (
    Sum,
    accuracy,
    binary_cross_entropy,
    cosine_error,
    cross_entropy,
    pretraining_sums,
    span_cross_entropy,
    squared_error,
    triplet_loss,
)

SHAPE, V = (3, 4), 11


def logits_labels_weights(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (*SHAPE, V)).astype(np.float32)
    weights = (rng.random(SHAPE) < 0.7) * rng.uniform(0.5, 2, SHAPE)
    return logits, rng.integers(0, V, SHAPE).astype(np.int32), weights.astype(np.float32)


def numpy_negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    return -np.log(np.take_along_axis(p, labels[..., None], -1)[..., 0])


def test_cross_entropy_is_the_weighted_negative_log_likelihood() -> None:
    logits, labels, weights = logits_labels_weights()
    total, weight = jax.jit(cross_entropy)(logits, labels, weights)
    np.testing.assert_allclose(total, (numpy_negative_log_likelihood(logits, labels) * weights).sum(), rtol=1e-6)
    np.testing.assert_allclose(weight, weights.sum(), rtol=1e-6)


def test_accuracy_is_the_weighted_share_of_labels_with_the_largest_logit() -> None:
    logits, labels, weights = logits_labels_weights()
    labels[0] = logits[0].argmax(-1)
    total, weight = jax.jit(accuracy)(logits, labels, weights)
    hits = (logits.argmax(-1) == labels) * weights
    assert 0 < hits.sum() < weights.sum()
    np.testing.assert_allclose([total, weight], [hits.sum(), weights.sum()], rtol=1e-6)


def test_gradients_are_those_of_jax_log_softmax() -> None:
    logits, labels, weights = logits_labels_weights()

    def reference(logits):
        return -(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0] * weights).sum()

    mine = jax.jit(jax.grad(lambda logits: cross_entropy(logits, labels, weights).total))(logits)
    np.testing.assert_allclose(mine, jax.jit(jax.grad(reference))(logits), atol=1e-6)


def test_logits_of_any_size_and_shift_are_fine() -> None:
    logits, labels, weights = logits_labels_weights()
    expected = cross_entropy(jnp.asarray(logits), labels, weights).total
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits + 500), labels, weights).total, expected, rtol=1e-4)
    huge = jnp.zeros((1, V)).at[0, 3].set(1e4)
    loss, grad = jax.jit(jax.value_and_grad(lambda x: cross_entropy(x, jnp.array([5]), jnp.ones(1)).total))(huge)
    assert float(loss) == 1e4
    np.testing.assert_array_equal(grad[0], jnp.zeros(V).at[3].set(1).at[5].set(-1))


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits, labels, weights = logits_labels_weights()
    rough = jnp.asarray(logits, jnp.bfloat16)
    sums = cross_entropy(rough, labels, weights)
    assert sums.total.dtype == sums.weight.dtype == jnp.float32
    expected = (numpy_negative_log_likelihood(np.asarray(rough, np.float32), labels) * weights).sum()
    np.testing.assert_allclose(sums.total, expected, rtol=1e-6)


def test_no_weight_gives_zero_and_a_zero_gradient() -> None:
    logits, labels, _ = logits_labels_weights()
    none = np.zeros(SHAPE, np.float32)
    value, grad = jax.jit(jax.value_and_grad(lambda x: cross_entropy(x, labels, none).mean()))(logits)
    assert float(value) == 0
    np.testing.assert_array_equal(grad, 0)
    assert float(accuracy(jnp.asarray(logits), labels, none).mean()) == 0


def test_labels_without_weight_do_not_count() -> None:
    logits, labels, weights = logits_labels_weights()
    other = np.where(weights == 0, (labels + 1) % V, labels)
    assert not np.array_equal(labels, other)
    for function in (cross_entropy, accuracy):
        for a, b in zip(function(logits, labels, weights), function(logits, other, weights), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("total", "weight", "mean"), [(6.0, 4.0, 1.5), (0.0, 0.0, 0.0), (-3.0, 0.5, -6.0)])
def test_a_mean_is_total_over_weight_and_zero_without_weight(total: float, weight: float, mean: float) -> None:
    assert float(Sum(jnp.float32(total), jnp.float32(weight)).mean()) == mean


def pretraining() -> tuple[dict, dict]:
    logits, labels, weights = logits_labels_weights()
    pairs = np.random.default_rng(1).normal(size=(SHAPE[0], 2)).astype(np.float32)
    batch = {"masked_ids": labels, "masked_weights": weights, "next_sentence_label": np.array([0, -1, 1], np.int32)}
    return {"masked_lm_logits": logits, "next_sentence_logits": pairs}, batch


def test_pretraining_sums_are_of_masked_tokens_and_of_labelled_pairs() -> None:
    outputs, batch = pretraining()
    sums = pretraining_sums(outputs, batch)
    assert set(sums) == {"masked_lm_loss", "masked_lm_accuracy", "next_sentence_loss", "next_sentence_accuracy"}
    weights, pairs = batch["masked_weights"], outputs["next_sentence_logits"]
    tokens = numpy_negative_log_likelihood(outputs["masked_lm_logits"], batch["masked_ids"]) * weights
    np.testing.assert_allclose(sums["masked_lm_loss"], [tokens.sum(), weights.sum()], rtol=1e-6)
    labelled = numpy_negative_log_likelihood(pairs[[0, 2]], np.array([0, 1]))
    np.testing.assert_allclose(sums["next_sentence_loss"], [labelled.sum(), 2], rtol=1e-6)
    hits = (pairs[[0, 2]].argmax(-1) == [0, 1]).sum()
    np.testing.assert_array_equal(sums["next_sentence_accuracy"], [hits, 2])


def test_a_pair_without_label_has_no_gradient() -> None:
    outputs, batch = pretraining()
    loss = lambda pairs: pretraining_sums(outputs | {"next_sentence_logits": pairs}, batch)["next_sentence_loss"].total  # noqa: E731
    grad = jax.jit(jax.grad(loss))(outputs["next_sentence_logits"])
    np.testing.assert_array_equal(grad[1], 0)
    assert np.all(grad[np.array([0, 2])] != 0)


def test_without_pairs_there_is_no_next_sentence_loss() -> None:
    outputs, batch = pretraining()
    del outputs["next_sentence_logits"], batch["next_sentence_label"]
    assert set(pretraining_sums(outputs, batch)) == {"masked_lm_loss", "masked_lm_accuracy"}
    assert set(pretraining_sums(outputs, batch | {"causal": np.ones(1, bool)})) == {"next_token_loss", "next_token_accuracy"}


# ---- fine-tuning's


def test_smoothing_spreads_a_share_of_the_target_over_all_classes() -> None:
    logits, labels, weights = logits_labels_weights()
    target = 0.9 * np.eye(V)[labels] + 0.1 / V
    expected = -(target * np.asarray(jax.nn.log_softmax(logits))).sum(-1)
    total, weight = jax.jit(cross_entropy, static_argnums=3)(logits, labels, weights, 0.1)
    np.testing.assert_allclose([total, weight], [(expected * weights).sum(), weights.sum()], rtol=1e-5)
    np.testing.assert_array_equal(cross_entropy(logits, labels, weights, 0.0), cross_entropy(logits, labels, weights))


def test_binary_cross_entropy_is_the_mean_over_the_classes_of_each_yes_or_no() -> None:
    logits, _, weights = logits_labels_weights()
    labels = np.random.default_rng(1).integers(0, 2, logits.shape).astype(np.float32)
    share = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -(labels * np.log(share) + (1 - labels) * np.log(1 - share)).mean(-1)
    np.testing.assert_allclose(
        binary_cross_entropy(logits, labels, weights), [(expected * weights).sum(), weights.sum()], rtol=1e-5
    )
    positive = np.linspace(0.5, 4, logits.shape[-1], dtype=np.float32)
    expected = -(positive * labels * np.log(share) + (1 - labels) * np.log(1 - share)).mean(-1)
    found = binary_cross_entropy(logits, labels, weights, jnp.asarray(positive))
    np.testing.assert_allclose(found, [(expected * weights).sum(), weights.sum()], rtol=1e-5)
    far = binary_cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([[0.0, 1.0]]), jnp.ones(1))
    np.testing.assert_array_equal(far, [1e4, 1])


def test_squared_error_is_weighted() -> None:
    values, labels, weights = jnp.array([1.0, 2.0, 5.0]), jnp.array([0.0, 4.0, 5.0]), jnp.array([1.0, 0.5, 2.0])
    np.testing.assert_array_equal(squared_error(values, labels, weights), [1 + 0.5 * 4, 3.5])
    assert squared_error(values.astype(jnp.bfloat16), labels, weights).total.dtype == jnp.float32


def spans() -> tuple[np.ndarray, ...]:
    """Two rows of nine tokens: sequences of 4 and 3, and of 6; the second row's other slot is of no sequence."""
    rng = np.random.default_rng(0)
    start, end = rng.normal(0, 3, (2, 2, 9)).astype(np.float32)
    ids = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0, 0]], np.int32)
    labels = np.array([[[1, 3], [4, 4]], [[5, 5], [0, 0]]], np.int32)
    return start, end, ids, labels, np.array([[1, 1], [1, 0]], np.float32)


def test_an_answers_ends_are_likely_among_the_tokens_of_their_own_sequence() -> None:
    start, end, ids, labels, weights = spans()
    expected = 0.0
    for row, tokens, (first, last) in ((0, slice(0, 4), (1, 3)), (0, slice(4, 7), (4, 4)), (1, slice(0, 6), (5, 5))):
        for logits, at in ((start, first), (end, last)):
            expected += 0.5 * numpy_negative_log_likelihood(logits[row, tokens][None], np.array([at - tokens.start]))[0]
    np.testing.assert_allclose(span_cross_entropy(start, end, ids, labels, weights), [expected, 3], rtol=1e-5)
    none = span_cross_entropy(start, end, ids, labels, np.zeros((2, 2), np.float32))
    assert (float(none.total), float(none.weight)) == (0, 0)


def test_only_tokens_of_answered_sequences_move_a_spans_loss() -> None:
    start, end, ids, labels, weights = spans()
    weights[0, 1] = 0
    grads = jax.jit(jax.grad(lambda s, e: span_cross_entropy(s, e, ids, labels, weights).total, (0, 1)))(start, end)
    for grad in grads:
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(grad != 0, (ids == 1))


def vectors(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(count, 4, 6)).astype(np.float32))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each of `a` with each of `b`."""
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    return a @ b.T


KEPT = np.array([1, 1, 0, 1], np.float32)


def ranking_loss(
    anchors: np.ndarray, candidates: Sequence[np.ndarray], weights: np.ndarray, ids: np.ndarray | None = None
) -> Sum:
    """The loss of four pairs or triplets; without `ids` [4, k], no text is there twice."""
    ids = np.arange(4 * (1 + len(candidates)), dtype=np.int32).reshape(4, -1) if ids is None else ids
    return contrastive_loss(anchors, jnp.stack(candidates, axis=1), weights, 0.05, known=known_of_pairs(ids))


def test_cosine_error_is_the_squared_error_of_the_cosines() -> None:
    a, b = vectors(2)
    scores = np.array([0.1, 0.9, 5.0, -0.4], np.float32)
    expected = ((np.diag(cosines(a, b)) - scores) ** 2 * KEPT).sum()
    np.testing.assert_allclose(cosine_error(a, b, scores, KEPT), [expected, 3], rtol=1e-5)


@pytest.mark.parametrize("negatives", [0, 1])
def test_ranking_loss_is_the_cross_entropy_of_ones_own_among_all_that_count(negatives: int) -> None:
    """Candidates past the anchors' own are negatives; what has no weight is no negative of others."""
    anchors, *candidates = vectors(2 + negatives)
    there = np.tile(KEPT > 0, 1 + negatives)
    logits = cosines(anchors[KEPT > 0], np.concatenate(candidates)[there]) / 0.05
    expected = numpy_negative_log_likelihood(logits, np.arange(3)).sum()
    total, weight = ranking_loss(anchors, candidates, KEPT)
    np.testing.assert_allclose([total, weight], [expected, 3], rtol=1e-5)


# texts of four pairs or triplets -> for each anchor the candidates that are negatives of it (past 3: those of triplets)
COPIES = {
    "none": ("am bn co dp", ["123", "023", "013", "012"]),
    "a pair twice": ("am am co dp", ["23", "23", "013", "012"]),
    "an anchor twice": ("am an co dp", ["23", "23", "013", "012"]),
    "a positive twice": ("am bm co dp", ["23", "23", "013", "012"]),
    "a pair turned round": ("am ma co dp", ["23", "23", "013", "012"]),
    "an anchor that is a positive": ("am ba co dp", ["23", "23", "013", "012"]),
    "a chain": ("am mb co dp", ["23", "23", "013", "012"]),
    "a pair of equal texts": ("aa bb co dp", ["123", "023", "013", "012"]),
    "negatives of others": ("amw bnx coy dpz", ["1234567", "0234567", "0134567", "0124567"]),
    "a negative twice": ("amw bnw coy dpz", ["1234567", "0234567", "0134567", "0124567"]),
    "a negative that is the anchor": ("amw bna coy dpz", ["123467", "0234567", "0134567", "0124567"]),
    "a negative that is the positive": ("amw bnm coy dpz", ["123467", "0234567", "0134567", "0124567"]),
    "a negative that is the anchor's other positive": ("amw anx com dpn", ["2345", "2345", "0134567", "0124567"]),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_a_text_in_a_batch_are_not_each_others_negatives(name: str) -> None:
    """Each anchor's loss is the cross entropy among its own candidate and its negatives, and without copies that of all."""
    texts, negatives = COPIES[name]
    items = texts.split()
    number = {text: i for i, text in enumerate(sorted(set("".join(items))))}
    anchors, *candidates = vectors(len(items[0]))
    ids = np.array([[number[text] for text in item] for item in items], np.int32)
    expected = 0.0
    logits = cosines(anchors, np.concatenate(candidates)) / 0.05
    for n, others in enumerate(negatives):
        expected += numpy_negative_log_likelihood(logits[n, [n, *map(int, others)]][None], np.array([0]))[0]
    total, weight = ranking_loss(anchors, candidates, np.ones(4, np.float32), ids)
    np.testing.assert_allclose([total, weight], [expected, 4], rtol=1e-5)


def test_triplet_loss_is_what_the_positive_lacks_to_be_nearer_by_the_margin() -> None:
    anchors = np.array([[1.0, 0], [1, 0], [1, 0], [2, 0]], np.float32)
    positives = np.array([[3.0, 0], [0, 1], [0, 1], [1, 1]], np.float32)
    negatives = np.array([[0.0, 1], [1, 0], [-1, 0], [0, 5]], np.float32)
    lacking = np.array([0, 1.5, 0, 0])
    np.testing.assert_allclose(triplet_loss(anchors, positives, negatives, np.ones(4, np.float32)), [lacking.sum(), 4], atol=1e-6)
    wider = np.maximum(0, 1 - np.array([1, -1, 1, 2**-0.5]))
    np.testing.assert_allclose(triplet_loss(anchors, positives, negatives, KEPT, 1.0), [(wider * KEPT).sum(), 3], atol=1e-6)


PAIRWISE = {
    "cosine": jax.jit(lambda a, b, c, w: cosine_error(a, b, jnp.zeros(4), w)),
    "ranking": jax.jit(lambda a, b, c, w: ranking_loss(a, [b, c], w)),
    "triplet": jax.jit(lambda a, b, c, w: triplet_loss(a, b, c, w)),
}


@pytest.mark.parametrize("name", PAIRWISE)
def test_vectors_without_weight_do_not_count_and_none_gives_a_gradient_that_is_not_finite(name: str) -> None:
    loss = PAIRWISE[name]
    first = vectors(3)
    other = [np.where(KEPT[:, None] > 0, x, x[::-1] + 1) for x in first]
    np.testing.assert_allclose(loss(*first, KEPT), loss(*other, KEPT), rtol=1e-6)
    value_and_gradients = jax.jit(jax.value_and_grad(lambda *args: loss(*args, KEPT).total, (0, 1, 2)))
    for grad in value_and_gradients(*first)[1]:
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(grad[2], 0)
    zeros = [np.zeros((4, 6), np.float32)] * 3
    value, grads = value_and_gradients(*zeros)
    assert np.isfinite(value)
    assert all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("name", PAIRWISE)
def test_the_length_of_a_vector_does_not_matter(name: str) -> None:
    first = vectors(3)
    longer = [x * np.array([[1e-3], [2.0], [30.0], [1e4]], np.float32) for x in first]
    np.testing.assert_allclose(PAIRWISE[name](*first, KEPT), PAIRWISE[name](*longer, KEPT), rtol=1e-5)
    rough = [jnp.asarray(x, jnp.bfloat16) for x in first]
    assert PAIRWISE[name](*rough, KEPT).total.dtype == jnp.float32


def test_other_losses_are_not_moved_by_what_has_no_weight() -> None:
    logits, _, weights = logits_labels_weights()
    zero = weights == 0
    labels = np.ones_like(logits)
    moved = np.where(zero[..., None], 1 - labels, labels)
    np.testing.assert_array_equal(binary_cross_entropy(logits, labels, weights), binary_cross_entropy(logits, moved, weights))
    values = np.where(zero, 1e6, 1).astype(np.float32)
    np.testing.assert_array_equal(squared_error(values, np.ones_like(values), weights), [0, weights.sum()])

    def both(x):
        return binary_cross_entropy(x, labels, weights).total + squared_error(x[..., 0], values, weights).total

    grad = jax.jit(jax.grad(both))(logits)
    np.testing.assert_array_equal(grad[zero], 0)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(("dtype", "biased"), [("float32", True), ("bfloat16", False)])
def test_the_loss_of_some_logits_at_a_time_is_that_of_all_at_once(dtype, biased, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    x, table = jnp.asarray(rng.normal(size=(2, 5, 6)), dtype), jnp.asarray(rng.normal(size=(V, 6)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=V), jnp.float32) if biased else None
    x = x if biased else x.at[0, 0].set(0)  # then all words tie
    batch = {"masked_ids": np.array([[1, 10, 0, 4, 4], [7, 3, 3, -1, 99]]), "masked_weights": rng.uniform(0.5, 2, (2, 5))}
    batch["masked_weights"] = np.float32(batch["masked_weights"] * (batch["masked_ids"] % 99 < V) * (batch["masked_ids"] >= 0))
    batch["masked_weights"][1, 4] = 0

    def loss(layer, weights, whole):
        outputs = {"masked_lm_logits": Decoder(*layer).logits()} if whole else {"masked_lm_decoder": Decoder(*layer)}
        sums = pretraining_sums(outputs, batch | {"masked_weights": weights})
        return sums["masked_lm_loss"].mean() + sums["masked_lm_accuracy"].total, sums

    def run(whole=False):
        def both(*args):
            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*args, whole), loss(*args, whole)

        return jax.jit(both)((x, table, bias), batch["masked_weights"])

    expected = run(whole=True)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for count in (10, 3):  # all predictions at once; three at a time: three chunks of these, and one of one
        monkeypatch.setattr(decoded, "_CHUNK_BYTES", count * V * 4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=tolerance, atol=tolerance / 2),
            expected,
            run(),
        )


def test_losses_of_rerankers_are_the_nats_of_labels_pairs_and_lists_without_what_is_missing():
    scores, right = np.array([[1.0, -1.0, 9.0], [0.5, 2.0, -3.0]]), np.array([[1.0, 0, 1], [1, 0, 0]])
    present = np.array([[1.0, 1, 0], [1, 1, 1]])
    nats = -np.log(1 / (1 + np.exp(-np.array([1.0, 1, 0.5, -2, 3]))))  # of the sigmoid of each score that is there
    assert float(reranking.pointwise_loss(scores, right, present).mean()) == pytest.approx(nats.mean(), rel=1e-6)
    nats = np.log1p(np.exp(-np.array([2.0, -1.5, 3.5])))  # of the differences
    assert float(reranking.pairwise_loss(scores, right, present).mean()) == pytest.approx(nats.mean(), rel=1e-6)
    shares = np.exp(1) / np.exp([1, -1]).sum(), np.exp(0.5) / np.exp(scores[1]).sum()
    found = reranking.listwise_loss(scores, right, present)
    assert float(found.mean()) == pytest.approx(-np.log(shares).mean(), rel=1e-6)
    assert float(found.weight) == 2
