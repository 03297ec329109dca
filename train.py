"""Pretrain a BERT from raw text: `python train.py configs/NAME.py [--field value ...]`; the same command continues.

This is the only place where pretraining's pieces meet: parse, build, fit. Processes that tokenize import this file too, so
everything but the config is imported where it is used.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from bert_jax.config import InputError, TrainConfig, claim_workdir, load_train_config, to_dict


def main(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit status: 0, or 128 + the signal that ended the run early."""
    cfg = load_train_config(argv)
    from bert_jax.console import show_table, track
    from bert_jax.data import doctor
    from bert_jax.data.pretraining import BatchSource, load_data

    for line in claim_workdir(cfg):
        print(line, file=sys.stderr)
    data = load_data(cfg, track)
    training, held_out = (BatchSource.of(cfg, data.tokenizer, rows) for rows in (data.training.train, data.held_out))
    diagnosis = doctor.examine(data, cfg, training)
    show_table("the text", diagnosis.facts, diagnosis.warnings)
    return pretrain(cfg, data, training, held_out)


def pretrain(cfg: TrainConfig, data: Any, training: Any, held_out: Any) -> int:
    """Builds the model, the steps and the state, fits, and exports."""
    import jax

    from bert_jax import pretrained
    from bert_jax.data.pretraining import unigram_loss
    from bert_jax.model.heads import Bert
    from bert_jax.training import checkpoint, loop, losses, metrics, optim, parallel, steps, writer

    mesh = parallel.make_mesh(cfg.parallel.num_devices)
    parallel.check_batch(cfg.batch_size, cfg.gradient_accumulation_steps, mesh)
    pretrained.check_padding(cfg.model, data.tokenizer)
    head = pretrained.pretraining_head(cfg)
    module = Bert(cfg.model, head)

    def sums_fn(params: Any, batch: Any, key: Any) -> dict[str, losses.Sum]:
        rngs = None if key is None else {"dropout": key}
        return losses.pretraining_sums(module.apply({"params": params}, batch, key is None, head_only=True, rngs=rngs), batch)

    optimizer = optim.make_optimizer(cfg.optim)
    schedule = optim.make_schedule(cfg.optim, cfg.num_steps)
    train_step = steps.make_train_step(
        sums_fn, optimizer, schedule, cfg.seed, cfg.optim.clip_norm, cfg.gradient_accumulation_steps
    )
    put = partial(parallel.shard_batch, mesh=mesh)

    def fresh() -> steps.TrainState:
        return steps.init_state(pretrained.initialize(module, cfg.seed), optimizer)

    workdir = Path(cfg.workdir)
    state = jax.eval_shape(fresh)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.replicated(mesh)), state)
    saved = checkpoint.Checkpointer(workdir / "checkpoints", keep=cfg.keep_checkpoints)
    restored = saved.restore_latest(state)
    if restored is not None:
        state, meta, start = restored
        if meta["data"] != data.key:
            raise InputError(
                f"the text of {', '.join(cfg.data.source)} is not what {cfg.workdir} was begun with: restore it, "
                "or begin anew with another --workdir"
            )
    else:
        start, state = 0, jax.jit(fresh, out_shardings=parallel.replicated(mesh))()
        if cfg.init_from:
            params = jax.device_put(pretrained.start_from(cfg.init_from, module, state.params), parallel.replicated(mesh))
            state = state._replace(params=params)

    writer.cut(workdir / "metrics.jsonl", start if restored else -1)
    with closing(writer.Writer(workdir, cfg.num_steps, start)) as log, closing(saved), loop.StopRequest() as stop:
        begun = f"continuing from step {start}" if start else "starting"
        log.message(f"{begun} on {mesh.size} x {mesh.devices.flat[0].device_kind}, {cfg.batch_size // mesh.size} rows each")
        batches = [held_out.evaluation(i) for i in range(held_out.num_evaluation_batches(cfg.eval_batches))]
        unigram = {"eval/unigram_loss": unigram_loss(data.training.token_counts, iter(batches))} if batches else {}
        predictions = sum(float(batch["masked_weights"].sum()) for batch in batches)
        begun_at = time.perf_counter()
        compiled = parallel.compile_step(train_step, mesh, state, put(training.train(start)), donate=True)
        if batches:
            eval_step = parallel.compile_step(steps.make_eval_step(sums_fn), mesh, state.params, put(batches[0]), donate=False)
        log.timing(start, {"compile_seconds": time.perf_counter() - begun_at})

        def evaluate(params: Any) -> dict[str, float]:
            if not batches:
                return {}
            values = loop.evaluate_sums(eval_step, params, batches, put, {"masked_lm_loss": predictions})
            return {f"eval/{name}": value for name, value in values.items()} | unigram

        def save(state: steps.TrainState, evaluation: dict[str, float]) -> None:
            saved.save(int(state.step), state, {"data": data.key, "config": to_dict(cfg)}, evaluation)

        length = cfg.data.max_seq_length
        slots = cfg.masking.num_slots(length)
        flops = metrics.pretraining_flops(cfg.model, cfg.batch_size, length, slots, head == "pretraining")
        peak = metrics.peak_flops(mesh.devices.flat[0].device_kind)
        cost = loop.Cost(lambda batch: int((batch["sequence_ids"] > 0).sum()), flops, peak and peak * mesh.size)
        state = loop.fit(
            state, compiled, training.stream(start, cfg.num_steps), put,
            loop.Cadence(cfg.num_steps, cfg.log_every, cfg.eval_every, cfg.checkpoint_every, cfg.optim.max_skipped),
            evaluate, save, log, stop, cost,
            first_loss=None if cfg.init_from else math.log(cfg.model.vocab_size) + (math.log(2) if head == "pretraining" else 0),
        )  # fmt: skip
    if stop.signal is not None:
        print(f"stopped at step {int(state.step)} and saved; the same command continues", file=sys.stderr)
        return 128 + stop.signal
    if batches:
        reached = evaluate(state.params)
        print(
            f"held-out loss {reached['eval/masked_lm_loss']:.3f} nats a masked token; "
            f"a model without context, which knows only how frequent each token is, reaches {reached['eval/unigram_loss']:.3f}"
        )
    finish(cfg, pretrained.Model(cfg.model, jax.device_get(state.params), data.tokenizer, head))
    return 0


def finish(cfg: TrainConfig, model: Any) -> None:
    """Exports the model, shows what it learnt and says what to do next."""
    from bert_jax import inference, pretrained

    directory = Path(cfg.workdir) / "export"
    pretrained.save(model, directory)
    for sentence, fillings in zip(cfg.fill_masks, inference.FillMask(model)(cfg.fill_masks), strict=True):
        print(f"{sentence}\n    " + "  ".join(f"{f.token} {f.score:.0%}" for f in fillings))
    print(
        f"\nThe model is in {directory}: transformers loads it (AutoModelForMaskedLM.from_pretrained), and so does\n"
        f'    python -c \'import bert_jax; print(bert_jax.FillMask(bert_jax.load("{directory}"))(["I [MASK] it."]))\'\n'
        f"Its curves are in {cfg.workdir}/metrics.jsonl (and TensorBoard: {cfg.workdir}/tensorboard). Go on with your own text:\n"
        "    python train.py configs/bert_mini.py --data.source 'text/*.txt' --workdir runs/mine"
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(f"error: {error}")
