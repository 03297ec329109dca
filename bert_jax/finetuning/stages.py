"""Fine-tuning from files to predictions: the setting that all runs share, which runs there are, and what the best predicts."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax import pretrained
from bert_jax.config import InputError
from bert_jax.data import tags
from bert_jax.data.finetuning import Batches, check_choices, encode, read_from, special_tokens_in
from bert_jax.data.layout import Layout
from bert_jax.data.records import Record, labels_of, with_labels
from bert_jax.finetuning import results
from bert_jax.finetuning.config import FinetuneConfig
from bert_jax.finetuning.evaluation import Evaluator, Predictions, Split
from bert_jax.finetuning.init_head import load_for_task
from bert_jax.finetuning.runs import Member, Outcome, Runs, Setting
from bert_jax.finetuning.weighting import class_weights
from bert_jax.model.families import Head
from bert_jax.pooling import Pooling
from bert_jax.pretrained import Model
from bert_jax.tasks import holdout
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.task import Kind, Task
from bert_jax.training import loop, memory, multihost, parallel, task_metrics
from bert_jax.tuned import Tuned

_HEADS: dict[Kind, Head] = {
    "classification": "sequence_classification", "multi_label": "sequence_classification",
    "regression": "sequence_classification", "tagging": "token_classification", "similarity": "encoder",
    "question_answering": "question_answering", "multiple_choice": "multiple_choice",
}  # fmt: skip
_PROBLEM_TYPES: dict[Kind, pretrained.ProblemType] = {
    "classification": "single_label_classification", "multi_label": "multi_label_classification", "regression": "regression",
}  # fmt: skip
_CLASSIFIER_PATHS = {
    f"{name}/kernel" for name in ("sequence_classifier", "token_classifier", "span_classifier", "choice_classifier")
}


def baseline(task: Task, splits: Splits, metric: str | None) -> float | None:
    """The dev score of what learns nothing: the commonest class of training for every row, no correlation, no entity, no answer.

    None where it is not known (a metric of the user's choice, multiple_choice, no dev rows), and where a dev split has one label
    alone: there, nothing does better than what learns nothing.
    """
    dev, kind = list(splits.dev.values()), task.kind
    if not dev or metric is not None or kind == "multiple_choice" or any(holdout.only_label(kind, rows) for rows in dev):
        return None
    if kind == "question_answering":
        return float(np.mean([np.mean([not label for label in labels_of(records)]) for records in dev]))
    if kind == "tagging" and tags.entity_tags(splits.labels) is None:
        words, *of_dev = ([tag for label in labels_of(records) for tag in label] for records in (splits.train, *dev))
        commonest = Counter(words).most_common(1)[0][0] if words else None
        return float(np.mean([np.mean([tag == commonest for tag in each]) for each in of_dev]))
    if kind != "classification":
        return 0.0
    train, *asked = ([splits.labels.index(label) for label in labels_of(records)] for records in (splits.train, *dev))
    return float(np.mean([task_metrics.majority_baseline(name, train, ids) for ids in asked for name in task.metrics]))


def prepare(cfg: FinetuneConfig, task: Task, splits: Splits, say: Callable[[str], None]) -> tuple[Setting, list[Split]]:
    """The setting of the runs, and the test splits. Says what became of the head, what was cut, and how batches are laid out."""
    assert cfg.max_seq_length is not None
    assert cfg.batch_size is not None
    devices = parallel.make_devices(cfg.parallel)
    if devices.pmap and task.kind in ("similarity", "multiple_choice"):
        raise InputError(f"parallel.strategy='pmap' sees each device's rows alone, and {task.kind} needs all: use 'mesh'")
    labels = splits.labels
    problem_type = _PROBLEM_TYPES.get(task.kind)
    trains = bool(splits.train) and bool(cfg.num_epochs)
    reads = cfg.special_tokens or ("text" if trains else None)  # None: as the model was trained
    start = load_for_task(cfg.model, _HEADS[task.kind], labels, problem_type, cfg.init_head, reads)
    if start.note:
        say(start.note)
    if not trains and task.kind == "regression":  # what the value goes through, as in Classifier
        there = pretrained.describe(cfg.model)
        model = dataclasses.replace(start.model, problem_type=there.problem_type, activation=there.activation)
        start = dataclasses.replace(start, model=model)
    model = start.model
    assert model.tokenizer is not None
    _check_fit(cfg, model)
    parallel.check_fit(devices, model.config, devices.rows_cut)  # rows are made to divide
    check_choices(task.kind, splits.train)
    if cfg.special_tokens is None and (found := special_tokens_in(splits.train, model.tokenizer)):
        listing = ", ".join(f"{name} in {count}" for name, count in found.items())
        say(f"of {len(splits.train)} rows to train on, {listing} have a special token, read as text (--special-tokens read)")
    records = splits.train
    if cfg.loss == "cosine" and (most := max(map(abs, labels_of(records)))) > 1:
        say(f"scores reach {most:g}: they are divided by it, as cosines reach 1")
        records = with_labels(records, [label / most for label in labels_of(records)])
    layout, limit = Layout(model.tokenizer, model.config), cfg.max_seq_length
    pooling = model.pooling if isinstance(model.pooling, Pooling) else Pooling()  # trained is what Embedder will do
    limit = min(limit, pooling.max_length or limit, model.config.max_length)
    if task.kind == "similarity":
        pooling = dataclasses.replace(pooling, max_length=limit)  # of the export: what was trained is what predicts
        start = dataclasses.replace(start, model=dataclasses.replace(model, pooling=pooling))
        for note in _of_pooling(pooling):
            say(note)

    def encoded(name: str, records: Sequence[Record]) -> Split:
        found = encode(task.kind, records, splits.labels, layout, limit, read=pooling.read)
        if first := pooling.first_place(layout):
            found = dataclasses.replace(found, items=read_from(found.items, first))
        if found.lost:
            what = "questions have more tokens than are read" if found.reading else f"have more than {limit} tokens"
            say(f"{name}: {found.lost} of {len(records)} {what}: what is past them was not read (--max-seq-length)")
        return Split(name, records, found)

    train = encoded("train", records).encoded.items
    dev = [encoded(name, records) for name, records in splits.dev.items()]
    test = [encoded(name, records) for name, records in splits.test.items()]
    evaluator = Evaluator(task, start.model, limit, _null_threshold(cfg, task, splits, model, say), cfg.label_threshold)
    for split in dev if cfg.metric is not None else ():  # no scores of training to be lost by a misspelt name
        guesses = Predictions((_guess(task.kind, r, len(labels)) for r in split.records), _LOSS.get(task.kind))
        evaluator.main_score(evaluator.scores(split, guesses), cfg.metric)
    batches = None
    if train and cfg.num_epochs:
        num_steps = cfg.num_epochs * len(train) / cfg.batch_size
        batches = Batches(
            task.kind, train, cfg.batch_size, cfg.batching, model.config.hidden_size, model.tokenizer.pad_id,
            devices.rows_cut, 16 if devices.platform == "cpu" else 128, most_shapes=min(6, max(1, int(num_steps) // 100)),
        )  # fmt: skip
        shapes = ", ".join(f"{rows}x{length}" for rows, length in batches.shapes)
        say(f"{cfg.batching} batches of {cfg.batch_size}: {shapes} (rows x tokens), {batches.padding:.0%} padding")
    elif _CLASSIFIER_PATHS & set(start.fresh):
        raise InputError(f"{cfg.model} has no head for {task.name}, and there is nothing to train it on: give a fine-tuned model")
    key = f"{splits.data_hash}-{holdout.digest(splits.train, splits.dev)}-{cfg.max_seq_length}"
    weights = None
    if cfg.class_weights is not None:
        named = class_weights(cfg.class_weights, task.kind, labels, splits.train)
        say("class weights: " + ", ".join(f"{name} {weight:.4g}" for name, weight in named.items()))
        weights = np.array(list(named.values()), np.float32)
        key += f"-{weights.tolist()}"  # which a file may change
    return Setting(cfg, task, start, batches, dev, evaluator, devices, key, baseline(task, splits, cfg.metric), weights), test


def _null_threshold(cfg: FinetuneConfig, task: Task, splits: Splits, model: Model, say: Callable[[str], None]) -> float | None:
    """The one given; 0, as in run_squad.py, where none was ever tuned, nor can be, and some questions may have no answer."""
    known = cfg.null_threshold is not None or model.tuned.null_threshold is not None or bool(splits.dev)
    if known or task.kind != "question_answering":
        return cfg.null_threshold
    if task.name != "squad2" and all(label != () for records in splits.test.values() for label in labels_of(records)):
        return None
    say(f"{cfg.model} has no threshold of its own for no answer: it is 0 (--null-threshold)")
    return 0.0


def _of_pooling(pooling: Pooling) -> list[str]:
    """What is done with what sentence-transformers' files ask for behind and before the encoder."""
    notes = []
    if pooling.dense:
        notes.append(f"{', '.join(map(str, pooling.dense))} behind the pooling: used as it is, and not trained")
    if pooling.truncate_dim:
        notes.append(f"embeddings are cut to their first {pooling.truncate_dim} values (truncate_dim), in training too")
    if pooling.prompt:
        notes.append(f"the model's default prompt {pooling.prompt!r} is put before each text")
    if others := [name for name, prompt in pooling.prompts.items() if prompt and prompt != pooling.prompt]:
        notes.append(f"the model's prompts {', '.join(others)} are kept, but put before no text: give the texts with them")
    return notes


def _check_fit(cfg: FinetuneConfig, model: Model) -> None:
    """Raises InputError where the config asks for more than the model has."""
    longest, layers = model.config.max_length, model.config.num_hidden_layers
    if (cfg.max_seq_length or 0) > longest:
        raise InputError(
            f"max_seq_length={cfg.max_seq_length}, but {cfg.model} takes {longest} tokens at most: --max-seq-length {longest}"
        )
    if cfg.freeze_layers > layers:
        raise InputError(f"freeze_layers={cfg.freeze_layers}, but {cfg.model} has {layers} layers: choose 0 to {layers}")


_LOSS = {"tagging": 0.0, "question_answering": 0.0}  # of kinds whose predictions do not tell it


def _guess(kind: Kind, record: Record, num_labels: int) -> Any:
    """A prediction that means nothing, in the form of `Evaluator.predict`."""
    guesses = {"regression": 0.0, "tagging": record.label, "question_answering": ([], 0.0), "similarity": np.zeros((2, 1))}
    return guesses.get(kind, np.zeros(len(record.texts) - 1 if kind == "multiple_choice" else num_labels))


def fit_all(setting: Setting, workdir: Path, stop: loop.StopRequest) -> list[Outcome]:
    """Trains all runs that are not done yet; what came of each, in the order of learning rates and seeds."""
    cfg = setting.cfg
    members = [Member(cfg.seed + i, rate) for rate in cfg.learning_rates for i in range(cfg.seeds)]
    together = cfg.together == "yes" or (cfg.together == "auto" and _gain_together(setting, len(members)))
    if len(members) == 1:
        groups = [(members, workdir)]
    elif together:
        groups = [(members, workdir / "runs")]
    else:
        groups = [([member], workdir / "runs" / member.name) for member in members]
    outcomes: list[Outcome] = []
    for some, directory in groups:
        runs = Runs(setting, some, directory)
        done = runs.done()
        if done is None:
            if len(members) > 1 and multihost.is_first():
                print(f"run {len(outcomes) + 1} of {len(members)}: {', '.join(m.name for m in some)}", file=sys.stderr)
            done = runs.fit(stop)
            if stop.signal is not None:
                return outcomes
        runs.drop_checkpoints()
        outcomes += done
    return outcomes


def _gain_together(setting: Setting, count: int) -> bool:
    """Whether `count` runs in one program are likely faster: on CPUs they are not (BERT-tiny: 0.76, MiniLM: 0.99 times as fast);
    an accelerator is kept busier by them, if parameters, gradients and moments of all fit in a quarter of its memory."""
    available = memory.device_bytes(setting.devices.mesh.local_devices[0])
    state = 16 * sum(x.size for x in jax.tree.leaves(setting.start.model.params))
    return available is not None and count * state < available / 4


def export_folder(workdir: Path, outcomes: Sequence[Outcome], which: Outcome) -> Path:
    """Where a run's model is."""
    if len(outcomes) == 1:
        return workdir / "export"
    return workdir / "runs" / Member(which.seed, which.learning_rate).name / "export"


def predict_all(
    setting: Setting, test: Sequence[Split], workdir: Path
) -> tuple[dict[str, dict[str, float]], dict[str, Predictions], Tuned]:
    """Predicts dev and test by the exported model, or, where nothing was trained, by the model itself.

    Returns the scores of the splits that have labels, the predictions of all, which it writes too, and the thresholds that both
    follow: those in the export, which were tuned on dev; where nothing was trained the model's, or else tuned on dev.
    """
    model, evaluator = setting.start.model, setting.evaluator
    if setting.batches is not None:
        model = pretrained.load(workdir / "export", head=model.head)
    predictions = {split.name: evaluator.predict(split, model.params) for split in [*setting.dev, *test]}
    tuned = thresholds(setting, model.tuned, predictions)
    scores = {}
    for split in [*setting.dev, *test]:
        predicted = predictions[split.name]
        if split.labelled or setting.task.kind == "similarity":
            scores[split.name] = evaluator.scores(split, predicted, tuned)
        results.write_predictions(workdir / "predictions", split, predicted, evaluator, tuned)
    return scores, predictions, tuned


def thresholds(setting: Setting, kept: Tuned, predictions: Mapping[str, Sequence[Any]]) -> Tuned:
    """Those given, else those that the model has kept (from its training), else those that are best on dev."""
    given = setting.evaluator.tuned
    null = kept.null_threshold if given.null_threshold is None else given.null_threshold
    labels = given.label_thresholds or kept.label_thresholds
    if null is not None or labels:
        return dataclasses.replace(given, null_threshold=null, label_thresholds=labels)
    return setting.evaluator.tune(setting.dev, predictions)
