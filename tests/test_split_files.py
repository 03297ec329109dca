"""Splits of tasks from files: GLUE's folders, files found by their names, TFDS. Every input is made here, in tmp_path."""

import contextlib
import hashlib
import io
import sys

import numpy as np
import pytest
from task_files import TEXT_LABEL, fails, folder, load, plain, tsv, write

from bert_jax.data.records import Record
from bert_jax.tasks.splits import find_files
from bert_jax.tasks.table import find_task
from bert_jax.tasks.task import TaskData

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
