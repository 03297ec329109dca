"""What fine-tuning leaves beside weights, in the files that transformers reads too."""

import json

import pytest

from bert_jax.config import InputError
from bert_jax.tuned import Tuned, read_tuned


def read(folder, said, length=None, num_labels=2):
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
    return read_tuned(folder, {"bert_jax": said}, num_labels)


def test_what_is_written_is_read(tmp_path):
    several = Tuned("multi_label", 8, None, (0.25, 1.0))
    learnt = Tuned("retrieval", temperature=0.03)
    for tuned in (Tuned("squad2", 64, -1.5), Tuned("squad2", null_threshold=0.0), several, learnt, Tuned()):
        assert read(tmp_path, tuned.in_config(), tuned.max_length) == tuned
    assert Tuned(max_length=8).in_config() == {}


def test_a_directory_that_says_nothing_has_nothing(tmp_path):
    assert read_tuned(tmp_path, {}, 2) == Tuned()


@pytest.mark.parametrize("length", [None, 10**30, 1e30, "128", True, 2, -1, 0])
def test_a_length_that_is_none_does_not_count(tmp_path, length):
    assert read(tmp_path, None, length).max_length is None


def test_thresholds_of_another_heads_classes_are_left_out(tmp_path):
    assert read(tmp_path, {"label_thresholds": [0.1, 0.2]}, num_labels=None).label_thresholds == ()


@pytest.mark.parametrize(
    "said, message",
    [
        ([1], r"bert_jax is a list, not an object"),
        ({"task": 3}, "task is 3, not a name"),
        ({"null_threshold": "0"}, "null_threshold is '0', not a number"),
        ({"null_threshold": float("nan")}, "null_threshold is nan, not a number"),
        ({"label_thresholds": [0.5]}, "1 label_thresholds for 2 classes; give one for each"),
        ({"label_thresholds": [0.5, 2]}, r"label_thresholds is \[0.5, 2\], not a list of probabilities"),
        ({"label_thresholds": {"a": 0.5}}, "not a list of probabilities"),
        ({"temperature": 0}, "temperature is 0, not a positive number"),
    ],
)
def test_a_value_of_no_use_is_refused_by_name(tmp_path, said, message):
    with pytest.raises(InputError, match=rf"config\.json: .*{message}"):
        read(tmp_path, said)
