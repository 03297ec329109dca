"""Fine-tuning as transformers' run_glue.py, run_ner.py and run_qa.py do it in PyTorch, for a comparison on equal rows.

    python tests/benchmarks/peer_finetuning.py --data DATA --model DIR --threads 1 \
        --scores mrpc rte stsb cola sst2 wnut17 qa --seeds 0 1 2 --out peer_finetuning.json
    python tests/benchmarks/peer_finetuning.py --data DATA --model DIR --threads 1 \
        --losses sst2 --init HEADED_DIR --order order.json --steps 50 --total-steps 237 --out losses.json
    python tests/benchmarks/peer_finetuning.py --data DATA --model DIR --threads 2 --speed sst2 --padding longest --batches 20
    python tests/benchmarks/peer_finetuning.py --data DATA --model DIR --threads 2 --speed qa --file DATA/qa/xquad/xquad.en.json

Three modes:

  --scores  trains and evaluates after the last epoch, a run for each task and seed, and adds each run to --out; those that
            are there already are left out, so that the same command continues after an interruption
  --losses  without dropout, from the weights in --init (head included), on the batches in --order, a list of lists of
            numbers of training rows (qa: of windows): writes the loss of each of --steps steps
  --speed   times training on --batches batches a request (protocol.py): the same random rows for every --padding, to the
            task's most tokens (max), to the longest of a random batch (longest) or of a batch of like lengths (sorted)

DATA holds GLUE's folders in glue/, wnut17's .conll files in ner/wnut17/, and in qa/ policyqa/dev.json and
xquad/xquad.en.json in SQuAD's layout. Training rows are capped (2500 of SST-2 and CoLA, 500 of QA, 1000 of
the others), drawn by seed 0 and kept in file order; MRPC, whose folder has no dev.tsv, holds out 408 rows in the same way first.

Training: float32, AdamW (fused, Trainer's default) without weight decay, gradients clipped to norm 1, linear warm-up in the
first tenth of the steps and linear decay to 0, the model's own dropout of 0.1, batches padded to their longest row, the last
batch of an epoch as short as it comes. Needs PyTorch, transformers >= 5, scikit-learn, SciPy and seqeval.
"""

from __future__ import annotations

import argparse
import collections
import csv
import importlib.metadata
import itertools
import json
import re
import string
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import protocol
import scipy.stats
import seqeval.metrics
import sklearn.metrics
import torch
import transformers

Row = dict[str, Any]
Predict = Callable[[Sequence[Row]], list[np.ndarray]]
Scores = dict[str, float]


class Setting(NamedTuple):
    """How a task is trained, and on how many rows at most."""

    batch_size: int
    learning_rate: float
    epochs: int
    max_length: int
    most_rows: int


SETTINGS = {
    **{task: Setting(32, 5e-5, 3, 128, 2500) for task in ("sst2", "cola")},
    **{task: Setting(32, 5e-5, 3, 128, 1000) for task in ("mrpc", "stsb", "rte")},
    "wnut17": Setting(16, 1e-4, 4, 128, 1000),
    "qa": Setting(16, 1e-4, 2, 384, 500),
}
WARMUP_SHARE, BETAS, EPS, WEIGHT_DECAY, CLIP_NORM = 0.1, (0.9, 0.999), 1e-8, 0.0, 1.0
MRPC_DEV_ROWS = 408
QUESTION_TOKENS, WINDOW_STRIDE, N_BEST, ANSWER_TOKENS = 64, 128, 20, 30
EVAL_BATCH_SIZE = 64
MASKED = -1e9
PADDING = {"input_ids": 0, "token_type_ids": 0, "labels": -100}  # of columns that are lists; 0 is [PAD]
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0)


class Task(NamedTuple):
    """A task ready to train.

    Attributes:
      head: the class of the model, an AutoModelFor...
      labels: number of the model's outputs a row or token.
      rows: training examples: input_ids and token_type_ids, lists; and labels (an id, a score or a list of ids), or start
        and end (question answering).
      evaluate: the scores on the dev set, given a function from rows to their logits (question answering: [2, L]).
    """

    head: Any
    labels: int
    rows: list[Row]
    evaluate: Callable[[Predict], Scores]


def drawn(rows: Sequence[Any], count: int) -> tuple[list[Any], list[Any]]:
    """`count` of the rows drawn by seed 0, and the others, both in file order."""
    chosen = set(np.random.default_rng(0).permutation(len(rows))[:count].tolist())
    return [r for i, r in enumerate(rows) if i in chosen], [r for i, r in enumerate(rows) if i not in chosen]


# --- GLUE ---


class Glue(NamedTuple):
    """A folder of GLUE: the columns of its texts and label (numbers where there is no header), and what a label means."""

    folder: str
    texts: tuple[str | int, ...]
    label: str | int
    read: Callable[[str], int | float]
    score: Callable[[Any, np.ndarray], Scores]


def accuracy(labels: Any, logits: np.ndarray) -> Scores:
    return {"accuracy": float(np.mean(np.array(labels) == logits.argmax(-1)))}


def f1_and_accuracy(labels: Any, logits: np.ndarray) -> Scores:
    return {"f1": float(sklearn.metrics.f1_score(labels, logits.argmax(-1))), **accuracy(labels, logits)}


def matthews(labels: Any, logits: np.ndarray) -> Scores:
    return {"matthews_correlation": float(sklearn.metrics.matthews_corrcoef(labels, logits.argmax(-1)))}


def correlations(labels: Any, logits: np.ndarray) -> Scores:
    scores = logits[:, 0].astype(np.float64)
    pearson, spearman = (f(labels, scores).statistic for f in (scipy.stats.pearsonr, scipy.stats.spearmanr))
    return {"pearson": float(pearson), "spearman": float(spearman)}


PAIR = ("sentence1", "sentence2")
GLUE = {
    "sst2": Glue("SST-2", ("sentence",), "label", int, accuracy),
    "cola": Glue("CoLA", (3,), 1, int, matthews),
    "mrpc": Glue("MRPC", ("#1 String", "#2 String"), "Quality", int, f1_and_accuracy),
    "stsb": Glue("STS-B", PAIR, "score", float, correlations),
    "rte": Glue("RTE", PAIR, "label", ("entailment", "not_entailment").index, accuracy),
}


def read_tsv(path: Path, glue: Glue) -> list[tuple[list[str], int | float]]:
    """(texts, label) a line; double quotes are ordinary characters."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    header = lines.pop(0) if isinstance(glue.label, str) else None
    texts, label = ([c if header is None else header.index(c) for c in columns] for columns in (glue.texts, (glue.label,)))
    return [([line[c] for c in texts], glue.read(line[label[0]])) for line in lines]


def glue_task(name: str, data: Path, tokenizer: Any) -> Task:
    glue = GLUE[name]
    folder = data / "glue" / glue.folder
    train = read_tsv(folder / "train.tsv", glue)
    dev, train = (read_tsv(folder / "dev.tsv", glue), train) if name != "mrpc" else drawn(train, MRPC_DEV_ROWS)

    def encode(examples: list[tuple[list[str], int | float]]) -> list[Row]:
        columns = zip(*(texts for texts, _ in examples), strict=True)
        encoded = tokenizer(*map(list, columns), truncation="longest_first", max_length=SETTINGS[name].max_length)
        return rows_of(encoded, labels=[label for _, label in examples])

    dev_rows = encode(dev)
    labels = 1 if name == "stsb" else 2
    return Task(
        transformers.AutoModelForSequenceClassification,
        labels,
        encode(drawn(train, SETTINGS[name].most_rows)[0]),
        lambda predict: glue.score([row["labels"] for row in dev_rows], np.stack(predict(dev_rows))),
    )


def rows_of(encoded: Any, **columns: list[Any]) -> list[Row]:
    """A tokenizer's columns, and others, as rows."""
    columns = {"input_ids": encoded["input_ids"], "token_type_ids": encoded["token_type_ids"], **columns}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


# --- named entities ---


def read_conll(path: Path) -> list[tuple[list[str], list[str]]]:
    """(words, tags) a sentence: a word and its tag a line, blank lines between sentences."""
    with path.open(encoding="utf-8") as file:
        groups = [list(group) for blank, group in itertools.groupby(file, lambda line: not line.strip()) if not blank]
    pairs = [[line.rstrip("\n").split("\t") for line in group] for group in groups]
    return [([pair[0] for pair in group], [pair[1] for pair in group]) for group in pairs]


def entity_task(name: str, data: Path, tokenizer: Any) -> Task:
    train, dev = (read_conll(data / "ner" / name / f"{split}.conll") for split in ("train", "dev"))
    names = sorted({tag for _, tags in train for tag in tags}, key=lambda tag: (tag != "O", tag))  # O first: finetune.py's order

    def encode(sentences: list[tuple[list[str], list[str]]]) -> tuple[list[Row], list[list[int]]]:
        """Rows, and the position of the first token of each word that has one in reach."""
        words = [words for words, _ in sentences]
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=SETTINGS[name].max_length)
        first: list[dict[int, int]] = []
        labels = []
        for i, (_, tags) in enumerate(sentences):
            word_ids = encoded.word_ids(i)
            first.append({word: t for t, word in reversed(list(enumerate(word_ids))) if word is not None})
            labels.append([-100] * len(word_ids))
            for word, t in first[-1].items():
                labels[-1][t] = names.index(tags[word])
        return rows_of(encoded, labels=labels), [[f.get(w, -1) for w in range(len(x))] for f, x in zip(first, words, strict=True)]

    dev_rows, dev_first = encode(dev)

    def evaluate(predict: Predict) -> Scores:
        """Every word counts: one without a token, or beyond the most tokens, is predicted as O."""
        tags = [logits.argmax(-1) for logits in predict(dev_rows)]
        predicted = [[names[t[p]] if p >= 0 else "O" for p in first] for t, first in zip(tags, dev_first, strict=True)]
        return {"entity_f1": float(seqeval.metrics.f1_score([tags for _, tags in dev], predicted))}

    rows = encode(drawn(train, SETTINGS[name].most_rows)[0])[0]
    return Task(transformers.AutoModelForTokenClassification, len(names), rows, evaluate)


# --- question answering ---


class Question(NamedTuple):
    """A question of a file in SQuAD's layout; answers: (text, start)."""

    id: str
    question: str
    context: str
    answers: list[tuple[str, int]]


def read_squad(path: Path) -> list[Question]:
    """The questions whose first answer stands where the file says, in file order."""
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    questions = [
        Question(qa["id"], qa["question"], p["context"], [(a["text"], a["answer_start"]) for a in qa["answers"]])
        for article in articles
        for p in article["paragraphs"]
        for qa in p["qas"]
    ]
    return [q for q in questions if q.context.startswith(*q.answers[0])]


def windows(question: Question, tokenizer: Any) -> list[Row]:
    """[CLS] question [SEP] a stretch of the context [SEP], as run_squad.py cuts a context.

    Beside the model's columns: start and end, the positions of the first answer's tokens, 0 where the window lacks one of
    them; offset, the position of the stretch's first token; spans, its tokens' places in the context's text; best, whether
    of all windows this gives a token the most context.
    """
    asked = tokenizer(question.question, add_special_tokens=False)["input_ids"][:QUESTION_TOKENS]
    encoded = tokenizer(question.context, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    text, start = question.answers[0]
    answer = [t for t, (a, b) in enumerate(spans) if a < start + len(text) and b > start]
    room = SETTINGS["qa"].max_length - len(asked) - 3
    stretches = [
        (first, min(first + room, len(ids))) for first in range(0, max(len(ids) - room, 0) + WINDOW_STRIDE, WINDOW_STRIDE)
    ]
    offset = len(asked) + 2
    rows = []
    for index, (first, end) in enumerate(stretches):
        inside = bool(answer) and first <= answer[0] and answer[-1] < end
        rows.append(
            dict(
                input_ids=[tokenizer.cls_token_id, *asked, tokenizer.sep_token_id, *ids[first:end], tokenizer.sep_token_id],
                token_type_ids=[0] * offset + [1] * (end - first + 1),
                start=answer[0] - first + offset if inside else 0,
                end=answer[-1] - first + offset if inside else 0,
                offset=offset,
                spans=spans[first:end],
                best=[most_context(stretches, t) == index for t in range(first, end)],
            )
        )
    return rows


def most_context(stretches: list[tuple[int, int]], t: int) -> int:
    """Index of the stretch that gives token `t` the most context on its shorter side (run_squad.py's rule)."""
    scores = [min(t - a, b - 1 - t) + 0.01 * (b - a) if a <= t < b else -1.0 for a, b in stretches]
    return scores.index(max(scores))


def best_answer(context: str, rows: Sequence[Row], logits: Sequence[np.ndarray]) -> str:
    """The text of the likeliest span of all windows; "" where no pair of the best positions is a span."""
    best, answer = -np.inf, ""
    for row, scores in zip(rows, logits, strict=True):
        starts, ends = (np.argsort(-s, kind="stable")[:N_BEST] - row["offset"] for s in scores)
        count = len(row["spans"])
        for start, end in itertools.product(starts.tolist(), ends.tolist()):
            if not 0 <= start <= end < min(count, start + ANSWER_TOKENS) or not row["best"][start]:
                continue
            score = float(scores[0, start + row["offset"]]) + float(scores[1, end + row["offset"]])
            if score > best:
                best, answer = score, context[row["spans"][start][0] : row["spans"][end][1]]
    return answer


def normal_words(text: str) -> list[str]:
    """The words that SQuAD's evaluation compares: lower case, no punctuation, no articles."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def word_f1(predicted: list[str], true: list[str]) -> float:
    common = sum((collections.Counter(predicted) & collections.Counter(true)).values())
    return 2 * common / (len(predicted) + len(true)) if common else 0.0


def question_task(data: Path, tokenizer: Any, file: Path | None) -> Task:
    train = drawn(read_squad(file or data / "qa" / "policyqa" / "dev.json"), SETTINGS["qa"].most_rows)[0]
    dev = read_squad(data / "qa" / "xquad" / "xquad.en.json")
    dev_rows = [windows(question, tokenizer) for question in dev]

    def evaluate(predict: Predict) -> Scores:
        logits = iter(predict([row for rows in dev_rows for row in rows]))
        totals = np.zeros(2)
        for question, rows in zip(dev, dev_rows, strict=True):
            predicted = normal_words(best_answer(question.context, rows, list(itertools.islice(logits, len(rows)))))
            answers = [normal_words(text) for text, _ in question.answers]
            totals += max(word_f1(predicted, a) for a in answers), max(predicted == a for a in answers)
        f1, exact_match = (100 * totals / len(dev)).tolist()
        return {"f1": f1, "exact_match": exact_match}

    rows = [row for question in train for row in windows(question, tokenizer)]
    return Task(transformers.AutoModelForQuestionAnswering, 2, rows, evaluate)


# --- training ---


def load_task(name: str, args: argparse.Namespace) -> Task:
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    if name in GLUE:
        return glue_task(name, args.data, tokenizer)
    return question_task(args.data, tokenizer, args.file) if name == "qa" else entity_task(name, args.data, tokenizer)


def load_model(task: Task, directory: Path, **config: Any) -> torch.nn.Module:
    return task.head.from_pretrained(directory, num_labels=task.labels, dtype=torch.float32, **config)


def collate(rows: Sequence[Row], length: int | None = None) -> dict[str, torch.Tensor]:
    """Tensors [B, L], padded to the longest row or to `length`, and [B] for what is a number in a row."""
    length = length or max(len(row["input_ids"]) for row in rows)
    batch = {"attention_mask": torch.tensor([[1] * len(r["input_ids"]) + [0] * (length - len(r["input_ids"])) for r in rows])}
    for name in ("input_ids", "token_type_ids", "labels", "start", "end"):
        if name in rows[0]:
            values = [r[name] + [PADDING[name]] * (length - len(r[name])) if isinstance(r[name], list) else r[name] for r in rows]
            batch[name] = torch.tensor(values)
    return batch


def span_logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Start and end logits [B, 2, L], padding masked out."""
    inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
    outputs = model(**inputs)
    logits = torch.stack([outputs.start_logits, outputs.end_logits], 1)
    return logits.masked_fill(batch["attention_mask"][:, None] == 0, MASKED)


def loss_of(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The batch's mean; question answering: over start and end, and padding does not count."""
    if "labels" in batch:
        return model(**batch).loss
    logits = span_logits(model, batch)
    return sum(torch.nn.functional.cross_entropy(logits[:, i], batch[name]) for i, name in enumerate(("start", "end"))) / 2


class Trainer:
    """A model and what updates it."""

    def __init__(self, model: torch.nn.Module, setting: Setting, total_steps: int):
        self.model = model.train()
        options = dict(betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=setting.learning_rate, **options)
        warmup = int(WARMUP_SHARE * total_steps)
        self.schedule = transformers.get_linear_schedule_with_warmup(self.optimizer, warmup, total_steps)

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """One update; returns the loss."""
        loss = loss_of(self.model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss.item()


def predictor(model: torch.nn.Module) -> Predict:
    """Rows -> the logits of each, in batches of like lengths."""

    @torch.inference_mode()
    def predict(rows: Sequence[Row]) -> list[np.ndarray]:
        model.eval()
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(order), EVAL_BATCH_SIZE):
            indices = order[start : start + EVAL_BATCH_SIZE]
            batch = collate([rows[i] for i in indices])
            logits = span_logits(model, batch) if "start" in batch else model(**batch).logits
            found.update(zip(indices, logits.numpy(), strict=True))
        return [found[i] for i in range(len(rows))]

    return predict


# --- the three modes ---


def scores(args: argparse.Namespace) -> None:
    for name, seed in itertools.product(args.scores, args.seeds):
        runs = json.loads(args.out.read_text())["runs"] if args.out.exists() else []
        if any((run["task"], run["seed"]) == (name, seed) for run in runs):
            continue
        run = dict(task=name, seed=seed, **train(name, seed, args), threads=args.threads, versions=versions())
        print(json.dumps(run), flush=True)
        unfinished = args.out.with_name(args.out.name + ".unfinished")
        unfinished.write_text(json.dumps({"runs": [*runs, run]}, indent=1) + "\n")
        unfinished.replace(args.out)


def train(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run: its scores, the seconds of its training steps alone, the loss of each, and its settings."""
    task, setting = load_task(name, args), SETTINGS[name]
    transformers.set_seed(seed)
    steps = list(epochs(len(task.rows), setting, seed))
    trainer = Trainer(load_model(task, args.model), setting, len(steps))
    start = time.perf_counter()
    losses = [trainer.step(collate([task.rows[i] for i in indices])) for indices in steps]
    seconds = time.perf_counter() - start
    return dict(
        scores=task.evaluate(predictor(trainer.model)),
        seconds=round(seconds, 1),
        rows=len(task.rows),
        steps=len(steps),
        last_epoch_loss=float(np.mean(losses[-len(steps) // setting.epochs :])),
        setting=setting._asdict(),
    )


def epochs(count: int, setting: Setting, seed: int) -> Iterator[list[int]]:
    """Batches of row numbers, every epoch in an order of its own."""
    rng = np.random.default_rng(seed)
    for _ in range(setting.epochs):
        order = rng.permutation(count).tolist()
        yield from (order[i : i + setting.batch_size] for i in range(0, count, setting.batch_size))


def losses(args: argparse.Namespace) -> None:
    task = load_task(args.losses, args)
    order = json.loads(args.order.read_text())[: args.steps]
    if len(order) < args.steps:
        raise SystemExit(f"{args.order} has {len(order)} batches; --steps asks for {args.steps}")
    trainer = Trainer(load_model(task, args.init, **NO_DROPOUT), SETTINGS[args.losses], args.total_steps)
    values = [trainer.step(collate([task.rows[i] for i in indices])) for indices in order]
    args.out.write_text(json.dumps(values) + "\n")


def speed(args: argparse.Namespace) -> None:
    """A request trains on all batches once, and waits for the last update."""
    task, setting = load_task(args.speed, args), SETTINGS[args.speed]
    count = args.batches * setting.batch_size
    if len(task.rows) < count:
        raise SystemExit(f"--batches {args.batches} needs {count} training rows; {args.speed} has {len(task.rows)}")
    rows = [task.rows[i] for i in np.random.default_rng(0).permutation(len(task.rows))[:count]]
    if args.padding == "sorted":
        rows = sorted(rows, key=lambda row: -len(row["input_ids"]))
    length = setting.max_length if args.padding == "max" else None
    groups = [rows[i : i + setting.batch_size] for i in range(0, count, setting.batch_size)]
    transformers.set_seed(0)
    trainer = Trainer(load_model(task, args.model), setting, 10**6)

    def request() -> None:
        for group in groups:
            trainer.step(collate(group, length))

    positions = sum(length or max(len(row["input_ids"]) for row in group) for group in groups) * setting.batch_size
    facts = dict(examples=count, tokens=sum(len(row["input_ids"]) for row in rows), positions=positions, versions=versions())
    protocol.serve(request, args.requests, 1, **facts)


def versions() -> dict[str, str]:
    packages = ("torch", "transformers", "numpy", "scipy", "scikit-learn", "seqeval")
    return {name: importlib.metadata.version(name) for name in packages}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--scores", nargs="+", choices=SETTINGS, metavar="TASK", help=" ".join(SETTINGS))
    mode.add_argument("--losses", choices=SETTINGS, metavar="TASK")
    mode.add_argument("--speed", choices=SETTINGS, metavar="TASK")
    parser.add_argument("--data", type=Path, required=True, help="directory with glue/, ner/ and qa/")
    parser.add_argument("--model", type=Path, required=True, help="directory of the tokenizer and the pretrained weights")
    parser.add_argument("--file", type=Path, help="qa: train on this file in SQuAD's layout")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="scores, losses: the file to write")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="scores")
    parser.add_argument("--init", type=Path, help="losses: directory of a model with its head")
    parser.add_argument("--order", type=Path, help="losses: JSON file of batches, lists of row numbers")
    parser.add_argument("--steps", type=int, default=50, help="losses")
    parser.add_argument("--total-steps", type=int, help="losses: the step at which the learning rate reaches 0")
    parser.add_argument("--padding", choices=("max", "longest", "sorted"), default="longest", help="speed")
    parser.add_argument("--batches", type=int, default=10, help="speed: batches a request")
    parser.add_argument("--requests", type=int, default=0, help="speed: time this many and leave; 0: read `step` from stdin")
    args = parser.parse_args()
    needed = ["out"] * (not args.speed) + ["init", "order", "total_steps"] * bool(args.losses)
    for name in needed:
        if getattr(args, name) is None:
            parser.error(f"this mode needs --{name.replace('_', '-')}")
    return args


if __name__ == "__main__":
    args = parse()
    if args.speed:
        protocol.limit_cores(args.threads)
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    (scores if args.scores else losses if args.losses else speed)(args)
