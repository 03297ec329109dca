"""Pretrain a BERT from raw text: `python train.py configs/NAME.py [--field value ...]`; the same command continues.

This is the only place where pretraining's pieces meet: parse, build, fit. Processes that tokenize import this file too, so
everything but the config is imported where it is used.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from bert_jax import workdir
from bert_jax.config import BertConfig, InputError, TrainConfig, load_train_config, to_dict


def main(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit status: 0, or 128 + the signal that ended the run early."""
    cfg = load_train_config(argv, architecture=architecture)
    from bert_jax import pretraining, warm_start
    from bert_jax.console import show_table, track
    from bert_jax.data import doctor
    from bert_jax.data.pretraining import BatchSource, load_data
    from bert_jax.training import multihost, parallel

    multihost.connect(cfg.parallel)
    first, devices = multihost.is_first(), parallel.make_devices(cfg.parallel)
    begun = workdir.recorded(cfg.checkpoints)
    pretraining.check(cfg, devices, begun is not None)
    for line in multihost.first_then_others(lambda: workdir.claim(cfg, first)):
        if first:
            print(line, file=sys.stderr)
    data = multihost.first_then_others(lambda: load_data(cfg, track, begun, warm_start.vocabulary(cfg.init_from)))
    same = to_dict(cfg.replace(parallel=cfg.parallel.replace(process_id=None, num_processes=None)))
    multihost.check_equal("the config", json.dumps(same))
    multihost.check_equal("the text", data.key)
    training, held_out = (BatchSource.of(cfg, data.tokenizer, rows) for rows in (data.training.train, data.held_out))
    if first:
        diagnosis = doctor.examine(data, cfg, training)
        show_table("the text", diagnosis.facts, diagnosis.warnings)
    return pretrain(cfg, devices, data, training, held_out)


def architecture(init_from: str, folder: str) -> BertConfig:
    """What the model of `--init-from` is."""
    from bert_jax import pretraining

    return pretraining.architecture(init_from, folder)


def pretrain(cfg: TrainConfig, devices: Any, data: Any, training: Any, held_out: Any) -> int:
    """Builds the model, the steps and the state, fits, and exports."""
    from bert_jax import pretrained, pretraining
    from bert_jax.data.pretraining import tokenizer_folder, unigram_loss
    from bert_jax.data.tokenizer import Tokenizer
    from bert_jax.training import checkpoint, flops, loop, memory, multihost, steps, writer

    pretrained.check_padding(cfg.model, data.tokenizer)
    program = pretraining.build(cfg, devices, memory.device_bytes(devices.mesh.local_devices[0]))
    first, rows = multihost.is_first(), devices.rows(cfg.batch_size)
    saved = checkpoint.Checkpointer(cfg.checkpoints, keep=cfg.keep_checkpoints)
    state, start, lines = restore(program, saved, data.key)
    folder = Path(cfg.workdir)
    if first:
        writer.cut(folder / "metrics.jsonl", start if saved.steps else -1, lines)
    log = writer.Writer(folder, cfg.num_steps, start) if first else writer.Silent()
    stop = loop.StopRequest(multihost.stop_agreed())
    with closing(log), closing(saved), stop, multihost.Watchdog(cfg.parallel.stuck_timeout) as alive:
        begun = f"continuing from step {start}" if start else "starting"
        log.message(f"{begun} on {devices.describe()}, {cfg.batch_size // devices.rows_cut} rows each; {program.describe()}")
        batches = [held_out.evaluation(i) for i in range(held_out.num_evaluation_batches(cfg.eval_batches))]
        unigram = {"eval/unigram_loss": unigram_loss(data.training.token_counts, iter(batches))} if batches else {}
        predictions = sum(float(batch["masked_weights"].sum()) for batch in batches)
        begun_at = time.perf_counter()
        train_step = program.train_step.compile(state, devices.put(training.train(start, rows)))
        if batches:
            eval_step = program.eval_step.compile(state.params, devices.put_whole(batches[0]))
        log.timing(start, {"compile_seconds": time.perf_counter() - begun_at})
        multihost.barrier("compiled")  # or the first collective gives up on a slow one, on CPUs

        def evaluate(params: Any) -> dict[str, float]:
            if not batches:
                return {}
            put = alive.watched(devices.put_whole)
            values = loop.evaluate_sums(eval_step, params, batches, put, {"masked_lm_loss": predictions})
            return {f"eval/{name}": value for name, value in values.items()} | unigram

        def save(state: steps.TrainState, evaluation: dict[str, float]) -> None:
            record = {"data": data.key, "tokenizer": data.tokenizer.fingerprint(), "config": to_dict(cfg), "lines": log.lines}
            saved.save(int(state.step), state, record, evaluation)

        peak = flops.peak_flops(devices.kind)
        cost = loop.Cost(
            lambda batch: int((batch["sequence_ids"] > 0).sum()), flops.step_flops(cfg), peak and peak * devices.mesh.size
        )
        if cfg.profile and first:
            skip = max(0, min(10, cfg.num_steps - start - cfg.profile))
            train_step = loop.profiled(train_step, skip, min(cfg.profile, cfg.num_steps - start), folder / "profile")
        state = loop.fit(
            state, train_step, training.stream(start, cfg.num_steps, rows), alive.watched(devices.put),
            loop.Cadence(cfg.num_steps, cfg.log_every, cfg.eval_every, cfg.checkpoint_every, cfg.optim.max_skipped),
            evaluate, save, log, stop, cost, first_loss=None if cfg.init_from else untrained_loss(cfg),
        )  # fmt: skip
    if stop.signal is not None:
        if first:
            print(f"stopped at step {int(state.step)} and saved; the same command continues", file=sys.stderr)
        return 128 + stop.signal
    reached = evaluate(state.params)
    params = devices.gather(state.params)
    if first:
        published = Tokenizer.load(tokenizer_folder(cfg))  # which reads special tokens, whatever the run did
        finish(cfg, pretrained.Model(cfg.model, params, published, program.module.head), reached)
    return 0


def restore(program: Any, saved: Any, data_key: str) -> tuple[Any, int, int]:
    """The state to go on from, its step and the lines of metrics.jsonl up to there: the newest checkpoint's, else a fresh one,
    with the weights of --init-from.

    Raises InputError where the checkpoint is of another run (one before a damaged one may be).
    """
    from bert_jax import warm_start
    from bert_jax.data import corpus

    cfg, restored = program.cfg, saved.restore_latest(program.abstract_state)
    if restored is not None:
        state, meta, start = restored
        different = [c for c in workdir.other_run(meta["config"], cfg, moved=True) if c[0] != "num_steps"]
        if different:
            workdir.refuse(cfg, different, "", f"checkpoint {saved.directory / str(start)} is of another run")
        if meta["data"] != data_key:
            raise InputError(corpus.other_text(cfg.data.source, cfg.workdir))
        return state, start, meta.get("lines", 0)
    state = program.initial_state()
    if cfg.init_from:
        params = warm_start.start_from(cfg.init_from, program.module, program.devices.gather(state.params))
        state = state._replace(params=program.devices.place(params))
    return state, 0, 0


def untrained_loss(cfg: TrainConfig) -> float:
    """What guessing by chance costs."""
    return math.log(cfg.model.vocab_size) + (math.log(2) if cfg.data.examples == "sentence_pairs" else 0)


def finish(cfg: TrainConfig, model: Any, reached: dict[str, float]) -> None:
    """Exports the model, shows what it learnt and says what to do next."""
    from bert_jax import inference, pretrained

    if reached:
        print(
            f"held-out loss {reached['eval/masked_lm_loss']:.3f} nats a masked token; "
            f"a model without context, which knows only how frequent each token is, reaches {reached['eval/unigram_loss']:.3f}"
        )
    directory = Path(cfg.workdir) / "export"
    pretrained.save(model, directory)
    for sentence, fillings in zip(cfg.fill_masks, inference.FillMask(model)(cfg.fill_masks), strict=True):
        print(f"{sentence}\n    " + "  ".join(f"{f.token} {f.score:.0%}" for f in fillings))
    own = "python train.py configs/bert_mini.py --data.source 'text/*.txt' --workdir runs/mine"
    there, masked = str(directory), f"I {model.tokenizer.mask_token} it."
    task = f"python finetune.py {shlex.quote(there)} --task classification --data FILE.csv --text-column NAME --label-column NAME"
    code = f"import bert_jax; print(bert_jax.FillMask(bert_jax.load({json.dumps(there)}))([{json.dumps(masked)}]))"
    print(
        f"\nThe model is in {directory}: transformers loads it (AutoModelForMaskedLM.from_pretrained), and so does\n"
        f"    python -c {shlex.quote(code)}\n"
        f"Its curves are in {cfg.workdir}/metrics.jsonl (and TensorBoard: {cfg.workdir}/tensorboard). "
        + (f"Go on with your own text:\n    {own}" if cfg.data.source == ("stdlib:",) else f"Go on with a task:\n    {task}")
    )


if __name__ == "__main__":
    from bert_jax import console

    console.run(main, sys.argv[1:], "the same command continues")
