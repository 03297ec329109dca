"""Compiles the training step of a run for TPUs and GPUs that are not here: its memory, its collectives, its least time.

The compiler is that of a host with these devices (libtpu, or the CUDA plugin of jax), and the program is `program.build`'s.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
from jax.experimental import topologies
from jaxtyping import PyTree

from bert_jax.config import InputError, Phase, Span, TrainConfig, spans
from bert_jax.model import attention
from bert_jax.program import Program, build
from bert_jax.training import flops, memory, parallel

GIB = 2**30


# --- devices ---


@dataclass(frozen=True)
class Chip:
    """The facts about a TPU or GPU that bound a step. `flops.PEAK_FLOPS` has its peak FLOP/s.

    Attributes:
      hbm: Bytes that a program may use.
      hbm_bandwidth: Bytes/s.
      link: Bytes/s that one link sends; it receives as many at the same time.
      dimensions: Dimensions of the torus or mesh of TPUs; 1 for GPUs, each of which has one link to a switch.
      ring: A dimension of this number of chips, or of a multiple, closes to a ring; 0: none does.
      gpu: The GPU as XLA describes it (see `_TARGET`); None for TPUs.
    """

    hbm: float
    hbm_bandwidth: float
    link: float
    dimensions: int = 1
    ring: int = 0
    gpu: dict[str, str | float] | None = None

    def links(self, shape: tuple[int, ...]) -> int:
        """Returns the links of a corner of a slice, its worst placed chip: one in each dimension, and two if that is a ring.

        On v4 and v5p only slices of whole cubes have rings.
        """
        closed = [bool(self.ring) and n % self.ring == 0 for n in shape]
        if self.dimensions == 3:
            closed = [all(closed)] * len(shape)
        return sum(1 + ring for n, ring in zip(shape, closed, strict=True) if n > 1)


# XLA's GpuTargetConfigProto: the limits of CUDA devices of compute capability 8.0 and 9.0 (CUDA C++ Programming Guide, table
# "Technical Specifications per Compute Capability"), and what differs from device to device.
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 shared_memory_per_block: 49152
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin} core_count: {cores} fpus_per_core: {fpus}
  memory_bandwidth: {bandwidth} l2_cache_size: {l2} clock_rate_ghz: {clock} device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} {features} }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{name}"
"""
_HOPPER: dict[str, str | float] = dict(shared=233472, optin=232448, cores=132, fpus=128, l2=52428800, clock=1.98, major=9,
               features="feature_extension: ACCELERATED_FEATURES")  # fmt: skip
_AMPERE: dict[str, str | float] = dict(
    shared=167936, optin=166912, cores=108, fpus=64, l2=41943040, clock=1.41, major=8, features=""
)
_GPUS_OF_A_HOST = 8


def _gpu(name: str, memory_bytes: int, bandwidth: int, link: float, generation: dict[str, str | float]) -> Chip:
    """Returns a GPU of which jax takes 75 % of the memory, as it does by default."""
    described = {"name": name, "memory": memory_bytes, "bandwidth": bandwidth, **generation}
    return Chip(0.75 * memory_bytes, bandwidth, link, gpu=described)


# HBM of TPUs: found by compiling what does not fit (libtpu 0.0.42). Bandwidths: https://cloud.google.com/tpu/docs/v4, v5e, v5p,
# v6e; a link is that page's interconnect bandwidth of a chip, in one direction, over its four or six links. v4: Jouppi et al.,
# 2023. GPUs: NVIDIA's data sheets; a link is NVLink in one direction.
CHIPS = {
    "v4": Chip(30.75 * GIB, 1.2e12, 50e9, 3, 4),
    "v5e": Chip(15.75 * GIB, 8.19e11, 50e9, 2, 16),
    "v5p": Chip(95.74 * GIB, 2.765e12, 100e9, 3, 4),
    "v6e": Chip(31.25 * GIB, 1.638e12, 100e9, 2, 16),
    "a100": _gpu("NVIDIA A100-SXM4-80GB", 85_100_068_864, 2_039_040_000_000, 300e9, _AMPERE),
    "h100": _gpu("NVIDIA H100 80GB HBM3", 84_942_979_072, 3_352_320_000_000, 450e9, _HOPPER),
    "h200": _gpu("NVIDIA H200", 151_397_597_184, 4_800_000_000_000, 450e9, _HOPPER),
}
KNOWN = "v5e:2x4, v6e:4x4, v4:2x2x1, v5p:2x2x2 (TPUs), a100:8, h100:8, h200:8 (GPUs of a host), cpu:8 (simulated devices)"


@dataclass(frozen=True)
class Topology:
    """Devices to compile for, by the name that `--topology` takes: `v5e:2x4`, `v4:2x2x1`, `h100:8`, `cpu:8`.

    Raises:
      InputError: The name is none of these.
    """

    name: str

    def __post_init__(self) -> None:
        kind, _, size = self.name.partition(":")
        flat = kind == "cpu" or (kind in CHIPS and CHIPS[kind].gpu)
        pattern = r"[1-9]\d*" if flat else r"[1-9]\d*(x[1-9]\d*)*"
        if (kind != "cpu" and kind not in CHIPS) or not re.fullmatch(pattern, size):
            raise InputError(f"unknown topology {self.name!r}: known are {KNOWN}")
        if self.chip and len(self.shape) != self.chip.dimensions:
            raise InputError(f"topology {self.name!r}: {kind} layouts have {self.chip.dimensions} dimensions; known are {KNOWN}")
        if self.chip and self.chip.gpu and self.shape[0] > _GPUS_OF_A_HOST:
            raise InputError(f"topology {self.name!r}: a host has at most {_GPUS_OF_A_HOST} GPUs, and only one host is planned")

    @property
    def chip(self) -> Chip | None:
        """The chip, or None for simulated devices."""
        return CHIPS.get(self.name.partition(":")[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips in each dimension."""
        return tuple(map(int, self.name.partition(":")[2].split("x")))

    def devices(self) -> Sequence[jax.Device]:
        """Returns the devices, for compilation only.

        Raises:
          InputError: The compiler is not installed, or it knows no such slice.
        """
        if self.chip is None:
            found = jax.devices("cpu")
            if self.shape[0] > len(found):
                raise InputError(f"topology {self.name!r}: jax was started with {len(found)} simulated devices")
            return found[: self.shape[0]]
        if self.chip.gpu:
            names = ["jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"] if importlib.util.find_spec("jax_plugins") else []
            if not any(map(importlib.util.find_spec, names)):
                raise InputError(f"the compiler for NVIDIA GPUs is not installed: pip install 'jax[cuda12]=={jax.__version__}'")
            target, shape = _TARGET.format(**self.chip.gpu), f"1x1x{self.shape[0]}"
            return topologies.get_topology_desc(self.name, "cuda", target_config=target, topology=shape).devices
        if importlib.util.find_spec("libtpu") is None:
            raise InputError(f"libtpu, the compiler for TPUs, is not installed: pip install '{libtpu_requirement()}'")
        x, y, *_ = self.shape
        host = (2, 4) if self.chip.dimensions == 2 and self.shape == (2, 4) else (min(2, x), min(2, y))  # chips of one host
        both_cores = {"chip_config_name": "megacore"} if self.name.startswith("v4") else {}  # as one device, as on v5p
        try:
            return topologies.get_topology_desc(self.name, "tpu", chips_per_host_bounds=(*host, 1), **both_cores).devices
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"topology {self.name!r} does not exist ({reason}); known are {KNOWN}") from None


def libtpu_requirement() -> str:
    """Returns the requirement of the installed jax on libtpu, as pip takes it."""
    wanted = (line.partition(";") for line in importlib.metadata.requires("jax") or ())
    return next((name.strip() for name, _, marker in wanted if name.startswith("libtpu") and "tpu" in marker), "libtpu")


# --- collectives ---


@dataclass(frozen=True)
class Collective:
    """A collective operation of a compiled program.

    Attributes:
      kind: all-reduce, all-gather, reduce-scatter, all-to-all, collective-permute or collective-broadcast.
      shapes: Shapes of its results on a device, as HLO writes them: `bf16[768,3072]`; of a TPU's reduce-scatter, of the arrays
        before they are divided.
      size: Bytes of the arrays that are reduced or joined, each time.
      group: Number of devices in a group; None: all.
      times: Number of times that a run of the program does it, by the trip counts of the loops around it.
    """

    kind: str
    shapes: tuple[str, ...]
    size: int
    group: int | None
    times: int

    def sent(self, devices: int) -> float:
        """Returns the bytes that each of `devices` sends each time, by a ring: the least (Patarasuk and Yuan, 2009)."""
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
    """Returns the collectives of a compiled program (`compiled.as_text()`).

    A loop counts once if its trip count is neither noted nor a constant that a counter from 0 is compared with.
    """
    computations, entry = _computations(hlo_text)
    found: list[Collective] = []

    def visit(name: str, times: int) -> None:
        for line in computations.get(name, ()):
            if match := _COLLECTIVE.match(line):
                # The TPU compiler writes a reduce-scatter as a fusion, of this name, of an all-reduce and slices.
                found.append(_collective(match, line, times, "all-reduce-scatter" in name))
            elif loop := _LOOP.search(line):
                visit(loop[2], times * _trip_count(line, computations.get(loop[1], [])))
            elif "-done(" not in line and "-update(" not in line:  # these wait for what was counted where it starts
                names = [*_CALLED.findall(line), *(n.strip(" %") for list in _BRANCHES.findall(line) for n in list.split(","))]
                for called in names:
                    visit(called, times)

    visit(entry, 1)
    return found


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation, and the name of the entry."""
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


def _collective(match: re.Match[str], line: str, times: int, scattered: bool) -> Collective:
    kind = "reduce-scatter" if scattered else match[2]
    shapes = [f"{name}[{dims}]" for name, dims in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", match[1])]
    if match[3] and kind != "all-reduce":  # the start of a pair gives (operands, results, counters)
        shapes = [shape for shape in shapes if shape != "u32[]"]
        shapes = shapes[len(shapes) // 2 :]
    group = _group(line)
    parts = (group or 1) if kind == "reduce-scatter" and not scattered else 1
    return Collective(kind, tuple(shapes), parts * sum(map(_bytes, shapes)), group, times)


def _group(line: str) -> int | None:
    """Returns the devices of a group. HLO writes {{0,1},{2,3}}, [2,4]<=[8] or mesh['a'=4,'b'=2], device_ids=(...) {'a'}."""
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
      topology: The devices.
      program: The run; its config has remat and scan_layers as chosen for these devices.
      compile_seconds: On this machine.
      sizes: Bytes on each device, by kind. Activations are among them unless the compiler refused the step.
      needed: Bytes in all: those of `sizes`, or those that a refusal names (None: it names none).
      refusal: The compiler's words if it refused the step, else empty.
      crossing: The collectives.
    """

    topology: Topology
    program: Program
    compile_seconds: float
    sizes: dict[str, int]
    needed: float | None
    refusal: str
    crossing: list[Collective]

    @property
    def fits(self) -> bool:
        """False if the compiler refused the step, or it needs more memory than there is (the compiler for GPUs refuses none)."""
        chip = self.topology.chip
        return not self.refusal and (chip is None or self.needed is None or self.needed <= chip.hbm)

    @property
    def flops(self) -> float:
        """The FLOPs of a step on all devices, without recomputation (`flops.step_flops`)."""
        return flops.step_flops(self.program.cfg)

    @cached_property
    def roofline(self) -> Roofline | None:
        """The least time of a step; None for simulated devices."""
        chip, devices, cfg = self.topology.chip, self.program.devices, self.program.cfg
        peak, links = flops.peak_flops(devices.kind), chip.links(self.topology.shape) if chip else 0
        if chip is None or peak is None:
            return None
        compute = (self.flops + flops.recomputed_flops(cfg)) / devices.mesh.size / peak
        compute += flops.muon_flops(cfg, devices.rows_cut) / peak
        moved = 2 * (self.sizes["parameters"] + self.sizes["optimizer state"]) + 2 * self.sizes["parameters"]
        sent = sum(c.times * c.sent(devices.mesh.size) for c in self.crossing)
        interconnect = sent / (links * chip.link) if links else 0.0
        step = max(compute, interconnect) + moved / chip.hbm_bandwidth
        return Roofline(compute, moved / chip.hbm_bandwidth, interconnect, step, self.flops / devices.mesh.size / peak / step)


class Roofline(NamedTuple):
    """The least seconds that a step and its parts take.

    Attributes:
      compute: Matrix products, recomputed ones and those of Muon too, at peak FLOP/s.
      update: Parameters and moments read and written once, gradients read twice (their norm comes before the first update).
      interconnect: Collectives, over the links of the worst placed chip.
      step: Gradients cross while others are computed, and the update waits for all.
      mfu: The share of peak FLOP/s that this allows the model's own FLOPs.
    """

    compute: float
    update: float
    interconnect: float
    step: float
    mfu: float


def make_phases(cfg: TrainConfig, topology: Topology) -> list[tuple[Span, Plan]]:
    """Returns the plan of each phase of a run (see `make`), compiled once for phases with equal shapes.

    Raises:
      InputError: As `make`; the message names the phase.
    """
    found: list[tuple[Span, Plan]] = []
    made: dict[tuple[int, ...], Plan] = {}
    for span in spans(cfg):
        length, masking = span.cfg.data.max_seq_length, span.cfg.masking
        shape = (span.cfg.batch_size, span.cfg.gradient_accumulation_steps, length, masking.most_slots(length),
                 masking.causal_share > 0)  # fmt: skip
        if shape not in made:
            try:
                made[shape] = make(span.cfg, topology, cfg.phases)
            except InputError as error:
                raise span.named(error) from None
        found.append((span, made[shape]))
    return found


def worst(phases: Sequence[tuple[Span, Plan]]) -> Plan:
    """Returns the plan that needs the most memory; one that does not fit comes before all that do."""
    return max((made for _, made in phases), key=lambda made: (not made.fits, made.needed or math.inf))


def make(cfg: TrainConfig, topology: Topology, phases: tuple[Phase, ...] = ()) -> Plan:
    """Compiles the training step of a run, or of one of its `phases`, for devices that may not be here.

    Raises:
      InputError: The config does not fit the devices: pmap, or a batch or model that does not divide.
    """
    if cfg.parallel.strategy == "pmap":
        raise InputError("parallel.strategy='pmap' needs real devices; --parallel.strategy mesh plans the same work")
    if cfg.parallel.num_devices is not None:
        raise InputError(f"parallel.num_devices={cfg.parallel.num_devices}: here --topology says how many; leave it out")
    if cfg.masking.causal_share > 0:  # the steps that predict next tokens need more memory and time than the others
        cfg = cfg.replace(masking=cfg.masking.replace(causal_share=1.0))
    devices = parallel.Devices(parallel.make_mesh(topology.devices(), cfg.parallel.fsdp, cfg.parallel.tensor))
    chip = topology.chip
    program = build(cfg, devices, None if chip is None else int(chip.hbm), phases)
    state, batch = program.abstract_state, program.abstract_batch
    sizes = {"parameters": _on_device(state.params), "optimizer state": _on_device(state.opt_state), "batch": _on_device(batch)}
    begun = time.perf_counter()
    try:
        with attention.for_platform(devices.platform):
            compiled = program.train_step.lower(state, batch).compile()
    except RuntimeError as error:  # jax.errors.JaxRuntimeError is one
        if "cuDNN" in str(error):
            fix = "pip install nvidia-cudnn-cu12, or plan with --compute.attention xla"
            raise InputError(f"cuDNN, whose attention this run has on a GPU, is not installed: {fix}") from None
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = str(error).splitlines()[0]
        return Plan(topology, program, time.perf_counter() - begun, sizes, needed_bytes(refusal), refusal, [])
    seconds = time.perf_counter() - begun
    # The peak includes the arguments, and the compiler compares it with the memory. `temp_size_in_bytes` of TPUs exceeds the
    # compiler's own buffer assignment.
    analysis = compiled.memory_analysis()
    assert analysis is not None  # every compiler that plans here reports it
    sizes["activations and temporaries"] = analysis.peak_memory_in_bytes - analysis.argument_size_in_bytes
    sizes["program"] = analysis.generated_code_size_in_bytes
    return Plan(topology, program, seconds, sizes, sum(sizes.values()), "", collectives(compiled.as_text() or ""))


def _on_device(tree: PyTree) -> int:
    """Returns the bytes of a tree of abstract arrays on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def needed_bytes(refusal: str) -> float | None:
    """Returns the bytes in a refusal: `... (22.15G) exceeds available HBM (15.75G)`, `Used 19.64G of 15.75G hbm`."""
    found = re.search(r"([\d.]+)([KMGT])\)? (?:exceeds|of) ", refusal)
    return float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])) if found else None


def remedies(plan: Plan) -> list[tuple[str, float]]:
    """Returns options that make a run fit, and the bytes that `memory` estimates for each.

    These are the first of each kind that suffices, combined with full recomputation if none suffices alone.
    """
    cfg, devices, hbm = plan.program.cfg, plan.program.devices, plan.topology.chip.hbm if plan.topology.chip else math.inf

    def fitting(base: TrainConfig) -> Iterator[tuple[str, float]]:
        for changes in _changes(base, devices.mesh.size):
            for option, changed in changes:
                fsdp, tensor = changed.parallel.fsdp, changed.parallel.tensor
                share = memory.DeviceShare.of_run(changed, devices.platform, devices.mesh.size // tensor, fsdp, tensor)
                if (need := memory.total_bytes(changed.model, changed.compute, share)) <= memory.USABLE * hbm:
                    yield option, need
                    break

    full = cfg.replace(compute=cfg.compute.replace(remat="full"))
    return [*fitting(cfg)] or [(f"--compute.remat full {option}", need) for option, need in fitting(full)]


def _changes(cfg: TrainConfig, devices: int) -> Iterator[list[tuple[str, TrainConfig]]]:
    """Yields, for each kind of change that needs less memory, options and the changed runs, from the least change on."""
    rows = cfg.batch_size * cfg.parallel.tensor // devices  # a device
    weaker, accumulated, cut = ("none", "dots", "full").index(cfg.compute.remat), cfg.gradient_accumulation_steps, cfg.parallel
    remats = ("dots", "full")[weaker:]
    yield [(f"--compute.remat {how}", cfg.replace(compute=cfg.compute.replace(remat=how))) for how in remats]
    parts = [n for n in range(accumulated + 1, rows + 1) if rows % n == 0]
    yield [(f"--gradient-accumulation-steps {n}", cfg.replace(gradient_accumulation_steps=n)) for n in parts]
    fewer = [n for rest in range(rows - 1, 0, -1) if (n := cfg.batch_size * rest // rows) % accumulated == 0]
    yield [(f"--batch-size {n}", cfg.replace(batch_size=n)) for n in fewer]
    shards = [n for n in range(cut.fsdp + 1, devices + 1) if devices // cut.tensor % n == 0 and cfg.model.hidden_size % n == 0]
    yield [(f"--parallel.fsdp {n}", cfg.replace(parallel=cut.replace(fsdp=n))) for n in shards]
