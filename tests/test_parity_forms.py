"""Sparse retrievers beside sentence-transformers': the loss, its files read here, and ours read there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_parity_predictions import TEXTS, Served

import bert_jax
from bert_jax.pooling import SparsePooling
from bert_jax.tasks.forms import FORMS
from bert_jax.tasks.task import Options
from bert_jax.training.contrastive import contrastive_loss

pytestmark = pytest.mark.parity
N, C, V = 8, 3, 24
PROMPTS = {"query": "find: ", "document": "text: "}


def embeddings():
    rng = np.random.default_rng(0)
    shapes = (N, V), (N, C, V)
    return [np.maximum(rng.standard_normal(shape), 0).astype(np.float32) for shape in shapes]


def test_the_loss_of_sparse_retrievers_and_its_gradients_are_splade_loss():
    import torch
    from sentence_transformers.sparse_encoder import losses

    class Given(torch.nn.Module):
        def forward(self, features, **_):
            return {"sentence_embedding": features["x"]}

    queries, documents = embeddings()
    columns = [torch.tensor(x, requires_grad=True) for x in (queries, *np.moveaxis(documents, 1, 0).copy())]
    ranking = losses.SparseMultipleNegativesRankingLoss(Given())
    splade = losses.SpladeLoss(Given(), ranking, document_regularizer_weight=0.03, query_regularizer_weight=0.05)
    expected = sum(splade([{"x": x} for x in columns]).values())
    expected.backward()
    form, weights = FORMS["sparse"], jnp.ones(N)
    options = Options(query_regularizer_weight=0.05, document_regularizer_weight=0.03)

    def loss(queries, documents, progress):
        batch = {"weights": weights, "progress": jnp.float32(progress)}
        penalties = form.penalties(queries, documents, batch, options)
        more = sum(each.mean() for name, each in penalties.items() if name.endswith("_loss"))
        return contrastive_loss(queries, documents, weights, 1.0, scoring=form.scoring).mean() + more

    found, gradients = jax.value_and_grad(loss, (0, 1))(queries, documents, 0.5)
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    theirs = [column.grad.numpy() for column in columns]
    np.testing.assert_allclose(gradients[0], theirs[0], atol=1e-5 * abs(theirs[0]).max())
    np.testing.assert_allclose(np.moveaxis(gradients[1], 1, 0), theirs[1:], atol=1e-5 * np.abs(theirs[1:]).max())
    start, tenth, end = (float(loss(queries, documents, share)) for share in (0, 0.1, 0.5))
    assert (tenth - start) / (end - start) == pytest.approx(0.09, rel=1e-3)  # (0.1 / (1 / 3)) squared


def test_sparse_encoders_are_read_and_ours_are_read_there_with_equal_numbers(tmp_path):
    from sentence_transformers import SparseEncoder

    served = Served(tmp_path, "bert", "masked_lm")
    made = SparseEncoder(served.directories["theirs"], device="cpu", prompts=PROMPTS)
    made.max_seq_length = 48
    made.save(str(tmp_path / "made"))
    ours = bert_jax.load(tmp_path / "made")
    assert ours.pooling == SparsePooling(48, prompts=PROMPTS)
    bert_jax.save(ours, tmp_path / "saved")
    again = SparseEncoder(str(tmp_path / "saved"), device="cpu")
    assert [type(module).__name__ for module in again][-1] == "SpladePooling"
    embed = bert_jax.SparseEmbedder(ours)
    for name in (None, "query", "document"):
        texts = [text[:120] for text in TEXTS]
        expected, found = (
            model.encode(texts, prompt_name=name, convert_to_sparse_tensor=False).numpy() for model in (made, again)
        )
        assert (expected > 0).any(axis=0).sum() > 10
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
        np.testing.assert_allclose(embed(texts, prompt_name=name).toarray(), expected, atol=1e-5, rtol=0)
