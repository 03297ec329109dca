"""Devices: the mesh, its shardings, and the only door from NumPy batches to jax.Arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax.config import InputError


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh with one axis, `data`, over the first `num_devices` local devices (all by default).

    Raises InputError for more devices than there are.
    """
    devices = jax.local_devices()
    if num_devices is not None and not 1 <= num_devices <= len(devices):
        raise InputError(
            f"parallel.num_devices={num_devices}, but there are {len(devices)} ({devices[0].device_kind}): "
            f"choose 1 to {len(devices)}"
        )
    return jax.make_mesh((num_devices or len(devices),), ("data",), (AxisType.Auto,), devices=devices[:num_devices])


def check_batch(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raises InputError unless each device gets the same number of rows of each microbatch."""
    parts = mesh.size * microbatches
    if batch_size % parts:
        near = sorted({max(1, batch_size // parts) * parts, (batch_size // parts + 1) * parts})
        raise InputError(
            f"batch_size={batch_size} does not divide over {mesh.size} devices x gradient_accumulation_steps={microbatches}; "
            f"the nearest that do: {', '.join(map(str, near))}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """One whole copy on each device: parameters and optimizer state."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh, axis: int = 0) -> dict[str, jax.Array]:
    """Rows, which are the arrays' `axis`, laid over the devices."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def compile_step(step: Callable[..., Any], mesh: Mesh, first: Any, batch: Any, donate: bool) -> Any:
    """`step(first, batch)` compiled ahead of time: `first` replicated (its buffers reused if `donate`), rows of
    `batch` over the devices, results replicated."""
    jitted = jax.jit(step, out_shardings=replicated(mesh), donate_argnums=(0,) if donate else ())
    return jitted.lower(first, batch).compile()
