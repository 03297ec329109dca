"""Embedder: vectors, and the nearest of them."""

import dataclasses

import jax
import numpy as np
import pytest
from inference_models import SHORT, TEXTS, alone, close

from bert_jax.config import InputError
from bert_jax.inference import Embedder, nearest
from bert_jax.pooling import Pooling


def pooled(model, text, mode, normalize, limit):
    """NumPy on the hidden states of `encode`."""
    t = model.tokenizer
    (ids,) = t.encode_batch([text])
    row = alone([t.cls_id, *ids[: limit - 2], t.sep_id])
    hidden = jax.device_get(jax.jit(model.encode)(model.params, **row))[0, : row["attention_mask"].sum()]
    vector = {"cls": hidden[0], "mean": hidden.mean(axis=0), "max": hidden.max(axis=0)}[mode]
    return vector / np.linalg.norm(vector) if normalize else vector


@pytest.mark.parametrize("mode", ["cls", "mean", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings_are_the_hidden_states_pooled(embedder, mode, normalize):
    texts = ["", "bako", SHORT[0], SHORT[1], "tine bako"]
    found = Embedder(embedder.model, Pooling(mode, normalize))(texts)
    assert found.dtype == np.float32
    expected = [pooled(embedder.model, text, mode, normalize, 96) for text in texts]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_texts_are_cut_where_the_pooling_says(embedder):
    pooling = Pooling("mean", False, max_length=16)
    with pytest.warns(UserWarning, match="1 of 2 texts have more than 16 tokens"):
        found = Embedder(embedder.model, pooling)([TEXTS[4], "bako"])
    np.testing.assert_allclose(found[0], pooled(embedder.model, TEXTS[4], "mean", False, 16), atol=1e-5)
    with pytest.warns(UserWarning, match="1 of 1 texts have more than 96 tokens"):
        Embedder(embedder.model, Pooling(max_length=10**30))([TEXTS[4] * 20])


def test_the_pooling_of_the_model_counts_unless_another_is_given(embedder):
    model = dataclasses.replace(embedder.model, pooling=Pooling("cls", False))
    assert Embedder(model).pooling == Pooling("cls", False)
    assert Embedder(model, Pooling("max")).pooling == Pooling("max")
    assert embedder.pooling == Pooling("mean", True)


def test_texts_are_lowercased_where_the_pooling_says(embedder):
    lower = Embedder(embedder.model, Pooling(lowercase=True))
    close(lower(["ÀBAKO 🙂 Tine"]), lower(["àbako 🙂 tine"]))
    with pytest.raises(InputError, match=r"texts\[1\]"):
        lower(["A", 5])


@pytest.mark.parametrize("top_k", [1, 3, 10, 50, 80])
def test_the_nearest_are_those_of_brute_force_and_ties_go_by_index(top_k):
    rng = np.random.default_rng(top_k)
    queries, corpus = rng.integers(-2, 3, (7, 4)).astype(np.float32), rng.integers(-2, 3, (50, 4)).astype(np.float32)
    scores, indices = nearest(queries, corpus, top_k)
    assert (scores.dtype, indices.dtype, scores.shape) == (np.float32, np.int64, (7, min(top_k, 50)))
    for query, some, best in zip(queries, scores, indices, strict=True):
        products = corpus @ query
        expected = sorted(range(50), key=lambda i: (-products[i], i))[:top_k]
        assert best.tolist() == expected
        np.testing.assert_array_equal(some, products[expected])


def test_all_equal_vectors_are_given_in_order():
    _, indices = nearest(np.ones((2, 3), np.float32), np.ones((1000, 3), np.float32), 4)
    assert indices.tolist() == [[0, 1, 2, 3]] * 2


def test_nearest_takes_one_query_none_and_an_empty_corpus():
    corpus = np.eye(3, dtype=np.float32)
    assert nearest(corpus[1], corpus, 1)[1].tolist() == [[1]]
    assert nearest(corpus[:0], corpus, 2)[1].shape == (0, 2)
    assert nearest(corpus, corpus[:0], 2)[1].shape == (3, 0)


def test_nearest_computes_in_floats_whatever_it_is_given():
    corpus = np.array([[100, 100], [1, 1]], np.int8)
    scores, indices = nearest(corpus, corpus, 1)
    assert indices.tolist() == [[0], [0]]
    assert scores.tolist() == [[20000], [200]]


def test_vectors_of_two_models_and_no_neighbours_are_refused():
    with pytest.raises(InputError, match="queries have 3 dimensions, the corpus 4"):
        nearest(np.ones((2, 3)), np.ones((5, 4)))
    with pytest.raises(InputError, match="top_k=0"):
        nearest(np.ones((2, 3)), np.ones((5, 3)), 0)


def test_vectors_that_are_no_numbers_come_last():
    corpus = np.array([[np.nan], [1], [3], [2], [np.nan]], np.float32)
    assert nearest(np.ones((1, 1)), corpus, 3)[1].tolist() == [[2, 3, 1]]
    assert nearest(np.ones((1, 1)), corpus, 4)[1].tolist()[0][:3] == [2, 3, 1]
