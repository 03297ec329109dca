"""Processes that share a piece of work, and end with the process that started them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from types import FrameType
from typing import Protocol, TypeVar

from bert_jax.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


class Progress(Protocol):
    """Shows items as they pass; returns them."""

    def __call__(self, items: Iterable[T], total: int, description: str, /) -> Iterable[T]: ...


class Run(Protocol):
    """Returns [function(item) ...], with None for a result that was lost."""

    def __call__(self, function: Callable[[T], R], items: Sequence[T], what: str, /) -> Sequence[R | None]: ...


def run_in_processes(
    function: Callable[[T], R], items: Sequence[T], what: str, workers: int | None, progress: Progress
) -> list[R]:
    """Returns [function(item) ...], computed by several processes where that is worth it.

    The processes are spawned, because JAX's threads must not be forked.
    """
    workers = min(workers or os.cpu_count() or 1, len(items))
    if workers <= 1 or len(items) < 4:
        return list(progress(map(function, items), len(items), what))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with _terminable(), ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        try:
            with _uninterrupted():
                futures = [pool.submit(function, item) for item in items]
            return list(progress((future.result() for future in futures), len(items), what))
        except BaseException as error:
            # shutdown() alone would wait for the current items, and a pool whose processes end while it has cancelled futures,
            # as map() leaves them, raises an error of its own.
            for worker in list((getattr(pool, "_processes", None) or {}).values()):
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise InputError(
                    f"a worker process ({what}) was killed, perhaps for lack of memory: lower --data.num-workers and run the "
                    "same command again, which keeps the finished work"
                ) from None
            raise


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Makes processes that are started inside ignore Ctrl-C, which a terminal sends to all; this process ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # not a POSIX system
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit, so that this process cleans up, unless another handler is set."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_with_parent() -> None:
    """Ends this process when the process that started it has ended, even if that was killed."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
