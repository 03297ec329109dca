"""The writer of a run: metrics.jsonl, TensorBoard events and the console. No jax in here.

metrics.jsonl has one JSON object a line: `step` first, then the keys in the order given. Two runs of one seed write the same
bytes except for the lines of `"kind": "timing"`. Floats are written by repr, so they read back exactly. JSON has no NaN, so
non-finite values are the strings "nan", "inf" and "-inf", which `read` converts back.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter  # SummaryWriter hangs on a full disk: its thread dies
from tensorboardX.summary import scalar

from bert_jax.config import InputError

SECONDS_BETWEEN_LINES = 10.0
Number = int | float | np.integer | np.floating
Line = dict[str, int | float | str]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fix = "free space or fix the permissions there and run the same command again, or give another --workdir"
        raise InputError(f"{path} cannot be written or read: {error.strerror or error}; {fix}") from error


def _plain(value: Number) -> int | float:
    return value if isinstance(value, int | float) else value.item()


def _shown(value: Number | str) -> str:
    if isinstance(value, str):
        return value
    value = _plain(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if value == 0 or not abs(value) < 0.001 else f"{value:.2e}"


class Writer:
    """metrics.jsonl, TensorBoard events and the live console of one run; one process of a run has one.

    Call `cut` before making one. A checkpoint keeps `lines`, the number of lines of metrics (without times) in the file, so that
    `cut` can tell whether lines were lost.

    Args:
      workdir: The local folder of the run.
      num_steps: The last step.
      start_step: The step that was restored, 0 for a new run. TensorBoard drops later events, and the time left counts from it.

    Raises:
      InputError: `workdir` is not a local folder that can be written; so do all methods that write.
    """

    def __init__(self, workdir: str | os.PathLike[str], num_steps: int, start_step: int = 0) -> None:
        if "://" in str(workdir):
            raise InputError(f"metrics.jsonl cannot be appended to in {workdir}: give a local --workdir")
        self.path, self._folder = Path(workdir) / "metrics.jsonl", Path(workdir) / "tensorboard"
        self._num_steps, self._start_step, self._start = num_steps, start_step, time.monotonic()
        self._last_line = -math.inf
        self.lines = _recorded_lines(self.path)
        with _naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        with _naming(self._folder):
            self._folder.mkdir(exist_ok=True)
            self._events = RecordWriter(str(self._folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"))
        self._event(file_version="brain.Event:2")
        if start_step:
            self._event(step=start_step + 1, session_log=SessionLog(status=SessionLog.START))
        screen = rich.console.Console(stderr=True)
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not screen.is_dumb_terminal:
            text = TextColumn("{task.fields[shown]}", markup=False)
            self._bar = Progress("step", MofNCompleteColumn(), BarColumn(bar_width=16), text, console=screen)
            self._task = self._bar.add_task("", total=num_steps, completed=start_step, shown="")
            self._bar.start()

    def _write(self, step: int, values: Mapping[str, Number], **head: str) -> None:
        plain = {name: _plain(value) for name, value in values.items()}
        line = {"step": step, **head} | {name: v if math.isfinite(v) else str(v) for name, v in plain.items()}
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        with _naming(self.path):
            while data:
                data = data[self._file.write(data) :]
        for name, value in plain.items():
            self._event(step=step, summary=scalar(name, float(value)))

    def _event(self, **fields: object) -> None:
        with _naming(self._folder):
            self._events.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def scalars(self, step: int, values: Mapping[str, Number]) -> None:
        """Appends one line of metrics; the same metrics go to TensorBoard."""
        self._write(step, values)
        self.lines += 1
        if any(name.startswith("eval/") for name in values):
            self._last_line = -math.inf  # the next progress is worth a line

    def timing(self, step: int, values: Mapping[str, Number]) -> None:
        """Appends a line of times and speeds, which differ from run to run."""
        self._write(step, values, kind="timing")

    def progress(self, step: int, **shown: Number | str) -> None:
        """Moves the bar, or prints a line: at first, at the end, after an evaluation, and every ten seconds."""
        now = time.monotonic()
        last = step >= self._num_steps
        if self._bar is None and not last and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        parts = [f"{name.replace('_per_', '/').replace('_', ' ')} {_shown(v)}" for name, v in shown.items()]
        if step > self._start_step:
            left = int((now - self._start) / (step - self._start_step) * max(0, self._num_steps - step))
            parts.append(f"eta {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, shown="  ".join(parts))
        else:
            self.message("  ".join([f"step {step:,}/{self._num_steps:,}", *parts]))

    def message(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            with contextlib.suppress(OSError):  # a reader who has gone does not end the run
                print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Flushes metrics.jsonl to the disk; called before each checkpoint, so that no checkpoint is ahead of it."""
        with _naming(self.path):
            os.fsync(self._file.fileno())
        with _naming(self._folder):
            self._events.flush()

    def close(self) -> None:
        """Ends the bar and closes the files. A second call does nothing."""
        if self._bar is not None:
            self._bar.stop()
        if not self._file.closed:
            try:
                self.flush()
            finally:
                self._file.close()
                with contextlib.suppress(OSError):
                    self._events.close()


class Silent:
    """A writer that writes nothing, for all processes of a run but the first."""

    lines = 0

    def scalars(self, step: int, values: Mapping[str, Number]) -> None: ...
    def timing(self, step: int, values: Mapping[str, Number]) -> None: ...
    def progress(self, step: int, **shown: Number | str) -> None: ...
    def message(self, text: str) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


Log = Writer | Silent


def _parse(path: Path) -> list[tuple[bytes, Line]]:
    """Returns (bytes, object) of each line, without an incomplete last line."""
    with _naming(path):
        lines = path.read_bytes().splitlines()
    parsed = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            value["step"] + 0
            parsed.append((line + b"\n", value))
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path}, line {number} has no step: {line[:80]!r}; delete that line") from error
    return parsed


def read(path: str | os.PathLike[str]) -> list[Line]:
    """Returns the lines of a metrics.jsonl as dictionaries, timing lines included, without an incomplete last line.

    Raises:
      InputError: The file cannot be read, or a line before the last is damaged.
    """
    special = ("nan", "inf", "-inf")
    return [{k: float(v) if v in special else v for k, v in value.items()} for _, value in _parse(Path(path))]


def _recorded_lines(path: Path) -> int:
    return sum(value.get("kind") != "timing" for _, value in _parse(path)) if path.exists() else 0


def cut(path: Path, step: int, lines: int = 0) -> int:
    """Removes what was written after a checkpoint from a metrics.jsonl, atomically; returns the number of lines removed.

    These are the lines after `step`, those of metrics beyond `lines`, and an incomplete last one.

    Args:
      path: The file. One that does not exist has no lines.
      step: The step to go on from; -1 for a new run.
      lines: The number of lines of metrics when `step` was saved; 0: not known. If fewer are left, stderr gets a warning.

    Raises:
      InputError: The file cannot be read or written, or a line before the last is damaged.
    """
    removed = 0
    if path.exists():
        left, metrics = list[bytes](), 0
        for line, value in _parse(path):
            timing = value.get("kind") == "timing"
            metrics += not timing
            if float(value["step"]) <= step and (timing or not lines or metrics <= lines):
                left.append(line)
        kept = b"".join(left)
        with _naming(path):
            before = path.read_bytes()
            if kept != before:
                removed = len(before.splitlines()) - len(kept.splitlines())
                temporary = path.with_name(path.name + ".tmp")
                with open(temporary, "wb") as file:
                    file.write(kept)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
    if (there := _recorded_lines(path)) < lines:
        text = f"{path} has {there:,} lines of metrics up to step {step:,}, where {lines:,} were written"
        print(f"warning: {text}: the others are lost, and the run goes on without them", file=sys.stderr)
    return removed
