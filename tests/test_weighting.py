"""Weights of classes, from their frequency or a file."""

import json

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from bert_jax.config import InputError
from bert_jax.data.records import Record
from bert_jax.finetuning.weighting import class_weights
from bert_jax.tasks.table import KINDS


def records(*labels):
    return [Record(("a",), label, str(i), "") for i, label in enumerate(labels)]


def test_balanced_weights_of_classes_are_scikit_learns():
    labels = ["a", "b", "b", "b", "c", "c"]
    found = class_weights("balanced", KINDS["classification"], ("a", "b", "c"), records(*labels))
    assert found == pytest.approx({"a": 2.0, "b": 2 / 3, "c": 1.0})
    theirs = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=labels)
    assert list(found.values()) == pytest.approx(theirs.tolist())
    assert class_weights("balanced", KINDS["classification"], ("a", "b", "none"), records("a", "b"))["none"] == 1.0


def test_balanced_weights_of_tags_are_by_word_and_of_labels_by_text():
    tags = records(("O", "O", "B-X"), ("O",))
    assert class_weights("balanced", KINDS["tagging"], ("O", "B-X"), tags) == {
        "O": 2 / 3,
        "B-X": 2.0,
    }
    several = records(("a",), ("a", "b"), ("a",), ())
    assert class_weights("balanced", KINDS["multi_label"], ("a", "b", "c"), several) == {"a": 1 / 3, "b": 3.0, "c": 1.0}
    assert class_weights("balanced", KINDS["multi_label"], ("a",), records(("a",)))["a"] == 1.0  # all have it


def test_weights_in_a_file_are_those_of_the_classes_that_it_names(tmp_path):
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"b": 2, "a": 0.5}))
    assert class_weights(str(path), KINDS["classification"], ("a", "b", "c"), []) == {"a": 0.5, "b": 2.0, "c": 1.0}


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file or directory; give `balanced`, or a JSON file of weights"),
        ("{", "not JSON"),
        ("[1, 2]", r"a list, not an object such as \{\"good\": 2.5\}"),
        ('{"god": 2}', "'god' is not among the classes good, bad; did you mean 'good'"),
        ('{"good": 0}', "the weight of 'good' is 0, not a number above 0"),
        ('{"good": "2"}', "the weight of 'good' is '2', not a number above 0"),
        ('{"good": NaN}', "the weight of 'good' is nan, not a number above 0"),
        ('{"good": true}', "the weight of 'good' is True, not a number above 0"),
    ],
)
def test_a_file_of_no_use_is_refused_with_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "weights.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"--class-weights {path}: {message}"):
        class_weights(str(path), KINDS["classification"], ("good", "bad"), [])
