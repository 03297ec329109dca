"""Ahead-of-time compilation of a run's training step for TPUs that are not here: does it fit, what crosses the devices, how fast
could it be at best.

The compiler is the one that a TPU host has (libtpu); so is the program, `program.build`'s.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from jax.experimental import topologies

from bert_jax.config import InputError, TrainConfig
from bert_jax.model import attention
from bert_jax.program import Program, build
from bert_jax.training import flops, memory, parallel

GIB = 2**30


# --- devices ---


@dataclass(frozen=True)
class Chip:
    """A TPU generation: what of its data sheet bounds a step. Peak FLOP/s are in `flops.PEAK_FLOPS`."""

    hbm: float  # bytes that a program may use, as the compiler says when one needs more
    hbm_bandwidth: float  # bytes/s
    link: float  # bytes/s that one link to a neighbour sends; it receives as many at the same time
    dimensions: int  # the torus or mesh of chips has so many
    ring: int  # a dimension of so many chips, or of a multiple, closes to a ring
    options: tuple[tuple[str, Any], ...] = ()  # for `get_topology_desc`

    def links(self, shape: tuple[int, ...]) -> int:
        """Links of the worst placed chip of a slice, a corner: one in each dimension, and two where that is a ring.

        On v4 and v5p only slices of whole cubes have rings.
        """
        closed = [n % self.ring == 0 for n in shape]
        if self.dimensions == 3:
            closed = [all(closed)] * len(shape)
        return sum(1 + ring for n, ring in zip(shape, closed, strict=True) if n > 1)


# HBM: found by compiling what does not fit (libtpu 0.0.42). Bandwidths: https://cloud.google.com/tpu/docs/v4, v5e, v5p, v6e;
# a link is that page's interconnect bandwidth of a chip, in one direction, over its four or six links. v4: Jouppi et al., 2023.
CHIPS = {
    "v4": Chip(30.75 * GIB, 1.2e12, 50e9, 3, 4, (("chip_config_name", "megacore"),)),  # both cores as one device, as on v5p
    "v5e": Chip(15.75 * GIB, 8.19e11, 50e9, 2, 16),
    "v5p": Chip(95.74 * GIB, 2.765e12, 100e9, 3, 4),
    "v6e": Chip(31.25 * GIB, 1.638e12, 100e9, 2, 16),
}
KNOWN = "v5e:2x4, v6e:4x4, v4:2x2x1, v5p:2x2x2 (chips, or v5e:1x1 for one), cpu:8 (simulated devices)"


@dataclass(frozen=True)
class Topology:
    """Devices to compile for, as `--topology` names them: `v5e:2x4`, `v4:2x2x1`, `cpu:8`. Raises InputError for other names."""

    name: str

    def __post_init__(self) -> None:
        kind, _, size = self.name.partition(":")
        pattern = r"[1-9]\d*" if kind == "cpu" else r"[1-9]\d*(x[1-9]\d*)*"
        if (kind != "cpu" and kind not in CHIPS) or not re.fullmatch(pattern, size):
            raise InputError(f"unknown topology {self.name!r}: known are {KNOWN}, with {', '.join(CHIPS)}")
        if self.chip is not None and len(self.shape) != self.chip.dimensions:
            raise InputError(f"topology {self.name!r}: {kind} chips lie in {self.chip.dimensions} dimensions; known are {KNOWN}")

    @property
    def chip(self) -> Chip | None:
        """None for simulated devices."""
        return CHIPS.get(self.name.partition(":")[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips in each dimension."""
        return tuple(map(int, self.name.partition(":")[2].split("x")))

    def devices(self) -> list[Any]:
        """Raises InputError where the compiler is missing, or knows no such slice."""
        if self.chip is None:
            found = jax.devices("cpu")
            if self.shape[0] > len(found):
                raise InputError(f"topology {self.name!r}: jax was started with {len(found)} simulated devices")
            return found[: self.shape[0]]
        if importlib.util.find_spec("libtpu") is None:
            raise InputError(f"libtpu, the compiler for TPUs, is not installed: pip install '{libtpu_requirement()}'")
        x, y, *_ = self.shape
        host = (2, 4) if self.chip.dimensions == 2 and self.shape == (2, 4) else (min(2, x), min(2, y))  # chips of one host
        options = dict(self.chip.options, chips_per_host_bounds=(*host, 1))
        try:
            return topologies.get_topology_desc(self.name, "tpu", **options).devices
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"topology {self.name!r} does not exist ({reason}); known are {KNOWN}") from None


def libtpu_requirement() -> str:
    """Returns the requirement of the installed jax on libtpu, as pip takes it."""
    wanted = (line.partition(";") for line in importlib.metadata.requires("jax") or ())
    return next((name.strip() for name, _, marker in wanted if name.startswith("libtpu") and "tpu" in marker), "libtpu")


# --- what crosses the devices ---


@dataclass(frozen=True)
class Collective:
    """A collective operation of a compiled program.

    Attributes:
      kind: all-reduce, all-gather, reduce-scatter, all-to-all, collective-permute or collective-broadcast.
      shapes: of the arrays that it gives on a device, as HLO writes them: `bf16[768,3072]`; of a TPU's reduce-scatter the
        arrays before they are cut.
      size: bytes of the arrays that are reduced or put together, each time.
      group: devices that take part in it together; None: all.
      times: how often a run of the program does it, by the trip counts of the loops around it.
      operation: what it comes from in the model's code (HLO's op_name).
    """

    kind: str
    shapes: tuple[str, ...]
    size: int
    group: int | None
    times: int
    operation: str

    def sent(self, devices: int) -> float:
        """Bytes that each of `devices` sends, each time: what a ring needs, the least there is (Patarasuk and Yuan, 2009)."""
        n = self.group or devices
        passes = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1, "collective-broadcast": 1}
        return passes.get(self.kind, (n - 1) / n) * self.size


_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")  # opens a computation
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ({_KINDS})(-start)?\(")
_LOOP = re.compile(r"\bcondition=%?([\w.-]+), body=%?([\w.-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")


def collectives(hlo_text: str) -> list[Collective]:
    """The collectives of a compiled program (`compiled.as_text()`), with how often each runs.

    A loop whose trip count is neither noted nor a constant that a counter from 0 is compared with counts once.
    """
    computations, entry = _computations(hlo_text)
    found: list[Collective] = []

    def visit(name: str, times: int, caller: str) -> None:
        for line in computations.get(name, ()):
            if match := _COLLECTIVE.match(line):
                # The TPU compiler writes a reduce-scatter as a fusion, of this name, of an all-reduce and slices.
                found.append(_collective(match, line, times, caller, "all-reduce-scatter" in name))
            elif loop := _LOOP.search(line):
                visit(loop[2], times * _trip_count(line, computations.get(loop[1], [])), "")
            elif "-done(" not in line and "-update(" not in line:  # what these wait for was counted where it starts
                names = [*_CALLED.findall(line), *(n.strip(" %") for list in _BRANCHES.findall(line) for n in list.split(","))]
                for called in names:
                    visit(called, times, line)

    visit(entry, 1, "")
    return found


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the entry."""
    lines: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            lines[name] = []
            entry = name if header[1] else entry
        elif name:
            lines[name].append(line)
    return lines, entry


def _trip_count(line: str, condition: list[str]) -> int:
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(known[1])
    text = "\n".join(condition)
    constants = dict(re.findall(r"%?([\w.-]+) = s32\[\]\S* constant\((\d+)\)", text))
    compared = re.search(r" compare\(.*?%?([\w.-]+)\), direction=LT", text)
    return int(constants.get(compared[1], 1)) if compared else 1


def _collective(match: re.Match[str], line: str, times: int, caller: str, scattered: bool) -> Collective:
    kind = "reduce-scatter" if scattered else match[2]
    shapes = [f"{name}[{dims}]" for name, dims in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", match[1])]
    if match[3] and kind != "all-reduce":  # the start of a pair gives (operands, results, counters)
        shapes = [shape for shape in shapes if shape != "u32[]"]
        shapes = shapes[len(shapes) // 2 :]
    group = _group(line)
    parts = (group or 1) if kind == "reduce-scatter" and not scattered else 1
    operation = re.search(r'op_name="([^"]*)"', line) or re.search(r'op_name="([^"]*)"', caller)
    return Collective(kind, tuple(shapes), parts * sum(map(_bytes, shapes)), group, times, operation[1] if operation else "")


def _group(line: str) -> int | None:
    """Devices of a group, in any form of HLO: {{0,1},{2,3}}, [2,4]<=[8], mesh['a'=4,'b'=2], device_ids=(...) {'a'}."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", line):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", mesh[2]))
    return None


def _bytes(shape: str) -> int:
    kind, dims = shape.rstrip("]").split("[")
    bits = re.search(r"\d+", kind)
    return (int(bits[0]) // 8 if bits else 1) * math.prod(int(n) for n in dims.split(",") if n)


# --- the plan ---


@dataclass(frozen=True)
class Plan:
    """The compiled training step of a run on some devices.

    Attributes:
      program: the run; its config has remat and scan_layers as chosen for these devices.
      compile_seconds: on this machine.
      sizes: bytes on each device, by kind; of what the step leaves in memory while it runs only where it fits.
      needed: bytes in all: used where it fits, else what the compiler asks for (None: it does not say).
      refusal: the compiler's words where it does not fit, else empty.
      crossing: what crosses the devices.
    """

    topology: Topology
    program: Program
    compile_seconds: float
    sizes: dict[str, int]
    needed: float | None
    refusal: str
    crossing: list[Collective]

    @property
    def devices(self) -> int:
        """The number of devices."""
        return self.program.devices.mesh.size

    @cached_property
    def flops(self) -> float:
        """Of a step on all devices, without recomputation (`flops.step_flops`)."""
        return flops.step_flops(self.program.cfg)

    @cached_property
    def roofline(self) -> Roofline | None:
        """None for simulated devices."""
        chip, peak = self.topology.chip, flops.peak_flops(self.program.devices.kind)
        if chip is None or peak is None:
            return None
        work = self.flops + flops.recomputed_flops(self.program.cfg)
        moved = 2 * (self.sizes["parameters"] + self.sizes["optimizer state"]) + 2 * self.sizes["parameters"]
        sent = sum(c.times * c.sent(self.devices) for c in self.crossing)
        links = chip.links(self.topology.shape)
        return Roofline(work / self.devices / peak, moved / chip.hbm_bandwidth, sent / (links * chip.link) if links else 0.0)

    @property
    def mfu(self) -> float | None:
        """The share of peak FLOP/s that the roofline allows the model's own FLOPs."""
        peak = flops.peak_flops(self.program.devices.kind)
        return self.flops / self.devices / peak / self.roofline.step if peak and self.roofline else None


@dataclass(frozen=True)
class Roofline:
    """The least seconds that a step's parts take.

    Attributes:
      compute: matrix products with what is recomputed, at peak FLOP/s.
      update: parameters and moments read and written once, gradients read twice (their norm is needed before any is applied).
      interconnect: the collectives, over the links of the worst placed chip.
    """

    compute: float
    update: float
    interconnect: float

    @property
    def step(self) -> float:
        """Gradients may cross while others are computed; the update waits for all."""
        return max(self.compute, self.interconnect) + self.update


def make(cfg: TrainConfig, topology: Topology) -> Plan:
    """Compiles the training step of a run for devices that may not be here.

    Raises InputError where the config does not fit them: pmap, a batch or a model that does not divide.
    """
    if cfg.parallel.strategy == "pmap":
        raise InputError(
            "parallel.strategy='pmap' runs on devices that are here only; --parallel.strategy mesh plans the same work"
        )
    if cfg.parallel.num_devices is not None:
        raise InputError(f"parallel.num_devices={cfg.parallel.num_devices}: here --topology says how many; leave it out")
    devices = parallel.Devices(parallel.make_mesh(topology.devices(), cfg.parallel.fsdp, cfg.parallel.tensor))
    chip = topology.chip
    program = build(cfg, devices, None if chip is None else int(chip.hbm))
    state, batch = program.abstract_state, program.abstract_batch
    sizes = {"parameters": _on_device(state.params), "optimizer state": _on_device(state.opt_state), "batch": _on_device(batch)}
    begun = time.perf_counter()
    try:
        with attention.for_platform(devices.platform):
            compiled = program.train_step.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = str(error).splitlines()[0]
        return Plan(topology, program, time.perf_counter() - begun, sizes, needed_bytes(refusal), refusal, [])
    seconds = time.perf_counter() - begun
    # The peak has the arguments in it, and is what the compiler holds against the memory; `temp_size_in_bytes` of TPUs has more
    # in it than there is in its own buffer assignment.
    analysis = compiled.memory_analysis()
    assert analysis is not None  # every compiler that plans here reports it
    sizes["activations and temporaries"] = analysis.peak_memory_in_bytes - analysis.argument_size_in_bytes
    sizes["program"] = analysis.generated_code_size_in_bytes
    return Plan(topology, program, seconds, sizes, sum(sizes.values()), "", collectives(compiled.as_text() or ""))


def _on_device(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def needed_bytes(refusal: str) -> float | None:
    """Returns the bytes in a refusal: `... (22.15G) exceeds available HBM (15.75G)`, `Used 19.64G of 15.75G hbm`."""
    found = re.search(r"([\d.]+)([KMGT])\)? (?:exceeds|of) ", refusal)
    return float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])) if found else None


def remedies(plan: Plan) -> list[tuple[str, float]]:
    """Options that make a run fit, as `memory` estimates: (options, bytes). The first of each kind that does; with all
    recomputed where none does by itself."""
    cfg, mesh, hbm = plan.program.cfg, plan.program.devices.mesh, plan.topology.chip.hbm if plan.topology.chip else math.inf

    def fitting(base: TrainConfig) -> Iterator[tuple[str, float]]:
        for options in _changes(base, mesh.size).values():
            for option, changed in options:
                fsdp, tensor = changed.parallel.fsdp, changed.parallel.tensor
                share = memory.DeviceShare.of_run(changed, plan.program.devices.platform, mesh.size // tensor, fsdp, tensor)
                need = memory.total_bytes(changed.model, changed.compute, share)
                if need <= memory.USABLE * hbm:
                    yield option, need
                    break

    full = cfg.replace(compute=cfg.compute.replace(remat="full"))
    return [*fitting(cfg)] or [(f"--compute.remat full {option}", need) for option, need in fitting(full)]


def _changes(cfg: TrainConfig, devices: int) -> dict[str, list[tuple[str, TrainConfig]]]:
    """Kinds of changes that need less memory, each from little to much of it, with the options that ask for them."""
    rows = cfg.batch_size * cfg.parallel.tensor // devices  # a device
    parts = [n for n in range(cfg.gradient_accumulation_steps + 1, rows + 1) if rows % n == 0]
    weaker = ("none", "dots", "full").index(cfg.compute.remat)
    cuts = [n for n in range(2, devices + 1) if devices // cfg.parallel.tensor % n == 0 and cfg.model.hidden_size % n == 0]
    fewer = [cfg.batch_size * n // rows for n in range(rows - 1, 0, -1)]
    return {
        "remat": [
            (f"--compute.remat {how}", cfg.replace(compute=cfg.compute.replace(remat=how))) for how in ("dots", "full")[weaker:]
        ],
        "accumulation": [(f"--gradient-accumulation-steps {n}", cfg.replace(gradient_accumulation_steps=n)) for n in parts],
        "batch": [(f"--batch-size {n}", cfg.replace(batch_size=n)) for n in fewer if n % cfg.gradient_accumulation_steps == 0],
        "fsdp": [
            (f"--parallel.fsdp {n}", cfg.replace(parallel=cfg.parallel.replace(fsdp=n))) for n in cuts if n > cfg.parallel.fsdp
        ],
    }
