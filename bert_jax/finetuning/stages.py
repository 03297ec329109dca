"""The stages of fine-tuning: preparing what all runs share, training the runs, and predicting with the best one."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from bert_jax import pretrained
from bert_jax.data.finetuning import Batches, special_tokens_in
from bert_jax.data.records import Record
from bert_jax.errors import InputError
from bert_jax.finetuning.config import FinetuneConfig
from bert_jax.finetuning.evaluation import Evaluator
from bert_jax.finetuning.init_head import CLASSIFIER, StartingModel, load_for_task
from bert_jax.finetuning.runs import Member, Outcome, Runs, Scored, checksum
from bert_jax.finetuning.trainer import Trainer
from bert_jax.finetuning.weighting import class_weights
from bert_jax.model.convert import Params
from bert_jax.pooling import Embedding, Pooling
from bert_jax.pretrained import Model
from bert_jax.tasks import holdout
from bert_jax.tasks.kind import Kind
from bert_jax.tasks.split import Predicted, Predictions, Split
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.task import Options, Task
from bert_jax.training import loop, memory, multihost, muon, optim, parallel
from bert_jax.tuned import Tuned

Say = Callable[[str], None]


def prepare(cfg: FinetuneConfig, task: Task, splits: Splits, say: Say) -> tuple[Trainer, list[Split]]:
    """Returns what all runs share, and the test splits; shows notes on the head, on long texts and on the batches.

    Raises InputError if config, data and model do not fit together.
    """
    kind, trains = task.kind, bool(splits.train) and bool(cfg.num_epochs)
    options, records, notes = kind.settle(cfg.options(kind), splits.train)
    devices = parallel.make_devices(cfg.parallel)
    start = _load(cfg, kind, splits, trains, say)
    parallel.check_fit(devices, start.model.config, devices.rows_cut)  # rows are padded to divide
    limit, shorter = _limit(cfg, start.model)
    model, more = kind.adapt(start.model, limit, task, splits, options)
    for note in [*_special_tokens(cfg, splits, model), *notes, *(shorter if trains else []), *more]:
        say(note)
    start = dataclasses.replace(start, model=model)

    train, *others = (
        _encode(name, kind, rows, splits.labels, model, limit, say)
        for name, rows in [("train", records), *splits.dev.items(), *splits.test.items()]
    )
    dev, test = others[: len(splits.dev)], others[len(splits.dev) :]
    evaluator = Evaluator(task, model, limit, options.null_threshold, options.label_threshold)
    _check_metric(cfg, evaluator, dev)
    batches = _batches(cfg, kind, options, train, model, devices, say) if train.encoded.items and cfg.num_epochs else None
    if batches is None and {f"{name}/kernel" for name in CLASSIFIER.values()} & set(start.fresh):
        raise InputError(f"{cfg.model} has no head for {task.name}, and there is no training data: give a fine-tuned model")
    key = f"{splits.data_hash}-{holdout.digest(splits.train, splits.dev)}-{cfg.max_seq_length}"
    options = _weighted(cfg, kind, options, splits, say)
    if options.class_weights is not None:  # a file may have changed them
        key += f"-{options.class_weights.tolist()}"
    nothing = baseline(task, splits, cfg.metric)
    return Trainer(cfg, task, options, start, batches, dev, evaluator, devices, key, nothing), test


def _load(cfg: FinetuneConfig, kind: Kind, splits: Splits, trains: bool, say: Say) -> StartingModel:
    """Reads the model with the head of the task. Raises InputError if the config asks for more tokens or layers."""
    reads = cfg.special_tokens or ("text" if trains else None)  # None: as in the training of the model
    start = load_for_task(cfg.model, kind.head, splits.labels, kind.problem_type, cfg.init_head, reads, kind.embedding)
    if start.note:
        say(start.note)
    longest, layers = start.model.config.max_length, start.model.config.num_hidden_layers
    if (cfg.max_seq_length or 0) > longest:
        raise InputError(
            f"max_seq_length={cfg.max_seq_length}, but {cfg.model} takes at most {longest} tokens: "
            f"give --max-seq-length {longest}"
        )
    if cfg.freeze_layers > layers:
        raise InputError(f"freeze_layers={cfg.freeze_layers}, but {cfg.model} has {layers} layers: choose 0 to {layers}")
    if cfg.optimizer == "muon" and not _has_kernels(start.model.params, layers, cfg.freeze_layers):
        fix = "freeze fewer layers, or choose --optimizer adamw"
        raise InputError(f"freeze_layers={cfg.freeze_layers} leaves no kernels of layers to --optimizer muon: {fix}")
    if trains or kind.problem_type is None:
        return start
    there = pretrained.describe(cfg.model)  # the meaning of the outputs is in the files of the model
    model = dataclasses.replace(start.model, problem_type=there.problem_type, activation=there.activation)
    return dataclasses.replace(start, model=model)


def _has_kernels(params: Params, layers: int, frozen: int) -> bool:
    """Returns True if Muon has something to train."""
    kernels, scales = muon.hidden_matrices(params), optim.layer_scales(params, layers, 1.0, frozen)
    return any(jax.tree.leaves(jax.tree.map(lambda kernel, scale: kernel and scale > 0, kernels, scales)))


def _limit(cfg: FinetuneConfig, model: Model) -> tuple[int, list[str]]:
    """Returns the tokens of a sequence, those of the config as far as the model and its pooling take them, and lines to show."""
    assert cfg.max_seq_length is not None
    pooled = model.pooling.max_length if isinstance(model.pooling, Embedding) else None
    limit = min(cfg.max_seq_length, pooled or cfg.max_seq_length, model.config.max_length)
    if limit == cfg.max_seq_length:
        return limit, []
    where = f"max_seq_length in sentence_bert_config.json of {cfg.model}"
    return limit, [f"warning: texts are cut to {limit} tokens, not to {cfg.max_seq_length}, by {where}: change it there"]


def _special_tokens(cfg: FinetuneConfig, splits: Splits, model: Model) -> list[str]:
    """Returns a line where training texts contain special tokens that are read as text by default."""
    found = special_tokens_in(splits.train, model.need_tokenizer()) if cfg.special_tokens is None else {}
    if not found:
        return []
    listing = ", ".join(f"{name} in {count}" for name, count in found.items())
    return [f"special tokens in {len(splits.train)} training rows are text: {listing} rows (--special-tokens read)"]


def _encode(
    name: str, kind: Kind, records: Sequence[Record], labels: Sequence[str], model: Model, limit: int, say: Say
) -> Split:  # fmt: skip
    """Tokenizes a split; shows the number of records that were cut."""
    pooling = model.pooling if isinstance(model.pooling, Embedding) else Pooling()
    layout = pooling.layout(model.need_tokenizer(), model.config, limit)
    found = kind.encode(records, labels, layout).read_from(pooling.first_place(layout))
    if found.lost:
        count, what = len(found.sequences), f"rows have more than {limit} tokens"
        if found.reading:
            count, what = len(records), "questions have too many tokens"
        elif count > len(found.items):  # a query's documents, a question's choices
            what = f"texts have more than {limit} tokens"
        say(f"{name}: {found.lost} of {count} {what}; the rest was not read (--max-seq-length)")
    return Split(name, records, found)


def _check_metric(cfg: FinetuneConfig, evaluator: Evaluator, dev: Sequence[Split]) -> None:
    """Raises InputError before training where the task does not have the metric."""
    for split in dev if cfg.metric is not None else ():
        evaluator.main_score(evaluator.scores(split, evaluator.kind.guess(split.records, evaluator.labels)), cfg.metric)


def _batches(
    cfg: FinetuneConfig, kind: Kind, options: Options, train: Split, model: Model, devices: parallel.Devices, say: Say
) -> Batches:  # fmt: skip
    """Plans the training batches; shows their shapes."""
    assert cfg.batch_size is not None
    assert cfg.num_epochs is not None
    items = train.encoded.items
    if cfg.batch_size < (least := kind.least_batch(options, train.records)):
        raise InputError(f"--batch-size {cfg.batch_size}: {kind.name} compares the rows of a batch: give {least} or more")
    num_steps = cfg.num_epochs * len(items) / cfg.batch_size
    batches = Batches(
        items, cfg.batch_size, cfg.batching, model.config.hidden_size, model.need_tokenizer().pad_id,
        devices.rows_cut * (cfg.chunk_size or 1), 16 if devices.platform == "cpu" else 128,
        most_shapes=min(6, max(1, int(num_steps) // 100)), targets=kind.targets,
    )  # fmt: skip
    shapes = ", ".join(f"{rows}x{length}" for rows, length in batches.shapes)
    say(f"{cfg.batching} batches of {cfg.batch_size}: {shapes} (rows x tokens), {batches.padding:.0%} padding")
    return batches


def _weighted(cfg: FinetuneConfig, kind: Kind, options: Options, splits: Splits, say: Say) -> Options:
    """Returns the options with the weights of the classes."""
    if cfg.class_weights is None:
        return options
    named = class_weights(cfg.class_weights, kind, splits.labels, splits.train)
    say("class weights: " + ", ".join(f"{name} {weight:.4g}" for name, weight in named.items()))
    return dataclasses.replace(options, class_weights=np.array(list(named.values()), np.float32))


def baseline(task: Task, splits: Splits, metric: str | None) -> float | None:
    """Returns the dev score of a model that learnt nothing.

    Returns None where it is not known (a metric of the user's choice, no dev rows), or is the best possible score, because a
    dev split has a single label.
    """
    if not splits.dev or metric is not None or any(holdout.only_label(task.kind, rows) for rows in splits.dev.values()):
        return None
    return task.kind.baseline(splits, task.metrics)


def fit_all(trainer: Trainer, workdir: Path, stop: loop.StopRequest) -> tuple[list[Outcome], Scored | None]:
    """Trains the runs that are not done yet.

    Returns the outcomes in the order of learning rates and seeds, and the dev predictions of the best run if it is known here.
    """
    cfg = trainer.cfg
    members = [Member(cfg.seed + i, rate) for rate in cfg.learning_rates for i in range(cfg.seeds)]
    together = cfg.together == "yes" or (cfg.together == "auto" and _gain_together(trainer, len(members)))
    if len(members) == 1:
        groups = [(members, workdir)]
    elif together:
        groups = [(members, workdir / "runs")]
    else:
        groups = [([member], workdir / "runs" / member.name) for member in members]
    outcomes, scored = list[Outcome](), None
    for some, directory in groups:
        runs = Runs(trainer, some, directory)
        done = runs.done()
        if done is None:
            if len(members) > 1 and multihost.is_first():
                print(f"run {len(outcomes) + 1} of {len(members)}: {', '.join(m.name for m in some)}", file=sys.stderr)
            done = runs.fit(stop)
            if stop.signal is not None:
                return outcomes, None
        runs.drop_checkpoints()
        outcomes += done
        if (best := best_of(outcomes)) is not None and best in done:  # for one run only, because predictions may be large
            scored = runs.scored.get(best.member)
    return outcomes, scored


def best_of(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Returns the run of the highest score, or None where no run has one."""
    return max((outcome for outcome in outcomes if outcome.history), key=lambda outcome: outcome.score, default=None)


def _gain_together(trainer: Trainer, count: int) -> bool:
    """Returns True where `count` runs in one program are likely faster.

    On CPUs they are slower (BERT-tiny: 0.76, MiniLM: 0.99 times as fast). Accelerators are busier with them, if the parameters,
    gradients and moments of all fit in a quarter of the memory.
    """
    available = memory.device_bytes(trainer.devices.mesh.local_devices[0])
    state = 16 * sum(x.size for x in jax.tree.leaves(trainer.start.model.params))
    return available is not None and count * state < available / 4


def export_folder(workdir: Path, outcomes: Sequence[Outcome], which: Outcome) -> Path:
    """Returns the folder of the model of a run."""
    if len(outcomes) == 1:
        return workdir / "export"
    return workdir / "runs" / which.member.name / "export"


def predict_all(
    trainer: Trainer, test: Sequence[Split], workdir: Path, scored: Scored | None = None
) -> tuple[dict[str, dict[str, float]], dict[str, Predicted]]:  # fmt: skip
    """Predicts dev and test with the exported model, or where nothing was trained with the model itself; writes the predictions.

    Dev is not predicted again where the export has, bit for bit, the weights that predicted it in training. The thresholds are
    those of the model, or else tuned on dev. Returns the scores of the splits that can be scored, and all predictions.
    """
    model, evaluator, splits = trainer.start.model, trainer.evaluator, [*trainer.dev, *test]
    if trainer.batches is not None:
        model = pretrained.load(workdir / "export", head=model.head)
    known = scored.predictions if scored is not None and scored.checksum == checksum(model.params) else {}
    values = {split.name: known.get(split.name) or evaluator.predict(split, model.params) for split in splits}
    tuned = thresholds(trainer, model.tuned, values)
    scores = {}
    for split in splits:
        if split.labelled or evaluator.kind.scores_unlabelled:
            scores[split.name] = evaluator.scores(split, values[split.name], tuned)
    predicted = {split.name: evaluator.of(split, values[split.name], tuned) for split in splits}
    for each in predicted.values():
        trainer.task.kind.write(workdir / "predictions", each)
    return scores, predicted


def thresholds(trainer: Trainer, kept: Tuned, predictions: Mapping[str, Predictions]) -> Tuned:
    """Returns the given thresholds, else those of the model, which its training tuned, else the best on dev."""
    given = trainer.evaluator.tuned
    null = kept.null_threshold if given.null_threshold is None else given.null_threshold
    labels = given.label_thresholds or kept.label_thresholds
    if null is not None or labels:
        return dataclasses.replace(given, null_threshold=null, label_thresholds=labels)
    return trainer.evaluator.tune(trainer.dev, predictions)
