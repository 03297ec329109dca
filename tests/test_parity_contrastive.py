"""The loss of retrievers beside sentence-transformers' on the same embeddings: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.training.contrastive import contrastive_loss

pytestmark = pytest.mark.parity
N, C, D, TEMPERATURE = 12, 4, 16, 0.05
RNG = np.random.default_rng(0)
QUERIES, DOCUMENTS = (RNG.standard_normal(shape).astype(np.float32) for shape in ((N, D), (N, C, D)))
TEACHER = RNG.standard_normal((N, C)).astype(np.float32)


def theirs(name):
    """sentence-transformers' losses of columns of embeddings by name."""
    import torch
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.losses.matryoshka import shrink

    def ranking(columns, **options):
        loss = losses.MultipleNegativesRankingLoss(None, scale=1 / TEMPERATURE, **options)
        return loss.compute_loss_from_embeddings(columns, None)

    def normalized(columns):
        return [torch.nn.functional.normalize(x, dim=-1) for x in columns]

    directions = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    return {
        "ranking": ranking,
        "both": lambda columns: ranking(columns, **directions),
        "matryoshka": lambda columns: sum(ranking([shrink(x, size) for x in columns]) for size in (16, 8, 4)),
        "kl": lambda columns: losses.DistillKLDivLoss(
            None, student_temperature=TEMPERATURE, teacher_temperature=1.0
        ).compute_loss_from_embeddings(normalized(columns), torch.tensor(TEACHER)) / TEMPERATURE**2,
        "margin_mse": lambda columns: losses.MarginMSELoss(None).compute_loss_from_embeddings(
            normalized(columns), torch.tensor(TEACHER)
        ),
    }[name]  # fmt: skip


OURS = {
    "ranking": {},
    "both": {"both_directions": True},
    "matryoshka": {"dimensions": (16, 8, 4)},
    "kl": {"in_batch": False, "distillation": "kl", "teacher_scores": TEACHER},
    "margin_mse": {"in_batch": False, "distillation": "margin_mse", "teacher_scores": TEACHER},
}


@pytest.mark.parametrize("name", OURS)
def test_losses_and_gradients_are_those_of_sentence_transformers(name):
    import torch

    temperature = 1.0 if name == "margin_mse" else TEMPERATURE
    columns = [torch.tensor(x, requires_grad=True) for x in (QUERIES, *np.moveaxis(DOCUMENTS, 1, 0).copy())]
    expected = theirs(name)(columns)
    expected.backward()

    def loss(queries, documents):
        return contrastive_loss(queries, documents, jnp.ones(N), temperature, **OURS[name]).mean()

    found, (of_queries, of_documents) = jax.jit(jax.value_and_grad(loss, (0, 1)))(QUERIES, DOCUMENTS)
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    gradients = [column.grad.numpy() for column in columns]
    np.testing.assert_allclose(of_queries, gradients[0], atol=1e-5 * abs(gradients[0]).max())
    np.testing.assert_allclose(np.moveaxis(of_documents, 1, 0), gradients[1:], atol=1e-5 * np.abs(gradients[1:]).max())
