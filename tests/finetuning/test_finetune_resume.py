"""A fine-tuning run that is run again: finished, changed, stopped by a signal or killed."""

import json
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
from finetune_cases import MARKERS, arguments, files_of, json_lines, recorded, results_of, sst2, start, text, tune

import finetune
from bert_jax.config import InputError
from bert_jax.data.records import Record
from bert_jax.finetuning import stages
from bert_jax.finetuning.evaluation import Evaluator
from bert_jax.finetuning.runs import Runs
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.table import find_task
from bert_jax.training.checkpoint import Checkpointer


def test_a_finished_run_that_is_run_again_trains_nothing_and_changes_nothing(finished, monkeypatch):
    run = finished(sst2)
    before = files_of(run.workdir)
    monkeypatch.setattr(Runs, "fit", lambda *args: pytest.fail("it trains"))
    assert finetune.main(run.argv) == 0
    assert files_of(run.workdir) == before


def test_another_configuration_in_the_same_work_directory_is_refused_with_the_fields(model, finished, tmp_path):
    run = finished(sst2)
    with pytest.raises(InputError, match=r"holds another run:\n  learning_rates: \[0.01\] there, \[0.001\] here\nuse another"):
        tune(model, "sst2", run.workdir.parent, run.workdir, learning_rates="1e-3")
    shutil.copytree(run.workdir, tmp_path / "run")
    tune(model, "sst2", run.workdir.parent, tmp_path / "run", log_every=2, num_devices=2)  # nothing that is computed


def test_a_finished_run_keeps_no_state_of_the_optimizer(finished, two_seeds):
    for workdir in (finished(sst2).workdir, two_seeds):
        assert not [path for path in workdir.rglob("*") if "checkpoints" in path.name]
    assert (two_seeds / "runs" / "seed1-lr0.01" / "run.json").exists()


@pytest.mark.parametrize("left", ["run.json", "checkpoints"])
def test_changed_data_is_refused(model, finished, tmp_path, left, monkeypatch):
    run = finished(sst2)
    if left == "checkpoints":  # as of a run that was killed at its end
        monkeypatch.setattr(Runs, "drop_checkpoints", lambda self: None)
        tune(model, "sst2", run.workdir.parent, tmp_path / "run")
    else:
        shutil.copytree(run.workdir, tmp_path / "run")
    for name, content in run.case.files.items():
        (tmp_path / name).write_text(content + "bako\t1\n" if name == "train.tsv" else content)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["task_data"]["data"] = str(tmp_path)
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    if left == "checkpoints":
        (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(InputError, match=r"the data differs from that of .*: the files, or the way this version"):
        tune(model, "sst2", tmp_path, tmp_path / "run")


@pytest.mark.parametrize("left", ["run.json", "checkpoints"])
def test_the_same_files_split_in_another_way_are_refused(model, finished, tmp_path, left, monkeypatch):
    run = finished(sst2)
    if left == "checkpoints":  # as of a run that was killed at its end
        monkeypatch.setattr(Runs, "drop_checkpoints", lambda self: None)
        tune(model, "sst2", run.workdir.parent, tmp_path / "run")
        (tmp_path / "run" / "run.json").unlink()
    else:
        shutil.copytree(run.workdir, tmp_path / "run")
    monkeypatch.setattr(stages.holdout, "digest", lambda train, dev: "of other rows")
    with pytest.raises(
        InputError, match=r"the way this version reads or splits them, have changed. Restore them, or give another"
    ):
        tune(model, "sst2", run.workdir.parent, tmp_path / "run")


@pytest.mark.parametrize("task, train, dev, expected", [
    ("sst2", "001", "0011", 0.5), ("sst2", "001", "0001", 0.75),
    ("sst2", "001", "00", None),  # of one class: everything that says so is right
    ("cola", "001", "0011", 0.0), ("cola", "001", "00", None),
    ("stsb", [0.0, 1.0], [1.0, 2.0], 0.0), ("stsb", [0.0, 1.0], [1.0, 1.0], None),
    ("tagging", [("O", "B-X")], [("O", "B-X")], 0.0), ("tagging", [("O", "B-X")], [("O",), ("O", "O")], None),
    ("tagging", [("NN", "VB", "NN")], [("NN", "VB"), ("NN", "UH", "VB")], 0.4), ("tagging", [("PER", "O")], [("PER", "O")], 0.0),
    ("squad2", [()], [(), (), (("a", 0),), ()], 0.75), ("squad", [()], [(("a", 0),)], 0.0),
    ("multiple_choice", [0, 1], [0, 1], None), ("sst2", "001", None, None),
])  # fmt: skip
def test_what_learns_nothing_is_known_where_a_score_can_tell(task, train, dev, expected):
    splits = [[Record(("a",), label, "0", "f:1") for label in labels or ()] for labels in (train, dev)]
    labels = tuple({tag for record in splits[0] for tag in record.label}) if task == "tagging" else ("0", "1")
    found = Splits(splits[0], {} if dev is None else {"dev": splits[1]}, {}, labels, [], "")
    assert stages.baseline(find_task(task), found, None) == expected
    assert stages.baseline(find_task(task), found, "loss") is None


@pytest.fixture(scope="session")
def two_seeds(model, finished, tmp_path_factory):
    """The work directory of two runs, one after the other, that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("two_seeds")
    tune(model, "sst2", finished(sst2).workdir.parent, workdir, seeds=2)
    return workdir


def check_equal(workdir, whole):
    """Two work directories of the same two runs: the same losses to the bit, the same scores, the same weights."""
    for name in ("seed0-lr0.01", "seed1-lr0.01"):
        assert recorded(workdir / "runs" / name) == recorded(whole / "runs" / name)
    (ours, theirs) = ([run | {"seconds": 0} for run in results_of(d)["runs"]] for d in (workdir, whole))
    assert ours == theirs
    assert (workdir / "export" / "model.safetensors").read_bytes() == (whole / "export" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_dev_is_predicted_once_an_evaluation_and_again_where_the_export_has_other_weights(model, finished, tmp_path, monkeypatch):
    data, found = finished(sst2).workdir.parent, []  # which trains, if no test has asked for it yet
    predict, save, seen, saved = Evaluator.predict, Checkpointer.save, [], []
    monkeypatch.setattr(Evaluator, "predict", lambda self, split, params: seen.append(split.name) or predict(self, split, params))
    monkeypatch.setattr(Checkpointer, "save", lambda self, step, *rest: saved.append(step) or save(self, step, *rest))
    for name in ("once", "again"):
        found.append(tune(model, "sst2", data, tmp_path / name, seeds=2))
        assert saved == [18, 18]  # a checkpoint of the last step would be deleted at once
        dev = [split for split in seen if split == "dev"]
        assert len(dev) == 4 + (name == "again")
        seen.clear()
        saved.clear()
        monkeypatch.setattr(stages, "checksum", lambda params: 0)
    once, again = found
    assert once["exported"] == again["exported"]
    assert [(tmp_path / name / "predictions" / "dev.tsv").read_bytes() for name in ("once", "again")] == [
        (finished(sst2).workdir / "predictions" / "dev.tsv").read_bytes()
    ] * 2


@pytest.mark.parametrize("number,at", [(signal.SIGTERM, 45), pytest.param(signal.SIGINT, 72, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_goes_on_to_the_bit(model, finished, two_seeds, tmp_path, monkeypatch, number, at):
    """Amid the second run, and in its last step."""
    put, calls = stages.parallel.Devices.put, []

    def count(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return put(*args, **kwargs)

    monkeypatch.setattr(stages.parallel.Devices, "put", count)
    argv = arguments(model, "sst2", finished(sst2).workdir.parent, tmp_path, seeds=2)
    assert finetune.main(argv) == 128 + number
    assert len(calls) == at
    assert not (tmp_path / "results.json").exists()
    assert finetune.main(argv) == 0
    assert len(calls) == 72
    check_equal(tmp_path, two_seeds)


def test_lines_of_metrics_that_are_lost_are_said(model, finished, tmp_path, monkeypatch, capsys):
    argv = arguments(model, "sst2", finished(sst2).workdir.parent, tmp_path)
    put, calls = stages.parallel.Devices.put, []

    def count(*args, **kwargs):
        calls.append(1)
        if len(calls) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return put(*args, **kwargs)

    monkeypatch.setattr(stages.parallel.Devices, "put", count)
    assert finetune.main(argv) == 128 + signal.SIGTERM
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text(lines[-1])
    capsys.readouterr()
    assert finetune.main(argv) == 0
    assert f"warning: {metrics} has " in capsys.readouterr().err


def kill_when(process, seen):
    while process.poll() is None and not seen():
        time.sleep(0.001)
    process.kill()
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output


def test_a_killed_run_goes_on_to_the_bit(model, finished, two_seeds, tmp_path):
    argv = arguments(model, "sst2", finished(sst2).workdir.parent, tmp_path, seeds=2)
    process = start(argv, ["tests/dying.py", "finetune", tmp_path / "runs" / "seed1-lr0.01" / "checkpoints", 18])
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output
    assert (tmp_path / "runs" / "seed0-lr0.01" / "run.json").exists()
    assert not (tmp_path / "runs" / "seed1-lr0.01" / "run.json").exists()
    for folder in (tmp_path, tmp_path / "runs" / "seed0-lr0.01" / "export", tmp_path / "runs" / "seed1-lr0.01" / "export"):
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors.12345.tmp").write_bytes(b"half")
    assert finetune.main(argv) == 0
    check_equal(tmp_path, two_seeds)
    assert not [*tmp_path.rglob("*.tmp")]


@pytest.mark.slow
def test_a_killed_retriever_with_hard_negatives_goes_on_to_the_bit(model, tmp_path):
    """In chunks, with dropout, shorter embeddings, a learnt temperature and missing negatives; killed between evaluations."""
    rng, rows = np.random.default_rng(3), []
    for i in range(28):
        query, positive = (text(rng, MARKERS[i % 6], words=words) for words in (3, 5))
        rows.append({"query": query, "positive": positive, "negative_1": text(rng), "negative_2": text(rng) * (i % 3 > 0)})
    (tmp_path / "train.jsonl").write_text(json_lines(rows))
    options = {"num_epochs": 3, "eval_every": 2, "dev_size": 4, "chunk_size": 1, "dimensions": "32,8", "dropout": 0.1}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    own = {folder: arguments(model, "retrieval", tmp_path / "train.jsonl", folder, **options) for folder in (whole, killed)}
    for folder in own:
        own[folder].append("--learn-temperature")
    assert finetune.main(own[whole]) == 0
    process = start(own[killed], ["tests/dying.py", "finetune", killed / "checkpoints", 4])
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output
    assert not (killed / "run.json").exists()
    assert finetune.main(own[killed]) == 0
    assert len([line for line in recorded(whole) if b"train/temperature" in line]) == 9
    assert recorded(killed) == recorded(whole)
    (ours, theirs) = ([run | {"seconds": 0} for run in results_of(folder)["runs"]] for folder in (killed, whole))
    assert ours == theirs
    for name in ("export/model.safetensors", "export/config.json", "predictions/dev.trec"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("together", ["no", "yes"])
def test_runs_killed_at_five_random_moments_equal_some_that_were_not(model, finished, tmp_path, together):
    options = {"seeds": 2, "num_epochs": 8, "eval_every": 2, "early_stopping": 8, "together": together, "dropout": 0.1}
    data = finished(sst2).workdir.parent
    whole = tune(model, "sst2", data, tmp_path / "whole", **options)
    argv, rng = arguments(model, "sst2", data, tmp_path / "run", **options), random.Random(7)

    def lines():
        """Of all metrics.jsonl so far."""
        paths = [*tmp_path.glob("run/runs/metrics.jsonl"), *tmp_path.glob("run/runs/*/metrics.jsonl")]
        return sum(len(path.read_bytes().splitlines()) for path in paths)

    for _ in range(5):
        wanted = lines() + rng.randrange(1, 30)
        kill_when(start(argv), lambda wanted=wanted: lines() >= wanted)
    assert finetune.main(argv) == 0
    found = results_of(tmp_path / "run")
    assert [run | {"seconds": 0} for run in found["runs"]] == [run | {"seconds": 0} for run in whole["runs"]]
    for path in (tmp_path / "whole" / "runs").rglob("metrics.jsonl"):
        assert recorded(path.parent) == recorded(tmp_path / "run" / path.parent.relative_to(tmp_path / "whole"))
