"""MultiVector beside its definition: markers, expansion of queries, tokens that do not count."""

import dataclasses

import jax
import numpy as np
import pytest
from inference_models import SHORT, TINY, params_of

from bert_jax import InputError, MultiVector, TokenVectors
from bert_jax.data.layout import Layout
from bert_jax.pretrained import Model

WIDTH, LENGTH = 16, 20


@pytest.fixture(scope="module")
def embed(tokenizer):
    vocabulary = tokenizer.vocabulary()
    first, second, skipped = [token for token in vocabulary if token.startswith("▁") and len(token) > 1][:3]
    pooling = TokenVectors(WIDTH, first, second, LENGTH, skipped=(skipped, "no token of it"))
    return MultiVector(Model(TINY, params_of(TINY, "token_vectors", WIDTH), tokenizer, "token_vectors", pooling=pooling))


@pytest.fixture(scope="module")
def vectors_of(embed):
    """Returns the vectors of all tokens of a text by itself, in a row that is padded, so that one shape is compiled."""
    apply = jax.jit(embed.model.apply)

    def vectors(ids):
        batch = {name: np.zeros((1, 64), np.int32) for name in ("input_ids", "attention_mask")}
        batch["input_ids"][0, : len(ids)], batch["attention_mask"][0, : len(ids)] = ids, 1
        return unit(np.asarray(apply(embed.model.params, batch)["token_vectors"][0, : len(ids)]))

    return vectors


def unit(found):
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def test_markers_follow_the_first_token_and_skipped_tokens_of_documents_have_no_vector(embed, vectors_of, tokenizer):
    vocabulary, pooling = tokenizer.vocabulary(), embed.pooling
    texts = [f"{SHORT[0]} {pooling.skipped[0][1:]}", *SHORT[1:5]]
    plain = [example.input_ids.tolist() for example in Layout(tokenizer, TINY).examples(texts)[0]]
    for ids, found in zip(plain, embed.documents(texts), strict=True):
        ids.insert(1, vocabulary[pooling.document_marker])
        kept = np.array(ids) != vocabulary[pooling.skipped[0]]
        np.testing.assert_allclose(found, vectors_of(ids)[kept], atol=1e-5)
    assert vocabulary[pooling.skipped[0]] in plain[0]


def test_mask_tokens_fill_up_a_query_without_a_change_of_its_other_vectors(embed, vectors_of, tokenizer):
    """Attention of the mask tokens, to the query alone, is compared with sentence-transformers' in test_parity_forms.py."""
    text = " ".join(SHORT[0].split()[:2])
    (ids,) = (example.input_ids.tolist() for example in Layout(tokenizer, TINY).examples([text])[0])
    ids.insert(1, tokenizer.vocabulary()[embed.pooling.query_marker])
    alone, (found, _) = vectors_of(ids), embed.queries([text, text + " bako"])
    assert found.shape == (LENGTH, WIDTH)
    np.testing.assert_allclose(found[: len(ids)], alone, atol=1e-5)
    attended = dataclasses.replace(embed.model, pooling=embed.pooling.replace(attend_to_expansion=True))
    (seen,) = MultiVector(attended).queries([text])
    np.testing.assert_allclose(seen, vectors_of(ids + [tokenizer.mask_id] * (LENGTH - len(ids))), atol=1e-5)
    assert abs(seen[: len(ids)] - alone).max() > 1e-3
    documents = embed.documents(SHORT[:3])
    expected = [(found @ document.T).max(axis=1).sum() for document in documents]
    np.testing.assert_allclose(embed.scores([found], documents), [expected], rtol=1e-5)
    with pytest.warns(UserWarning, match="1 of 1 texts have more than 20 tokens"):
        assert embed.queries([SHORT[0] * 9])[0].shape == (LENGTH, WIDTH)


def test_documents_have_their_prompt_under_any_of_its_names(embed, monkeypatch):
    monkeypatch.setattr(MultiVector, "vectors", lambda self, examples, params=None, documents=False: examples)
    for name in ("document", "passage", "corpus"):
        model = dataclasses.replace(embed.model, pooling=embed.pooling.replace(prompts={name: f"{SHORT[0]} ", "other": ""}))
        found, plain = MultiVector(model).documents([SHORT[1]]), embed.documents([f"{SHORT[0]} {SHORT[1]}"])
        np.testing.assert_array_equal(found[0].input_ids, plain[0].input_ids)
        np.testing.assert_array_equal(MultiVector(model).documents([SHORT[1]], "other")[0].input_ids,
                                      embed.documents([SHORT[1]])[0].input_ids)  # fmt: skip


def test_a_marker_that_is_no_token_is_refused(embed):
    model = dataclasses.replace(embed.model, pooling=embed.pooling.replace(query_marker="[Q] "))
    with pytest.raises(InputError, match=r"the marker '\[Q\] ' is not a token of this tokenizer"):
        MultiVector(model)
