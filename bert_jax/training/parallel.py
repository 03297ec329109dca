"""Devices: the mesh, what lies where, and the only door from NumPy batches to jax.Arrays.

A training or evaluation step is a pure function without collectives, but for one optional axis name. It runs in one of two ways:

    mesh   `jax.jit` over a mesh (data, fsdp, tensor): rows over data and fsdp; parameters and optimizer state by `RULES`
    pmap   `jax.pmap` with axis_name "data": each device has all parameters and some rows; sums are crossed by psum

What comes in and goes out is the same for both: a state of global arrays, and a batch that `Devices.put` made.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax.config import BertConfig, InputError, ParallelConfig
from bert_jax.model.layers import MESH_AXES, ROWS

# Path of a parameter, from the end -> the mesh axis of each dimension. The first match counts; what matches none lies whole on
# each device. Heads and the intermediate layer are cut over `tensor` (Shoeybi et al., 2019, section 3), the other side of each
# kernel over `fsdp` (Rajbhandari et al., 2020); a dimension that its axis does not divide is not cut.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attention/(query|key|value)/kernel|mlp/intermediate/kernel", ("fsdp", "tensor")),
    (r"attention/(query|key|value)/bias|mlp/intermediate/bias", ("tensor",)),
    (r"(attention|mlp)/output/kernel", ("tensor", "fsdp")),
    (r"(word_embeddings|masked_lm/decoder)/embedding", ("tensor", "fsdp")),
)


@dataclass(frozen=True)
class Devices:
    """Some devices and how a step runs on them. `make_devices` makes one."""

    mesh: Mesh
    pmap: bool = False

    @property
    def axis_name(self) -> str | None:
        """What a step crosses its sums over by itself."""
        return "data" if self.pmap else None

    @property
    def rows_cut(self) -> int:
        """Into how many parts the rows of a batch are cut."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def platform(self) -> str:
        """cpu, gpu or tpu."""
        return self.mesh.devices.flat[0].platform

    @property
    def kind(self) -> str:
        """The maker's name of a device."""
        return self.mesh.devices.flat[0].device_kind

    def describe(self) -> str:
        """One line for the log: how many devices of what kind, on how many hosts, run what."""
        hosts = len({device.process_index for device in self.mesh.devices.flat})
        where = f"{self.mesh.size} x {self.kind}" + (f" on {hosts} hosts" if hosts > 1 else "")
        cut = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items() if size > 1)
        return where + (f" by pmap ({cut or 'data 1'})" if self.pmap else f" as a mesh ({cut})" if cut else "")

    # --- what lies where ---

    @property
    def replicated(self) -> NamedSharding:
        """One whole copy on each device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def shardings(self, tree: Any) -> Any:
        """The sharding of each array of a tree of parameters, or of a state that has such trees in it."""
        return jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(self.mesh, self._spec(path, leaf.shape)), tree)

    def _spec(self, path: tuple[Any, ...], shape: tuple[int, ...]) -> PartitionSpec:
        name = "/".join(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))
        axes = next((axes for pattern, axes in RULES if re.search(f"(^|/)({pattern})$", name)), ())
        axes = (None,) * (len(shape) - len(axes)) + axes  # several runs in one program come first
        cut = (axis and size % self.mesh.shape[axis] == 0 for axis, size in zip(axes, shape, strict=True))
        return PartitionSpec(*(axis if yes else None for axis, yes in zip(axes, cut, strict=True)))

    def struct(self, tree: Any) -> Any:
        """Shapes, types and shardings of a tree of (abstract) arrays."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, self.shardings(tree)
        )

    def place(self, tree: Any) -> Any:
        """A tree of arrays that every process has whole, laid out as it is trained."""
        return jax.tree.map(
            lambda x, sharding: jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index]),
            tree, self.shardings(tree),
        )  # fmt: skip

    def gather(self, tree: Any) -> Any:
        """The tree as NumPy arrays, whole, on every process; all processes must call it."""
        return jax.device_get(tree if jax.process_count() == 1 else self._replicate(tree))

    def one_device(self, tree: Any) -> Any:
        """The tree whole on this process's first device; all processes must call it."""
        return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, self._replicate(tree))

    def _replicate(self, tree: Any) -> Any:
        if all(isinstance(x, np.ndarray) or x.is_fully_replicated for x in jax.tree.leaves(tree)):
            return tree
        return jax.jit(lambda tree: tree, out_shardings=self.replicated)(tree)

    # --- batches ---

    def rows(self, batch_size: int) -> slice:
        """The rows of a global batch that this process reads."""
        begins, ends = zip(*_row_ranges(self.mesh, batch_size, jax.process_index()), strict=True)
        return slice(min(begins), max(ends))

    def put(self, batch: dict[str, np.ndarray], axis: int = 0) -> dict[str, Any]:
        """A batch for a step: rows, which are the arrays' `axis`, laid over the devices. Each process gives its own rows."""
        if self.pmap:
            local = self.mesh.local_mesh.size
            return {k: v.reshape(*v.shape[:axis], local, -1, *v.shape[axis + 1 :]) for k, v in batch.items()}
        sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * axis, ROWS))
        return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}

    def put_whole(self, batch: dict[str, np.ndarray], axis: int = 0) -> dict[str, Any]:
        """`put` of a batch that every process has whole."""
        if jax.process_count() == 1:
            return self.put(batch, axis)
        return self.put({k: v[(slice(None),) * axis + (self.rows(v.shape[axis]),)] for k, v in batch.items()}, axis)

    def abstract_batch(self, batch: Any) -> Any:
        """Shapes, types and shardings of a global batch, for ahead-of-time compilation (mesh only)."""
        sharding = NamedSharding(self.mesh, PartitionSpec(ROWS))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch)

    # --- steps ---

    def jit(self, step: Callable[..., Any], state: Any = None, axis: int = 0, others: int = 0) -> _Step:
        """`step(first, batch, ...)` with so many `others`, compiled on its first call for each shape of batches.

        With `state` (abstract or not) the step returns (state, anything): the state keeps its sharding, and the first argument's
        buffers are given away. Everything else that is returned is whole on each device. `axis` is that of `put`.
        """
        donate = () if state is None else (0,)
        if self.pmap:
            mapped = jax.pmap(
                step, axis_name="data", in_axes=(None, axis, *[None] * others),
                out_axes=None if state is None else (None, None), donate_argnums=donate,
                devices=None if self.mesh.size == jax.device_count() else list(self.mesh.devices.flat),
            )  # fmt: skip
            return _Step(mapped, self)
        out = self.replicated if state is None else (self.shardings(state), self.replicated)
        return _Step(jax.jit(step, out_shardings=out, donate_argnums=donate), self)


@dataclass(frozen=True)
class _Step:
    """A step that is traced inside its mesh."""

    function: Any
    devices: Devices

    def __call__(self, *args: Any) -> Any:
        with self._inside():
            return self._global(self.function(*args))

    def lower(self, *args: Any) -> Any:
        """`jax.stages.Lowered` for arguments like these."""
        with self._inside():
            return self.function.lower(*args)

    def _inside(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.devices.pmap else jax.set_mesh(self.devices.mesh)

    def compile(self, *args: Any) -> Callable[..., Any]:
        """Compiled ahead of time for arguments like these (several processes' pmap: on the first call)."""
        if self.devices.pmap and jax.process_count() > 1:  # compiled, it would want the rows of all processes
            return self
        compiled = self.lower(*args).compile()
        return lambda *args: self._global(compiled(*args))

    def _global(self, results: Any) -> Any:
        """pmap gives each process arrays of its own devices alone; here they are those of all processes again."""
        if not (self.devices.pmap and jax.process_count() > 1):
            return results

        def whole(x: Any) -> Any:
            parts = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, self.devices.replicated, parts)

        return jax.tree.map(whole, results)


def make_devices(cfg: ParallelConfig) -> Devices:
    """The devices that a config asks for: all of them, or the first `num_devices` of a single host.

    Raises InputError for more devices than there are, and for a mesh that they do not fill.
    """
    found = jax.devices()
    if cfg.num_devices is not None:
        if jax.process_count() > 1:
            raise InputError(f"parallel.num_devices={cfg.num_devices} is for a single host; here are {jax.process_count()}")
        if cfg.num_devices > len(found):
            raise InputError(
                f"parallel.num_devices={cfg.num_devices}, but there are {len(found)} ({found[0].device_kind}): "
                f"choose 1 to {len(found)}"
            )
        found = found[: cfg.num_devices]
    return Devices(make_mesh(found, cfg.fsdp, cfg.tensor), cfg.strategy == "pmap")


def make_mesh(devices: Any, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh (data, fsdp, tensor) of all `devices`, each process's rows next to each other.

    Raises InputError where fsdp x tensor does not divide their number.
    """
    if len(devices) % (fsdp * tensor):
        near = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise InputError(
            f"parallel.fsdp={fsdp} x parallel.tensor={tensor} does not divide {len(devices)} devices: their product must be one "
            f"of {', '.join(map(str, near))}"
        )
    shape = len(devices) // (fsdp * tensor), fsdp, tensor
    mesh = jax.make_mesh(shape, MESH_AXES, (AxisType.Auto,) * 3, devices=devices)
    processes = {device.process_index for device in devices}
    if all(_adjacent(_row_ranges(mesh, shape[0] * fsdp, process)) for process in processes):
        return mesh
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(shape), MESH_AXES)


def _row_ranges(mesh: Mesh, rows: int, process: int) -> list[tuple[int, int]]:
    """[begin, end) of the rows on each device of a process."""
    indices = NamedSharding(mesh, PartitionSpec(ROWS)).devices_indices_map((rows,))
    own = [device for device in mesh.devices.flat if device.process_index == process]
    return sorted({indices[device][0].indices(rows)[:2] for device in own})


def _adjacent(ranges: list[tuple[int, int]]) -> bool:
    return all(end == begin for (_, end), (begin, _) in itertools.pairwise(ranges))


def check_fit(devices: Devices, model: BertConfig, batch_size: int, microbatches: int = 1) -> None:
    """Raises InputError unless the batch and the model divide over the mesh, naming both and the nearest that do."""
    parts = devices.rows_cut * microbatches
    if batch_size % parts:
        cut = " x ".join(f"{name}={devices.mesh.shape[name]}" for name in ROWS if devices.mesh.shape[name] > 1) or "1 device"
        raise InputError(
            f"batch_size={batch_size} does not divide over {devices.rows_cut} devices ({cut}) x "
            f"gradient_accumulation_steps={microbatches}; the nearest that do: {_nearest(batch_size, parts)}"
        )
    for axis, names in (("tensor", ("num_attention_heads", "intermediate_size")), ("fsdp", ("hidden_size",))):
        size = devices.mesh.shape[axis]
        for name in names:
            if getattr(model, name) % size:
                sizes = range(1, devices.mesh.size + 1)
                fitting = [n for n in sizes if getattr(model, name) % n == 0 and devices.mesh.size % n == 0]
                raise InputError(
                    f"{name}={getattr(model, name)} does not divide over parallel.{axis}={size}; {axis} may be "
                    f"{', '.join(map(str, fitting))}, or {name} {_nearest(getattr(model, name), size)}"
                )


def _nearest(value: int, divisor: int) -> str:
    """The multiples of `divisor` on both sides of `value`."""
    below = value // divisor * divisor
    return " or ".join(str(n) for n in (below, below + divisor) if n)
