"""What a cell of the label column stands for, in every form that files have it in."""

import dataclasses
import math

import pytest

from bert_jax.config import InputError
from bert_jax.data.files import ClassName
from bert_jax.data.records import Record
from bert_jax.tasks.classification import Indicators, by_place
from bert_jax.tasks.labels import LabelReader, look_alikes, without_minus_one
from bert_jax.tasks.spans import Spans
from bert_jax.tasks.table import find_task
from bert_jax.tasks.task import TaskData


def reader(task, **options):
    return LabelReader(find_task(task), TaskData(**options))


def read(task, value, **options):
    return reader(task, **options)(value, "a.csv:2")


def records(*labels):
    return [Record(("x",), label, str(i), f"a:{i}") for i, label in enumerate(labels)]


# ---- names


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", " 1.00 ", [1], "[1]", "['1']", '["1.0"]', "1."])
def test_a_number_is_one_class_however_it_is_written(value):
    assert read("classification", value) == "1"


@pytest.mark.parametrize(
    "value, name",
    [
        ("007", "007"), ("1.50", "1.5"), (1.5, "1.5"), ("-1.0", "-1"), ("-0.0", "0"), (-0.0, "0"), ("1.0.0", "1.0.0"),
        (True, "True"), ("[other]", "[other]"), ("(none)", "(none)"), ("(1)", "(1)"), ("{x}", "{x}"), ("[", "["),
        ("a, b", "a, b"), ("NONE", "NONE"), ("none", "none"), ("--", "--"), ("['pos']", "pos"), ('["pos"]', "pos"),
        ("{'pos'}", "pos"), (["pos"], "pos"), ("('pos',)", "pos"), ("['it\\'s']", "it's"), ('["\\u00e9"]', "é"),
        ("['pos', nan]", "pos"), (ClassName("None"), "None"),
    ],
)  # fmt: skip
def test_brackets_and_quotes_of_a_list_are_no_part_of_a_name(value, name):
    assert read("classification", value) == name


@pytest.mark.parametrize(
    "value", [["a", "b"], "['a', 'b']", '["a", "b"]', "{'a', 'b'}", "('a', 'b')", "['a' 'b']", "[a, b]", "[1, 1]"]
)
def test_several_names_are_not_one_class(value):
    with pytest.raises(InputError, match=r"a.csv:2: the label is .*; for several labels per row, --task multi_label"):
        read("classification", value)


@pytest.mark.parametrize(
    "value", ["['a'", "['a' ... 'b']", "{'a': 1}", [["a"]], "[['a']]", '[["a"]]', {"a": 1}, "['a\\x']", b"a"]
)
@pytest.mark.parametrize("task", ["classification", "multi_label"])
def test_what_is_neither_a_name_nor_a_list_of_names_is_refused(task, value):
    with pytest.raises(InputError, match=r"a.csv:2: the label is .*(cannot be read|objects in it|not a name)"):
        read(task, value)


@pytest.mark.parametrize("opening", ["[" * 50_000, "['" * 50_000, "[" + " " * 50_000, "['a\\" * 20_000, "{" + "a:" * 50_000])
def test_damaged_lists_take_no_time(opening):
    with pytest.raises(InputError, match="cannot be read"):
        read("multi_label", opening)


# ---- several names


@pytest.mark.parametrize(
    "value, expected",
    [
        (["b", "a", "b"], ("b", "a")), ("['toxic', 'obscene']", ("toxic", "obscene")), ('["toxic"]', ("toxic",)), ("[]", ()),
        ([], ()), ("{}", ()), ("", ()), ("{'a', 'b'}", ("a", "b")), ("{toxic,obscene}", ("toxic", "obscene")),
        ("[toxic, obscene]", ("toxic", "obscene")), ("[toxic]", ("toxic",)), ("['a' 'b'\n 'c']", ("a", "b", "c")),
        ("['toxic', nan, None]", ("toxic",)), (["toxic", None, math.nan], ("toxic",)), ("a,NA", ("a",)), ("b, a,", ("b", "a")),
        ("3.0", ("3",)), (3.0, ("3",)), ("['a, b']", ("a, b",)), ("[2, 0]", ("2", "0")), (["", "a"], ("a",)),
    ],
)  # fmt: skip
def test_several_labels_are_a_list_in_any_spelling_or_separated(value, expected):
    assert read("multi_label", value) == expected


@pytest.mark.parametrize("value", [[0.2, 0.8], "[0.2, 0.8]", 0.5])
def test_probabilities_are_no_labels(value):
    with pytest.raises(InputError, match=r"a.csv:2: the label is .*; a label is a name or a whole number"):
        read("multi_label", value)


@pytest.mark.parametrize(
    "value", [[1, 0, 1], [1.0, 0.0, 1.0], [True, False, True], "[1, 0, 1]", "[1 0 1]", "[1. 0. 1.]", "1,0,1"]
)
def test_a_list_of_0_and_1_is_kept_until_all_rows_are_seen(value):
    label = read("multi_label", value)
    assert isinstance(label, Indicators)
    (record,) = by_place({"train": records(label)})[0]["train"]
    assert record.label == ("0", "2")


def test_lists_of_0_and_1_say_which_classes_apply_where_all_are_of_one_length():
    each = Indicators(["1", "0", "1"]), Indicators(["0", "0", "0"]), ()
    found, classes = by_place({"train": records(*each), "test": records(None, each[0])})
    assert classes == ("0", "1", "2")
    assert [r.label for r in found["train"]] == [("0", "2"), (), ()]
    assert [r.label for r in found["test"]] == [None, ("0", "2")]
    with pytest.raises(InputError, match=r"a:0: the label is \['1'\], but training has lists of 3 values, 0 or 1"):
        by_place({"train": records(*each), "dev": records(("1",))})


def test_lists_of_0_and_1_of_a_test_set_alone_are_about_the_models_classes():
    labels = Indicators(["1", "0", "1"]), Indicators(["0", "1", "0"])
    found, classes = by_place({"test": records(*labels)}, ("toxic", "obscene", "threat"))
    assert classes == ("toxic", "obscene", "threat")
    assert [r.label for r in found["test"]] == [("toxic", "threat"), ("obscene",)]
    assert by_place({"test": records(*labels)}, ("0", "1"))[0]["test"][0].label == ("1", "0")


def test_lists_of_0_and_1_beside_other_lists_are_numbers_of_classes():
    found, classes = by_place({"train": records(Indicators(["1", "0"]), ("2",), Indicators(["1", "1"]))})
    assert classes == ()
    assert [r.label for r in found["train"]] == [("1", "0"), ("2",), ("1",)]


def test_columns_of_0_and_1_are_a_label_each():
    of = reader("multi_label")
    assert of.of_columns({"toxic": "1", "obscene": "0", "threat": "1.0"}, "p") == ("toxic", "threat")
    assert of.of_columns({"toxic": False, "obscene": True, "threat": 0.0}, "p") == ("obscene",)
    assert of.of_columns({"toxic": 0, "obscene": 0, "threat": "false"}, "p") == ()
    assert of.blank == 0
    assert [of.of_columns({"toxic": x, "obscene": 0}, "p") for x in (-1, "-1", "", None, "NA", math.nan)] == [None] * 6
    assert of.unlabelled == {"'-1'": 2, "empty": 3, "'NA'": 1}
    with pytest.raises(InputError, match=r"p: 'toxic' is 'x', but several label columns hold 0 or 1"):
        of.of_columns({"toxic": "x", "obscene": 0}, "p")


# ---- no label


MARKS = ["", " ", "-", "?", "nan", "NaN", "None", "null", "NULL", "NA", "N/A", "n/a", "<NA>", "#N/A", None, math.nan]


@pytest.mark.parametrize("value", MARKS)
@pytest.mark.parametrize("task", ["classification", "multi_label", "regression", "similarity", "multiple_choice", "sst2", "mnli"])
def test_a_mark_is_no_label_whatever_the_task(task, value):
    of = reader(task)
    if task == "multi_label" and value in ("", " "):
        assert of(value, "p") == ()
        assert (of.blank, of.unlabelled) == (1, {})
    else:
        assert of(value, "p") is None
        assert of.unlabelled.total() == 1


@pytest.mark.parametrize("value", ["[nan]", "['None']", [None], "[null]", [math.nan, "NA"]])
def test_a_list_of_marks_alone_is_no_label(value):
    assert read("classification", value) is None
    assert read("multi_label", value) is None


def test_marks_are_counted_as_they_are_written():
    of = reader("classification")
    for value in ("-", "-", "", None, math.nan, "NA", "x"):
        of(value, "p")
    assert of.unlabelled == {"'-'": 2, "empty": 3, "'NA'": 1}


def test_the_user_names_the_marks_and_then_others_are_classes():
    of = reader("classification", unlabelled_mark=("unknown", "-1"))
    assert [of(value, "p") for value in ("unknown", -1, "-1.0", "", None)] == [None] * 5
    assert [of(value, "p") for value in ("NA", "None", "-")] == ["NA", "None", "-"]
    of = reader("classification", unlabelled_mark=("",))
    assert [of(value, "p") for value in ("NA", "?", "")] == ["NA", "?", None]


def test_a_class_that_the_task_has_is_no_mark():
    task = dataclasses.replace(find_task("classification"), labels=("NA", "DE"))
    of = LabelReader(task, TaskData())
    assert [of(value, "p") for value in ("NA", "DE", "nan")] == ["NA", "DE", None]


def test_tags_are_compared_with_the_users_marks_alone():
    assert read("tagging", ["-", "NA"]) == ("-", "NA")
    assert read("tagging", "B-PER O") == ("B-PER", "O")
    assert read("tagging", "['B-PER' 'O']") == ("B-PER", "O")
    assert [read("tagging", value) for value in (None, "", [None, None])] == [None] * 3
    assert read("tagging", ["?", "?"], unlabelled_mark=("?",)) is None
    with pytest.raises(InputError, match=r"the label is \['O', None\], not a list of tags: word 1 has none"):
        read("tagging", ["O", None])
    with pytest.raises(InputError, match="the label is 3, not a list with an entry for each word"):
        read("tagging", 3)


@pytest.mark.parametrize(
    "value",
    [
        [[0, 4, "PER"], [14, 19, " LOC"]],
        '[[0, 4, "PER"], [14, 19, "LOC"]]',
        "[[0, 4, 'PER'], (14, 19, 'LOC')]",
        [{"start": 0, "end": 4, "label": "PER"}, {"start_offset": 14, "end_offset": 19, "type": "LOC", "id": 7}],
        [{"start": 0, "end": 4, "labels": ["PER"]}, {"value": {"start": 14, "end": 19, "labels": ["LOC"]}}],
    ],
)
def test_entities_may_be_given_by_characters(value):
    spans = read("tagging", value)
    assert isinstance(spans, Spans)
    assert spans == ((0, 4, "PER", None), (14, 19, "LOC", None))


def test_an_empty_list_is_no_entity_and_what_is_no_entity_is_named():
    assert [read("tagging", value) for value in ([], "[]")] == [Spans(), Spans()]
    assert read("tagging", [{"start": 0, "end": 1, "label": "X", "text": "a"}]) == ((0, 1, "X", "a"),)
    for bad in (
        [[0, "PER"]],
        [["PER", 0, 4]],
        [[0, 4, ""]],
        [[0, 4.5, "PER"]],
        [{"start": 0, "label": "X"}],
        [[0, 4, ["A", "B"]]],
    ):
        with pytest.raises(InputError, match=r"a.csv:2: the label has .*, not \[start, end, type\] or"):
            read("tagging", bad)


@pytest.mark.parametrize(
    "task, train, test, kept",
    [
        ("classification", ["0", "1", "-1"], ["-1", "1"], False),
        ("classification", ["0", "1", "2"], ["-1", "1"], False),
        ("classification", ["1", "-1"], ["-1", "1"], True),  # polarity
        ("classification", ["-2", "-1", "0", "1"], ["-1"], True),
        ("classification", ["a", "b", "-1"], ["-1"], True),
        ("classification", ["a", "b"], ["-1"], False),
        ("sst2", ["negative", "positive", "-1"], ["-1"], False),
        ("multi_label", [("0", "1"), ("2",), ("-1",)], [("-1",)], False),
        ("regression", [0.5, -2.0, -1.0], [-1.0], True),
        ("tagging", [("0", "1", "-1")], [("-1",)], True),
    ],
)  # fmt: skip
def test_minus_one_is_a_class_by_what_is_beside_it(task, train, test, kept):
    splits = {"train": records(*train), "test": records(*test)}
    found = without_minus_one(find_task(task), splits, given=False)
    for split, labels in (("train", train), ("test", test)):
        expected = [label if kept or label not in ("-1", ("-1",), -1.0) else None for label in labels]
        assert [r.label for r in found[split]] == expected
    assert without_minus_one(find_task(task), splits, given=True) == splits


def test_numbers_of_minus_one_are_hidden_in_a_test_set_alone():
    splits = {"train": records(0.5, 2.0), "dev": records(-1.0), "test": records(-1.0)}
    found = without_minus_one(find_task("regression"), splits, given=False)
    assert [found[split][0].label for split in ("dev", "test")] == [-1.0, None]


def test_names_that_look_alike_are_found():
    assert look_alikes(["Positive", "positive", "neg", "e\u0301", "\u00e9", "a  b", "a b"]) == [
        ["Positive", "positive"], ["a  b", "a b"], ["e\u0301", "\u00e9"],
    ]  # fmt: skip
