"""Classifier: classes, several labels, and values."""

import dataclasses

import numpy as np
import pytest
from inference_models import SHORT, alone, close, model_of, run

from bert_jax.config import InputError
from bert_jax.inference import Classifier


def test_classes_are_named_with_their_probabilities(classifier, tokenizer):
    found = classifier(SHORT[:4])
    for text, c in zip(SHORT, found, strict=False):
        (ids,) = tokenizer.encode_batch([text])
        row = alone([tokenizer.cls_id, *ids, tokenizer.sep_id])
        logits = run(classifier.model, row)["logits"][0]
        shares = np.exp(logits) / np.exp(logits).sum()
        assert list(c.scores) == ["no", "maybe", "yes"]
        np.testing.assert_allclose(list(c.scores.values()), shares, atol=1e-5)
        assert c.label == ["no", "maybe", "yes"][shares.argmax()]
        assert c.labels == (c.label,)
        assert c.score == c.scores[c.label]


@pytest.mark.parametrize(
    "labels, told", [(("a", "b", "a"), ("a (0)", "b", "a (2)")), (("a", "a", "a (0)"), ("a (0)", "a (1)", "a (0) (2)"))]
)
def test_classes_of_one_name_are_told_apart(tokenizer, labels, told):
    classify = Classifier(model_of(tokenizer, "sequence_classification", labels))
    assert classify.labels == told
    assert sum(classify(["one"])[0].scores.values()) == pytest.approx(1)


def test_pairs_and_texts_may_be_mixed_and_are_not_the_same(classifier):
    a, b = SHORT[:2]
    mixed = classifier([a, (a, b), [a, b], (b, a), b])
    close(mixed[1], mixed[2])
    close([mixed[0], mixed[4]], classifier([a, b]))
    assert abs(mixed[1].score - mixed[3].score) > 1e-4


@pytest.mark.parametrize("wrong", [("a",), ("a", "b", "c"), ()])
def test_what_is_no_pair_is_refused_with_its_index(classifier, wrong):
    with pytest.raises(InputError, match=r"texts\[1\].*two texts"):
        classifier(["a", wrong])


def test_a_pair_counts_once_where_an_index_is_said(classifier):
    with pytest.raises(InputError, match=r"texts\[3\]"):
        classifier([("a", "b"), ("a", "b"), "c", 5])
    with pytest.raises(InputError, match=r"texts\[1\]"):
        classifier([("a", "b"), ("a", 5)])


def test_several_labels_are_those_that_reach_the_threshold(classifier):
    model = dataclasses.replace(classifier.model, problem_type="multi_label_classification")
    middle = float(np.median([c.scores["maybe"] for c in Classifier(model)(SHORT)]))
    found = Classifier(model, threshold=middle)(SHORT)
    assert all(c.labels == tuple(name for name, score in c.scores.items() if score >= middle) for c in found)
    assert len({len(c.labels) for c in found}) > 1
    assert any(abs(sum(c.scores.values()) - 1) > 0.1 for c in found)  # each stands for itself
    assert all(c.labels == () for c in Classifier(model, threshold=1.1)(SHORT[:3]))


def test_a_regressor_gives_its_value(tokenizer):
    model = model_of(tokenizer, "sequence_classification", ("LABEL_0",), problem_type="regression")
    (found,) = Classifier(model)([SHORT[0]])
    (ids,) = tokenizer.encode_batch([SHORT[0]])
    row = alone([tokenizer.cls_id, *ids, tokenizer.sep_id])
    value = float(run(model, row)["logits"][0, 0])
    assert (found.label, found.labels) == ("LABEL_0", ("LABEL_0",))
    assert abs(found.score - value) < 1e-5
    assert found.score == found.scores["LABEL_0"]


@pytest.mark.parametrize("head", ["next_sentence", "pretraining"])
def test_next_sentences_are_classes_of_pairs(tokenizer, head):
    (found,) = Classifier(model_of(tokenizer, head))([(SHORT[0], SHORT[1])])
    assert list(found.scores) == ["is_next", "random"]
    assert abs(sum(found.scores.values()) - 1) < 1e-5
