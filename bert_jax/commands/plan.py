"""The command `plan`: the memory and the shortest possible step of a run on TPUs and GPUs that this machine does not have."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING

import tyro

from bert_jax.commands.train import read_config
from bert_jax.config import Span, TrainConfig

if TYPE_CHECKING:  # jax is to be imported when the environment is ready
    from bert_jax.plan import Plan

_GIB, _MIB = 2**30, 2**20


@dataclass(frozen=True)
class Options:
    """Compile the training step of CONFIG for TPUs or GPUs that this machine lacks; report if it fits and its best speed.

    Of a run with phases each is compiled, and the one that needs the most memory is reported in full.

    The fields of a config, [--field value ...], are those of train: `bert_jax train CONFIG --help` lists them.
    """

    topology: tyro.conf.UseAppendAction[tuple[str, ...]]
    """TPUs and their layout (v5e:2x4, v6e:4x4, v4:2x2x1, v5p:2x2x2), GPUs of a host (h100:8, h200:8, a100:8), or simulated
    devices (cpu:8). For a table of several, repeat the option or separate them by commas."""


def plan(argv: list[str], prog: str = "bert_jax plan") -> None:
    """Tell whether a run fits TPUs or GPUs that this machine lacks: CONFIG --topology v5e:2x4 [--field value ...]."""
    options, rest = tyro.cli(Options, args=argv, prog=f"{prog} CONFIG", return_unknown_args=True)
    names = [name.strip() for given in options.topology for name in given.split(",")]
    _prepare_environment(names)
    from bert_jax import plan

    cfg = read_config(rest, prog)
    for name in names:
        plan.Topology(name)  # an error in a name comes before the others have taken minutes
    made = [_in_a_process(cfg, name) for name in names]
    print(made[0][1] if len(made) == 1 else _table([row for row, _ in made]))


def _in_a_process(cfg: TrainConfig, name: str) -> tuple[list[str], str]:
    """Returns `_planned`, computed in a process of its own: a compiler that crashes ends its process."""
    print(f"compiling for {name} ...", file=sys.stderr)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_planned, cfg, name).result()
        except BrokenProcessPool:
            words = "not known: the compiler crashed; try another --batch-size"
            return [name, words, *["-"] * 6], f"{name}: {words}"


def _planned(cfg: TrainConfig, name: str) -> tuple[list[str], str]:
    """Returns a row of the table, and the report."""
    from bert_jax import plan

    phases = plan.make_phases(cfg, plan.Topology(name))
    made = plan.worst(phases)
    return _row(made), "\n".join([*_phases(phases), _report(made, plan.remedies(made))])


def _phases(phases: Sequence[tuple[Span, Plan]]) -> list[str]:
    """Returns a line for each phase, and one that says which of them the report is about; none for a run without phases."""
    from bert_jax import plan

    lines = []
    for span, made in phases:
        need = "does not fit" if not made.fits else f"{_size(made.needed or 0)} per device"
        best = f", at best {1e3 * made.roofline.step:.1f} ms per step" if made.fits and made.roofline else ""
        lines.append(f"{span.name}: {span.cfg.batch_size} rows of {span.cfg.data.max_seq_length} tokens, {need}{best}")
    number = [made for _, made in phases].index(plan.worst(phases))
    fields = "; batch_size and gradient_accumulation_steps of a phase are set in its Phase"
    return [*lines, f"phases[{number}] needs the most memory{fields}:"] if phases[0][0].name else []


def _prepare_environment(topologies: Sequence[str]) -> None:
    """Sets the variables that jax and libtpu read on import: jax uses this machine's CPU alone, and compiles quickly."""
    cpus = [int(name[4:]) for name in topologies if re.fullmatch(r"cpu:\d+", name)]
    os.environ.update(
        JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(max(cpus, default=1)), JAX_OPTIMIZATION_LEVEL="O0",
        TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_LOG_DIR="disabled",
        # A host, because libtpu warns if it finds itself on none; it compiles for the topology all the same.
        TPU_ACCELERATOR_TYPE="v5litepod-8", TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0",
    )  # fmt: skip


def _report(made: Plan, remedies: list[tuple[str, float]]) -> str:
    """Returns all facts about one plan, a line or more for each."""
    devices, cfg, roofline = made.program.devices, made.program.cfg, made.roofline
    rows = [
        (made.topology.name, f"{devices.describe()}, {cfg.batch_size // devices.rows_cut} rows each; {made.program.describe()}"),
        ("fits" if made.topology.chip else "memory", _fits(made)),
        *((f"  {name}", _size(size)) for name, size in made.sizes.items()),
    ]
    if not made.fits:
        rows += [(f"  would fit{'' if remedies else ': nothing'}", f"{option}: about {_size(need)}") for option, need in remedies]
    if not made.refusal:
        rows += [("collectives", line) for line in _crossing(made)]
    rows.append(("FLOPs", f"{made.flops:.3g} per step in matrix products, without recomputation"))
    if cfg.optim.name == "muon":
        rows.append(("Muon", _muon(cfg)))
    if roofline and made.fits:
        seconds = {"products": roofline.compute, "collectives": roofline.interconnect, "update": roofline.update}
        parts = " + ".join(f"{1e3 * value:.1f} {name}" for name, value in seconds.items())
        tokens = cfg.batch_size * cfg.data.max_seq_length / roofline.step
        rows.append(("at best", f"{1e3 * roofline.step:.1f} ms per step ({parts}; collectives overlap with products)"))
        rows.append(("", f"{roofline.mfu:.0%} MFU, {tokens:,.0f} tokens/s in all"))
    rows.append(("compiled in", f"{made.compile_seconds:.0f} s"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def _muon(cfg: TrainConfig) -> str:
    """Returns what Muon adds to the products of a step, and what it saves of AdamW's moments."""
    from bert_jax.training import flops, memory

    work = flops.muon_flops(cfg)
    share = memory.DeviceShare.of_run(cfg, "cpu", 1, cfg.parallel.fsdp, cfg.parallel.tensor)
    muon, adam = (memory.state_bytes(cfg.model, dataclasses.replace(share, muon=muon)) for muon in (True, False))
    more = work / flops.step_flops(cfg)
    return f"{work:.3g} more FLOPs ({more:.1%}) orthogonalise updates; state {_size(muon)} per device, by AdamW {_size(adam)}"


def _fits(made: Plan) -> str:
    chip = made.topology.chip
    used = f"{_size(made.needed) if made.needed else 'more'} {f'of {_size(chip.hbm)} ' if chip else ''}per device"
    verdict = ("yes, " if made.fits else "no, ") if chip else ""
    return f"{verdict}{used}; the compiler: {made.refusal}" if made.refusal else verdict + used


def _crossing(made: Plan) -> list[str]:
    """Returns a line for each kind of collective; those of a scan over layers are counted each time."""
    times, sizes = Counter[str](), Counter[str]()
    for each in made.crossing:
        times[each.kind] += each.times
        sizes[each.kind] += each.times * each.size
    return [f"{n} {kind} of {sizes[kind] / _MIB:,.1f} MiB in all" for kind, n in times.items()] or ["nothing"]


def _size(size: float) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB / 10 else f"{size / _MIB:.1f} MiB"


_COLUMNS = ["topology", "fits", "recomputed", "GiB per device", "collectives per step", "compiled in", "at best", "MFU at best"]


def _row(made: Plan) -> list[str]:
    """Returns a plan's cells for `_COLUMNS`."""
    chip, roofline = made.topology.chip, made.roofline if made.fits else None
    crossing = sum(each.times * each.size for each in made.crossing) / _MIB
    return [
        made.topology.name, ("yes" if made.fits else "no") if chip else "-", made.program.cfg.compute.remat,
        (f"{made.needed / _GIB:.2f}" if made.needed else "?") + (f" of {chip.hbm / _GIB:.2f}" if chip else ""),
        "-" if made.refusal else f"{sum(each.times for each in made.crossing)}, {crossing:,.0f} MiB",
        f"{made.compile_seconds:.0f} s", f"{1e3 * roofline.step:.1f} ms" if roofline else "-",
        f"{roofline.mfu:.0%}" if roofline else "-",
    ]  # fmt: skip


def _table(rows: list[list[str]]) -> str:
    """Returns the rows as aligned Markdown."""
    rows = [_COLUMNS, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
