"""Columns of a task's files, and the labels in them. Every input is made here, in tmp_path."""

import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from task_files import TEXT_LABEL, fails, folder, jsonl, load, only, plain, tsv, write

from bert_jax.tasks.splits import load_splits
from bert_jax.tasks.table import find_task
from bert_jax.tasks.task import TaskData

# ---- which columns


@pytest.mark.parametrize("columns", [
    "text", "sentence", "Text", "sentence1 sentence2", "premise hypothesis", "question1 question2", "question sentence",
    "question answer",
])  # fmt: skip
def test_usual_columns_need_not_be_named(tmp_path, columns):
    rows = [{**dict.fromkeys(columns.split(), "x"), "label": label, "extra": "y"} for label in "ab"]
    splits = only(tmp_path, "classification", "a.jsonl", jsonl(*rows))
    assert splits.train[0].texts == ("x",) * len(columns.split())


def test_the_tasks_own_columns_go_before_the_usual_ones(tmp_path):
    rows = tsv(("text", "sentence", "label"), ("a", "b", 0), ("c", "d", 1))
    assert only(tmp_path, "sst2", "a.tsv", rows).train[0].texts == ("b",)


def test_columns_are_those_that_the_user_names(tmp_path):
    rows = [("id", "label", "text", "title", "topic"), ("n1", 5, "b", "a", "x"), ("n2", 6, "d", "c", "y")]
    splits = only(
        tmp_path, "classification", "a.tsv", tsv(*rows), text_column=("title", "text"), label_column="topic", id_column="id"
    )
    assert plain(splits.train) == [(("a", "b"), "x", "n1"), (("c", "d"), "y", "n2")]


@pytest.mark.parametrize("task, columns, options, message", [
    ("classification", "txet label", {}, "the text? It has txet, label: give --text-column NAME; did you mean 'txet'?"),
    ("classification", "text sentence label", {}, "which column is the text? It has text, sentence, label: give --text-column"),
    ("sst2", "review label", {}, "which column is the text? It has review, label (task sst2: sentence): give --text-column NAME"),
    ("classification", "text labels", {}, "the label? It has text, labels: give --label-column NAME; did you mean 'labels'"),
    ("classification", "text label", {"text_column": ("txt",)}, "no column 'txt' in its first line, it has text, label; did"),
    ("classification", "text label", {"label_column": "lable"}, "no column 'lable' in its first line, it has text"),
    ("classification", "a;b", {"text_column": ("a",)}, "no column 'a'; the first line seems to separate columns by ';'"),
    ("classification", "text label", {"id_column": "id"}, "no column 'id' in its first line, it has text, label (--id-column)"),
    ("classification", "a b c label", {"text_column": ("a", "b", "c")}, "a b c names 3 columns, but classification takes 1 or 2"),
    ("multiple_choice", "a b label", {"text_column": ("a", "b")}, "a b names 2 columns, but multiple_choice takes 3 or more"),
    ("multiple_choice", "a b label", {}, "which column is the text?"),
    ("swag", "sent1 ending0 ending1 ending2 ending3 label", {}, "no column 'sent2'"),
    ("similarity", "anchor positive negative label", {"label_column": "label"}, "--label-column label: three texts are"),
])  # fmt: skip
def test_columns_that_are_not_there_or_not_obvious_are_an_error_that_lists_them(tmp_path, task, columns, options, message):
    path = write(tmp_path / "a.tsv", tsv(columns.split(), [0] * len(columns.split())))
    fails(message, task, path, **options)


def test_a_column_may_be_named_as_the_file_writes_it_blanks_and_all(tmp_path):
    path = write(tmp_path / "a.csv", "Review Text , Stars\na,1\nb,2\n")
    for text, label in (("Review Text ", " Stars"), ("Review Text", "Stars")):
        splits = load("classification", path, dev=path, text_column=(text,), label_column=label)
        assert plain(splits.train) == [(("a",), "1", "0"), (("b",), "2", "1")]


def test_quotes_that_enclose_fields_of_a_tsv_are_told_of(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"She said ""no""."\t1\nyes\t0\n')
    splits = load("classification", path, dev=path)
    assert splits.train[0].texts == ('She said "no".',)
    note = f"train: double quotes enclose fields of {path}, and are taken off (--quotes none: they belong to the text)"
    assert note in splits.notes
    splits = load("classification", path, dev=path, quotes="none")
    assert splits.train[0].texts == ('"She said ""no""."',)
    assert note not in splits.notes


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_null_text_is_an_empty_one_and_empty_ones_are_kept_and_counted(tmp_path, name):
    rows = [{"a": text, "b": "x", "label": str(i % 2)} for i, text in enumerate(["t", None, "", " \n", "u"])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "made.parquet")
    data = jsonl(*rows).replace("null", "NaN") if name == "a.jsonl" else (tmp_path / "made.parquet").read_bytes()
    splits = only(tmp_path, "classification", name, data, text_column=("a", "b"))
    assert [record.texts for record in splits.train] == [("t", "x"), ("", "x"), ("", "x"), (" \n", "x"), ("u", "x")]
    places = ", ".join(record.place for record in splits.train[1:4])
    assert f"warning: train: 3 of 5 rows have an empty text: {places}" in splits.notes
    assert f"warning: dev: 3 of 5 rows have an empty text: {places}" in splits.notes


def test_a_column_of_nothing_and_a_row_without_the_column_are_errors(tmp_path):
    path = write(tmp_path / "a.csv", "text,title,label\na,,1\nb, ,0\n")
    fails("a.csv: 'title' is empty in all 2 rows: name another (--text-column)", "classification", path, text_column=("title",))
    assert load("classification", write(tmp_path / "b.csv", "text,label\na,1\nb,0\n"), dev=path, test=path).test["test"]
    path = write(tmp_path / "a.jsonl", jsonl({"text": "a", "label": 1}, {"txt": "b", "label": 0}))
    fails("a.jsonl:2: no 'text', it has txt, label", "classification", path)


def test_a_test_file_may_lack_the_label_column_and_no_other_is_taken_for_it(tmp_path):
    train = write(tmp_path / "a.csv", "text,topic,label\na,x,1\nb,y,2\n")
    test = write(tmp_path / "test.csv", "text,label\nc,1\n")
    splits = load("classification", train, dev=train, test=test, label_column="topic")
    assert plain(splits.test["test"]) == [(("c",), None, "0")]


def test_ids_that_the_user_names_must_differ(tmp_path):
    path = write(tmp_path / "a.csv", "text,label,id\na,x,1\nb,y,2\nc,y,1\n")
    fails(f"a.csv:4: {path}:2 also has the id '1'", "classification", path, id_column="id")


@pytest.mark.parametrize("value, shown", [(True, "True"), (5, "5"), (["x"], "['x']")])
def test_a_text_that_is_none_is_named(tmp_path, value, shown):
    path = write(tmp_path / "a.jsonl", jsonl({"text": "a", "label": 0}, {"text": value, "label": 1}))
    fails(f"a.jsonl:2: 'text' is {shown}, not a text", "classification", path)
    path = write(tmp_path / "a.jsonl", '{"text": "\\ud800", "label": 1}\n')
    fails("a.jsonl:1: 'text' has half a surrogate pair in it", "classification", path)


# ---- labels


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_whole_numbers_are_one_class_however_they_are_written_and_sort_as_numbers(tmp_path, name):
    rows = [{"text": "x", "label": 10}, {"text": "y", "label": 9.0}, {"text": "z", "label": 9}]
    if name == "a.parquet":
        pq.write_table(pa.table({"text": ["x", "y", "z"], "label": [10.0, 9.0, 9.0]}), tmp_path / "made.parquet")
    data = {"a.jsonl": jsonl(*rows), "a.csv": "text,label\nx,10\ny, 9\nz,9.0\n"}.get(name) or (
        tmp_path / "made.parquet"
    ).read_bytes()
    splits = only(tmp_path, "classification", name, data)
    assert [record.label for record in splits.train] == ["10", "9", "9"]
    assert splits.labels == ("9", "10")


def test_names_sort_by_spelling(tmp_path):
    splits = only(tmp_path, "classification", "a.csv", "text,label\nx,pos\ny,10\nz,9\n")
    assert splits.labels == ("10", "9", "pos")


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_label_that_training_does_not_have_is_named_with_its_place(tmp_path, split):
    train = write(tmp_path / "a.csv", "text,label\nx,positive\ny,negative\n")
    other = write(tmp_path / "b.csv", "text,label\nx,positive\ny,postive\n")
    fails("b.csv:3: label 'postive' is not among the classes of the training rows: negative, positive; did you mean 'positive'?",
          "classification", train, **{"dev": train, split: other})  # fmt: skip
    fails(
        "b.csv:3: label 'postive' is not among the classes of task sst2: negative, positive; did",
        "sst2",
        other,
        dev=train,
        text_column=("text",),
    )


def test_a_number_that_training_does_not_have_suggests_regression(tmp_path):
    train, other = write(tmp_path / "a.csv", "text,label\nx,1.5\ny,2\n"), write(tmp_path / "b.csv", "text,label\nx,3.7\n")
    message = (
        "b.csv:2: label '3.7' is not among the classes of the training rows: 1.5, 2; to predict numbers, give --task regression"
    )
    fails(message, "classification", train, dev=other)


def test_a_label_of_the_task_that_training_lacks_is_warned_of_and_one_class_alone_is_an_error(tmp_path):
    columns = ("sentence1", "sentence2", "gold_label")
    path = write(tmp_path / "a.tsv", tsv(columns, ("a", "b", "neutral"), ("c", "d", "entailment")))
    notes = load("mnli", path, dev=path).notes
    assert "labels: entailment 1, neutral 1, contradiction 0" in notes
    assert "warning: no training row has label 'contradiction'" in notes
    path = write(tmp_path / "a.tsv", tsv(columns, ("a", "b", "neutral"), ("c", "d", "neutral")))
    fails("the 2 training rows have no label but neutral, so there is nothing to learn", "mnli", path, dev=path)


def test_hidden_labels_of_a_test_set_are_minus_one_or_empty_unless_training_has_below_zero(tmp_path):
    for task, good in (("classification", [1, 0]), ("regression", [1.5, 0.5])):
        train = write(tmp_path / "a.csv", tsv(TEXT_LABEL, ("a", good[0]), ("b", good[1])).replace("\t", ","))
        test = write(tmp_path / "b.csv", f"text,label\nx,-1\ny,\nz,{good[0]}\n")
        known = str(good[0]) if task == "classification" else good[0]
        splits = load(task, train, dev=train, test=test)
        assert [record.label for record in splits.test["test"]] == [None, None, known]
        assert "test: has no labels" not in splits.notes
        write(tmp_path / "a.csv", f"text,label\na,{good[0]}\nb,-1\n")
        minus = "-1" if task == "classification" else -1.0
        assert [record.label for record in load(task, train, dev=train, test=test).test["test"]] == [minus, None, known]


def test_not_a_number_is_no_label(tmp_path):
    train = write(tmp_path / "a.jsonl", jsonl({"text": "a", "label": 1.0}, {"text": "b", "label": 0}))
    test = write(tmp_path / "b.jsonl", '{"text": "a", "label": NaN}\n{"text": "a", "label": 1}\n')
    assert [r.label for r in load("classification", train, dev=train, test=test).test["test"]] == [None, "1"]


def test_rows_without_a_label_are_left_out_of_training_and_dev_and_kept_to_be_predicted_in_test(tmp_path):
    rows = tsv(TEXT_LABEL, ("a", "x"), ("b", "-"), ("c", "y"), ("d", ""), ("e", "nan"), ("f", "x"), ("g", "-"))
    splits = load("classification", folder(tmp_path, train_tsv=rows, dev_tsv=rows, test_tsv=rows))
    assert splits.labels == ("x", "y")
    assert [r.id for r in splits.train] == [r.id for r in splits.dev["dev"]] == ["0", "2", "5"]
    assert [r.label for r in splits.test["test"]] == ["x", None, "y", None, None, "x", None]
    what = "4 of 7 rows have no label ('-' 2, empty 1, 'nan' 1)"
    train, dev = (", ".join(f"{tmp_path}/task/{name}.tsv:{line}" for line in (3, 5, 6)) for name in ("train", "dev"))
    fix = "if one of these is a class, name the marks that are not (--unlabelled-mark)"
    assert [note for note in splits.notes if "have no label" in note] == [
        f"warning: train: {what}: left out: {train}, ...; {fix}",
        f"warning: dev: {what}: left out: {dev}, ...; {fix}",
        f"test: {what}: predicted, not scored",
    ]
    splits = load("classification", tmp_path / "task", unlabelled_mark=("-",))
    assert splits.labels == ("nan", "x", "y")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_minus_one_beside_numbers_from_0_on_is_no_label_in_any_format(tmp_path, name):
    labels = [0, 1, -1, 1, 0, -1]
    pq.write_table(pa.table({"text": list("abcdef"), "label": labels}), tmp_path / "made.parquet")
    data = {
        "a.csv": "text,label\n" + "".join(f"{t},{label}\n" for t, label in zip("abcdef", labels, strict=True)),
        "a.jsonl": jsonl(*({"text": t, "label": label} for t, label in zip("abcdef", labels, strict=True))),
    }.get(name) or (tmp_path / "made.parquet").read_bytes()
    splits = only(tmp_path, "classification", name, data)
    assert (splits.labels, len(splits.train)) == (("0", "1"), 4)
    assert "warning: train: 2 of 6 rows have no label ('-1' 2): left out" in "".join(splits.notes)
    assert only(tmp_path, "classification", name, data, unlabelled_mark=("",)).labels == ("-1", "0", "1")


def test_a_class_that_a_files_own_list_names_is_no_mark(tmp_path):
    features = {"text": {"_type": "Value"}, "label": {"_type": "ClassLabel", "names": ["None", "some"]}}
    table = pa.table({"text": list("abcd"), "label": [0, 1, 0, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    splits = load("classification", tmp_path / "a.parquet", dev=str(tmp_path / "a.parquet"))
    assert [r.label for r in splits.train] == ["None", "some", "None"]


def test_a_split_without_any_label_is_named(tmp_path):
    good = tsv(TEXT_LABEL, ("a", 0), ("b", 1))
    data = folder(tmp_path, train_tsv=good, dev_tsv=tsv(TEXT_LABEL, ("a", ""), ("b", " ")))
    fails(f"{data}/dev.tsv: none of its 2 rows has a label, so it cannot be the dev set", "classification", data)
    data = folder(tmp_path, train_tsv=good, dev_tsv=tsv(TEXT_LABEL))
    fails(f"{data}/dev.tsv: holds no rows", "classification", data)
    fails(
        f"{data}/dev.tsv: holds no rows",
        "classification",
        data / "train.tsv",
        dev=str(data / "train.tsv"),
        test=str(data / "dev.tsv"),
    )


def test_several_labels_a_row_are_a_list_or_separated_and_may_be_none(tmp_path):
    rows = [
        {"text": "x", "labels": ["b", "a", "b"]},
        {"text": "y", "labels": []},
        {"text": "z", "labels": None},
        {"text": "w", "labels": [3]},
    ]
    splits = only(tmp_path, "multi_label", "a.jsonl", jsonl(*rows))
    assert [record.label for record in splits.train] == [("b", "a"), (), ("3",)]
    assert splits.labels == ("3", "a", "b")
    assert "labels: 3 1, a 1, b 1" in splits.notes
    assert "labels: 1 of 3 training rows have no label" in splits.notes
    assert f"warning: train: 1 of 4 rows have no label (empty 1): left out: {tmp_path}/a.jsonl:3" in splits.notes
    splits = only(tmp_path, "multi_label", "a.tsv", tsv(TEXT_LABEL, ("x", "b; a;"), ("y", "")), label_separator=";")
    assert [record.label for record in splits.train] == [("b", "a"), ()]
    path, dev = tmp_path / "a.tsv", write(tmp_path / "dev.tsv", tsv(TEXT_LABEL, ("x", "b;c")))
    fails(
        "dev.tsv:2: label 'c' is not among the classes of the training rows: a, b",
        "multi_label",
        path,
        dev=dev,
        label_separator=";",
    )
    path, train = write(tmp_path / "a.tsv", tsv(TEXT_LABEL, ("x", ""), ("y", ""))), write(tmp_path / "b.csv", "text,label\nx,a\n")
    fails("a.tsv: none of its 2 rows has a label, so it cannot be the dev set", "multi_label", train, dev=path)
    assert [r.label for r in load("multi_label", train, dev=train, test=path).test["test"]] == [None, None]


def test_a_list_of_several_is_not_one_class(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl({"text": "x", "label": ["a"]}, {"text": "x", "label": ["a", "b"]}))
    fails("a.jsonl:2: the label is ['a', 'b']; for several labels per row, --task multi_label", "classification", path)


@pytest.mark.parametrize("given", [("toxic", "obscene", "threat"), ("toxic,obscene,threat",), "toxic, obscene, threat"])
def test_columns_of_0_and_1_are_a_label_each_in_the_order_they_are_named_in(tmp_path, given):
    header = "text,toxic,obscene,threat\n"
    train = write(tmp_path / "a.csv", header + "a,1,0,0\nb,1,1,0\nc,0,0,0\nd,-1,-1,-1\n")
    bare = write(tmp_path / "b.csv", "text\na\n")
    splits = load("multi_label", train, dev=train, test=bare, label_column=given)
    assert splits.labels == ("toxic", "obscene", "threat")
    assert [r.label for r in splits.train] == [("toxic",), ("toxic", "obscene"), ()]
    assert [r.label for r in splits.test["test"]] == [None]
    assert "warning: no training row has label 'threat'" in splits.notes
    full = write(tmp_path / "full.csv", header + "a,1,0,0\nb,1,1,0\n")
    assert len(load("multi_label", full, dev=full, label_column=given).train) == 2
    half = write(tmp_path / "half.csv", "text,toxic\na,1\n")
    fails("half.csv: no column 'obscene'", "multi_label", train, dev=train, test=half, label_column=given)
    if len(given) == 3:
        fails(
            "classification takes one column; for columns of 0 and 1, --task multi_label",
            "classification",
            train,
            label_column=given,
        )


def test_the_classes_of_a_model_keep_their_order_whatever_columns_say(tmp_path):
    model = dataclasses.replace(find_task("multi_label"), test_only=True, labels=("threat", "toxic"))
    path = write(tmp_path / "a.csv", "text,toxic,threat\na,1,0\nb,1,1\n")
    splits = load_splits(model, TaskData(data=path, label_column=("toxic", "threat")))
    assert splits.labels == ("threat", "toxic")
    assert [r.label for r in splits.test["test"]] == [("toxic",), ("toxic", "threat")]
    path = write(tmp_path / "b.csv", 'text,labels\na,"[0, 1]"\nb,"[1, 1]"\n')
    assert [r.label for r in load_splits(model, TaskData(data=path)).test["test"]] == [("toxic",), ("threat", "toxic")]


def test_lists_of_0_and_1_are_classes_called_by_their_place(tmp_path):
    splits = only(tmp_path, "multi_label", "a.csv", 'text,labels\na,"[1, 0, 1]"\nb,"[0, 0, 0]"\n')
    assert [r.label for r in splits.train] == [("0", "2"), ()]
    assert splits.labels == ("0", "1", "2")
    assert "labels are lists of 0 and 1: the names of the classes are the positions, 0 to 2" in splits.notes


def test_labels_that_look_wrong_are_warned_of(tmp_path):
    rows = "".join(f"t{i},{label}\n" for i, label in enumerate(["good", "Good", "good", "bad", "bad", "odd"]))
    notes = only(tmp_path, "classification", "a.csv", "text,label\n" + rows).notes
    assert "warning: labels that differ only in case or blanks are separate classes: 'Good' 1, 'good' 2" in notes
    assert "warning: 2 classes have one training row: Good, odd" in notes
    notes = only(tmp_path, "classification", "a.csv", "text,label\n" + "".join(f"t{i},{i / 4}\n" for i in range(50))).notes
    assert "warning: the 50 classes of 50 training rows are numbers: --task regression?" in notes
    notes = only(tmp_path, "classification", "a.csv", "text,label\n" + "".join(f"t{i},{i % 10}\n" for i in range(50))).notes
    assert not [note for note in notes if "class" in note]
    notes = only(tmp_path, "multi_label", "a.csv", "text,label\n" + "a,x\nb,y\n" * 3).notes
    assert "warning: every training row has one label: for classes that exclude each other, --task classification" in notes
    notes = only(tmp_path, "multi_label", "a.csv", "text,label\n" + "a,x|y\nb,y\nc,\n" * 3).notes
    assert "warning: no training row has two labels, and some contain '|': --label-separator '|'?" in notes


@pytest.mark.parametrize("task", ["regression", "similarity"])
def test_numbers_are_numbers_or_named(tmp_path, task):
    columns = ("sentence1", "sentence2", "score")
    splits = only(tmp_path, task, "a.tsv", tsv(columns, ("a", "b", "2"), ("c", "d", " -1.5e0 ")))
    assert [record.label for record in splits.train] == [2.0, -1.5]
    assert all(isinstance(record.label, float) for record in splits.train)
    for bad in ("five", "inf"):
        path = write(tmp_path / "a.tsv", tsv(columns, ("a", "b", "2"), ("c", "d", bad)))
        fails(f"a.tsv:3: the label is '{bad}', not a number", task, path)


@pytest.mark.parametrize("columns", ["anchor positive", "anchor positive negative", "sentence1 sentence2"])
def test_similar_texts_may_come_without_labels(tmp_path, columns):
    rows = [dict(zip(columns.split(), texts, strict=False)) for texts in ("abc", "def")]
    splits = only(tmp_path, "similarity", "a.jsonl", jsonl(*rows))
    assert plain(splits.train)[1] == (("d", "e", "f")[: len(columns.split())], None, "1")
    path = write(tmp_path / "a.jsonl", jsonl(rows[0] | {"label": 1.0}, rows[1] | {"label": None}))
    if "negative" in columns:
        assert [record.label for record in load("similarity", path, dev=path).train] == [None, None]
    else:
        assert [record.label for record in load("similarity", path, dev=path).train] == [1.0]


def test_swag_puts_the_start_of_the_second_sentence_before_every_ending(tmp_path):
    header = "video-id,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label\n"
    train = write(tmp_path / "train.csv", header + '1,"A man, sits.",He,gold,runs.,eats.,sleeps.,talks.,3\n')
    write(tmp_path / "val.csv", header + "1,B.,She,gold,a,b,c,d,0\n")
    splits = load("swag", tmp_path)
    assert plain(splits.train) == [(("A man, sits.", "He runs.", "He eats.", "He sleeps.", "He talks."), 3, "0")]
    assert plain(splits.dev["dev"]) == [(("B.", "She a", "She b", "She c", "She d"), 0, "0")]
    for bad, message in (
        ("4", "the label is 4, but the choices are 0 to 3"),
        ("-2", "the label is -2, but"),
        ("b", "the label is 'b', not a whole"),
    ):
        write(tmp_path / "train.csv", header + f"1,B.,She,gold,a,b,c,d,{bad}\n")
        fails(f"{train}:2: {message}", "swag", tmp_path)
    write(tmp_path / "train.csv", header + "1,B.,She,gold,a,b,c,d,2\n")
    write(tmp_path / "test.csv", header + "1,B.,She,gold,a,b,c,d,-1\n")
    assert load("swag", tmp_path).test["test"][0].label is None
    write(tmp_path / "train.csv", header + "1,B.,She,gold,a,b,c,d,2\n1,C.,She,gold,a,b,c,d,-1\n")
    assert len(load("swag", tmp_path).train) == 1


def test_choices_are_the_columns_behind_the_context(tmp_path):
    rows = [{"q": "x", "a": "y", "b": "z", "right": right} for right in (1, 0.0)]
    splits = only(tmp_path, "multiple_choice", "a.jsonl", jsonl(*rows), text_column=("q", "a", "b"), label_column="right")
    assert plain(splits.train) == [(("x", "y", "z"), 1, "0"), (("x", "y", "z"), 0, "1")]
