"""Devices: the mesh, the sharding of every array, and the only door from NumPy batches to jax.Arrays.

A training or evaluation step is a pure function without collectives unless it is given an axis name. It runs in one of two ways:

    mesh   `jax.jit` over a mesh (data, fsdp, tensor): rows over data and fsdp; parameters and optimizer state by `RULES`
    pmap   `jax.pmap` with axis_name "data": each device has all parameters and some rows; psum adds up the sums

Both take a state of global arrays and a batch that `Devices.put` made, and return global arrays.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from bert_jax.config import BertConfig, InputError, ParallelConfig
from bert_jax.model.layers import MESH_AXES, ROWS

# The end of a parameter's path -> the mesh axis of each dimension. The first match counts; a parameter that matches no rule is
# replicated. Attention heads and the intermediate layer are sharded over `tensor` (Shoeybi et al., 2019, section 3), the other
# side of each kernel over `fsdp` (Rajbhandari et al., 2020). A dimension that its axis does not divide is not sharded.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attention/(\w+_)?(query|key|value)/kernel|mlp/(intermediate|gate)/kernel", ("fsdp", "tensor")),
    (r"attention/(\w+_)?(query|key|value)/bias|mlp/(intermediate|gate)/bias", ("tensor",)),
    (r"(attention|mlp)/output/kernel", ("tensor", "fsdp")),
    (r"(word_embeddings|masked_lm/decoder)/embedding", ("tensor", "fsdp")),
)


@dataclass(frozen=True)
class Devices:
    """The devices of a run and the way a step runs on them; made by `make_devices`."""

    mesh: Mesh
    pmap: bool = False

    @property
    def axis_name(self) -> str | None:
        """The axis over which the step itself adds up its sums: that of pmap, or None."""
        return "data" if self.pmap else None

    @property
    def rows_cut(self) -> int:
        """The number of parts that the rows of a batch are divided into."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def platform(self) -> str:
        """The platform of the devices: cpu, gpu or tpu."""
        return self.mesh.devices.flat[0].platform

    @property
    def kind(self) -> str:
        """The device kind, as its maker names it."""
        return self.mesh.devices.flat[0].device_kind

    def describe(self) -> str:
        """Returns a line for the log: the number and kind of devices, the hosts, and pmap or the mesh."""
        hosts = len({device.process_index for device in self.mesh.devices.flat})
        where = f"{self.mesh.size} x {self.kind}" + (f" on {hosts} hosts" if hosts > 1 else "")
        cut = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items() if size > 1)
        return where + (f" by pmap ({cut or 'data 1'})" if self.pmap else f" as a mesh ({cut})" if cut else "")

    # --- shardings ---

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of an array of which each device has a whole copy."""
        return NamedSharding(self.mesh, PartitionSpec())

    def shardings(self, tree: PyTree) -> PyTree:
        """Returns the sharding of each array of a parameter tree, or of a state that contains such trees."""
        return jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(self.mesh, self._spec(path, leaf.shape)), tree)

    def _spec(self, path: tuple[object, ...], shape: tuple[int, ...]) -> PartitionSpec:
        name = "/".join(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))
        axes = next((axes for pattern, axes in RULES if re.search(f"(^|/)({pattern})$", name)), ())
        axes = (None,) * (len(shape) - len(axes)) + axes  # several runs in one program come first
        cut = (axis and size % self.mesh.shape[axis] == 0 for axis, size in zip(axes, shape, strict=True))
        return PartitionSpec(*(axis if yes else None for axis, yes in zip(axes, cut, strict=True)))

    def struct(self, tree: PyTree) -> PyTree:
        """Returns the shapes, types and shardings of a tree of (abstract) arrays."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, self.shardings(tree)
        )

    def place(self, tree: PyTree) -> PyTree:
        """Shards a tree of arrays that every process has whole, as `shardings` says."""
        return jax.tree.map(
            lambda x, sharding: jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index]),
            tree, self.shardings(tree),
        )  # fmt: skip

    def gather(self, tree: PyTree) -> PyTree:
        """Returns the tree as whole NumPy arrays on every process; all processes must call it."""
        return jax.device_get(tree if jax.process_count() == 1 else self._replicate(tree))

    def one_device(self, tree: PyTree) -> PyTree:
        """Returns the tree whole on this process's first device; all processes must call it."""
        return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, self._replicate(tree))

    def _replicate(self, tree: PyTree) -> PyTree:
        if all(isinstance(x, np.ndarray) or x.is_fully_replicated for x in jax.tree.leaves(tree)):
            return tree
        return jax.jit(lambda tree: tree, out_shardings=self.replicated)(tree)

    # --- batches ---

    def rows(self, batch_size: int) -> slice:
        """Returns the rows of a global batch that this process reads."""
        begins, ends = zip(*_row_ranges(self.mesh, batch_size, jax.process_index()), strict=True)
        return slice(min(begins), max(ends))

    def put(self, batch: dict[str, np.ndarray], axis: int = 0) -> PyTree:
        """Returns a batch for a step, its rows (dimension `axis`) divided over the devices; each process gives its own rows."""
        if self.pmap:
            local = self.mesh.local_mesh.size
            return {k: v.reshape(*v.shape[:axis], local, -1, *v.shape[axis + 1 :]) for k, v in batch.items()}
        sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * axis, ROWS))
        return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}

    def put_whole(self, batch: dict[str, np.ndarray], axis: int = 0) -> PyTree:
        """Returns `put` of a batch that every process has whole."""
        if jax.process_count() == 1:
            return self.put(batch, axis)
        return self.put({k: v[(slice(None),) * axis + (self.rows(v.shape[axis]),)] for k, v in batch.items()}, axis)

    def abstract_batch(self, batch: PyTree) -> PyTree:
        """Returns the shapes, types and shardings of a global batch, for ahead-of-time compilation (mesh only)."""
        sharding = NamedSharding(self.mesh, PartitionSpec(ROWS))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch)

    # --- steps ---

    def jit(self, step: Callable[..., PyTree], state: PyTree | None = None, axis: int = 0, others: int = 0) -> Step:
        """Returns `step(first, batch, ...)`, compiled on its first call for each shape of batches.

        Args:
          step: The function; it returns (state, anything) where `state` is given. Every other result is replicated.
          state: The state, abstract or not: it keeps its sharding, and the buffers of the first argument are donated.
          axis: The dimension of the rows, as in `put`.
          others: The number of arguments after the batch.
        """
        donate = () if state is None else (0,)
        if self.pmap:
            mapped = jax.pmap(
                step, axis_name="data", in_axes=(None, axis, *[None] * others),
                out_axes=None if state is None else (None, None), donate_argnums=donate,
                devices=None if self.mesh.size == jax.device_count() else list(self.mesh.devices.flat),
            )  # fmt: skip
            return Step(mapped, self)
        out = self.replicated if state is None else (self.shardings(state), self.replicated)
        return Step(jax.jit(step, out_shardings=out, donate_argnums=donate), self)


@runtime_checkable
class _Jitted(Protocol):
    """A function that jax.jit or jax.pmap returned."""

    def __call__(self, *args: PyTree) -> PyTree: ...
    def lower(self, *args: PyTree) -> jax.stages.Lowered: ...


@dataclass(frozen=True)
class Step:
    """A step that is traced inside its mesh."""

    function: _Jitted
    devices: Devices

    def __call__(self, *args: PyTree) -> PyTree:
        with self._inside():
            return self._global(self.function(*args))

    def lower(self, *args: PyTree) -> jax.stages.Lowered:
        """Lowers the step for arguments of these shapes."""
        with self._inside():
            return self.function.lower(*args)

    def _inside(self) -> AbstractContextManager[object]:
        return nullcontext() if self.devices.pmap else jax.set_mesh(self.devices.mesh)

    def compile(self, *args: PyTree) -> Callable[..., PyTree]:
        """Compiles the step for arguments of these shapes (pmap on several processes compiles on the first call)."""
        if self.devices.pmap and jax.process_count() > 1:  # compiled, it would want the rows of all processes
            return self
        compiled = self.lower(*args).compile()
        return lambda *args: self._global(compiled(*args))

    def _global(self, results: PyTree) -> PyTree:
        """Returns global arrays: pmap gives each process arrays of its own devices alone."""
        if not (self.devices.pmap and jax.process_count() > 1):
            return results

        def whole(x: jax.Array) -> jax.Array:
            parts = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, self.devices.replicated, parts)

        return jax.tree.map(whole, results)


def make_devices(cfg: ParallelConfig) -> Devices:
    """Returns the devices that a config asks for: all of them, or the first `num_devices` of a single host.

    Raises:
      InputError: There are fewer devices, or fsdp x tensor does not divide their number.
    """
    found = jax.devices()
    if cfg.num_devices is not None:
        if jax.process_count() > 1:
            raise InputError(
                f"parallel.num_devices={cfg.num_devices} is for a single host, but there are {jax.process_count()}: leave it out"
            )
        if cfg.num_devices > len(found):
            raise InputError(
                f"parallel.num_devices={cfg.num_devices}, but there are {len(found)} ({found[0].device_kind}): "
                f"choose 1 to {len(found)}"
            )
        found = found[: cfg.num_devices]
    return Devices(make_mesh(found, cfg.fsdp, cfg.tensor), cfg.strategy == "pmap")


def make_mesh(devices: Sequence[jax.Device], fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Returns a mesh (data, fsdp, tensor) of all `devices` in which each process has adjacent rows.

    Raises:
      InputError: fsdp x tensor does not divide the number of devices.
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
    """Returns [begin, end) of the rows on each device of a process."""
    indices = NamedSharding(mesh, PartitionSpec(ROWS)).devices_indices_map((rows,))
    own = [device for device in mesh.devices.flat if device.process_index == process]
    return sorted({indices[device][0].indices(rows)[:2] for device in own})


def _adjacent(ranges: list[tuple[int, int]]) -> bool:
    return all(end == begin for (_, end), (begin, _) in itertools.pairwise(ranges))


def check_fit(devices: Devices, model: BertConfig, batch_size: int, microbatches: int = 1) -> None:
    """Checks that the batch and the model divide over the mesh.

    Raises:
      InputError: They do not; the message names both sizes and the nearest that do.
    """
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
    """Returns the multiples of `divisor` on both sides of `value`."""
    below = value // divisor * divisor
    return " or ".join(str(n) for n in (below, below + divisor) if n)
