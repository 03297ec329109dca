"""Predictors with the configs and tokenizers of real models."""

import dataclasses

import jax
import numpy as np
import pytest
from inference_models import NAMES, SHORT, TINY, alone, encoded, model_of, params_of

from bert_jax.config import ComputeConfig, InputError
from bert_jax.inference import Classifier, Embedder, FillMask
from bert_jax.pooling import Dense, Pooling
from bert_jax.pretrained import Model


def test_rows_of_a_vocabulary_that_stand_for_no_token_are_never_filled_in(tokenizer):
    cfg = TINY.replace(vocab_size=300)
    params = params_of(cfg, "masked_lm")
    params["masked_lm"]["bias"][tokenizer.vocab_size :] = 100
    predict = FillMask(Model(cfg, params, tokenizer), top_k=tokenizer.vocab_size)
    (fillings,) = predict(["bako [MASK] tine"])
    assert len(fillings) == tokenizer.vocab_size
    assert sum(filling.score for filling in fillings) < 1e-6  # nearly all of the probability lies with them


def test_rows_longer_than_the_position_table_are_refused(embedder):
    model = embedder.model
    with pytest.raises(InputError, match="input_ids has 97 tokens per row; this model takes at most 96"):
        model.encode(model.params, np.ones((1, 97), np.int32))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def value(tokenizer):
    """A model with one value, and that value of one text."""
    model = model_of(tokenizer, "sequence_classification", ("LABEL_0",))
    head = {"kernel": model.params["sequence_classifier"]["kernel"], "bias": np.ones(1, np.float32)}
    model = dataclasses.replace(model, params=model.params | {"sequence_classifier": head})
    (logit,) = Classifier(dataclasses.replace(model, problem_type="regression"))(["bako tine"])
    assert abs(logit.score) > 0.5
    return model, logit.score


@pytest.mark.parametrize(
    "activation, problem_type, expected",
    [
        ("torch.nn.Identity", None, lambda x: x),
        ("Sigmoid", None, sigmoid),
        ("torch.nn.modules.activation.Tanh", None, np.tanh),
        ("torch.nn.modules.activation.Tanh", "regression", np.tanh),
        (None, None, sigmoid),
        (None, "single_label_classification", sigmoid),
        (None, "multi_label_classification", sigmoid),
    ],
)
def test_one_value_is_put_through_its_activation_or_without_one_a_sigmoid(value, activation, problem_type, expected):
    model, logit = value
    classifier = Classifier(dataclasses.replace(model, activation=activation, problem_type=problem_type))
    (found,) = classifier(["bako tine"])
    assert found.score == pytest.approx(expected(logit), abs=1e-5)
    assert found.scores == {"LABEL_0": found.score}


def test_a_value_without_a_name_is_one_value(value):
    model, logit = value
    (found,) = Classifier(dataclasses.replace(model, labels=()))(["bako tine"])
    assert found.scores == {"LABEL_0": pytest.approx(sigmoid(logit), abs=1e-5)}


def test_an_activation_of_several_classes_says_what_they_are(classifier):
    def scores(activation, problem_type=None):
        return Classifier(dataclasses.replace(classifier.model, activation=activation, problem_type=problem_type))(SHORT[:2])

    assert scores("torch.nn.Identity") == classifier(SHORT[:2])  # probabilities, where CrossEncoder has logits
    assert scores("torch.nn.Sigmoid") == scores(None, "multi_label_classification")
    assert scores("torch.nn.Sigmoid", "single_label_classification") == classifier(SHORT[:2])
    with pytest.raises(InputError, match=r"the activation 'torch\.nn\.Tanh' of 3 labels is not supported"):
        scores("torch.nn.Tanh")


@pytest.mark.parametrize("activation", ["torch.nn.modules.activation.Softplus", "mine.Tanh", 3])
def test_an_activation_that_is_not_known_is_refused(value, activation):
    with pytest.raises(InputError, match=f"sentence-transformers files: the activation {activation!r} is not supported; known"):
        Classifier(dataclasses.replace(value[0], activation=activation))


def test_a_head_whose_files_could_not_be_followed_predicts_nothing(value):
    with pytest.raises(InputError, match="LogitScore modules are not supported; for scores of the head alone"):
        Classifier(dataclasses.replace(value[0], pooling="LogitScore modules are not supported"))


@pytest.fixture(scope="module")
def hidden_of(embedder):
    """text -> its hidden states [n, D], by the model alone."""
    model, layout = embedder.model, embedder._layout
    encode = encoded(model)

    def states(text):
        (example,), _ = layout.examples([text])
        return jax.device_get(encode(model.params, **alone(example.input_ids)))[0, : len(example.input_ids)]

    return states


def by_mode(states, skipped=0):
    rest, places = states[skipped:], np.arange(1, len(states) + 1)[skipped:, None]
    return {
        "cls": rest[0], "max": rest.max(axis=0), "mean": rest.mean(axis=0), "lasttoken": rest[-1],
        "mean_sqrt_len_tokens": rest.sum(axis=0) / len(rest) ** 0.5, "weightedmean": (rest * places).sum(axis=0) / places.sum(),
    }  # fmt: skip


ALL = ("lasttoken", "cls", "max", "mean", "weightedmean", "mean_sqrt_len_tokens")


def test_several_modes_stand_side_by_side(embedder, hidden_of):
    found = Embedder(embedder.model, Pooling(ALL, normalize=False))(SHORT[:4])
    for text, vector in zip(SHORT, found, strict=False):
        states = by_mode(hidden_of(text))
        np.testing.assert_allclose(vector, np.concatenate([states[mode] for mode in ALL]), atol=1e-5)


def test_tokens_of_the_prompt_are_left_out_where_the_pooling_says(embedder, hidden_of):
    prompts = {"query": "bako tine: ", "none": ""}
    embed = Embedder(embedder.model, Pooling(ALL, normalize=False, prompts=prompts, include_prompt=False))
    (prompt,) = embedder.tokenizer.encode_batch(["bako tine: "])
    assert len(prompt) > 2
    found, plain = embed(SHORT[:4], prompt_name="query"), embed(SHORT[:4], prompt_name="none")
    for text, vector, whole in zip(SHORT, found, plain, strict=False):
        states = by_mode(hidden_of(f"bako tine: {text}"), skipped=1 + len(prompt))
        np.testing.assert_allclose(vector, np.concatenate([states[mode] for mode in ALL]), atol=1e-5)
        states = by_mode(hidden_of(text))
        np.testing.assert_allclose(whole, np.concatenate([states[mode] for mode in ALL]), atol=1e-5)


def test_dense_layers_then_the_length_then_the_cut(embedder, hidden_of):
    rng = np.random.default_rng(0)
    first = Dense(rng.standard_normal((64, 24), np.float32), rng.standard_normal(24, np.float32))
    second = Dense(rng.standard_normal((24, 12), np.float32), activation="Identity")
    pooling = Pooling(("mean", "cls"), True, dense=(first, second), truncate_dim=5)
    found = Embedder(embedder.model, pooling)(SHORT[:4])
    for text, vector in zip(SHORT, found, strict=False):
        states = by_mode(hidden_of(text))
        x = np.tanh(np.concatenate([states["mean"], states["cls"]]) @ first.kernel + first.bias) @ second.kernel
        np.testing.assert_allclose(vector, (x / np.linalg.norm(x))[:5], atol=1e-5)
    assert Embedder(embedder.model, pooling)([]).shape == (0, 5)
    with pytest.raises(InputError, match=r"dense\[0\] takes 64 values, and 32 come before it"):
        Embedder(embedder.model, dataclasses.replace(pooling, mode="mean"))


def test_a_prompt_by_name_stands_before_each_text(embedder):
    named = Embedder(embedder.model, Pooling(prompts={"query": "bako "}, prompt="tine "))
    np.testing.assert_allclose(named(["rodusi"], prompt_name="query"), embedder(["bako rodusi"]), atol=1e-5)
    np.testing.assert_allclose(named(["rodusi"]), embedder(["tine rodusi"]), atol=1e-5)
    with pytest.raises(InputError, match="no prompt 'document'; the model's prompts: 'query'"):
        named(["rodusi"], prompt_name="document")


def test_a_prompt_stands_before_each_text(embedder):
    prompted = Embedder(embedder.model, Pooling(prompt="bako "))
    np.testing.assert_allclose(prompted(["tine"]), embedder(["bako tine"]), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_gives_nearly_the_same(request, name):
    predictor = request.getfixturevalue(name)
    half = type(predictor)(dataclasses.replace(predictor.model, compute=ComputeConfig(dtype="bfloat16")))
    for key, values in half.run(half._encode(SHORT[:3]))[0].items():
        assert values.dtype in (np.float32, np.int32), key
    if name == "embedder":
        np.testing.assert_allclose(half(SHORT), predictor(SHORT), atol=0.05)
