"""The losses of rerankers beside sentence-transformers': values and gradients for the same scores."""

import jax
import numpy as np
import pytest

from bert_jax.training import reranking

pytestmark = pytest.mark.parity
RNG = np.random.default_rng(0)
SCORES = 3 * RNG.standard_normal((6, 5)).astype(np.float32)
PRESENT = (np.arange(5) < np.array([[5], [2], [4], [5], [3], [2]])).astype(np.float32)
LABELS = RNG.integers(0, 3, (6, 5)).astype(np.float32)


class Fixed:
    """In place of a CrossEncoder: a document is the number of its score."""

    num_labels, device = 1, "cpu"

    def __init__(self, scores):
        self.scores = scores.reshape(-1)

    def preprocess(self, pairs, **options):
        import torch

        return {"numbers": torch.tensor([int(document) for _, document in pairs])}

    def __call__(self, tokens):
        return {"scores": self.scores[tokens["numbers"]]}


def softmax_of_present(labels):
    """The shares of documents in ListNet's target."""
    shares = np.exp(labels) * PRESENT
    return shares / shares.sum(axis=1, keepdims=True)


CASES = {
    "pointwise": ("BinaryCrossEntropyLoss", {}, np.minimum(LABELS, 1)),
    "pairwise": ("RankNetLoss", {"reduction_log": "natural"}, LABELS),
    "listwise": ("ListNetLoss", {}, LABELS),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_sentence_transformers(name, monkeypatch):
    import torch
    from sentence_transformers.cross_encoder import losses

    monkeypatch.setattr("sentence_transformers.cross_encoder.losses.binary_cross_entropy.CrossEncoder", Fixed)  # it asks for one

    theirs, options, labels = CASES[name]
    scores, there = torch.tensor(SCORES, requires_grad=True), PRESENT > 0
    numbers = [[str(5 * i + j) for j in np.flatnonzero(row)] for i, row in enumerate(there)]
    if name == "pointwise":
        given = [["q"] * int(there.sum()), [each for own in numbers for each in own]], torch.tensor(labels[there])
    else:
        given = [["q"] * 6, numbers], [torch.tensor(own[row]) for own, row in zip(labels, there, strict=True)]
    expected = getattr(losses, theirs)(Fixed(scores), **options)(*given)
    expected.backward()
    right = softmax_of_present(labels) if name == "listwise" else labels
    loss = getattr(reranking, f"{name}_loss")
    found, gradient = jax.jit(jax.value_and_grad(lambda own: loss(own, right, PRESENT).mean()))(SCORES)
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, scores.grad, atol=1e-5 * abs(scores.grad.numpy()).max())
