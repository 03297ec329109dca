"""A pretraining run: `train` joins its text and its program, trains, and exports the model."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bert_jax import hugepages, inference, pretrained, warm_start, workdir
from bert_jax.config import InputError, Span, TrainConfig, spans, to_dict
from bert_jax.console import show_table, track
from bert_jax.data import corpus, doctor, heldout
from bert_jax.data.pretraining import BatchSource, load_data, tokenizer_folder
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.model.convert import Params, flatten, unflatten
from bert_jax.model.heads import Bert, initial_values, parameter_shapes
from bert_jax.program import Program, build, check
from bert_jax.training import checkpoint, flops, loop, memory, multihost, optim, parallel, steps, writer
from bert_jax.training.objectives import Objective, Part
from bert_jax.workdir import Branch, Reached


def train(cfg: TrainConfig, prog: str = "bert_jax train") -> Reached:
    """Pretrains a model on raw text, or continues the run that `cfg.workdir` holds, and exports it.

    In the main thread, SIGTERM and SIGINT save a checkpoint and end the run; another thread gets no signals in Python, so there
    the run goes on to its end.

    Args:
        cfg: The run. `bert_jax.config.load_config_file` reads one from a file.
        prog: The command that the user typed, which the printed next steps name.

    Returns:
        The losses on the held-out text (such as `eval/masked_lm_loss`, in nats per masked token) and the folder of the exported
        model; or the signal that stopped the run.

    Raises:
        InputError: The config, the text or the work directory does not allow the run.
    """
    multihost.connect(cfg.parallel)
    first, devices = multihost.is_first(), parallel.make_devices(cfg.parallel)
    begun, branch = workdir.begun(cfg)
    check(cfg, devices, begun is not None)
    heldout.check(cfg)
    for line in multihost.first_then_others(lambda: workdir.claim(cfg, first)):
        if first:
            print(line, file=sys.stderr)
    start = warm_start.vocabulary(cfg.init_from) if branch is None else branch.tokenizer
    data = multihost.first_then_others(lambda: load_data(cfg, track, begun, start))
    same = to_dict(cfg.replace(parallel=cfg.parallel.replace(process_id=None, num_processes=None)))
    multihost.check_equal("the config", json.dumps(same))
    multihost.check_equal("the checkpoint of --branch-from", str(None if branch is None else branch.step))
    multihost.check_equal("the text", data.key)
    training = data.batches(cfg)
    held_out = multihost.first_then_others(lambda: heldout.load(cfg, data, track))
    if first:
        diagnosis = doctor.examine(data, cfg, {of.name: of.text for of in held_out if of.name})
        show_table("the text", diagnosis.facts, diagnosis.warnings)
    return fit(cfg, devices, data.key, training, held_out, prog, branch)


def fit(
    cfg: TrainConfig, devices: parallel.Devices, key: str, training: list[BatchSource], held_out: list[heldout.HeldOut],
    prog: str, branch: Branch | None,
) -> Reached:  # fmt: skip
    """Builds the model, the steps and the state, trains, and exports. `key` names the rows; `branch` is that of `restore`."""
    tokenizer = training[0].tokenizer
    pretrained.check_padding(cfg.model, tokenizer)
    program = build(cfg, devices, memory.device_bytes(devices.mesh.local_devices[0]))
    first = multihost.is_first()
    saved = checkpoint.Checkpointer(cfg.checkpoints, keep=cfg.keep_checkpoints)
    state, start, lines = restore(program, saved, key, branch)
    folder = Path(cfg.workdir)
    if first:
        writer.cut(folder / "metrics.jsonl", start if saved.steps else -1, lines)
    log = writer.Writer(folder, cfg.num_steps, start) if first else writer.Silent()
    stop = loop.StopRequest(multihost.stop_agreed())
    with closing(log), closing(saved), stop, multihost.Watchdog(cfg.parallel.stuck_timeout) as alive:
        begun = f"continuing from step {start}" if start else "starting"
        how = ", ".join(filter(None, [program.describe(), hugepages.describe()]))
        rows = "" if cfg.phases else f", {cfg.batch_size // devices.rows_cut} rows each"
        log.message(f"{begun} on {devices.describe()}{rows}; {how}")
        begun_at = time.perf_counter()
        phases = compile_phases(cfg, devices, training, state, start)
        evaluate = make_evaluate(program, state.params, held_out, alive)
        log.timing(start, {"compile_seconds": time.perf_counter() - begun_at})
        multihost.barrier("compiled")  # without it, the first collective on CPUs gives up on a slow process

        def save(state: steps.TrainState, evaluation: dict[str, float]) -> None:
            record = {"data": key, "tokenizer": tokenizer.fingerprint(), "config": to_dict(cfg), "lines": log.lines}
            saved.save(step := int(state.step), state, record, evaluation, passing=not cfg.saves_at(step))

        peak = flops.peak_flops(devices.kind)
        for number, (span, source, train_step) in enumerate(phases):
            begin = max(start, span.begin)
            if span.name:
                log.message(f"{span.name}: {source.batch_size} rows of {source.max_seq_length} tokens")
            if cfg.profile and first and number == 0:
                skip = max(0, min(10, span.until - begin - cfg.profile))
                train_step = loop.profiled(train_step, skip, min(cfg.profile, span.until - begin), folder / "profile")
            cost = loop.Cost(_tokens, flops.step_flops(span.cfg), peak and peak * devices.mesh.size)
            state = loop.fit(
                state, train_step, source.stream(begin, span.until, devices.rows(source.batch_size)), alive.watched(devices.put),
                loop.Cadence(span.until, cfg.log_every, cfg.eval_every, cfg.checkpoint_every, cfg.optim.max_skipped),
                evaluate, save, log, stop, cost, first_loss=None if cfg.init_from else program.objective.untrained_loss,
            )  # fmt: skip
        step, final, evaluation = int(state.step), optim.averaged(state.params, state.opt_state), list[dict[str, float]]()
        if stop.signal is None:
            if cfg.optim.last is not None:
                del state, final  # whose memory the checkpoints need
                final = mean_of_last(program, saved, cfg.optim.last)
            evaluation = evaluate(final)
            if cfg.optim.last is not None:
                log.message(f"the weights are the mean of the last {cfg.optim.last} checkpoints")
                for values in evaluation:
                    log.scalars(cfg.num_steps, values)
    if stop.signal is not None:
        if first:
            print(f"stopped at step {step} and saved; the same command continues", file=sys.stderr)
        return Reached({}, None, stop.signal)
    reached = {name: value for values in evaluation for name, value in values.items()}
    params = devices.gather(final)
    if first:
        finish(cfg, program.objective.parts(params), reached, prog)
    return Reached(reached, folder / "export")


def _tokens(batch: loop.HostBatch) -> int:
    return int((batch["sequence_ids"] > 0).sum())


def compile_phases(
    cfg: TrainConfig, devices: parallel.Devices, training: list[BatchSource], state: steps.TrainState, start: int
) -> list[tuple[Span, BatchSource, Callable[..., PyTree]]]:
    """Compiles the steps of each phase that ends after `start`, once for equal shapes; returns span, batches and step.

    A phase that predicts masked and next tokens has a program for each; `step` runs that of its batch.
    """
    left = [(span, source) for span, source in zip(spans(cfg), training, strict=True) if span.until > start]
    compiled: dict[object, Callable[..., PyTree]] = {}
    found: list[tuple[Span, BatchSource, Callable[..., PyTree]]] = []
    for span, source in left:
        chosen: dict[bool, Callable[..., PyTree]] = {}
        for batch in source.kinds(max(start, span.begin), devices.rows(source.batch_size)):
            shapes = span.cfg.gradient_accumulation_steps, *((name, x.shape) for name, x in batch.items())
            if shapes not in compiled:
                program = build(span.cfg, devices, memory.device_bytes(devices.mesh.local_devices[0]), cfg.phases)
                compiled[shapes] = program.train_step.compile(state, devices.put(batch))
            chosen["causal" in batch] = compiled[shapes]
        found.append((span, source, partial(_step_of_its_kind, chosen)))
    return found


def _step_of_its_kind(steps: dict[bool, Callable[..., PyTree]], state: PyTree, batch: PyTree) -> PyTree:
    """Runs the step of causal batches or of others."""
    return steps["causal" in batch](state, batch)


def make_evaluate(
    program: Program, params: PyTree, held_out: list[heldout.HeldOut], alive: multihost.Watchdog
) -> Callable[[PyTree], list[dict[str, float]]]:
    """Compiles the evaluation; returns a function from parameters to the metrics of each held-out text."""
    if not held_out:
        return lambda params: []
    put = alive.watched(program.devices.put_whole)
    step = program.eval_step.compile(params, program.devices.put_whole(held_out[0].batches[0]))

    def measure(params: PyTree, text: heldout.HeldOut) -> dict[str, float]:
        return text.measures(loop.evaluate_sums(step, params, text.batches, put, {"masked_lm_loss": text.predictions}))

    return lambda params: [measure(params, text) for text in held_out]


def restore(
    program: Program, saved: checkpoint.Checkpointer, data_key: str, branch: Branch | None
) -> tuple[steps.TrainState, int, int]:
    """Returns the state to go on from, its step, and the number of lines of metrics.jsonl up to that step.

    The state is that of the newest checkpoint or, without one, of the checkpoint of the `branch`, or a fresh state with the
    weights of `init_from`.

    Raises:
        InputError: The checkpoint is of another run, as one that is older than a damaged one may be.
    """
    cfg, restored = program.cfg, saved.restore_latest(program.abstract_state)
    if restored is not None:
        state, meta, start = restored
        different = workdir.other_run(meta["config"], cfg, moved=True)
        if rest := [change for change in different if change not in workdir.grown(different)]:
            workdir.refuse(f"checkpoint {saved.directory / str(start)} is of another run", rest)
        if meta["data"].split("+")[:2] != data_key.split("+"):  # older checkpoints also name rows of other lengths
            raise InputError(corpus.other_text(cfg.data.source, cfg.workdir))
        return state, start, meta.get("lines", 0)
    if branch is not None:
        with closing(checkpoint.Checkpointer(branch.checkpoints, read_only=True)) as other:
            state, _, start = other.restore(branch.step, program.abstract_state)
        return state, start, 0
    state = program.initial_state()
    if cfg.init_from:
        params = start_from(cfg.init_from, program.objective, program.devices.gather(state.params))
        state = state._replace(params=program.devices.place(params))
    return state, 0, 0


def start_from(init_from: str, objective: Objective, fresh: Params) -> Params:
    """Returns the parameters of a pretrained directory; its generator is in a folder of that name, else it is as in `fresh`."""
    started: list[Params] = []
    for part in objective.parts(fresh):
        folder = warm_start.generator_beside(init_from) if part.folder else init_from
        if folder is None:
            print(f"{init_from} has no folder generator: the generator is freshly initialised", file=sys.stderr)
        started.append(part.params if folder is None else warm_start.start_from(folder, part.config, part.head, part.params))
    return objective.joined(fresh, started)


def mean_of_last(program: Program, saved: checkpoint.Checkpointer, number: int) -> PyTree:
    """Returns the mean of the parameters of the last `number` checkpoints. Raises InputError if one cannot be read."""
    chosen = saved.lasting_steps[-number:]
    if len(chosen) < number:
        raise InputError(
            f"optim.average: there are {len(chosen)} checkpoints in {saved.directory}, not the last {number}; "
            f"bert_jax convert {program.cfg.workdir} OUT exports the newest one"
        )
    total = saved.restore(chosen[0], program.abstract_state)[0].params
    for step in chosen[1:]:
        total = jax.tree.map(jnp.add, total, saved.restore(step, program.abstract_state)[0].params)
    return jax.tree.map(lambda x: x / number, total)


def export(cfg: TrainConfig, part: Part, tokenizer: Tokenizer) -> pretrained.Model:
    """Writes a model of a run to its folder, and returns it; a pooler that was not trained is random, which a warning says."""
    module, flat = Bert(part.config, part.head), flatten(part.params)
    missing = [path for path in flatten(parameter_shapes(module)) if path not in flat]
    fresh = initial_values(module, missing, cfg.seed) if missing else {}
    untrained = pretrained.Untrained(cfg.workdir, fresh, ()) if missing else None
    model = pretrained.Model(part.config, unflatten({**flat, **fresh}), tokenizer, part.head, untrained=untrained)
    pretrained.save(model, Path(cfg.workdir) / "export" / part.folder)
    return model


def finish(cfg: TrainConfig, parts: Sequence[Part], reached: dict[str, float], prog: str) -> None:
    """Exports the models, and prints what they learnt and what to do next."""
    for line in heldout.report(reached):
        print(line)
    directory = Path(cfg.workdir) / "export"
    tokenizer = Tokenizer.load(tokenizer_folder(cfg))  # it reads special tokens, whatever the run did
    *_, model = (export(cfg, part, tokenizer) for part in parts)  # the last one predicts masked tokens
    for sentence, fillings in zip(cfg.fill_masks, inference.FillMask(model)(cfg.fill_masks), strict=True):
        print(f"{sentence}\n    " + "  ".join(f"{f.token} {f.score:.0%}" for f in fillings))
    task = f"{prog.replace('train', 'finetune')} {shlex.quote(str(directory))} --task classification --data FILE.csv"
    masked = json.dumps([f"I {tokenizer.mask_token} it."])
    fills = str(directory / parts[-1].folder)
    code = f"import bert_jax; print(bert_jax.FillMask(bert_jax.load({json.dumps(fills)}))({masked}))"
    next_step = (
        f"Go on with your own text:\n    {prog} modern_mini --data.source 'text/*.txt' --workdir runs/mine"
        if cfg.data.source == ("stdlib:",)
        else f"Go on with a task:\n    {task} --text-column NAME --label-column NAME"
    )
    print(
        f"\n{_loads(parts, directory)}, and so does\n"
        f"    python -c {shlex.quote(code)}\n"
        f"Its curves are in {cfg.workdir}/metrics.jsonl (and TensorBoard: {cfg.workdir}/tensorboard). {next_step}"
    )


def _loads(parts: Sequence[Part], directory: Path) -> str:
    """Returns the sentence of the folders of an export and of the classes by which transformers loads them."""
    if len(parts) == 1:
        return f"The model is in {directory}: transformers loads it (AutoModelForMaskedLM.from_pretrained)"
    kind = "AutoModelForPreTraining" if parts[0].head == "replaced_token" else "AutoModel"
    return (
        f"The model is in {directory}: transformers loads it ({kind}.from_pretrained). Its generator is in "
        f"{directory / parts[-1].folder}: transformers loads it (AutoModelForMaskedLM.from_pretrained)"
    )
