"""Fine-tuning on every kind of task: a model and files in; scores, predictions and a fine-tuned directory out."""

import hashlib
import json
import shlex

import jax
import numpy as np
import pytest
from finetune_cases import (
    CASES,
    check_cosines,
    cola,
    mnli,
    mrpc,
    multi_label,
    odd_csv,
    pairs,
    regression,
    results_of,
    rows_of,
    rte,
    scored_pairs,
    squad2,
    sst2,
    swag,
    tagging,
    tune,
)

import bert_jax
from bert_jax.config import InputError
from bert_jax.data.layout import Layout
from bert_jax.tasks.metrics import entities


def check_results(case, found, workdir, argv):
    assert found["task"] == case.task
    assert found["command"] == "python finetune.py " + shlex.join(argv)
    assert {"python", "jax", "bert_jax"} <= found["versions"].keys()
    order = ["train", "msr_paraphrase_train", "reviews", "dev", "val", "held out", "test", "msr_paraphrase_test", "new"]
    names = sorted(case.files, key=lambda name: min(i for i, start in enumerate(order) if name.startswith(start)))
    assert found["data"]["hash"] == hashlib.sha256(b"".join(case.files[name].encode() for name in names)).hexdigest()
    assert {name: found["data"][name] for name in case.counts} == case.counts
    (run,) = found["runs"]
    dev = {name for name in case.counts if name.startswith("dev")}
    assert found["metrics"].keys() == run["scores"].keys() == dev
    assert all(np.isfinite(value) for scores in found["metrics"].values() for value in scores.values())
    assert found["metrics"] == next(e["scores"] for e in run["history"] if e["step"] == found["best"]["step"])
    summary = found["summary"]["0.01"]
    assert summary["metrics"].keys() == {f"{name}/{metric}" for name in dev for metric in found["metrics"][name]}
    assert summary["score"]["mean"] == found["score"] == max(e["score"] for e in run["history"])
    for name in dev:  # what was exported scores as it did in training
        assert found["exported"][name] == pytest.approx(found["metrics"][name], abs=1e-5)


def check_classes(case, model, path):
    assert model.labels == case.labels
    rows = rows_of(path)
    for row, found in zip(rows, bert_jax.Classifier(model)(case.dev), strict=True):
        if case.labels == ("LABEL_0",):
            assert found.score == pytest.approx(float(row["prediction"]), abs=2e-5)
        else:
            assert row["prediction"] == ",".join(found.labels)
            assert found.scores == pytest.approx({name: float(row[name]) for name in case.labels}, abs=1e-5)
    assert [row["id"] for row in rows] == [str(i) for i in case.ids]


def check_tags(case, model, path):
    assert model.labels == case.labels
    sentences = [[line.split("\t") for line in block.split("\n")] for block in path.read_text().strip("\n").split("\n\n")]
    for given, sentence, found in zip(case.dev, sentences, bert_jax.Tagger(model)(case.dev), strict=True):
        assert " ".join(word for word, _, _ in sentence) == given
        ends = np.cumsum([len(word) + 1 for word, _, _ in sentence]) - 1
        spans = [(kind, ends[first] - len(sentence[first][0]), ends[last]) for kind, first, last in
                 entities([tag for _, _, tag in sentence])]  # fmt: skip
        assert [(entity.label, entity.start, entity.end) for entity in found] == spans
    assert {tag for sentence in sentences for _, _, tag in sentence} > {"O"}


def check_answers(case, model, path):
    answers, odds = json.loads(path.read_text()), json.loads(path.with_suffix(".null_odds.json").read_text())
    n_best = json.loads(path.with_suffix(".nbest.json").read_text())
    assert list(answers) == list(odds) == list(n_best) == [f"q{i}" for i in range(24, 32)]
    assert ("" in answers.values()) == (case.task == "squad2")
    assert [found[0].text for found in bert_jax.Answerer(model)(case.dev)] == list(answers.values())
    assert model.tuned.null_threshold == results_of(path.parents[1])["metrics"]["dev"].get("null_threshold")


def check_choices(case, model, path):
    layout = Layout(model.tokenizer, model.config)
    apply = jax.jit(model.apply)
    for row, choices in zip(rows_of(path), case.dev, strict=True):
        examples, _ = layout.examples(choices)
        ids, types = (np.zeros((1, len(choices), 48), np.int32) for _ in range(2))
        mask = np.zeros_like(ids)
        for i, example in enumerate(examples):
            size = len(example.input_ids)
            ids[0, i, :size], types[0, i, :size], mask[0, i, :size] = example.input_ids, example.token_type_ids, 1
        logits = apply(model.params, {"input_ids": ids, "token_type_ids": types, "attention_mask": mask})["logits"][0]
        assert str(int(np.argmax(logits))) == row["prediction"]
        np.testing.assert_allclose(jax.nn.softmax(logits), [float(row[str(i)]) for i in range(4)], atol=1e-5)


CHECKS = {
    "sequence_classification": (check_classes, "tsv"), "token_classification": (check_tags, "conll"),
    "question_answering": (check_answers, "json"), "multiple_choice": (check_choices, "tsv"), "encoder": (check_cosines, "tsv"),
}  # fmt: skip


SLOW = (cola, rte, mrpc, mnli, odd_csv, pairs)  # what other cases and tests have too


@pytest.mark.filterwarnings("ignore:.* texts have more than 14 tokens")
@pytest.mark.parametrize("build", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_a_task_leaves_scores_predictions_and_a_model_that_predicts_the_same(build, finished):
    run = finished(build)
    check_results(run.case, run.results, run.workdir, run.argv)
    check, suffix = CHECKS[run.case.head]
    predictions = run.workdir / "predictions"
    if suffix == "tsv":
        assert {name: len(rows_of(predictions / f"{name}.tsv")) for name in run.case.counts} == run.case.counts
    fine_tuned = bert_jax.load(run.export)
    assert fine_tuned.head == run.case.head
    assert (fine_tuned.tuned.task, fine_tuned.max_length) == (run.case.task, run.options.get("max_seq_length", 48))
    check(run.case, fine_tuned, predictions / f"{next(iter(run.case.counts))}.{suffix}")


def test_a_test_file_with_some_labels_is_predicted_whole_and_scored_in_part(finished):
    run = finished(odd_csv)
    found = rows_of(run.workdir / "predictions" / "test.tsv")
    assert [row["label"] for row in found] == ["so, so", "", 'very "fine"']
    assert run.results["data"]["test_labelled"] == 2
    right = np.mean([row["prediction"] == row["label"] for row in found if row["label"]])
    assert run.results["exported"]["test"]["accuracy"] == pytest.approx(right)


def test_classes_that_a_word_tells_are_learnt(finished):
    run = finished(sst2)
    assert run.results["metrics"]["dev"]["accuracy"] == 1.0
    assert run.results["runs"][0]["failed"] is None
    assert {row["prediction"] for row in rows_of(run.workdir / "predictions" / "test.tsv")} == {"negative"}


@pytest.mark.parametrize("build", [sst2, multi_label, regression, tagging, squad2, swag, scored_pairs, pairs])
def test_an_unknown_metric_is_refused_before_training_with_those_there_are(model, finished, tmp_path, build):
    run = finished(build)
    with pytest.raises(InputError, match=r"--metric accuracies is not among the metrics of this task: ") as error:
        tune(model, run.case.task, workdir=tmp_path, metric="accuracies", **run.options)
    assert str(error.value).partition("this task: ")[2].split(", ") == list(run.results["metrics"]["dev"])
    assert not (tmp_path / "metrics.jsonl").exists()
