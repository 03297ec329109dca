"""finetune.py from end to end: a model and files in; scores, predictions and a fine-tuned directory out."""

import csv
import dataclasses
import errno
import functools
import hashlib
import io
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import make_words

import bert_jax
import finetune
from bert_jax import pretrained
from bert_jax.__main__ import main as command
from bert_jax.config import BertConfig, InputError
from bert_jax.data.layout import Layout
from bert_jax.data.records import Record
from bert_jax.finetuning import stages
from bert_jax.finetuning.evaluation import Evaluator
from bert_jax.finetuning.runs import Runs, _best
from bert_jax.model.convert import flatten
from bert_jax.model.heads import Bert, initialize
from bert_jax.pooling import Dense
from bert_jax.tasks.metrics import entities
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.table import find_task
from bert_jax.training import writer
from bert_jax.training.checkpoint import Checkpointer

ROOT = Path(__file__).parent.parent
WORDS = make_words(60)
MARKERS, FILLERS = WORDS[:6], WORDS[6:]  # a text's class is that of the marker in it
# One device and no dropout: the least to compile. 48 rows are 6 steps an epoch, 36 steps in all, with two evaluations.
USUAL = {
    "num_epochs": 6, "eval_every": 18, "batch_size": 8, "learning_rates": "1e-2", "max_seq_length": 48, "num_devices": 1,
    "dropout": 0, "log_every": 1,
}  # fmt: skip
SHORT = {"max_seq_length": 14}  # shorter than most texts: what is past it counts neither in training nor in predictions
NO_CHANGE = "1e-30"  # a learning rate that leaves float32 weights as they are
TINY = BertConfig(vocab_size=280, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                  max_position_embeddings=128, initializer_range=0.2)  # fmt: skip


@pytest.fixture(scope="session")
def model(tokenizer, tmp_path_factory):
    """The directory of an untrained model whose weights are large enough to learn within a few steps."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    params = jax.jit(lambda: initialize(Bert(TINY, "masked_lm"), 0))()
    pretrained.save(pretrained.Model(TINY, params, tokenizer, "masked_lm"), folder)
    return folder


def arguments(model, task, data, workdir, **options):
    """The command line; options are FinetuneConfig's."""
    named = {"task": task, "data": data, "workdir": workdir} | USUAL | options
    return [str(model), *(part for name, value in named.items() for part in (f"--{name.replace('_', '-')}", str(value)))]


def results_of(workdir):
    return json.loads((Path(workdir) / "results.json").read_text())


def tune(model, task, data, workdir, **options):
    """Runs the command in this process; results.json."""
    assert finetune.main(arguments(model, task, data, workdir, **options)) == 0
    return results_of(workdir)


def recorded(workdir):
    """metrics.jsonl without its timing lines."""
    lines = (Path(workdir) / "metrics.jsonl").read_bytes().splitlines()
    return [line for line in lines if json.loads(line).get("kind") != "timing"]


def weights(directory):
    """Path -> values of the parameters of a saved model."""
    return {path: np.asarray(value) for path, value in flatten(bert_jax.load(directory).params).items()}


# --- made-up tasks ---


def text(rng, *markers, words=5):
    """`words` words, the markers among them at random places."""
    chosen = [str(word) for word in rng.choice(FILLERS, words - len(markers))]
    for marker in markers:
        chosen.insert(int(rng.integers(len(chosen) + 1)), marker)
    return " ".join(chosen)


def table(columns, rows):
    """Tab-separated text with a header."""
    return "\n".join("\t".join(map(str, row)) for row in [columns, *rows]) + "\n"


def csv_table(columns, rows):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([columns, *rows])
    return out.getvalue()


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@dataclass
class Case:
    """A task's files, and what should come of them.

    Attributes:
      dev: what a predictor is called with for the dev rows.
      ids: of the dev rows in the predictions: what the files call them, else their numbers.
      counts: rows of each split that is evaluated or predicted.
      options: of the command line.
    """

    task: str
    files: dict[str, str]
    head: str
    dev: list[Any]
    labels: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=lambda: {"dev": 16})
    options: dict[str, Any] = field(default_factory=dict)
    data: str = ""  # a file in the folder, where that is not the data itself
    ids: Sequence[int] = range(16)

    def write(self, folder):
        """Writes the files; the options that the command needs for them."""
        for name, content in self.files.items():
            (folder / name).write_text(content)
        return {name: str(folder / value) if name in ("dev", "test") else value for name, value in self.options.items()} | {
            "data": str(folder / self.data)
        }


def sst2():
    rng, classes = np.random.default_rng(0), ("negative", "positive")
    rows = [(text(rng, MARKERS[i % 2]) + " [SEP] a" * (i % 16 < 2), i % 2) for i in range(64)]  # text, as for the export
    files = {"train.tsv": table(["sentence", "label"], rows[:48]), "dev.tsv": table(["sentence", "label"], rows[48:]),
             "test.tsv": table(["index", "sentence"], [(i, text(rng, MARKERS[0])) for i in range(5)])}  # fmt: skip
    return Case("sst2", files, "sequence_classification", [t for t, _ in rows[48:]], classes, {"dev": 16, "test": 5})


def odd_csv():
    """Quotes, commas and line breaks in fields, columns of any name, files of any name."""
    rng, classes = np.random.default_rng(1), ("so, so", "sad", 'very "fine"')
    texts = [f'He said: "{text(rng, MARKERS[i % 3])}",\nand {text(rng)}' for i in range(64)]
    rows = [(f"x{i}", t, classes[i % 3]) for i, t in enumerate(texts)]
    columns = ["number", "What was said", "The Mood"]
    files = {"reviews.csv": csv_table(columns, rows[:48]), "held out.csv": csv_table(columns, rows[48:]),
             "new.csv": csv_table(columns[1:], [rows[0][1:], (texts[1], ""), rows[2][1:]])}  # fmt: skip
    options = {"dev": "held out.csv", "test": "new.csv", "text_column": "What was said", "label_column": "The Mood", **SHORT}
    return Case("classification", files, "sequence_classification", texts[48:], tuple(sorted(classes)),
                {"dev": 16, "test": 3}, options, "reviews.csv")  # fmt: skip


def cola():
    rng = np.random.default_rng(2)
    rows = [("gj04", i % 2, "" if i % 2 else "*", text(rng, MARKERS[i % 2])) for i in range(64)]
    lines = ["\t".join(map(str, row)) + "\n" for row in rows]  # no header
    test = table(["index", "sentence"], [(i, text(rng)) for i in range(4)])
    files = {"train.tsv": "".join(lines[:48]), "dev.tsv": "".join(lines[48:]), "test.tsv": test}
    labels = ("unacceptable", "acceptable")
    return Case("cola", files, "sequence_classification", [row[3] for row in rows[48:]], labels, {"dev": 16, "test": 4})


def stsb():
    rng = np.random.default_rng(3)
    columns = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"]
    pairs = [(text(rng, MARKERS[0]), text(rng, MARKERS[i % 2])) for i in range(64)]
    rows = [(i, "g", "f", "y", "o", "a", "b", *pair, 5 * (1 - i % 2)) for i, pair in enumerate(pairs)]
    files = {"train.tsv": table(columns, rows[:48]), "dev.tsv": table(columns, rows[48:]),
             "test.tsv": table(columns[:-1], [row[:-1] for row in rows[:4]])}  # fmt: skip
    return Case("stsb", files, "sequence_classification", pairs[48:], ("LABEL_0",), {"dev": 16, "test": 4}, ids=range(48, 64))


NLI = ("entailment", "neutral", "contradiction")


def mnli():
    rng = np.random.default_rng(4)
    columns = ["index", "promptID", "sentence1", "sentence2", "label1", "gold_label"]
    rows = [(i, i, text(rng), text(rng, MARKERS[i % 3]), NLI[0], NLI[i % 3]) for i in range(80)]
    unlabelled = [row[:4] for row in rows]
    files = {
        "train.tsv": table(columns, rows[:48]),
        "dev_matched.tsv": table(columns, rows[48:64]), "dev_mismatched.tsv": table(columns, rows[64:72]),
        "test_matched.tsv": table(columns[:4], unlabelled[:3]), "test_mismatched.tsv": table(columns[:4], unlabelled[3:5]),
    }  # fmt: skip
    counts = {"dev_matched": 16, "dev_mismatched": 8, "test_matched": 3, "test_mismatched": 2}
    return Case("mnli", files, "sequence_classification", [row[2:4] for row in rows[48:64]], NLI, counts, ids=range(48, 64))


def rte():
    rng, classes = np.random.default_rng(5), ("entailment", "not_entailment")
    rows = [(i, text(rng), text(rng, MARKERS[i % 2]), classes[i % 2]) for i in range(64)]
    columns = ["index", "sentence1", "sentence2", "label"]
    files = {"train.tsv": table(columns, rows[:48]), "dev.tsv": table(columns, rows[48:]),
             "test.tsv": table(columns[:3], [row[:3] for row in rows[:4]])}  # fmt: skip
    return Case("rte", files, "sequence_classification", [row[1:3] for row in rows[48:]], classes, {"dev": 16, "test": 4},
                ids=range(48, 64))  # fmt: skip


def mrpc():
    """By the names of Microsoft's own files; the dev rows are held out, and the order of these is that of the file."""
    rng = np.random.default_rng(6)
    columns = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    rows = [(i % 2, i, i, text(rng), text(rng, MARKERS[i % 2])) for i in range(64)]
    files = {"msr_paraphrase_train.txt": table(columns, rows[:56]), "msr_paraphrase_test.txt": table(columns, rows[56:])}
    drawn = np.random.default_rng(0).permutation(56)
    held_out = sorted(i for label in (0, 1) for i in drawn[drawn % 2 == label][:4])  # of each class its share
    return Case("mrpc", files, "sequence_classification", [rows[i][3:] for i in held_out], ("not_equivalent", "equivalent"),
                {"dev": 8, "test": 8}, {"dev_size": 8}, ids=held_out)  # fmt: skip


def multi_label():
    rng, names = np.random.default_rng(7), ("a", "b", "c")
    has = rng.integers(2, size=(64, 3)).astype(bool)
    rows = [{"text": text(rng, *(m for m, h in zip(MARKERS, row, strict=False) if h)),
             "labels": [n for n, h in zip(names, row, strict=True) if h]} for row in has]  # fmt: skip
    files = {"train.jsonl": json_lines(rows[:48]), "dev.jsonl": json_lines(rows[48:])}
    return Case("multi_label", files, "sequence_classification", [row["text"] for row in rows[48:]], names, options=SHORT)


def regression():
    rng = np.random.default_rng(8)
    rows = [(text(rng, *[MARKERS[0]] * (i % 4)), i % 4 - 1.5) for i in range(64)]
    files = {"train.csv": csv_table(["text", "score"], rows[:48]), "dev.csv": csv_table(["text", "score"], rows[48:])}
    return Case("regression", files, "sequence_classification", [t for t, _ in rows[48:]], ("LABEL_0",), options=SHORT)


def tagging():
    rng, kinds = np.random.default_rng(9), ("PER", "LOC")
    sentences = []
    for i in range(64):
        words = text(rng, MARKERS[i % 2], words=6).split()
        at = words.index(MARKERS[i % 2])
        tags = ["O"] * len(words)
        tags[at : at + 2] = [f"B-{kinds[i % 2]}", f"I-{kinds[i % 2]}"][: len(words) - at]
        sentences.append((words, tags))
    conll = ["\n".join(f"{w} {t}" for w, t in zip(*s, strict=True)) + "\n\n" for s in sentences]
    files = {"train.conll": "".join(conll[:48]), "dev.conll": "".join(conll[48:]),
             "test.conll": "\n\n".join("\n".join(words) for words, _ in sentences[:3]) + "\n"}  # fmt: skip
    dev = [" ".join(words) for words, _ in sentences[48:]]
    labels = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
    return Case("tagging", files, "token_classification", dev, labels, {"dev": 16, "test": 3}, SHORT)


def squad(version=1):
    """Contexts that are read in several windows; in version 2 every third question has no answer."""
    rng = np.random.default_rng(10 + version)
    paragraphs = []
    for i in range(32):
        context = text(rng, MARKERS[i % 4], words=40)
        there = version == 1 or i % 3
        answers = [{"text": MARKERS[i % 4], "answer_start": context.index(MARKERS[i % 4])}]
        question = {"id": f"q{i}", "question": f"{WORDS[20]} {MARKERS[i % 4]}?", "answers": answers if there else []}
        if version == 2:
            question["is_impossible"] = not there
        paragraphs.append({"context": context, "qas": [question]})

    def layout(some):
        return json.dumps({"version": f"v{version}", "data": [{"title": "t", "paragraphs": some}]}, indent=1)

    files = {f"train-v{version}.json": layout(paragraphs[:24]), f"dev-v{version}.json": layout(paragraphs[24:])}
    dev = [(p["qas"][0]["question"], p["context"]) for p in paragraphs[24:]]
    name = "squad" if version == 1 else "squad2"
    return Case(name, files, "question_answering", dev, (), {"dev": 8})


def squad2():
    return squad(version=2)


def swag():
    rng = np.random.default_rng(12)
    columns = ["", "video-id", "fold-ind", "startphrase", "sent1", "sent2", "gold-source",
               *(f"ending{i}" for i in range(4)), "label"]  # fmt: skip
    rows = []
    for i in range(40):
        endings = [text(rng, *[MARKERS[0]] * (j == i % 4), words=3) for j in range(4)]
        first, second = text(rng, words=4), WORDS[30]
        rows.append((i, "v", "f", f"{first} {second}", first, second, "gold", *endings, i % 4))
    files = {"train.csv": csv_table(columns, rows[:24]), "val.csv": csv_table(columns, rows[24:]),
             "test.csv": csv_table(columns[:-1], [row[:-1] for row in rows[:3]])}  # fmt: skip
    dev = [[(row[4], f"{row[5]} {ending}") for ending in row[7:11]] for row in rows[24:]]
    return Case("swag", files, "multiple_choice", dev, (), {"dev": 16, "test": 3})


def similar_pairs(rng, count):
    """(text, another with its marker, one with another marker)."""
    each = [rng.choice(MARKERS, 2, replace=False) for _ in range(count)]
    return [(text(rng, a), text(rng, a), text(rng, b)) for a, b in each]


def scored_pairs():
    triples = similar_pairs(np.random.default_rng(13), 64)
    rows = [(a, b if i % 2 else c, 5.0 * (i % 2)) for i, (a, b, c) in enumerate(triples)]
    columns = ["sentence1", "sentence2", "score"]
    files = {"train.csv": csv_table(columns, rows[:48]), "dev.csv": csv_table(columns, rows[48:])}
    return Case("similarity", files, "encoder", [row[:2] for row in rows[48:]], options=SHORT)


def pairs():
    rows = [{"anchor": a, "positive": b} for a, b, _ in similar_pairs(np.random.default_rng(14), 64)]
    files = {"train.jsonl": json_lines(rows[:48]), "dev.jsonl": json_lines(rows[48:])}
    return Case("similarity", files, "encoder", [(row["anchor"], row["positive"]) for row in rows[48:]])


def triplets():
    rows = [dict(zip(("anchor", "positive", "negative"), t, strict=True)) for t in similar_pairs(np.random.default_rng(15), 64)]
    files = {"train.jsonl": json_lines(rows[:48]), "dev.jsonl": json_lines(rows[48:])}
    return Case("similarity", files, "encoder", [(row["anchor"], row["positive"]) for row in rows[48:]])


CASES = [sst2, odd_csv, cola, stsb, mnli, rte, mrpc, multi_label, regression, tagging, squad, squad2, swag, scored_pairs, pairs,
         triplets]  # fmt: skip


# --- every kind of task ---


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


def rows_of(path):
    """The rows of a .tsv of predictions."""
    return list(csv.DictReader(path.read_text().splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


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


def check_cosines(case, model, path):
    embedder = bert_jax.Embedder(model)
    both = [embedder([pair[i] for pair in case.dev]) for i in (0, 1)]
    both = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in both]
    np.testing.assert_allclose((both[0] * both[1]).sum(axis=1), [float(r["prediction"]) for r in rows_of(path)], atol=1e-5)


CHECKS = {
    "sequence_classification": (check_classes, "tsv"), "token_classification": (check_tags, "conll"),
    "question_answering": (check_answers, "json"), "multiple_choice": (check_choices, "tsv"), "encoder": (check_cosines, "tsv"),
}  # fmt: skip


@dataclass
class Finished:
    """A case that was run."""

    case: Case
    workdir: Path
    argv: list[str]
    options: dict[str, Any]

    @property
    def results(self):
        return results_of(self.workdir)

    @property
    def export(self):
        return self.workdir / "export"


@pytest.fixture(scope="session")
def finished(model, tmp_path_factory):
    """A function: a builder of a case -> that case, run once."""

    @functools.cache
    def run(build):
        case, folder = build(), tmp_path_factory.mktemp(build.__name__)
        options = case.write(folder)
        argv = arguments(model, case.task, workdir=folder / "run", **options)
        assert finetune.main(argv) == 0
        return Finished(case, folder / "run", argv, options)

    return run


@pytest.mark.filterwarnings("ignore:.* texts have more than 14 tokens")
@pytest.mark.parametrize("build", CASES)
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


# --- running the same command again ---


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


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
    with pytest.raises(InputError, match=r"or this version reads or splits them in another way. Restore them, or give another"):
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


def test_dev_is_predicted_once_an_evaluation_and_again_where_the_export_has_other_weights(model, finished, tmp_path, monkeypatch):
    predict, save, seen, saved = Evaluator.predict, Checkpointer.save, [], []
    monkeypatch.setattr(Evaluator, "predict", lambda self, split, params: seen.append(split.name) or predict(self, split, params))
    monkeypatch.setattr(Checkpointer, "save", lambda self, step, *rest: saved.append(step) or save(self, step, *rest))
    data, found = finished(sst2).workdir.parent, []
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


@pytest.mark.parametrize("number,at", [(signal.SIGTERM, 45), (signal.SIGINT, 72)])
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


def start(argv, program=("finetune.py",)):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "NPROC": "16", "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, *map(str, program), *argv], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


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


# --- several runs ---


SEVERAL = {"seeds": 2, "learning_rates": f"{NO_CHANGE},1e-3,1e30", "eval_every": 6, "metric": "loss", "early_stopping": 2}


@pytest.fixture(scope="session")
def apart(model, finished, tmp_path_factory):
    """Six runs one after the other: two that stop early, two that learn, two that diverge."""
    workdir = tmp_path_factory.mktemp("apart")
    tune(model, "sst2", finished(sst2).workdir.parent, workdir, together="no", **SEVERAL)
    return workdir


def test_seeds_times_learning_rates_are_summarized_and_the_best_is_exported(apart):
    found = results_of(apart)
    still, learning, broken = (found["runs"][i : i + 2] for i in (0, 2, 4))
    assert [(run["learning_rate"], run["seed"]) for run in found["runs"]] == [
        (rate, seed) for rate in (1e-30, 1e-3, 1e30) for seed in (0, 1)
    ]
    assert [len(run["history"]) for run in still] == [3, 3]
    assert all(len(run["history"]) > 3 for run in learning)
    for rate, runs in (("1e-30", still), ("0.001", learning)):
        summary = found["summary"][rate]
        for values, of in (
            ([run["score"] for run in runs], summary["score"]),
            ([run["scores"]["dev"]["accuracy"] for run in runs], summary["metrics"]["dev/accuracy"]),
        ):
            assert of["mean"] == pytest.approx(np.mean(values))
            assert of["sd"] == pytest.approx(np.std(values, ddof=1))
        assert (summary["runs"], summary["failed"]) == (2, [])
    best = max(learning, key=lambda run: run["score"])
    assert found["best"] == {"seed": best["seed"], "learning_rate": 1e-3, "step": best["best_step"]}
    own = apart / "runs" / f"seed{best['seed']}-lr0.001" / "export" / "model.safetensors"
    assert (apart / "export" / "model.safetensors").read_bytes() == own.read_bytes()
    assert all("were not finite" in run["failed"] for run in broken)
    assert found["summary"]["1e+30"] == {"runs": 0, "failed": [0, 1], "score": None, "metrics": {}}


def test_what_is_not_finite_is_no_number_in_results_json(apart):
    def refuse(name):
        raise AssertionError(name)

    found = json.loads((apart / "results.json").read_text(), parse_constant=refuse)
    assert {run["score"] for run in found["runs"][4:]} == {"-inf"}


def test_runs_in_one_program_score_as_they_do_one_after_the_other(model, finished, apart, tmp_path):
    found = tune(model, "sst2", finished(sst2).workdir.parent, tmp_path, together="yes", **SEVERAL)
    for ours, theirs in zip(found["runs"][:4], results_of(apart)["runs"], strict=False):
        assert [e["step"] for e in ours["history"]] == [e["step"] for e in theirs["history"]]
        for a, b in zip(ours["history"], theirs["history"], strict=True):
            assert a["scores"]["dev"] == pytest.approx(b["scores"]["dev"], abs=2e-4)
    assert found["best"] == results_of(apart)["best"]
    assert all("were not finite" in run["failed"] for run in found["runs"][4:])
    lines = [json.loads(line) for line in recorded(tmp_path / "runs")]
    rates = [line[f"train/seed0-lr{NO_CHANGE}/learning_rate"] for line in lines if "train/loss" in line]
    assert (len(rates), len(set(rates[:19])), set(rates[18:])) == (36, 19, {rates[18]})  # it stopped at step 18
    assert tune(model, "sst2", finished(sst2).workdir.parent, tmp_path, together="yes", **SEVERAL) == found


@pytest.mark.parametrize("together", ["no", "yes"])
def test_where_all_runs_diverge_nothing_is_exported(model, finished, tmp_path, together):
    """Tags are scored without probabilities: that these are no numbers is not in the scores."""
    run = finished(tagging)
    options = {"learning_rates": "1e30", "seeds": 2, "together": together, "eval_every": 6}
    for _ in range(2):
        with pytest.raises(InputError, match=r"all runs diverged: the last 1\d updates were not finite; .* --learning-rates"):
            tune(model, "tagging", run.workdir.parent, tmp_path, **options)
    assert not (tmp_path / "results.json").exists()


def test_an_evaluation_that_is_not_finite_is_never_the_best(model, finished, tmp_path):
    """After the single update that breaks the weights, accuracy is still a number."""
    with pytest.raises(InputError, match="all runs diverged: its predictions were not finite"):
        tune(model, "sst2", finished(sst2).workdir.parent, tmp_path, num_epochs=0.1, learning_rates="1e30")


# --- where it starts from ---


def test_the_head_of_the_same_classes_is_kept_or_starts_anew_as_asked(finished, tmp_path, capsys):
    run = finished(sst2)
    kept = tune(run.export, "sst2", run.workdir.parent, tmp_path / "kept", learning_rates=NO_CHANGE, init_head="keep")
    assert "is kept" in capsys.readouterr().err
    assert kept["metrics"]["dev"] == pytest.approx(run.results["metrics"]["dev"], abs=1e-6)
    fresh = tune(run.export, "sst2", run.workdir.parent, tmp_path / "fresh", learning_rates=NO_CHANGE, init_head="fresh")
    assert "is replaced by a fresh one" in capsys.readouterr().err
    before, kept, fresh = (weights(d) for d in (run.export, tmp_path / "kept" / "export", tmp_path / "fresh" / "export"))
    for path, value in before.items():
        np.testing.assert_array_equal(kept[path], value)
        assert np.array_equal(fresh[path], value) == (not path.startswith("sequence_classifier"))


def test_the_rows_of_classes_that_both_have_are_kept(finished, tmp_path, capsys):
    run, other = finished(mnli), finished(rte)
    match = {"learning_rates": NO_CHANGE, "init_head": "match"}
    tune(run.export, "rte", other.workdir.parent, tmp_path, **match)
    assert "the rows of entailment are kept, the others are fresh" in capsys.readouterr().err
    of_three, of_two = (weights(d)["sequence_classifier/kernel"] for d in (run.export, tmp_path / "export"))
    np.testing.assert_array_equal(of_two[:, 0], of_three[:, 0])
    assert not np.any(np.all(of_two[:, 1:] == of_three, axis=0))
    with pytest.raises(
        InputError, match=r"--init-head keep: .* neutral, contradiction; the classes of this task .*not_entailment\. Use fresh"
    ):
        tune(run.export, "rte", other.workdir.parent, tmp_path / "keep", init_head="keep")
    with pytest.raises(InputError, match=r"--init-head match: .* the classes of this task.* negative, positive"):
        tune(run.export, "sst2", finished(sst2).workdir.parent, tmp_path / "none", init_head="match")


def test_a_fine_tuned_directory_starts_another_task(finished, tmp_path):
    run, other = finished(sst2), finished(tagging)
    tune(run.export, "tagging", other.workdir.parent, tmp_path, learning_rates=NO_CHANGE)
    before, after = weights(run.export), weights(tmp_path / "export")
    assert all(np.array_equal(after[path], value) for path, value in before.items() if path.startswith("encoder/"))
    assert after["token_classifier/kernel"].shape == (32, 5)


def test_via_fine_tunes_on_another_task_first(model, finished, tmp_path, monkeypatch, capsys):
    first, then = finished(mnli).workdir.parent, finished(rte).workdir.parent
    options = {"via": f"mnli={first}", "learning_rates": NO_CHANGE}
    found = tune(model, "rte", then, tmp_path, **options)
    assert "first mnli, then rte" in capsys.readouterr().err
    between = results_of(tmp_path / "via")
    assert (between["task"], between["model"]) == ("mnli", str(model))
    assert (found["task"], found["model"]) == ("rte", str(tmp_path / "via" / "export"))
    begun, before, after = (weights(d) for d in (model, tmp_path / "via" / "export", tmp_path / "export"))
    encoder = [path for path in begun if path.startswith("encoder/") and path.endswith("kernel")]
    assert all(np.array_equal(before[path], after[path]) and not np.array_equal(before[path], begun[path]) for path in encoder)
    monkeypatch.setattr(Runs, "fit", lambda *args: pytest.fail("it trains"))
    assert tune(model, "rte", then, tmp_path, **options) == found


def test_a_model_of_sentence_transformers_is_trained_as_it_embeds(model, tmp_path, capsys):
    """With its prompt, whose tokens are not pooled, in lower case, no longer than its texts may be, through its dense layer."""
    rng = np.random.default_rng(0)
    dense = Dense(rng.standard_normal((64, 24), np.float32) / 8, rng.standard_normal(24, np.float32))
    prompts = {"ours": f"{WORDS[9]}: ", "other": "x: "}
    pooling = bert_jax.Pooling(("max", "mean"), normalize=False, max_length=8, lowercase=True, prompt=prompts["ours"],
                               prompts=prompts, include_prompt=False, dense=(dense,), truncate_dim=16)  # fmt: skip
    pretrained.save(dataclasses.replace(bert_jax.load(model, head="encoder"), pooling=pooling), tmp_path / "model")
    case = scored_pairs()
    case.files = {name: content.title() for name, content in case.files.items()}
    case.files = {name: content.replace("Sentence", "sentence").replace("Score", "score") for name, content in case.files.items()}
    case.dev = [tuple(text.title() for text in pair) for pair in case.dev]
    tune(tmp_path / "model", "similarity", workdir=tmp_path / "run", **case.write(tmp_path))
    export = bert_jax.load(tmp_path / "run" / "export")
    assert export.pooling == pooling
    said = capsys.readouterr().err
    assert "Dense(64 -> 24, Tanh) after the pooling: used unchanged, not trained" in said
    assert "cut to their first 16 values (truncate_dim), also in training" in said
    assert f"default prompt {prompts['ours']!r} is added before each text" in said
    assert "prompts other are kept, but added to no text" in said
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "16 of 16 texts have more than 8 tokens")
        check_cosines(case, export, tmp_path / "run" / "predictions" / "dev.tsv")


def test_the_length_that_was_trained_at_is_that_of_the_export(model, tmp_path):
    options = scored_pairs().write(tmp_path) | {"max_seq_length": 8, "num_epochs": 0.1}
    tune(model, "similarity", workdir=tmp_path / "run", **options)
    assert bert_jax.load(tmp_path / "run" / "export").pooling.max_length == 8


# --- how it trains ---


def losses_of(workdir):
    return [v["train/loss"] for v in writer.read(Path(workdir) / "metrics.jsonl") if "train/loss" in v]


def test_frozen_layers_stay_to_the_bit_and_lower_layers_learn_more_slowly(model, finished, tmp_path):
    """The first update of Adam is as large as the learning rate, whatever the gradient."""
    options = {"freeze_layers": 1, "layer_decay": 0.25, "num_epochs": 0.1, "weight_decay": 0, "eps": 1e-12}
    start = finished(sst2).export
    tune(start, "sst2", finished(sst2).workdir.parent, tmp_path, **options)
    before, after = weights(start), weights(tmp_path / "export")
    for path, value in before.items():
        moved = np.abs(after[path] - value).max()
        if path.startswith("encoder/layer_1"):
            assert moved == pytest.approx(1e-2 / 4, rel=1e-3) or path.endswith("key/bias"), path  # no gradient but rounding
        elif path.startswith("encoder/"):
            assert moved == 0, path
        else:
            assert moved == pytest.approx(1e-2, rel=1e-3), path


def test_adapters_are_trained_instead_of_the_encoder_and_merged_in_the_export(finished, tmp_path):
    run = finished(sst2)
    found = tune(run.export, "sst2", run.workdir.parent, tmp_path, lora_rank=2, num_epochs=1, eval_every=6)
    before, after = weights(run.export), weights(tmp_path / "export")
    moved = {path for path, value in before.items() if not np.array_equal(after[path], value)}
    adapted = {f"encoder/layer_{i}/attention/{name}/kernel" for i in range(2) for name in ("query", "value")}
    assert {path for path in moved if path.startswith("encoder/")} == adapted
    assert {path for path in before if not path.startswith("encoder/")} <= moved
    assert all(np.linalg.matrix_rank(after[path] - before[path], tol=1e-4) <= 2 for path in adapted)
    assert found["exported"]["dev"] == pytest.approx(found["metrics"]["dev"], abs=1e-5)


def test_label_smoothing_leaves_doubt(model, finished, tmp_path):
    run = finished(sst2)
    tune(model, "sst2", run.workdir.parent, tmp_path, label_smoothing=0.8)
    sure, smooth = (
        np.mean([max(float(row["negative"]), float(row["positive"])) for row in rows_of(d / "predictions" / "dev.tsv")])
        for d in (run.workdir, tmp_path)
    )
    assert sure > 0.8 > smooth


def test_classes_count_by_their_weights_and_other_weights_are_another_run(finished, tmp_path):
    """Of a model that knows nothing the loss is what each class's own rows give, by weight."""
    rows, path = [(WORDS[9], i % 4 == 0) for i in range(16)], tmp_path / "weights.json"
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text(table(["sentence", "label"], [(t, int(c)) for t, c in rows]))
    path.write_text('{"positive": 5}')
    options = {"learning_rates": NO_CHANGE, "num_epochs": 1, "batch_size": 16, "eval_every": 1, "class_weights": path}
    export = finished(sst2).export
    found = tune(export, "sst2", tmp_path, tmp_path / "run", **options)
    (row, *_) = rows_of(tmp_path / "run" / "predictions" / "dev.tsv")
    no, yes = (-np.log(float(row[name])) for name in ("negative", "positive"))
    assert losses_of(tmp_path / "run") == pytest.approx([(12 * no + 4 * 5 * yes) / (12 + 4 * 5)], rel=1e-4)
    assert found["exported"]["dev"]["loss"] == pytest.approx((12 * no + 4 * yes) / 16, rel=1e-4)
    path.write_text('{"positive": 6}')
    with pytest.raises(InputError, match="the data differs from that of"):
        tune(export, "sst2", tmp_path, tmp_path / "run", **options)


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_weights_of_the_best_or_the_last_evaluation_are_kept(finished, tmp_path, select):
    """Trained on wrong labels, a model that knows the right ones is the best at first."""
    for name, content in sst2().files.items():
        flipped = content.replace("\t1\n", "\t?\n").replace("\t0\n", "\t1\n").replace("\t?\n", "\t0\n")
        (tmp_path / name).write_text(flipped if name == "train.tsv" else content)
    options = {"eval_every": 14, "learning_rates": "1e-3", "select": select}
    found = tune(finished(sst2).export, "sst2", tmp_path, tmp_path / "run", **options)
    history = found["runs"][0]["history"]
    assert [e["step"] for e in history] == [14, 28, 36]
    assert history[0]["score"] > history[-1]["score"]
    kept = history[0 if select == "best" else -1]
    assert (found["best"]["step"], found["metrics"]) == (kept["step"], kept["scores"])
    assert found["exported"]["dev"] == pytest.approx(kept["scores"]["dev"], abs=1e-5)


def history(*scores_and_losses):
    return [{"score": score, "scores": {"dev": {} if loss is None else {"loss": loss}}} for score, loss in scores_and_losses]


def test_of_equal_scores_the_one_with_the_lower_loss_is_kept_then_the_first():
    assert _best(history((0.5, 0.7), (0.5, 0.6), (0.5, 0.65))) == 1
    assert _best(history((0.5, 0.7), (0.6, 0.9), (0.5, 0.1))) == 1
    assert _best(history((0.5, 0.7), (0.5, 0.7))) == 0
    assert _best(history((0.5, None), (0.5, None))) == 0
    assert _best(history((0.5, 0.7), (0.5, float("nan")), (float("-inf"), 0.1))) == 0


def test_early_stopping_goes_on_while_scores_are_equal_and_the_loss_falls(finished, tmp_path):
    """A model that knows the right ones already: its accuracy stays at 1."""
    run = finished(sst2)
    options = {"learning_rates": "1e-5", "eval_every": 6, "early_stopping": 1}
    found = tune(run.export, "sst2", run.workdir.parent, tmp_path, **options)
    evaluated = found["runs"][0]["history"]
    losses = [each["scores"]["dev"]["loss"] for each in evaluated]
    assert {each["score"] for each in evaluated} == {1.0}
    assert losses == sorted(losses, reverse=True)
    assert len(evaluated) == 6
    assert found["best"]["step"] == 36


def test_padded_batches_give_the_losses_of_packed_ones(model, finished, tmp_path):
    run = finished(sst2)
    tune(model, "sst2", run.workdir.parent, tmp_path, batching="padded")
    np.testing.assert_allclose(losses_of(tmp_path), losses_of(run.workdir), rtol=2e-4, atol=2e-4)


def test_batches_of_like_lengths_learn_in_another_order(model, finished, tmp_path):
    run = finished(sst2)
    found = tune(model, "sst2", run.workdir.parent, tmp_path, batching="by_length")
    assert found["metrics"]["dev"]["accuracy"] > 0.9
    assert losses_of(tmp_path)[0] != pytest.approx(losses_of(run.workdir)[0], rel=1e-3)


@pytest.mark.parametrize("layout", [{}, {"strategy": "pmap"}, {"fsdp": 2, "tensor": 2}], ids=["8x1x1", "pmap", "2x2x2"])
def test_eight_devices_give_the_losses_and_scores_of_one(model, finished, tmp_path, layout):
    run = finished(sst2)
    found = tune(model, "sst2", run.workdir.parent, tmp_path, num_devices=8, **layout)
    np.testing.assert_allclose(losses_of(tmp_path), losses_of(run.workdir), rtol=2e-4, atol=2e-4)
    assert found["metrics"]["dev"] == pytest.approx(run.results["metrics"]["dev"], abs=2e-4)


# --- only predicting ---


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


def test_the_diagnostic_set_is_predicted_by_a_model_of_mnli(model, finished, tmp_path):
    rows = [(i, f"{WORDS[8]} {WORDS[9]}", f"{WORDS[10]} {MARKERS[i % 3]} {WORDS[11]}") for i in range(6)]
    (tmp_path / "diagnostic.tsv").write_text(table(["index", "sentence1", "sentence2"], rows))
    found = tune(finished(mnli).export, "ax", tmp_path, tmp_path / "run")
    assert (found["data"]["train"], found["data"]["test"], found["exported"]) == (0, 6, {})
    predicted = bert_jax.Classifier(bert_jax.load(finished(mnli).export))([row[1:] for row in rows])
    assert [row["prediction"] for row in rows_of(tmp_path / "run" / "predictions" / "test.tsv")] == [p.label for p in predicted]
    with pytest.raises(InputError, match="has no head for ax, and there is no training data: give a fine-tuned model"):
        tune(model, "ax", tmp_path, tmp_path / "other")


# --- what is refused ---


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
            r"max_seq_length=200, but .*/tiny takes 128 .*: --max-seq-length 128",
        ),
        ("sst2", sst2().files, {"num_devices": 99}, r"num_devices=99, but there are 8 .*: choose 1 to 8"),
        ("sst2", sst2().files, {"freeze_layers": 3}, r"freeze_layers=3, but .*/tiny has 2 layers: choose 0 to 2"),
        ("sst2", sst2().files, {"loss": "cosine"}, r"loss='cosine' is for similarity, not for classification"),
        ("similarity", PAIRS, {"loss": "cosine"}, r"loss='cosine' does not fit the training data: give --loss ranking"),
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


@pytest.mark.parametrize("build", [sst2, multi_label, regression, tagging, squad2, swag, scored_pairs, pairs])
def test_an_unknown_metric_is_refused_before_training_with_those_there_are(model, finished, tmp_path, build):
    run = finished(build)
    with pytest.raises(InputError, match=r"--metric accuracies is not among the metrics of this task: ") as error:
        tune(model, run.case.task, workdir=tmp_path, metric="accuracies", **run.options)
    assert str(error.value).partition("task's: ")[2].split(", ") == list(run.results["metrics"]["dev"])
    assert not (tmp_path / "metrics.jsonl").exists()


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


# --- GLUE's leaderboard ---


def test_a_submission_of_two_small_runs_is_refused_with_what_is_missing(finished, tmp_path):
    workdirs = [str(finished(build).workdir) for build in (sst2, rte)]
    zipped = tmp_path / "glue.zip"
    with pytest.raises(InputError, match=r"no predictions for CoLA\.tsv \(task cola\), MRPC.*or --fill-missing") as error:
        command(["glue-zip", *workdirs, "--out", str(zipped)])
    assert "SST-2" not in str(error.value)
    with pytest.raises(InputError, match=r"predictions/test\.tsv: 5 predictions, expected 1821: predict the whole"):
        command(["glue-zip", *workdirs, "--out", str(zipped), "--fill-missing"])
    assert not zipped.exists()


# --- evaluate ---


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

    with pytest.raises(InputError, match=r"test\.tsv: no row has a label, so there is nothing to score; --label-column"):
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
