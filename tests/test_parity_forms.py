"""Sparse and multi-vector retrievers beside sentence-transformers': losses, its files read here, and ours read there."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_parity_predictions import TEXTS, Served

import bert_jax
from bert_jax.finetuning.init_head import load_for_task
from bert_jax.pooling import SparsePooling, TokenVectors, TokenWeights
from bert_jax.tasks.forms import FORMS
from bert_jax.tasks.task import Options
from bert_jax.training.contrastive import MAX_SIM, Vectors, contrastive_loss

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

    @jax.jit
    def loss(queries, documents, progress):
        batch = {"weights": weights, "progress": jnp.float32(progress)}
        penalties = form.penalties(queries, documents, batch, options)
        more = sum(each.mean() for name, each in penalties.items() if name.endswith("_loss"))
        return contrastive_loss(queries, documents, weights, 1.0, scoring=form.scoring).mean() + more

    found, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(queries, documents, 0.5)
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


def test_sparse_encoders_without_inference_of_queries_are_read_and_ours_are_read_there_with_equal_numbers(tmp_path):
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import Router, SparseStaticEmbedding, SpladePooling, Transformer

    served = Served(tmp_path, "bert", "masked_lm")
    encoder = Transformer(str(served.directories["theirs"]), transformer_task="fill-mask")
    encoder.max_seq_length = 48
    values = np.random.default_rng(0).standard_normal(len(encoder.tokenizer.get_vocab())).astype(np.float32)
    lookup = SparseStaticEmbedding(encoder.tokenizer, torch.tensor(values))
    routes = Router.for_query_document([lookup], [encoder, SpladePooling("max", "log1p_relu")])
    made = SparseEncoder(modules=[routes], device="cpu", prompts=PROMPTS)
    made.save(str(tmp_path / "made"))
    ours = bert_jax.load(tmp_path / "made")
    assert ours.pooling == SparsePooling(48, prompts=PROMPTS, query_weights=TokenWeights(values), activation="log1p_relu")
    bert_jax.save(ours, tmp_path / "saved")
    assert bert_jax.load(tmp_path / "saved").pooling == ours.pooling
    again, embed = SparseEncoder(str(tmp_path / "saved"), device="cpu"), bert_jax.SparseEmbedder(ours)
    texts = [text[:40] for text in TEXTS]
    documents = [model.encode_document(texts, convert_to_sparse_tensor=False).numpy() for model in (made, again)]
    queries = [model.encode_query(texts, convert_to_sparse_tensor=False).numpy() for model in (made, again)]
    assert (queries[0] != 0).any(axis=0).sum() > 10
    np.testing.assert_array_equal(queries[1], queries[0])
    np.testing.assert_allclose(documents[1], documents[0], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(embed.queries(texts).toarray(), queries[0])
    np.testing.assert_allclose(embed(texts, prompt_name="document").toarray(), documents[0], atol=1e-5, rtol=0)


def test_the_loss_of_late_interaction_and_its_gradients_are_those_of_sentence_transformers():
    import torch
    from sentence_transformers.multi_vector_encoder import losses

    class Given(torch.nn.Module):
        def forward(self, features, **_):
            return {"token_embeddings": features["x"], "attention_mask": features["mask"]}

    rng = np.random.default_rng(0)
    vectors = [rng.standard_normal(shape).astype(np.float32) for shape in ((N, 4, 16), (N, C, 6, 16))]
    present = [rng.random(x.shape[:-1]) > 0.3 for x in vectors]
    for mask in present:
        mask[..., 0] = True
    columns = [torch.tensor(x, requires_grad=True) for x in (vectors[0], *np.moveaxis(vectors[1], 1, 0).copy())]
    masks = [torch.tensor(x) for x in (present[0], *np.moveaxis(present[1], 1, 0).copy())]
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in columns]
    features = [{"x": x, "mask": mask} for x, mask in zip(unit, masks, strict=True)]
    expected = losses.MultiVectorMultipleNegativesRankingLoss(Given())(features)
    expected.backward()

    def loss(queries, documents):
        both = Vectors(queries, present[0]), Vectors(documents, present[1])
        return contrastive_loss(*both, jnp.ones(N), 1.0, scoring=MAX_SIM).mean()

    found, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(*vectors)
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    theirs = [column.grad.numpy() for column in columns]
    np.testing.assert_allclose(gradients[0], theirs[0], atol=1e-5 * abs(theirs[0]).max())
    np.testing.assert_allclose(np.moveaxis(gradients[1], 1, 0), theirs[1:], atol=1e-5 * np.abs(theirs[1:]).max())


MORE = pytest.mark.parity_more


@pytest.mark.parametrize(
    "expand, attend", [(True, False), pytest.param(True, True, marks=MORE), pytest.param(False, False, marks=MORE)]
)
def test_vectors_of_tokens_in_pylates_layout_are_those_of_sentence_transformers(expand, attend, tmp_path):
    from sentence_transformers import MultiVectorEncoder

    served = Served(tmp_path, "bert", "masked_lm")
    words = [token for token in served.tokenizer.get_vocab() if token.isalpha() and len(token) > 2][:2]
    texts = [f" {text[:150]}, and." for text in TEXTS[:8]]  # a space, because there the marker is text
    prompts = {"query": " ask that", "document": " read this"} if attend else {}  # there, a marker begins a prompt
    pooling = TokenVectors(16, *words, 24, expand, attend, max_length=40, prompts=prompts)
    start = load_for_task(served.directories["theirs"], "token_vectors", (), None, "auto", None, pooling)
    bert_jax.save(dataclasses.replace(start.model, params=start.params(0), pooling=pooling), tmp_path / "saved")
    theirs = MultiVectorEncoder(str(tmp_path / "saved"), device="cpu")
    ours = bert_jax.MultiVector(bert_jax.load(tmp_path / "saved"))
    assert ours.pooling == pooling
    with warnings.catch_warnings(action="ignore"):  # some texts are cut
        found = ours.queries(texts), ours.documents(texts)
    expected = [list(encode(texts, convert_to_numpy=True)) for encode in (theirs.encode_query, theirs.encode_document)]
    for here, there in zip(found, expected, strict=True):
        assert [x.shape for x in here] == [x.shape for x in there]
        np.testing.assert_allclose(np.concatenate(here), np.concatenate(there), atol=1e-5, rtol=0)
    theirs.save(str(tmp_path / "native"))
    again = bert_jax.MultiVector(bert_jax.load(tmp_path / "native"))
    with warnings.catch_warnings(action="ignore"):
        for here, there in zip((again.queries(texts[:2]), again.documents(texts[:2])), expected, strict=True):
            np.testing.assert_allclose(np.concatenate(here), np.concatenate(there[:2]), atol=1e-5, rtol=0)
    scores = theirs.similarity(*([as_tensor(x) for x in side] for side in expected)).numpy()
    np.testing.assert_allclose(ours.scores(*found), scores, atol=1e-4, rtol=0)


def as_tensor(x):
    import torch

    return torch.tensor(np.asarray(x))
