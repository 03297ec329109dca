"""A tiny model, made-up tasks of every kind, and the command line of fine-tuning, for its tests."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from helpers import make_words

import bert_jax
import finetune
from bert_jax.config import BertConfig
from bert_jax.model.convert import flatten

ROOT = Path(__file__).parents[2]
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


def rows_of(path):
    """The rows of a .tsv of predictions."""
    return list(csv.DictReader(path.read_text().splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def check_cosines(case, model, path):
    embedder = bert_jax.Embedder(model)
    both = [embedder([pair[i] for pair in case.dev]) for i in (0, 1)]
    both = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in both]
    np.testing.assert_allclose((both[0] * both[1]).sum(axis=1), [float(r["prediction"]) for r in rows_of(path)], atol=1e-5)


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


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


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
