"""What a run tells: metrics.jsonl to the bit, TensorBoard, and the console."""

import contextlib
import io
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from bert_jax.config import InputError
from bert_jax.training import writer as writing
from bert_jax.training.writer import Writer, cut, read

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def quiet(tmp_path):
    writer = Writer(tmp_path, 100)
    yield writer
    writer.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(writing.time, "monotonic", lambda: self.now)


def events(folder: Path) -> list[Event]:
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_metrics_are_json_lines_with_the_step_first_and_keys_in_the_given_order(quiet):
    quiet.scalars(7, {"train/loss": 6.5, "a": 1, "Z": np.float32(0.1), "n": np.int64(3)})
    quiet.timing(7, {"tokens_per_s": 12.5})
    assert quiet.path.read_text() == (
        '{"step": 7, "train/loss": 6.5, "a": 1, "Z": 0.10000000149011612, "n": 3}\n'
        '{"step": 7, "kind": "timing", "tokens_per_s": 12.5}\n'
    )


def test_floats_come_back_to_the_bit(quiet):
    values = np.random.default_rng(0).normal(size=200).astype(np.float32)
    for step, value in enumerate(values):
        quiet.scalars(step, {"x": value, "y": float(value) / 3})
    back = read(quiet.path)
    assert [line["x"] for line in back] == [float(v) for v in values]
    assert [line["y"] for line in back] == [float(v) / 3 for v in values]


def test_numbers_that_are_not_finite_are_strings_in_the_file_and_floats_when_read(quiet):
    quiet.scalars(1, {"a": float("nan"), "b": np.float32("inf"), "c": -np.inf})
    assert json.loads(quiet.path.read_text()) == {"step": 1, "a": "nan", "b": "inf", "c": "-inf"}
    line = read(quiet.path)[0]
    assert np.isnan(line["a"])
    assert (line["b"], line["c"]) == (np.inf, -np.inf)


def test_a_resumed_run_writes_the_same_bytes_as_one_that_was_never_stopped(tmp_path):
    def run(folder, first, last):
        cut(folder / "metrics.jsonl", first)
        writer = Writer(folder, 10, start_step=first)
        for step in range(first + 1, last + 1):
            writer.scalars(step, {"train/loss": np.float32(1 / step)})
        writer.close()

    run(tmp_path / "whole", 0, 10)
    run(tmp_path / "parts", 0, 7)
    run(tmp_path / "parts", 4, 10)
    whole, parts = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_cut_removes_the_lines_past_the_step_and_nothing_else(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 1, "a": 1.50}\n{"step": 2,"kind": "timing"}\n'
    path.write_text(kept + '{"step": 3, "a": 1}\n{"step": 3, "kind": "timing"}\n{"step": 4, "a"')
    assert cut(path, 2) == 3
    assert path.read_text() == kept
    inode = path.stat().st_ino
    assert cut(path, 2) == 0
    assert path.stat().st_ino == inode  # nothing to cut: nothing is written
    assert cut(path, -1) == 2
    assert path.read_text() == ""
    assert cut(tmp_path / "none", 2) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_cut_removes_the_lines_that_came_behind_the_checkpoint_of_their_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 1, "a": 1}\n{"step": 2, "eval/a": 2}\n{"step": 2, "kind": "timing"}\n'
    path.write_text(kept + '{"step": 2, "eval/a": 1}\n')
    assert cut(path, 2, 2) == 1
    assert path.read_text() == kept


def test_cut_ends_a_whole_last_line_that_lacks_its_newline(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert cut(path, 2) == 0
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_cut_that_fails_leaves_the_file_as_it_was(failing, tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(InputError, match=f"{path} .*No space left"):
        cut(path, 1)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("bad", ["garbage", "[1]", '{"loss": 1}', '{"step": "x"}'])
def test_a_damaged_line_in_the_middle_is_named(bad, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
    for use in (read, lambda p: cut(p, 1)):
        with pytest.raises(InputError, match=f"{path}, line 2"):
            use(path)


def test_reading_a_file_that_is_not_there_names_it(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl cannot be .*No such file"):
        read(tmp_path / "none.jsonl")


def test_lines_can_be_read_while_the_run_goes_on_and_flush_reaches_the_disk(quiet, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    quiet.scalars(1, {"a": 1})
    assert read(quiet.path) == [{"step": 1, "a": 1}]
    quiet.flush()
    assert quiet._file.fileno() in synced


@pytest.mark.parametrize("first", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk_is_named_and_closing_afterwards_is_quiet_and_quick(first, tmp_path, monkeypatch):
    if first == "metrics.jsonl":
        monkeypatch.setattr(Writer, "_event", lambda self, **fields: None)
    writer, written = Writer(tmp_path, 100), -1
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(InputError, match=rf"{re.escape(first)} .*File too large"):
            for step in range(1000):
                writer.scalars(step, {"a": 1.0, "b": 2.0})
                written = step
                writer.flush()
        with contextlib.suppress(InputError):  # what was not yet on the disk
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.close()
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == list(range(written + 1))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/metrics\.jsonl cannot be written"):
        Writer(tmp_path / "file", 10)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl cannot be written or read: Is a directory"):
        Writer(tmp_path, 10)
    with pytest.raises(InputError, match=r"gs://bucket/run: give a local --workdir"):
        Writer("gs://bucket/run", 10)


def test_tensorboard_gets_the_scalars_and_forgets_what_lies_past_a_resumed_step(tmp_path):
    writer = Writer(tmp_path, 10, start_step=4)
    writer.scalars(5, {"train/loss": np.float32(2.5), "bad": float("nan")})
    writer.timing(5, {"tokens_per_s": 10})
    writer.close()
    writer.close()
    found = events(tmp_path / "tensorboard")
    assert found[1].step == 5
    assert found[1].session_log.status == 1
    values = [(e.step, v.tag, v.simple_value) for e in found[2:] for v in e.summary.value]
    assert [(s, t) for s, t, _ in values] == [(5, "train/loss"), (5, "bad"), (5, "tokens_per_s")]
    assert values[0][2] == 2.5
    assert all(e.wall_time > 0 for e in found)


def test_without_a_terminal_progress_is_a_line_every_ten_seconds_at_evaluations_and_at_the_end(tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch)
    writer = Writer(tmp_path, 300, start_step=50)
    for step in range(51, 301):
        clock.now += 0.125
        writer.progress(step, loss=np.float32(6.12341), tokens_per_s=12345.4)
        if step == 60:
            writer.scalars(step, {"eval/masked_lm_loss": 1.0})
    writer.message("done [bold]")
    writer.close()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "step 51/300",
        "step 61/300",
        "step 141/300",
        "step 221/300",
        "step 300/300",
        "done [bold]",
    ]
    assert lines[2] == "step 141/300  loss 6.1234  tokens/s 12,345  eta 0:00:19"
    assert lines[4].endswith("eta 0:00:00")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00003, "3.00e-05"), (0.0, "0.0000"), (12, "12"), (float("nan"), "nan"), ("x", "x"), (1234567.8, "1,234,568")],
)
def test_numbers_are_shown_short(value, text, tmp_path, capsys):
    writer = Writer(tmp_path, 2000)
    writer.progress(0, v=value)
    writer.close()
    assert capsys.readouterr().err == f"step 0/2,000  v {text}\n"


def test_on_a_terminal_there_is_a_bar_with_messages_above_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    writer = Writer(tmp_path, 300)
    writer.progress(100, loss=6.5, **{"tokens/s": 12345})
    writer.message("[bold] checkpoint saved")
    writer.progress(200, loss=5.5)
    writer.close()
    text = sys.stderr.getvalue()
    for part in ("200/300", "━", "loss 5.5000", "eta 0:00:0", "[bold] checkpoint saved"):
        assert part in text


def test_lines_that_are_lost_are_said(tmp_path, capsys):
    writer = Writer(tmp_path, 300)
    for step in (1, 2, 3, 4):
        writer.scalars(step, {"train/loss": 1.0})
        writer.timing(step, {"step_seconds": 0.1})
    writer.close()
    assert writer.lines == 4
    path = tmp_path / "metrics.jsonl"
    again = Writer(tmp_path, 300)
    again.close()
    assert again.lines == 4
    assert cut(path, 3, 3) == 2
    assert capsys.readouterr().err == ""
    path.write_bytes(path.read_bytes()[:-60])  # a torn file: the line of step 3 is gone, and its time
    cut(path, 3, 3)
    said = capsys.readouterr().err
    assert re.fullmatch(rf"warning: {path} has 2 lines of metrics up to step 3, where 3 were written: .*\n", said)
    path.unlink()
    cut(path, 3, 3)
    assert "has 0 lines of metrics up to step 3, where 3 were written" in capsys.readouterr().err


def test_the_writer_of_the_other_processes_shows_nothing(capsys):
    writer = writing.Silent()
    writer.progress(100, loss=6.5)
    writer.message("nothing")
    assert capsys.readouterr() == ("", "")


def test_importing_the_writer_does_not_bring_in_jax():
    code = "import sys, bert_jax.training.writer; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
