"""Bad input of fine-tuning is refused with the place and the fix."""

import errno
import shutil
from pathlib import Path

import pytest
from finetune_cases import csv_table, json_lines, sst2, start, tune

from bert_jax.config import InputError


def changed(name, old, new):
    """sst2's files with a change in one of them."""
    files = sst2().files
    assert old in files[name]
    return files | {name: files[name].replace(old, new)}


ONE_CLASS = {"train.csv": csv_table(["text", "label"], [("bako", "a"), ("tine", "a")] * 9)}
RAGGED = {"train.conll": "bako O\ntine B-X I-X\n", "dev.conll": "bako O\n"}
PAIRS = {"train.jsonl": json_lines([{"anchor": "bako", "positive": "tine"}] * 9)}
CLASSES = {"text_column": "text", "label_column": "label"}


@pytest.mark.parametrize(
    "task,files,options,message",
    [
        (
            "sst2",
            changed("dev.tsv", "\t1\n", "\t5\n"),
            {},
            r"dev\.tsv:3: label '5' is not among the classes of task sst2: negative, positive",
        ),
        (
            "sst2",
            sst2().files,
            {"label_column": "lable"},
            r"train\.tsv: no column 'lable' .* did you mean 'label'\?",
        ),
        ("classification", ONE_CLASS, CLASSES, r"the 9 training rows have no label but a, so there is nothing to learn"),
        ("sst2", sst2().files | {"dev.tsv": "sentence\tlabel\n"}, {}, r"dev\.tsv: holds no rows"),
        ("tagging", RAGGED, {}, r"train\.conll:2: 3 columns, where the first line has 2"),
        ("sst3", sst2().files, {}, r"no task 'sst3'; did you mean 'sst2'\?; known: cola, "),
        (
            "sst2",
            sst2().files,
            {"max_seq_length": 200},
            r"max_seq_length=200, but .*/tiny takes at most 128 tokens: give --max-seq-length 128",
        ),
        ("sst2", sst2().files, {"num_devices": 99}, r"num_devices=99, but there are 8 .*: choose 1 to 8"),
        ("sst2", sst2().files, {"freeze_layers": 3}, r"freeze_layers=3, but .*/tiny has 2 layers: choose 0 to 2"),
        ("sst2", sst2().files, {"freeze_layers": 2, "optimizer": "muon"}, "freeze_layers=2 leaves no kernels of layers to"),
        ("sst2", sst2().files, {"loss": "cosine"}, r"loss='cosine' is for similarity, reranking, not for classification"),
        ("similarity", PAIRS, {"loss": "cosine"}, r"loss='cosine' does not fit the training data: give --loss ranking"),
        ("similarity", PAIRS, {"batch_size": 1}, r"--batch-size 1: similarity compares the rows of a batch: give 2 or more"),
        ("retrieval", PAIRS, {"batch_size": 1}, r"--batch-size 1: retrieval compares the rows of a batch: give 2 or more"),
        ("sst2", sst2().files, {"via": "mnli"}, r"--via mnli: expected TASK=DATA"),
        ("sst2", {}, {"workdir": "/dev/null/run"}, r"cannot use the work directory /dev/null/run: Not a directory"),
    ],
)
def test_bad_input_is_refused_with_the_place_and_the_fix(model, tmp_path, task, files, options, message):
    (tmp_path / "data").mkdir()
    for name, content in files.items():
        (tmp_path / "data" / name).write_text(content)
    with pytest.raises(InputError, match=message):
        tune(model, task, tmp_path / "data", **{"workdir": tmp_path / "run"} | options)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_model_that_is_none_is_refused(model, finished, tmp_path):
    data = finished(sst2).workdir.parent
    with pytest.raises(InputError, match=r"no directory .*/tinny; did you mean '.*/tiny'"):
        tune(model.with_name("tinny"), "sst2", data, tmp_path / "run")
    shutil.copytree(model, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(InputError, match=r"mute has no tokenizer: put its tokenizer\.json or vocab\.txt beside its config\.json"):
        tune(tmp_path / "mute", "sst2", data, tmp_path / "run")


def test_a_file_or_a_forbidden_folder_is_no_work_directory(model, finished, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot use the work directory .*/file: File exists"):
        tune(model, "sst2", finished(sst2).workdir.parent, tmp_path / "file")

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)  # root may write anywhere
    with pytest.raises(InputError, match=r"cannot use the work directory .*/closed: Permission denied"):
        tune(model, "sst2", finished(sst2).workdir.parent, tmp_path / "closed")


def test_early_stopping_that_would_keep_the_last_weights_is_refused(model, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        tune(model, "sst2", tmp_path, tmp_path / "run", early_stopping=1, select="last")
    assert ended.value.code == 2
    assert "early_stopping keeps the best weights" in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_the_script_says_what_is_wrong_without_a_stack_trace(tmp_path):
    process = start(["somewhere", "--task", "sst2"])
    assert process.communicate()[0] == (
        "error: --data is missing: python finetune.py MODEL --task NAME --data PATH; see --help\n"
    )
    assert process.returncode == 1
