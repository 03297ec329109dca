"""Embedder: the vectors of texts."""

import dataclasses

import jax
import numpy as np
import pytest
from inference_models import SHORT, TEXTS, alone, close, encoded

from bert_jax.config import InputError
from bert_jax.inference import Embedder
from bert_jax.pooling import Pooling


def pooled(model, text, mode, normalize, limit):
    """NumPy on the hidden states of `encode`."""
    t = model.tokenizer
    (ids,) = t.encode_batch([text])
    row = alone([t.cls_id, *ids[: limit - 2], t.sep_id])
    hidden = jax.device_get(encoded(model)(model.params, **row))[0, : row["attention_mask"].sum()]
    vector = {"cls": hidden[0], "mean": hidden.mean(axis=0), "max": hidden.max(axis=0)}[mode]
    return vector / np.linalg.norm(vector) if normalize else vector


@pytest.mark.parametrize(
    ("mode", "normalize"),
    [  # a length of 1 comes after the pooling, whatever that is
        ("cls", True), ("mean", False), ("max", True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("cls", False), ("mean", True), ("max", False))),
    ],
)  # fmt: skip
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
