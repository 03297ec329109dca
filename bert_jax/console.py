"""Progress bars, warnings and tables on stderr, and how a program ends."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.progress import track as rich_track
from rich.table import Table

from bert_jax import hugepages
from bert_jax.config import InputError

T = TypeVar("T")


def track(items: Iterable[T], total: int, title: str) -> Iterator[T]:
    """Yields the items, with a progress bar if stderr is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal or total < 2:
        return iter(items)
    return iter(rich_track(items, description=title, total=total, console=console, transient=True))


@contextlib.contextmanager
def predicting(total: int | None, shown: bool) -> Iterator[Callable[[int], None]]:
    """Yields a function that advances a progress bar by a number of texts.

    Predictors warn of "3 of 32 texts ..."; at the end, each such warning is printed once, with the sum of its numbers.
    """
    usual, done, warned = warnings.showwarning, 0, Counter[str]()

    def note(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
        line: str | None = None,
    ) -> None:  # fmt: skip
        if found := re.match(r"(\d+) of \d+ (.*)", str(message)):
            warned[found[2]] += int(found[1])
        else:
            usual(message, category, filename, lineno, file, line)

    columns = [*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()]
    bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False, disable=not shown)
    task = bar.add_task("predicting", total=total)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        bar.advance(task, count)

    try:
        with bar, warnings.catch_warnings():
            warnings.filterwarnings("always", r"\d+ of \d+ ")
            warnings.showwarning = note
            yield advance
    finally:
        for what, count in warned.items():
            print(f"warning: {count} of {done} {what}", file=sys.stderr)


def show_table(title: str, facts: Sequence[tuple[str, str]], warnings: Sequence[str]) -> None:
    """Prints facts as a table, and each warning in a line."""
    console = Console(stderr=True)
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in facts:
        table.add_row(name, value)
    console.print(table)
    for warning in warnings:
        console.print(f"[bold yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def run(main: Callable[[list[str]], int | None], argv: list[str], interrupted: str = "") -> None:
    """Runs a program with huge pages, and ends the process with its exit status, or with 1 and the reason on stderr.

    One process of several that fails ends at once; the others end after parallel.heartbeat_timeout, and the same command, run
    again on all of them, continues.

    Args:
        main: The program, a function of its arguments.
        argv: The arguments.
        interrupted: The words after "interrupted" on Ctrl-C.
    """
    hugepages.use()
    status: int | str | None
    together = False  # whether all processes of a job end at the same place
    try:
        status = main(argv) or 0
        together = status in (0, 128 + signal.SIGTERM)
        sys.stdout.flush()
    except SystemExit as stop:
        status = stop.code
    except KeyboardInterrupt:
        print(f"interrupted{interrupted and '; '}{interrupted}", file=sys.stderr)
        status = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of the output is gone, as with `| head -1`
        status = 128 + signal.SIGPIPE
    except Exception as error:
        if reason := _reason(error):
            print(f"error: {reason}", file=sys.stderr)
        else:
            traceback.print_exc()
        status = 1
    try:
        sys.stdout.flush()
    except OSError:  # at its end, the interpreter would try to write the rest again, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    jax = sys.modules.get("jax")  # an error in the command line comes before it is imported
    if jax is None or not jax.distributed.is_initialized():
        sys.exit(status)
    sys.stderr.flush()
    if not together:
        os._exit(status if isinstance(status, int) else 1)
    jax.distributed.shutdown()
    sys.exit(status)


def _reason(error: Exception) -> str:
    """Returns one line about a fault of the input or the machine; the empty string for a fault of the program."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'what was being written, such as the output'}: {error.strerror}"
    if isinstance(error, UnicodeEncodeError) and sys.stdout.encoding.lower().replace("-", "") != "utf8":
        return f"the output cannot be shown in {sys.stdout.encoding}, the encoding here ({text}): set PYTHONIOENCODING=utf-8"
    if isinstance(error, RuntimeError) and "Unable to initialize backend" in text:
        return f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {text[:500]}"
    return ""
