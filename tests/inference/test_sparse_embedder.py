"""SparseEmbedder beside its definition, written out text by text."""

import dataclasses

import jax
import numpy as np
import pytest
from inference_models import SHORT, TINY, model_of

import bert_jax
from bert_jax import InputError, Pooling, SparseEmbedder, SparsePooling
from bert_jax.data.layout import Layout
from bert_jax.pooling import TokenWeights


def by_hand(model, texts):
    """The weights [N, V], from the logits of each text alone."""
    rows, apply = [], jax.jit(model.apply)
    for example in Layout(model.tokenizer, model.config).examples(texts)[0]:
        ids = np.zeros((1, 64), np.int32)  # of one shape, which is compiled once
        ids[0, : len(example.input_ids)] = example.input_ids
        mask = np.int32(np.arange(64)[None] < len(example.input_ids))
        logits = apply(model.params, {"input_ids": ids, "attention_mask": mask})["masked_lm_logits"][0, : mask.sum()]
        rows.append(np.log1p(np.maximum(np.asarray(logits), 0)).max(axis=0))
    return np.array(rows)


def test_a_row_has_the_largest_weight_of_each_token_whatever_is_packed_beside_it(tokenizer):
    model = model_of(tokenizer, "masked_lm")
    model = dataclasses.replace(model, pooling=SparsePooling(prompts={"query": SHORT[0] + " "}))
    embed, texts = SparseEmbedder(model), [text for text in SHORT if len(text) < 60][:6]
    rows, expected = embed(texts), by_hand(model, texts)
    assert rows.shape == (6, TINY.vocab_size)
    np.testing.assert_allclose(rows.toarray(), expected, atol=1e-5)
    assert rows.nnz == (expected > 0).sum() < expected.size
    np.testing.assert_allclose((rows[:2] @ rows.T).toarray(), expected[:2] @ expected.T, rtol=1e-5)
    words = embed.words(rows[[1]], top_k=3)[0]
    assert [*words] == tokenizer.tokens(np.argsort(-expected[1])[:3])
    assert [*words.values()] == pytest.approx(np.sort(expected[1])[:-4:-1].tolist(), abs=1e-5)
    prompted = embed(texts[:1], prompt_name="query").toarray()
    np.testing.assert_array_equal(prompted, embed([f"{SHORT[0]} {texts[0]}"]).toarray())
    assert embed([]).shape == (0, TINY.vocab_size)
    np.testing.assert_array_equal(embed.documents(texts[:1], "query").toarray(), prompted)
    embed.pooling = SparsePooling(prompts={"passage": SHORT[0] + " ", "query": ""})
    np.testing.assert_array_equal(embed.documents(texts[:1]).toarray(), prompted)


def test_weights_of_queries_are_looked_up_once_for_each_token_without_the_encoder(tokenizer):
    values = np.random.default_rng(0).standard_normal(TINY.vocab_size).astype(np.float32)
    values[::3] = 0
    pooling = SparsePooling(24, prompts={"query": SHORT[0] + " "}, query_weights=TokenWeights(values))
    model = dataclasses.replace(model_of(tokenizer, "masked_lm"), params={}, pooling=pooling)  # nothing to encode by
    embed, texts = SparseEmbedder(model), [SHORT[1], "", f"{SHORT[2]} {SHORT[2]}"]
    with pytest.warns(UserWarning, match="texts have more than 24 tokens"):
        rows = embed.queries(texts)
    expected = np.zeros((3, TINY.vocab_size), np.float32)
    room = 24 - len(tokenizer.single)
    for row, ids in zip(expected, tokenizer.encode_batch([f"{SHORT[0]} {text}" for text in texts]), strict=True):
        row[ids[:room]] = values[ids[:room]]
    np.testing.assert_array_equal(rows.toarray(), expected)
    assert rows.nnz == np.count_nonzero(expected)
    assert rows.has_sorted_indices
    short = dataclasses.replace(model, pooling=SparsePooling(query_weights=TokenWeights(values[1:])))
    with pytest.raises(InputError, match="query_weights has 279 tokens, but the vocabulary of the model 280"):
        SparseEmbedder(short)


def test_models_of_another_form_are_refused_by_name(tokenizer):
    with pytest.raises(InputError, match="needs a model with the head masked_lm or pretraining"):
        SparseEmbedder(model_of(tokenizer, "encoder"))
    model = model_of(tokenizer, "masked_lm", pooling=SparsePooling())
    with pytest.raises(InputError, match=r"this model has sparse embeddings; .* Embedder\(model, Pooling"):
        bert_jax.Embedder(model)
    assert bert_jax.Embedder(model, Pooling()).pooling == Pooling()
