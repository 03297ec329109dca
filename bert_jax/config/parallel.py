"""The devices and hosts of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from bert_jax.config.base import Group


@dataclass(frozen=True)
class ParallelConfig(Group):
    """Distribution of the work over devices. It may differ between runs of one work directory."""

    strategy: Literal["mesh", "pmap"] = "mesh"
    """`mesh`: one program over a mesh of devices, which can shard parameters. `pmap`: each device has all parameters."""
    num_devices: int | None = None
    """Number of devices to use, on a single host. Default: all."""
    fsdp: int = 1
    """mesh: shard parameters, gradients and optimizer state over this many devices, for models too large for one."""
    tensor: int = 1
    """mesh: shard attention heads and intermediate layers over this many neighboring devices."""
    multihost: bool | None = None
    (
        "This process is one of several that run the same command. Default: true with `coordinator`, or if the environment "
        "variables of a TPU pod, Slurm or Open MPI name several processes."
    )
    coordinator: str | None = None
    """HOST:PORT of process 0, if the environment does not define it."""
    num_processes: int | None = None
    """Number of processes, if the environment does not define it."""
    process_id: int | None = None
    """Index of this process, from 0, if the environment does not define it."""
    initialization_timeout: int = 300
    """Seconds to wait for the other processes at the start."""
    heartbeat_timeout: int = 100
    """Seconds without a heartbeat from a process after which the others end."""
    stuck_timeout: int = 1800
    """Seconds without a finished step after which a process ends itself, because another process hangs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_least(1, "num_devices", "fsdp", "tensor", "num_processes", "initialization_timeout", "heartbeat_timeout",
                            "stuck_timeout")  # fmt: skip
        self._require(
            self.strategy == "mesh" or self.fsdp == self.tensor == 1,
            f"fsdp={self.fsdp} and tensor={self.tensor} are for strategy='mesh': pmap keeps all parameters on each device",
        )
        self._require(
            (self.num_processes is None) == (self.process_id is None), "num_processes and process_id go together: give both"
        )
        self._require(
            self.num_processes is None or self.coordinator is not None,
            "num_processes needs coordinator: HOST:PORT of process 0, the same for all",
        )
        self._require(
            self.process_id is None or 0 <= self.process_id < (self.num_processes or 0),
            f"process_id={self.process_id} is not in [0, num_processes={self.num_processes})",
        )
        self._require(
            self.coordinator is None or re.fullmatch(r"[^:\s]+:\d+|\[[^\]]+\]:\d+", self.coordinator) is not None,
            f"coordinator={self.coordinator!r} is not HOST:PORT",
        )
        self._require(self.multihost is not False or self.coordinator is None, "coordinator is for multihost=True")
