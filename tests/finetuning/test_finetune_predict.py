"""Fine-tuned models that only predict: without epochs, for GLUE's leaderboard, and by `evaluate`."""

import json
import shutil

import pytest
from finetune_cases import (
    FILLERS,
    MARKERS,
    WORDS,
    arguments,
    csv_table,
    files_of,
    mnli,
    multi_label,
    odd_csv,
    regression,
    results_of,
    rows_of,
    rte,
    scored_pairs,
    squad2,
    sst2,
    stsb,
    swag,
    table,
    tagging,
    tune,
)

import bert_jax
import finetune
from bert_jax.__main__ import main as command
from bert_jax.config import InputError


@pytest.mark.parametrize("build", [sst2, stsb])
def test_no_epochs_only_predict(finished, tmp_path, capsys, build):
    run = finished(build)
    found = tune(run.export, run.case.task, run.workdir.parent, tmp_path, num_epochs=0)
    assert (found["runs"], found["best"]) == ([], None)
    assert found["exported"]["dev"] == run.results["exported"]["dev"]
    name = {"sst2": "accuracy", "stsb": "pearson"}[run.case.task]
    assert f"dev: {name} {found['exported']['dev'][name]:.4f}" in capsys.readouterr().out
    assert files_of(tmp_path / "predictions") == files_of(run.workdir / "predictions")
    assert not (tmp_path / "export").exists()


@pytest.mark.slow
def test_the_diagnostic_set_is_predicted_by_a_model_of_mnli(model, finished, tmp_path):
    rows = [(i, f"{WORDS[8]} {WORDS[9]}", f"{WORDS[10]} {MARKERS[i % 3]} {WORDS[11]}") for i in range(6)]
    (tmp_path / "diagnostic.tsv").write_text(table(["index", "sentence1", "sentence2"], rows))
    found = tune(finished(mnli).export, "ax", tmp_path, tmp_path / "run")
    assert (found["data"]["train"], found["data"]["test"], found["exported"]) == (0, 6, {})
    predicted = bert_jax.Classifier(bert_jax.load(finished(mnli).export))([row[1:] for row in rows])
    assert [row["prediction"] for row in rows_of(tmp_path / "run" / "predictions" / "test.tsv")] == [p.label for p in predicted]
    with pytest.raises(InputError, match="has no head for ax, and there is no training data: give a fine-tuned model"):
        tune(model, "ax", tmp_path, tmp_path / "other")


def test_a_submission_of_two_small_runs_is_refused_with_what_is_missing(finished, tmp_path):
    workdirs = [str(finished(build).workdir) for build in (sst2, rte)]
    zipped = tmp_path / "glue.zip"
    with pytest.raises(InputError, match=r"no predictions for CoLA\.tsv \(task cola\), MRPC.*or --fill-missing") as error:
        command(["glue-zip", *workdirs, "--out", str(zipped)])
    assert "SST-2" not in str(error.value)
    with pytest.raises(InputError, match=r"predictions/test\.tsv: 5 predictions, expected 1821: predict the whole"):
        command(["glue-zip", *workdirs, "--out", str(zipped), "--fill-missing"])
    assert not zipped.exists()


EVALUATED = [odd_csv, mnli, multi_label, stsb, tagging, squad2, swag, scored_pairs]


@pytest.mark.parametrize("build", EVALUATED)
def test_evaluating_an_export_gives_the_scores_and_predictions_of_its_training(finished, tmp_path, build):
    """On the dev file, as if it were new."""
    run = finished(build)
    predictions = run.workdir / "predictions"
    dev = next(name for name in run.case.counts if name.startswith("dev"))
    file = next(name for name in run.case.files if name.startswith((dev, "val", "held out")))
    named = [name for name in ("text_column", "label_column") if name in run.options]
    columns = [(f"--{name.replace('_', '-')}", run.options[name]) for name in named]
    argv = [str(run.export), "--data", str(run.workdir.parent / file), "--out", str(tmp_path), *(x for c in columns for x in c)]
    command(["evaluate", *argv])
    found = results_of(tmp_path)
    assert (found["task"], found["runs"], found["data"]["test"]) == (run.case.task, [], run.case.counts[dev])
    assert found["exported"]["test"] == run.results["exported"][dev]
    for path in predictions.glob(f"{dev}.*"):
        assert (tmp_path / "predictions" / path.name.replace(dev, "test", 1)).read_bytes() == path.read_bytes()
    assert "<h2>test: " in (tmp_path / "report.html").read_text()


def test_evaluating_reads_texts_and_values_as_the_models_files_say(finished, tmp_path):
    """Special tokens in a text, and the activation behind a value, of a model that others made."""
    export = tmp_path / "export"
    shutil.copytree(finished(regression).export, export)
    for name, change in (
        ("tokenizer_config.json", {"split_special_tokens": False}),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}, "problem_type": None}),
    ):
        content = json.loads((export / name).read_text()) | change
        (export / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    model = bert_jax.load(export)
    texts = [f"{a} {model.tokenizer.mask_token} {b}" for a, b in zip(MARKERS, FILLERS, strict=False)]
    (tmp_path / "new.csv").write_text(csv_table(["text", "score"], [(t, i) for i, t in enumerate(texts)]))
    command(["evaluate", str(export), "--data", str(tmp_path / "new.csv"), "--out", str(tmp_path / "out")])
    found = [float(row["prediction"]) for row in rows_of(tmp_path / "out" / "predictions" / "test.tsv")]
    expected = [each.score for each in bert_jax.Classifier(model)(texts)]
    assert found == pytest.approx(expected, abs=1e-5)
    assert all(0 < value < 1 for value in expected)
    as_text = bert_jax.Classifier(bert_jax.load(export, special_tokens="text"))(texts)
    assert [each.score for each in as_text] != pytest.approx(expected, abs=1e-3)


def test_a_model_without_a_threshold_of_its_own_is_evaluated_at_0_and_that_is_said(finished, tmp_path, capsys):
    export, run = tmp_path / "export", finished(squad2)
    shutil.copytree(run.export, export)
    config = json.loads((export / "config.json").read_text())
    assert config.pop("bert_jax")["null_threshold"] == run.results["metrics"]["dev"]["null_threshold"]
    (export / "config.json").write_text(json.dumps(config))
    argv = [str(export), "--task", "squad2", "--data", str(run.workdir.parent / "dev-v2.json"), "--out", str(tmp_path / "out")]
    command(["evaluate", *argv])
    assert "has no threshold for no answer: 0 is used (--null-threshold)" in capsys.readouterr().err
    assert results_of(tmp_path / "out")["exported"]["test"]["null_threshold"] == 0
    odds = json.loads((tmp_path / "out" / "predictions" / "test.null_odds.json").read_text())
    answers = json.loads((tmp_path / "out" / "predictions" / "test.json").read_text())
    assert {id for id, text in answers.items() if not text} == {id for id, odd in odds.items() if odd > 0}


def test_a_file_that_can_not_be_evaluated_is_refused(model, finished, tmp_path):
    run = finished(sst2)

    def evaluate(directory, file, *options):
        command(["evaluate", str(directory), "--data", str(run.workdir.parent / file), "--out", str(tmp_path / "out"), *options])

    with pytest.raises(InputError, match=r"test\.tsv: no row has a label, so there is nothing to score: give --label-column"):
        evaluate(run.export, "test.tsv")
    with pytest.raises(InputError, match=r"tiny does not name the task that it was fine-tuned on: give --task"):
        evaluate(model, "dev.tsv")
    with pytest.raises(InputError, match=r"has no head for regression, and there is no training data"):
        evaluate(model, "dev.tsv", "--task", "regression", "--text-column", "sentence")
    with pytest.raises(InputError, match=r"--data is missing"):
        command(["evaluate", str(run.export)])
    (tmp_path / "odd.conll").write_text("bako B-X\n")
    with pytest.raises(InputError, match=r"tag 'B-X' is not among the tags of the model: O, B-LOC, B-PER, I-LOC, I-PER"):
        evaluate(finished(tagging).export, tmp_path / "odd.conll")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_only_to_predict_reads_what_it_was_trained_on(finished, tmp_path):
    run = finished(odd_csv)
    options = {name: value for name, value in run.options.items() if name != "max_seq_length"}
    argv = arguments(run.export, "classification", workdir=tmp_path, **options, num_epochs=0)
    del argv[(at := argv.index("--max-seq-length")) : at + 2]
    assert finetune.main(argv) == 0
    assert (tmp_path / "predictions" / "dev.tsv").read_bytes() == (run.workdir / "predictions" / "dev.tsv").read_bytes()
