"""Losses: against NumPy, and against jax's own log-softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.training.losses import Sum, accuracy, cross_entropy, pretraining_sums

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
    loss, grad = jax.value_and_grad(lambda x: cross_entropy(x, jnp.array([5]), jnp.ones(1)).total)(huge)
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
    value, grad = jax.value_and_grad(lambda x: cross_entropy(x, labels, none).mean())(logits)
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
    grad = jax.grad(loss)(outputs["next_sentence_logits"])
    np.testing.assert_array_equal(grad[1], 0)
    assert np.all(grad[np.array([0, 2])] != 0)


def test_without_pairs_there_is_no_next_sentence_loss() -> None:
    outputs, batch = pretraining()
    del outputs["next_sentence_logits"], batch["next_sentence_label"]
    assert set(pretraining_sums(outputs, batch)) == {"masked_lm_loss", "masked_lm_accuracy"}
