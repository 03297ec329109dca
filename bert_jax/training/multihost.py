"""Several processes as one job: they find each other, agree, and end together.

By itself, JAX ends the others by SIGABRT after the heartbeat's time-out when one process is gone, with the reason on their
stderr. A process that raised waits for the others at its exit for up to five minutes, while they wait for it. A process that
hangs is waited for without end. So a process that fails leaves at once (`console.run`), and one that finishes no step ends
itself (`Watchdog`).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from bert_jax.config import InputError, ParallelConfig

T = TypeVar("T")
_calls, _barriers = itertools.count(), itertools.count()
_A_WEEK = 7 * 24 * 3600 * 1000  # milliseconds
STUCK = 75  # exit status: a temporary failure (sysexits.h), worth a restart


def connect(cfg: ParallelConfig) -> None:
    """Joins the other processes, if there are any; call it before anything else of JAX. A second call does nothing.

    Where the environment names the processes (TPU pods, Slurm, Open MPI), JAX waits for them, and aborts at its time-out.

    Raises:
      InputError: They cannot be reached within `initialization_timeout`. The message names the address and, in process 0, the
        processes that are missing.
    """
    wanted = cfg.coordinator is not None or _environment_has_several() if cfg.multihost is None else cfg.multihost
    if not wanted or jax.distributed.is_initialized():
        return
    if cfg.coordinator is not None and cfg.num_processes is not None:
        _meet(cfg.coordinator, cfg.num_processes, cfg.process_id or 0, cfg.initialization_timeout)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # has no effect on TPU and GPU
    try:
        jax.distributed.initialize(
            cfg.coordinator, cfg.num_processes, cfg.process_id, initialization_timeout=cfg.initialization_timeout,
            heartbeat_timeout_seconds=cfg.heartbeat_timeout,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        where = cfg.coordinator or "the coordinator that the environment names"
        raise InputError(
            f"the {cfg.num_processes or 'other'} processes did not find each other at {where} within "
            f"{cfg.initialization_timeout} s (parallel.initialization_timeout): {error}"
        ) from None


def _environment_has_several() -> bool:
    """Returns True if the variables of a TPU pod, Slurm or Open MPI name several processes."""
    counts = (os.environ.get(name, "") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    started = "SLURM_PROCID" in os.environ or "OMPI_COMM_WORLD_RANK" in os.environ  # a shell of salloc lacks them
    return "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or (started and any(n.isdigit() and int(n) > 1 for n in counts))


def _meet(address: str, count: int, number: int, seconds: float) -> None:
    """Waits until all processes have come; without it, JAX aborts with a C++ stack if one never comes."""
    give_up = time.monotonic() + seconds
    if number == 0:
        if missing := _gather(address, count, give_up):
            raise InputError(
                f"process {', '.join(map(str, missing))} of {count} did not connect to {address} within {seconds:g} s "
                "(parallel.initialization_timeout): is it running, with the same parallel.coordinator, and is the port open?"
            )
        return
    reason = _greet(address, number, give_up)
    while not reason and (gone := _knock(address)):  # until JAX has taken the port over
        if time.monotonic() > give_up:
            reason = gone
        time.sleep(0.05)
    if reason:
        raise InputError(
            f"process 0 cannot be reached at {address} within {seconds:g} s ({reason}): is it running, is that its address "
            "(parallel.coordinator), and is the port open?"
        )


_GREETING = b"bert_jax process "


def _gather(address: str, count: int, give_up: float) -> list[int]:
    """Releases the other processes at the coordinator's port once all have come; returns the numbers of the missing."""
    both = socket.has_dualstack_ipv6()
    port = int(address.rpartition(":")[2])
    try:
        server = socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)
    except OSError as error:
        raise InputError(f"process 0 cannot listen at port {port} of {address}: {error.strerror or error}") from None
    waiting: dict[int, socket.socket] = {}
    with server, contextlib.ExitStack() as opened:
        while len(waiting) < count - 1 and (left := give_up - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):
                caller = opened.enter_context(server.accept()[0])
                caller.settimeout(5)
                words = caller.makefile("rb").readline(100)
                if words.startswith(_GREETING) and 0 < (number := int(words[len(_GREETING) :])) < count:
                    waiting[number] = caller  # a process that was started again replaces its old call
        missing = [number for number in range(1, count) if number not in waiting]
        released = [] if missing else waiting.values()
        for caller in released:
            with contextlib.suppress(OSError):
                caller.sendall(b"go")
        for caller in released:
            with contextlib.suppress(OSError):  # the side that closes first keeps the port for a while: let it be theirs
                caller.recv(1)
    return missing


def _greet(address: str, number: int, give_up: float) -> str:
    """Waits at process 0's port until all have come; returns the reason if they do not, else an empty string."""
    reason = "nothing listens there"
    while (left := give_up - time.monotonic()) > 0:
        try:
            with _call(address, min(5, left)) as call:
                call.sendall(b"%b%d\n" % (_GREETING, number))
                reason = "it waits for the others"
                call.settimeout(max(0.01, give_up - time.monotonic()))
                if call.recv(2) == b"go":
                    return ""
        except OSError as error:
            reason = reason if isinstance(error, TimeoutError) else error.strerror or str(error)
        time.sleep(min(0.5, max(0, give_up - time.monotonic())))
    return reason


def _knock(address: str) -> str:
    """Returns the reason why nothing listens at HOST:PORT, or an empty string if something does."""
    try:
        _call(address, 5).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _call(address: str, timeout: float) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout)


def is_first() -> bool:
    """Returns True in the process that writes and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes arrive, for as long as that takes.

    The coordination service implements it, not a collective: those of CPUs (gloo) give up after 30 seconds, and the work of the
    first process for all may take hours.
    """
    if jax.process_count() > 1:
        client = distributed.global_state.client  # JAX has no public barrier but a collective
        assert client is not None
        client.wait_at_barrier(f"{next(_barriers)}: {name}", _A_WEEK)


def first_then_others(make: Callable[[], T]) -> T:
    """Returns `make()`, called in process 0 and then in the others, which find its results on a shared disk."""
    if not is_first():
        barrier("made by the first")
        return make()
    made = make()
    barrier("made by the first")
    return made


def from_first(value: T) -> T:
    """Returns process 0's value in every process; it must be JSON, in which NaN is allowed."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    own = np.frombuffer(text.ljust(size)[:size], np.uint8)
    received: T = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(own)).tobytes())
    return received


def check_equal(what: str, value: str) -> None:
    """Checks that all processes have the same text.

    On a difference all processes first shut JAX's job down together: if one ended before the others, JAX would abort them before
    they could print the reason.

    Raises:
      InputError: In all processes, naming those that differ from process 0.
    """
    if jax.process_count() == 1:
        return
    own = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(own))
    other = [i for i, theirs in enumerate(everyone) if not np.array_equal(theirs, everyone[0])]
    if other:
        jax.distributed.shutdown()
        raise InputError(
            f"{what} of process {', '.join(map(str, other))} differs from that of process 0: give all processes the same command "
            "and the same files"
        )


def stop_agreed() -> Callable[[], bool] | None:
    """Returns a function that is True in all processes in the same call after SIGTERM reached one; None for one process."""
    return (lambda: bool(multihost_utils.reached_preemption_sync_point(next(_calls)))) if jax.process_count() > 1 else None


class Watchdog:
    """A context that ends a process of several, with the reason on stderr, if `seconds` pass between two beats.

    A single process is never ended. The first beat starts the clock, so compilation before it may take any time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, None if jax.process_count() > 1 else float("inf")
        self._ended, self._owner = threading.Event(), threading.get_ident()

    def beat(self) -> None:
        """Records progress."""
        if self._last != float("inf"):
            self._last = time.monotonic()

    def watched(self, function: Callable[..., T]) -> Callable[..., T]:
        """Returns `function` with a beat at each call."""

        def beating(*args: object) -> T:
            self.beat()
            return function(*args)

        return beating

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            if self._last is not None and time.monotonic() - self._last > self._seconds:
                print(
                    f"error: process {jax.process_index()} of {jax.process_count()} finished no step for {self._seconds:g} s "
                    "(parallel.stuck_timeout): another process hangs or is cut off. This process waits here:",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                traceback.print_stack(sys._current_frames()[self._owner])
                os._exit(STUCK)

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
