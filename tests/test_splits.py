"""Every input is made here, in tmp_path: nothing is downloaded."""

import contextlib
import dataclasses
import hashlib
import io
import json
import re
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert_jax.config import InputError
from bert_jax.data.records import Record
from bert_jax.tasks.splits import find_files, load_splits
from bert_jax.tasks.table import find_task
from bert_jax.tasks.task import TaskData


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def tsv(*rows):
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(task, data, **options):
    return load_splits(find_task(task), TaskData(data=str(data), **options))


def fails(message, task, data, **options):
    with pytest.raises(InputError, match=re.escape(message)):
        load(task, data, **options)


def plain(records):
    """[(texts, label, id)]"""
    return [(record.texts, record.label, record.id) for record in records]


def folder(tmp_path, **files):
    """A folder of files; train_tsv is train.tsv."""
    for name, data in files.items():
        write(tmp_path / "task" / ".".join(name.rsplit("_", 1)), data)
    return tmp_path / "task"


def only(tmp_path, task, name, data, **options):
    """The training and the dev rows of a file that is both."""
    path = write(tmp_path / name, data)
    splits = load(task, path, dev=path, **options)
    assert plain(splits.train) == plain(splits.dev["dev"])
    return splits


TEXT_LABEL = ("text", "label")


# ---- GLUE's folders


def test_cola_has_no_header_but_in_its_test_file(tmp_path):
    data = folder(
        tmp_path,
        train_tsv=tsv(("gj04", 1, "", 'It "is.'), ("gj04", 0, "*", "Is it it.")),
        dev_tsv=tsv(("x", 0, "*", "Dev it.")),
        test_tsv=tsv(("index", "sentence"), (5, "Test it.")),
    )
    splits = load("CoLA", data)
    assert splits.train == [
        Record(('It "is.',), "acceptable", "0", f"{data}/train.tsv:1"),
        Record(("Is it it.",), "unacceptable", "1", f"{data}/train.tsv:2"),
    ]
    assert plain(splits.dev["dev"]) == [(("Dev it.",), "unacceptable", "0")]
    assert plain(splits.test["test"]) == [(("Test it.",), None, "5")]
    assert splits.labels == ("unacceptable", "acceptable")
    assert splits.notes == [
        f"train: 2 rows of {data}/train.tsv ('sentence' 'label')",
        f"dev: 1 rows of {data}/dev.tsv ('sentence' 'label')",
        f"test: 1 rows of {data}/test.tsv ('sentence')",
        "test: has no labels",
        "labels: unacceptable 1, acceptable 1",
        "warning: 2 classes have one training row: unacceptable, acceptable",
        "warning: dev: all 1 rows have the label 'unacceptable', so its scores do not show what was learnt",
    ]


def test_the_hash_is_that_of_the_files_in_the_order_train_dev_test(tmp_path):
    train, dev, test = tsv(TEXT_LABEL, ("a", 0), ("b", 1)), tsv(TEXT_LABEL, ("c", 1)), tsv(("text",), ("d",))
    splits = load("classification", folder(tmp_path, test_tsv=test, train_tsv=train, dev_tsv=dev))
    assert splits.data_hash == hashlib.sha256((train + dev + test).encode()).hexdigest()


def test_mnli_has_two_dev_and_two_test_sets(tmp_path):
    columns = ("index", "promptID", "sentence1", "sentence2", "label1", "gold_label")
    rows = [
        columns,
        *((7 + i, "x", "p", "h", "neutral", label) for i, label in enumerate(("contradiction", "entailment", "neutral"))),
    ]
    data = folder(
        tmp_path,
        train_tsv=tsv(*rows), dev_matched_tsv=tsv(columns, rows[1]), dev_mismatched_tsv=tsv(columns, rows[2]),
        test_matched_tsv=tsv(columns[:4], rows[1][:4]), test_mismatched_tsv=tsv(columns[:4], rows[2][:4]),
    )  # fmt: skip
    splits = load("mnli", data)
    assert plain(splits.train)[0] == (("p", "h"), "contradiction", "7")
    assert {name: plain(records) for name, records in {**splits.dev, **splits.test}.items()} == {
        "dev_matched": [(("p", "h"), "contradiction", "7")],
        "dev_mismatched": [(("p", "h"), "entailment", "8")],
        "test_matched": [(("p", "h"), None, "7")],
        "test_mismatched": [(("p", "h"), None, "8")],
    }
    assert splits.labels == ("entailment", "neutral", "contradiction")
    assert list(load("mnli", data, dev=str(data / "dev_matched.tsv")).dev) == ["dev"]


@pytest.mark.parametrize("names", [("train.tsv", "test.tsv"), ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt")])
def test_mrpc_is_read_as_glue_splits_it_or_as_microsoft_wrote_it(tmp_path, names):
    columns = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    train = tsv(columns, (1, 10, 11, 'A "b', "c"), (0, 12, 13, "d", "e"), (0, 1, 2, "h", "i")).replace("\n", "\r\n")
    write(tmp_path / names[0], "\ufeff" + train)
    write(tmp_path / names[1], "\ufeff" + tsv(columns, (0, 14, 15, "f", "g")))
    splits = load("mrpc", tmp_path, dev_size=1)
    assert plain(splits.train) == [(('A "b', "c"), "equivalent", "0"), (("d", "e"), "not_equivalent", "1")]
    assert plain(splits.dev["dev"]) == [(("h", "i"), "not_equivalent", "2")]
    assert plain(splits.test["test"]) == [(("f", "g"), "not_equivalent", "0")]


def test_mrpcs_own_files_are_not_read_beside_glues(tmp_path):
    for name in ("train.tsv", "dev.tsv", "msr_paraphrase_train.txt", "msr_paraphrase_test.txt"):
        write(tmp_path / name, "")
    assert find_files(find_task("mrpc"), TaskData(data=str(tmp_path))) == {
        "train": f"{tmp_path}/train.tsv", "dev": f"{tmp_path}/dev.tsv",
        "test": f"{tmp_path}/msr_paraphrase_test.txt"}  # fmt: skip


def test_stsb_reads_glues_files_and_the_original_test_file_without_header(tmp_path):
    columns = ("index", "genre", "sentence1", "sentence2", "score")
    data = folder(
        tmp_path, train_tsv=tsv(columns, (3, "x", "a", "b", "2.500")), dev_tsv=tsv(columns, (4, "x", "c", "d", "0.000"))
    )
    write(
        data / "test-labeled.tsv",
        tsv(("g", "f", 2012, "0024", "5.000", "e", "f"), ("g", "f", 2012, "1", "-1", "g", "h", "u", "v")),
    )
    splits = load("sts-b", data)
    assert plain(splits.train) == [(("a", "b"), 2.5, "3")]
    assert plain(splits.dev["dev"]) == [(("c", "d"), 0.0, "4")]
    assert plain(splits.test["test"]) == [(("e", "f"), 5.0, "0"), (("g", "h"), None, "1")]
    assert splits.labels == ()


def test_lines_with_a_wrong_number_of_fields_are_left_out_of_qqp_and_an_error_elsewhere(tmp_path):
    columns = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
    rows = tsv(columns, (0, 1, 2, "a", "b", 1), (3, "c", "d"), (5, 6, 7, "e", "f", 0))
    data = folder(tmp_path, train_tsv=rows, dev_tsv=tsv(columns, (9, 1, 2, "x", "y", 1)))
    splits = load("qqp", data)
    assert plain(splits.train) == [(("a", "b"), "duplicate", "0"), (("e", "f"), "not_duplicate", "1")]
    assert f"train: 1 lines left out, with a wrong number of fields: {data}/train.tsv:3" in splits.notes
    fails(f"{data}/train.tsv:3: 3 fields where 6", "classification", data, label_column="is_duplicate")


@pytest.mark.parametrize("name, columns", [("diagnostic", ("index", "sentence1", "sentence2")),
                                           ("diagnostic-full", ("Domain", "Premise", "Hypothesis", "Label"))])  # fmt: skip
def test_ax_has_a_test_set_only(tmp_path, name, columns):
    row = ("0", "p", "h") if name == "diagnostic" else ("News", "p", "h", "neutral")
    path = write(tmp_path / f"{name}.tsv", tsv(columns, row))
    expected = [(("p", "h"), None if name == "diagnostic" else "neutral", "0")]
    for data in (tmp_path, path):
        splits = load("ax", data)
        assert (splits.train, splits.dev) == ([], {})
        assert plain(splits.test["test"]) == expected
        assert splits.labels == ("entailment", "neutral", "contradiction")


def test_test_tsv_goes_before_test_labeled_and_that_before_test_unlabeled(tmp_path):
    task, data = find_task("sst2"), TaskData(data=str(tmp_path))
    for name in ("train.tsv", "test-unlabeled.tsv", "test-labeled.tsv", "test.tsv"):
        write(tmp_path / name, "")
        if name != "train.tsv":
            assert find_files(task, data)["test"] == f"{tmp_path}/{name}"


@pytest.mark.parametrize("task, columns, row, expected", [
    ("sst2", ("sentence", "label"), ("x", 1), (("x",), "positive", "0")),
    ("qnli", ("index", "question", "sentence", "label"), (3, "q", "s", "not_entailment"), (("q", "s"), "not_entailment", "3")),
    ("rte", ("index", "sentence1", "sentence2", "label"), (3, "a", "b", "entailment"), (("a", "b"), "entailment", "3")),
    ("wnli", ("index", "sentence1", "sentence2", "label"), (3, "a", "b", 1), (("a", "b"), "entailment", "3")),
])  # fmt: skip
def test_the_other_glue_tasks_are_read_by_their_columns(tmp_path, task, columns, row, expected):
    words = {"positive": 0, "not_entailment": "entailment", "entailment": "not_entailment" if row[-1] != 1 else 0}
    splits = load(task, folder(tmp_path, train_tsv=tsv(columns, row, (*row[:-1], words[expected[1]])), dev_tsv=tsv(columns, row)))
    assert plain(splits.dev["dev"]) == [expected]
    assert splits.train[0].label != splits.train[1].label


# ---- which files


@pytest.mark.parametrize("dev", ["dev", "validation", "valid", "val", "testa", "Dev", "dev-v1.1", "validation-00000-of-00001"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv.gz", ".parquet"])
def test_splits_of_a_folder_are_found_by_name(tmp_path, dev, suffix):
    for name in ("train", dev, "testb"):
        write(tmp_path / f"{name}{suffix}", "")
    for name in ("README.md", "train.py", "labels.txt", "development.csv", "train"):
        write(tmp_path / name, "")
    assert find_files(find_task("classification"), TaskData(data=f"{tmp_path}/")) == {
        "train": f"{tmp_path}/train{suffix}", "dev": f"{tmp_path}/{dev}{suffix}",
        "test": f"{tmp_path}/testb{suffix}"}  # fmt: skip


def test_a_given_dev_or_test_file_goes_before_the_folders(tmp_path):
    for name in ("train.csv", "dev.csv", "val.csv", "test.csv"):
        write(tmp_path / name, "")
    task, data = find_task("classification"), str(tmp_path)
    assert find_files(task, TaskData(data=data, dev="x", test="y")) == {"train": f"{data}/train.csv", "dev": "x", "test": "y"}
    assert find_files(task, TaskData(data="f.csv", dev="x", test="y")) == {"train": "f.csv", "dev": "x", "test": "y"}
    assert find_files(find_task("ax"), TaskData(data=data, dev="x")) == {"test": f"{data}/test.csv"}


def test_two_files_for_one_split_and_a_folder_without_training_file_are_named(tmp_path):
    fails("--data is missing: give a folder", "classification", "")
    (tmp_path / "empty").mkdir()
    fails("empty: no files in this folder", "classification", tmp_path / "empty")
    write(tmp_path / "dev.csv", "")
    fails("no train.*, only dev.csv; name the files: --data FILE", "classification", tmp_path)
    write(tmp_path / "train.csv", "")
    write(tmp_path / "valid.jsonl", "")
    fails(f"{tmp_path}/dev.csv and {tmp_path}/valid.jsonl could both be dev: name one of them with --dev FILE",
          "classification", tmp_path)  # fmt: skip
    fails("nowhere.csv: no such file; nearest in", "classification", tmp_path / "nowhere.csv")
    write(tmp_path / "other" / "notes.pdf", "")
    fails("no train.*, only notes.pdf", "classification", tmp_path / "other")


def test_a_bucket_is_a_folder_too():
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    fs.pipe("/task/train.tsv", tsv(TEXT_LABEL, ("a", 0), ("b", 1)).encode())
    fs.pipe("/task/dev.tsv", tsv(TEXT_LABEL, ("c", 1)).encode())
    try:
        splits = load("classification", "memory://task")
        assert [record.place for record in splits.dev["dev"]] == ["memory:///task/dev.tsv:2"]
    finally:
        fs.rm("/task", recursive=True)


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


# ---- tagging


def test_tags_come_with_o_first_and_those_unknown_to_training_are_counted(tmp_path):
    data = folder(tmp_path, train_conll="EU B-ORG\nx O\n\ny O\n", dev_conll="z B-LOC\nz B-LOC\n", test_conll="a\n\n#\n")
    splits = load("ner", data)
    assert plain(splits.train) == [(("EU", "x"), ("B-ORG", "O"), "0"), (("y",), ("O",), "1")]
    assert splits.train[1].place == f"{data}/train.conll:4"
    assert plain(splits.test["test"]) == [(("a",), None, "0"), (("#",), None, "1")]
    assert splits.labels == ("O", "B-LOC", "B-ORG")
    assert "warning: tag 'B-LOC' occurs 2 times in dev or test, but not in training" in splits.notes
    assert load("ner", data, label_column="0", test=str(data / "dev.conll")).labels == ("EU", "x", "y", "z")
    fails("--label-column is 'tags', not a whole number", "ner", data, label_column="tags")
    fails("test.conll: which column is the label? It has words", "ner", data, dev=str(data / "test.conll"))


@pytest.mark.parametrize("columns", [("words", "tags"), ("tokens", "ner_tags"), ("w", "t")])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_words_and_tags_may_be_lists(tmp_path, columns, name):
    rows = [dict(zip(columns, row, strict=True)) for row in ((["EU", "x"], ["B-ORG", "O"]), (["y"], ["O"]))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "made.parquet")
    options = dict(text_column=("w",), label_column="t") if columns == ("w", "t") else {}
    data = jsonl(*rows) if name == "a.jsonl" else (tmp_path / "made.parquet").read_bytes()
    splits = only(tmp_path, "tagging", name, data, **options)
    assert plain(splits.train) == [(("EU", "x"), ("B-ORG", "O"), "0"), (("y",), ("O",), "1")]


@pytest.mark.parametrize("row, message", [
    ({"words": ["a", "b"], "tags": ["O"]}, "a.jsonl:1: 2 words, but 1 tags"),
    ({"words": "a b", "tags": ["O"]}, "a.jsonl:1: 2 words, but 1 tags"),
    ({"words": [], "tags": []}, "a.jsonl: holds no rows; warning: train: 1 rows without words left out: "),
    ({"words": 3, "tags": []}, "a.jsonl:1: 'words' is 3, not a list with an entry for each word"),
    ({"words": ["a", 1], "tags": ["O", "O"]}, "a.jsonl:1: 'words' is 1, not a text"),
    ({"words": ["a", "b"], "tags": ["O", None]}, "a.jsonl:1: the label is ['O', None], not a list of tags: word 1 has none"),
    ({"words": ["a"], "tags": [None]}, "a.jsonl: none of its 1 rows has a label"),
])  # fmt: skip
def test_what_is_no_sentence_with_a_tag_a_word_is_named(tmp_path, row, message):
    fails(message, "tagging", write(tmp_path / "a.jsonl", jsonl(row)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_sentences_without_words_are_left_out_and_counted(tmp_path, name):
    rows = [{"words": words, "tags": words and ["O"] * len(words)} for words in (["a", "b"], None, [], ["c"])]
    rows[3]["tags"] = ["B-X"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "made.parquet")
    splits = only(tmp_path, "tagging", name, jsonl(*rows) if name == "a.jsonl" else (tmp_path / "made.parquet").read_bytes())
    assert plain(splits.train) == [(("a", "b"), ("O", "O"), "0"), (("c",), ("B-X",), "3")]
    places = "a.jsonl:2" if name == "a.jsonl" else "a.parquet: row 1"
    (note,) = [note for note in splits.notes if note.startswith("warning: train: 2 rows without words left out: ")]
    assert places in note
    assert not [note for note in splits.notes if "no label" in note]


JOHN = "john lives in Paris."
SPANS = [[0, 4, "PER"], [14, 19, "LOC"]]


@pytest.mark.parametrize("column", ["label", "labels", "entities", "spans"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_entities_by_characters_become_tags_of_words(tmp_path, column, name):
    rows = [{"text": JOHN, column: SPANS}, {"text": "no one", column: []}, {"text": "x", column: None}]
    text = f"text,{column}\n" + "".join(f'"{r["text"]}","{r[column] or (r[column] == [] and "[]") or ""}"\n' for r in rows)
    splits = only(tmp_path, "tagging", name, {"a.csv": text, "a.json": json.dumps(rows)}.get(name, jsonl(*rows)))
    assert plain(splits.train) == [
        (("john", "lives", "in", "Paris", "."), ("B-PER", "O", "O", "B-LOC", "O"), "0"),
        (("no", "one"), ("O", "O"), "1"),
    ]
    assert "warning: train: 1 of 3 rows have no label (empty 1): left out: " in "".join(splits.notes)
    test = write(tmp_path / "test.jsonl", jsonl({"text": JOHN}))
    assert load("tagging", tmp_path / name, dev=str(tmp_path / name), test=test).test["test"][0].texts[-2:] == ("Paris", ".")


@pytest.mark.parametrize("row, message", [
    ({"text": JOHN, "label": [[0, 21, "PER"]]}, "a.jsonl:1: no text at 0 to 21 (PER); the text has 20 characters"),
    ({"text": JOHN, "label": [[4, 5, "PER"]]}, "a.jsonl:1: no text at 4 to 5 (PER)"),
    ({"text": JOHN, "label": [[4, 4, "PER"]]}, "a.jsonl:1: no text at 4 to 4 (PER)"),
    ({"text": "\U0001f600 " + JOHN, "label": [{"start": 3, "end": 7, "label": "PER", "text": "john"}]},
     "a.jsonl:1: PER at 3 to 7 is 'john', but the text there is 'ohn'; start and end count characters"),
    ({"text": ["john"], "label": SPANS}, "a.jsonl:1: the label has entities by characters, but 'text' is a list of words"),
])  # fmt: skip
def test_entities_that_do_not_stand_in_the_text_are_named(tmp_path, row, message):
    fails(message, "tagging", write(tmp_path / "a.jsonl", jsonl(row)))


def test_of_entities_that_overlap_the_longer_is_kept_and_the_others_are_counted(tmp_path):
    row = {"text": "New York City", "label": [[0, 8, "A"], [0, 13, "B"], [9, 13, "C"]]}
    splits = only(tmp_path, "tagging", "a.jsonl", jsonl(row, {"text": "x", "label": []}))
    assert splits.train[0].label == ("B-B", "I-B", "I-B")
    assert "warning: train: 2 entities that overlap longer ones left out" in splits.notes


def test_a_table_with_a_word_a_row_is_read_by_the_column_of_its_sentences(tmp_path):
    text = "Sentence #,Word,POS,Tag\nSentence: 1,EU,N,B-ORG\n,rejects,V,O\nSentence: 2,x,N,O\n"
    splits = only(tmp_path, "tagging", "a.csv", text)
    expected = [(("EU", "rejects"), ("B-ORG", "O"), "Sentence: 1"), (("x",), ("O",), "Sentence: 2")]
    assert plain(splits.train) == expected
    named = dict(text_column=("w",), label_column="t", id_column="s")
    text = text.replace("Sentence #,Word,POS,Tag", "s,w,p,t")
    assert plain(only(tmp_path, "tagging", "b.csv", text, **named).train) == expected
    message = "a.csv: 'w' has one word in every row, but a row must be a sentence; name the column that numbers the sentences"
    fails(message, "tagging", write(tmp_path / "a.csv", "w,tag\nEU,O\nx,O\n"), text_column=("w",))
    again = write(tmp_path / "a.csv", text + "Sentence: 1,y,N,O\n")
    message = f"a.csv:5: 's' is 'Sentence: 1', as at {again}:2, but not in the rows between; the words of a sentence must follow"
    fails(message, "tagging", again, **named)


@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.jsonl", "a.parquet"])
def test_a_word_a_row_is_read_in_all_formats(tmp_path, name):
    rows = [{"sentence_id": s, "word": w, "tag": t} for s, w, t in ((1, "EU", "B-ORG"), (1, "[", "O"), (2, "x", "O"))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "made.parquet")
    delimited = tsv(("sentence_id", "word", "tag"), *(row.values() for row in rows))
    data = {"a.jsonl": jsonl(*rows), "a.parquet": (tmp_path / "made.parquet").read_bytes()}.get(name, delimited)
    splits = only(tmp_path, "tagging", name, data)
    assert plain(splits.train) == [(("EU", "["), ("B-ORG", "O"), "1"), (("x",), ("O",), "2")]
    bare = jsonl(*({"word": row["word"], "tag": row["tag"]} for row in rows[::2]))
    fails("a.jsonl: 'word' has one word in every row", "tagging", write(tmp_path / "a.jsonl", bare))


def test_rows_that_are_sentences_are_not_put_together_by_their_number(tmp_path):
    rows = [{"sentence_id": 1, "tokens": ["EU"], "tags": ["O"]}, {"sentence_id": 1, "tokens": ["x"], "tags": ["B-X"]}]
    assert [r.texts for r in only(tmp_path, "tagging", "a.jsonl", jsonl(*rows)).train] == [("EU",), ("x",)]
    rows = [{"text": "Paris", "label": [[0, 5, "LOC"]]}, {"text": "no", "label": []}]
    assert len(only(tmp_path, "tagging", "a.jsonl", jsonl(*rows)).train) == 2


def test_sentences_of_a_table_may_be_lists_as_text_or_have_blanks_between_words(tmp_path):
    text = "sentence_id,tokens,ner_tags\n1,\"['EU', 'rejects']\",\"['B-ORG', 'O']\"\n2,a b,O O\n"
    text += "3,\"['x' 'y'\n 'z']\",\"['O' 'O' 'O']\"\n"
    splits = only(tmp_path, "tagging", "a.csv", text)
    assert [(r.texts, r.label) for r in splits.train] == [
        (("EU", "rejects"), ("B-ORG", "O")), (("a", "b"), ("O", "O")), (("x", "y", "z"), ("O", "O", "O")),
    ]  # fmt: skip


def test_what_tags_are_taken_for_is_said(tmp_path):
    def notes(*tags):
        data = "".join(f"w{i} {tag}\n" for i, tag in enumerate(tags)) + "\n"
        return [note for note in only(tmp_path, "tagging", "a.conll", data).notes if note.startswith("tags are ")]

    assert notes("NNP", "VBZ", ".") == ["tags are classes of words, not entities (no B-, I- or O): scored by accuracy"]
    assert notes("0", "1")[0].endswith("They are numbers; to find entities, give the tags by name")
    assert notes("PER", "O") == ["tags are types of entities, some without B- or I-: adjacent words of a type are one entity"]
    assert notes("B-PER", "O") == notes("I-PER", "O") == notes("PER-B", "O") == []


def test_bad_lines_are_left_out_and_counted_where_the_user_says_so(tmp_path):
    path = write(tmp_path / "a.conll", "EU B-ORG\nbad\nx O\n")
    fails("a.conll:2: 1 columns, where the first line has 2; --on-error skip leaves such lines out", "ner", path)
    splits = load("ner", path, dev=path, on_error="skip")
    assert plain(splits.train) == [(("EU", "x"), ("B-ORG", "O"), "0")]
    assert f"train: 1 lines left out, that cannot be read: {path}:2" in splits.notes


# ---- question answering


def squad(*questions, context="The cat sat."):
    questions = [{"question": "Who?"} | question for question in questions]
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]})


def test_answers_that_do_not_stand_where_they_say_are_left_out_and_counted(tmp_path):
    answers = (("cat", 4), ("sat", 8), ("dog", 4))
    cat, sat, bad = ({"text": text, "answer_start": start} for text, start in answers)
    data = squad(
        {"id": "a", "answers": [cat, bad, sat]},
        {"id": "b", "answers": [bad]},
        {"id": "c", "answers": [], "is_impossible": True},
        {"id": "d", "answers": [{"text": "", "answer_start": 0}, {"text": "t", "answer_start": -4}]},
    )
    write(tmp_path / "train-v2.0.json", data)
    write(tmp_path / "dev-v2.0.json", squad({"id": "e", "answers": [cat]}))
    write(tmp_path / "test-v2.0.json", squad({"id": "f"}))
    splits = load("squad2", tmp_path)
    texts = ("Who?", "The cat sat.")
    assert plain(splits.train) == [(texts, (("cat", 4), ("sat", 8)), "a"), (texts, (), "c")]
    assert splits.train[0].place == f"{tmp_path}/train-v2.0.json: a"
    assert plain(splits.test["test"]) == [(texts, None, "f")]
    assert "warning: train: 4 answers left out that are not at their answer_start: a, b, d, ..." in splits.notes
    assert "warning: train: 2 questions left out that have no other answer: b, d" in splits.notes
    path = write(tmp_path / "bad.json", squad({"id": "b", "answers": [bad]}))
    fails("bad.json: holds no rows; warning: train: 1 answers left out that are not at their", "squad", path)


def test_a_question_without_answers_is_not_trained_on_and_ids_must_differ(tmp_path):
    cat = [{"text": "cat", "answer_start": 4}]
    path = write(tmp_path / "a.json", squad({"id": "a", "answers": cat}, {"id": "b"}))
    splits = load("squad", path, dev=path)
    assert [record.id for record in splits.train] == ["a"]
    assert f"warning: train: 1 of 2 rows have no label (empty 1): left out: {tmp_path}/a.json: b" in splits.notes
    path = write(tmp_path / "a.json", squad({"id": "a", "answers": cat}, {"id": "a", "answers": cat}))
    fails("also has the id 'a'; give each row", "squad", path)
    path = write(tmp_path / "a.json", squad({"id": "a", "answers": [{"text": "cat"}]}))
    fails("a.json: a: answers are [{'text': 'cat'}], not a list of {text, answer_start}", "squad", path)


@pytest.mark.parametrize("answers", [[{"text": "cat", "answer_start": 4}], {"text": ["cat"], "answer_start": [4]}])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_questions_may_be_rows_as_hugging_face_has_them(tmp_path, answers, name):
    rows = [{"id": i, "title": "t", "context": "The cat sat.", "question": "Who?", "answers": answers} for i in "ab"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "made.parquet")
    data = jsonl(*rows) if name == "a.jsonl" else (tmp_path / "made.parquet").read_bytes()
    assert plain(only(tmp_path, "squad", name, data).train)[1] == (("Who?", "The cat sat."), (("cat", 4),), "b")


# ---- held out, capped, duplicates


def numbered(n):
    return "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(n))


@pytest.mark.parametrize("dev_size, k", [(0.1, 5), (0.25, 13), (7, 7), (7.0, 7)])
def test_dev_rows_are_drawn_by_the_contracts_permutation_and_stay_in_order(tmp_path, dev_size, k):
    n = 51
    splits = load("regression", write(tmp_path / "a.csv", numbered(n)), dev_size=dev_size)
    chosen = np.random.default_rng(0).permutation(n)[:k]
    assert [record.texts[0] for record in splits.dev["dev"]] == [f"t{i}" for i in sorted(chosen)]
    assert [record.texts[0] for record in splits.train] == [f"t{i}" for i in range(n) if i not in chosen]
    assert f"dev: {k} of 51 training rows are held out (--dev-size {dev_size:g}), drawn with seed 0" in splits.notes


def test_the_group_column_keeps_rows_together_and_is_looked_for_in_other_files(tmp_path):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "who": ["ann", "bob", "cat", None, ""][i % 5]} for i in range(30)]
    path = write(tmp_path / "a.jsonl", jsonl(*rows))
    splits = load("classification", path, group_column="who", dev_size=8)
    groups = [{record.group for record in records} - {None} for records in (splits.train, splits.dev["dev"])]
    assert groups[0] | groups[1] == {"ann", "bob", "cat"}
    assert not groups[0] & groups[1]
    assert len({record.texts for record in splits.dev["dev"]}) == 8
    assert "(--dev-size 8), drawn with seed 0, whole groups, each class by its share" in " ".join(splits.notes)
    test = write(tmp_path / "test.csv", "text,who\nx,ann\ny,dan\nz,\n")
    assert load("classification", path, dev=path, test=test, group_column="who").notes[-1] == (
        "warning: 1 of 3 test rows belong to a group that is also in the training rows"
    )
    fails("no column 'wo', it has text, label, who; did you mean 'who'? (--group-column)", "classification", path,
          group_column="wo")  # fmt: skip


def test_training_rows_are_capped_after_the_dev_rows_are_held_out(tmp_path):
    path = write(tmp_path / "a.csv", numbered(50))
    splits = load("regression", path, max_train_rows=20)
    held = np.random.default_rng(0).permutation(50)[:5]
    left = [i for i in range(50) if i not in held]
    kept = np.random.default_rng(0).permutation(45)[:20]
    assert [record.texts[0] for record in splits.train] == [f"t{left[i]}" for i in sorted(kept)]
    assert [record.id for record in splits.train] == [str(left[i]) for i in sorted(kept)]
    assert "train: 20 of 45 rows are kept (--max-train-rows), drawn with seed 0" in splits.notes
    assert len(load("classification", path, dev=path, max_train_rows=20).dev["dev"]) == 50
    splits = load("classification", path, dev=path, max_train_rows=50)
    assert len(splits.train) == 50
    assert not [note for note in splits.notes if "--max-train-rows" in note]


@pytest.mark.parametrize("dev_size", [0.01, 5, 6, 0.95])
def test_a_share_that_leaves_no_rows_is_an_error(tmp_path, dev_size):
    path = write(tmp_path / "a.csv", numbered(5))
    fails(f"--dev-size {dev_size:g} of 5 training rows leaves none to train", "classification", path, dev_size=dev_size)


def test_dev_and_test_rows_that_are_in_training_too_are_counted(tmp_path):
    path, dev = write(tmp_path / "a.csv", numbered(4)), write(tmp_path / "b.csv", "text,label\nt1,0\nT1,1\nt3,1\n")
    test = write(tmp_path / "c.csv", "text\nt0\nT1\nu\n")
    assert load("classification", path, dev=dev, test=test).notes[-3:] == [
        "warning: 2 of 3 dev rows are also in the training rows",
        "warning: 1 of 3 test rows are also in the training rows",
        "warning: 1 of 3 test rows are also in the dev rows",
    ]


def test_a_dev_set_of_one_label_is_told_of(tmp_path):
    path, dev = write(tmp_path / "a.csv", numbered(4)), write(tmp_path / "b.csv", "text,label\nx,0\ny,0\n")
    warning = "warning: dev: all 2 rows have the label '0', so its scores do not show what was learnt"
    assert warning in load("classification", path, dev=dev).notes
    assert not [note for note in load("classification", path, dev=path).notes if "warning" in note and "label" in note]


# ---- TFDS


def prepared(builder, folder):
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        builder(data_dir=str(folder), file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Datasets `glue/sst2` and `tiny_glue`, by TFDS's own builder and one of the same form, and `tiny_tags`."""
    tfds = pytest.importorskip("tensorflow_datasets")
    import tensorflow_datasets.text.glue as glue

    folder = tmp_path_factory.mktemp("tfds")
    rows = [(f"é {i}", i % 2) for i in range(6)]
    write(folder / "SST-2/train.tsv", tsv(("sentence", "label"), *rows))
    write(folder / "SST-2/dev.tsv", tsv(("sentence", "label"), *rows[:2]))
    write(folder / "SST-2/test.tsv", tsv(("index", "sentence"), (0, "hidden")))
    text, features = tfds.features.Text(), tfds.features

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _split_generators(self, dl_manager):
            return {name: enumerate(rows) for name, rows in self.ROWS.items()}

        def _generate_examples(self):
            raise NotImplementedError

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(self.FEATURES))

    class TinyGlue(Tiny):
        label = features.ClassLabel(names=["entailment", "neutral", "contradiction"])
        FEATURES = {"premise": text, "hypothesis": text, "label": label, "idx": np.int32}  # noqa: RUF012
        ROWS = {  # noqa: RUF012
            "train": [{"premise": "p", "hypothesis": "h", "label": i, "idx": i + 10} for i in range(3)],
            "validation_matched": [{"premise": "p", "hypothesis": "i", "label": 1, "idx": 0}],
            "test_matched": [{"premise": "p", "hypothesis": "j", "label": -1, "idx": 5}],
        }

    class TinyTags(Tiny):
        FEATURES = {  # noqa: RUF012
            "tokens": features.Sequence(text), "tags": features.Sequence(features.ClassLabel(names=["O", "B-X"])),
            "question": text, "context": text, "answers": features.Sequence({"text": text, "answer_start": np.int32}),
            "score": np.float32,
        }  # fmt: skip
        ROWS = {"train": [{  # noqa: RUF012
            "tokens": ["é", "x"], "tags": [1, 0], "question": "Who?", "context": "é\r\ncat", "score": 2.5,
            "answers": {"text": ["cat"], "answer_start": [3]}}]}  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, url: str(folder))
        prepared(lambda **options: glue.Glue(config="sst2", **options), folder)
    prepared(TinyGlue, folder)
    prepared(TinyTags, folder)
    return folder


@pytest.fixture
def tfds(tfds_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))


def test_glue_comes_from_tfds_with_the_names_of_its_classes(tfds):
    splits = load("sst2", "tfds:glue/sst2")
    assert sorted(plain(splits.train)) == [((f"é {i}",), ("negative", "positive")[i % 2], str(i)) for i in range(6)]
    assert sorted(plain(splits.dev["dev"])) == [(("é 0",), "negative", "0"), (("é 1",), "positive", "1")]
    assert plain(splits.test["test"]) == [(("hidden",), None, "0")]
    assert splits.test["test"][0].place == "tfds:glue/sst2:test: row 0"
    assert splits.data_hash == load("sst2", "tfds:glue/sst2").data_hash != load("sst2", "tfds:glue/sst2:train").data_hash
    assert "tensorflow" not in sys.modules


def test_a_named_split_of_tfds_is_one_file(tfds):
    splits = load("sst2", "tfds:glue/sst2:train[:4]", dev="tfds:glue/sst2:train[4:]")
    assert (len(splits.train), len(splits.dev["dev"]), splits.test) == (4, 2, {})
    fails("tfds:glue/sst2:tain: no split 'tain', it has test, train, validation", "sst2", "tfds:glue/sst2:tain")


def test_matched_splits_of_tfds_and_its_column_names_are_those_of_mnli(tfds):
    splits = load("mnli", "tfds:tiny_glue")
    names = {"10": "entailment", "11": "neutral", "12": "contradiction"}
    assert {record.id: record.label for record in splits.train} == names
    assert plain(splits.dev["dev_matched"]) == [(("p", "i"), "neutral", "0")]
    assert plain(splits.test["test_matched"]) == [(("p", "j"), None, "5")]


def test_sentences_questions_and_numbers_come_from_tfds(tfds):
    options = dict(dev="tfds:tiny_tags:train")
    assert plain(load("ner", "tfds:tiny_tags", **options).train) == [(("é", "x"), ("B-X", "O"), "0")]
    assert plain(load("squad", "tfds:tiny_tags", **options).train) == [(("Who?", "é\r\ncat"), (("cat", 3),), "0")]
    assert plain(load("regression", "tfds:tiny_tags", text_column=("context",), **options).train) == [(("é\r\ncat",), 2.5, "0")]
