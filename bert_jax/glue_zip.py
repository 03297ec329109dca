r"""Writes and checks submissions to GLUE's leaderboard: a zip of eleven TSV files with the predictions of fine-tuned tasks.

    work directory of rte, predictions/test.tsv   "id\tprediction\n0\tnot_entailment\n1\tentailment\n..."
    RTE.tsv in the zip                            "index\tprediction\n0\tnot_entailment\n1\tentailment\n..."

Classes are spelled as in GLUE's own files ("1" for cola's "acceptable"), by the inverse of `Task.words`.
"""

from __future__ import annotations

import re
import reprlib
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bert_jax import disk
from bert_jax.data.files import read_table
from bert_jax.errors import InputError, did_you_mean
from bert_jax.tasks.table import TASKS
from bert_jax.tasks.task import Task


class GlueFile(NamedTuple):
    """One file of a submission.

    Attributes:
      name: the name in the zip.
      task: the task whose predictions it holds.
      predictions: the file in the folder `predictions` of the task's work directory.
      rows: the number of examples in GLUE's test file.
      filler: the prediction for every row of a task that was not run: the commonest class of the training set (the first of
        several), or the middle of the scale.
    """

    name: str
    task: str
    predictions: str
    rows: int
    filler: str


FILES = (
    GlueFile("CoLA.tsv", "cola", "test.tsv", 1063, "1"),
    GlueFile("SST-2.tsv", "sst2", "test.tsv", 1821, "1"),
    GlueFile("MRPC.tsv", "mrpc", "test.tsv", 1725, "1"),
    GlueFile("STS-B.tsv", "stsb", "test.tsv", 1379, "2.500"),
    GlueFile("MNLI-m.tsv", "mnli", "test_matched.tsv", 9796, "entailment"),
    GlueFile("MNLI-mm.tsv", "mnli", "test_mismatched.tsv", 9847, "entailment"),
    GlueFile("QNLI.tsv", "qnli", "test.tsv", 5463, "entailment"),
    GlueFile("QQP.tsv", "qqp", "test.tsv", 390_965, "0"),
    GlueFile("RTE.tsv", "rte", "test.tsv", 3000, "entailment"),
    GlueFile("WNLI.tsv", "wnli", "test.tsv", 146, "0"),
    GlueFile("AX.tsv", "ax", "test.tsv", 1104, "entailment"),
)
NUM_ROWS = sum(file.rows for file in FILES)
_HEADER = "index\tprediction"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)  # narrower than float(), which reads 1_0 and inf
_MOST_BYTES = 64 << 20  # in all files together: a submission has 8 MB


def spellings(task: Task) -> dict[str, str]:
    """Returns {class in our predictions: word in GLUE's file}; empty for regression."""
    return {name: word for word, name in task.words.items()} or {name: name for name in task.labels}


def _parse(word: str) -> float | None:
    """Returns the number of a word, None for a word that is no finite number."""
    number = float(word) if _NUMBER.fullmatch(word) else float("inf")
    return number if abs(number) < float("inf") else None


# --- writing ---


def write_zip(workdirs: Sequence[str | Path], out: str | Path, fill_missing: bool = False) -> list[str]:
    """Writes the submission of work directories of finetune.py, whole and checked or not at all.

    Scores of STS-B are clipped to 0..5 and rounded to three decimals.

    Args:
      workdirs: one for each of the ten tasks. AX.tsv comes from one of task ax, or from `predictions/ax.tsv` in mnli's.
      out: the zip, which replaces an older one.
      fill_missing: whether every row of a task that was not run gets `GlueFile.filler`.

    Returns:
      A line to show for each file.
    """
    found = _find_predictions([Path(workdir) for workdir in workdirs])
    missing = [file for file in FILES if file.name not in found]
    if missing and not fill_missing:
        names = ", ".join(f"{file.name} (task {file.task})" for file in missing)
        hint = "; AX.tsv may also come from predictions/ax.tsv in mnli's" if FILES[-1] in missing else ""
        raise InputError(f"no predictions for {names}: give their work directories too{hint}; or --fill-missing")
    members, lines = {}, []
    for file in FILES:
        words = _read_predictions(file, found[file.name]) if file.name in found else [file.filler] * file.rows
        members[file.name] = "\n".join([_HEADER, *(f"{index}\t{word}" for index, word in enumerate(words)), ""])
        origin = f"from {found[file.name]}" if file.name in found else f"NOT RUN, filled with {file.filler!r}"
        lines.append(f"{file.name}: {file.rows} rows, {origin}")
    _write(Path(out), members)
    return lines


def _find_predictions(workdirs: Sequence[Path]) -> dict[str, Path]:
    """Returns {name in the zip: file of predictions}; the file may not exist."""
    found: dict[str, Path] = {}
    for workdir, task in [(workdir, _task_of(workdir)) for workdir in workdirs]:
        candidates = {file.name: workdir / "predictions" / file.predictions for file in FILES if file.task == task}
        if task == "mnli" and (diagnostic := workdir / "predictions" / "ax.tsv").exists():
            candidates["AX.tsv"] = diagnostic
        for name, path in candidates.items():
            if name in found:
                raise InputError(f"{found[name].parents[1]} and {workdir} both have predictions for {name}: give one of them")
            found[name] = path
    return found


def _task_of(workdir: Path) -> str:
    """Returns the GLUE task that results.json of a work directory names."""
    path, known = workdir / "results.json", list(dict.fromkeys(file.task for file in FILES))
    if not path.is_file():
        raise InputError(f"{workdir} is not a finished work directory of finetune.py: there is no {path}")
    task = (disk.read_json(path, dict) or {}).get("task")
    if task not in known:
        raise InputError(f"{path}: task {task!r} is not one of GLUE's, {', '.join(known)}: leave this directory out")
    return str(task)


def _read_predictions(file: GlueFile, path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; finetune.py writes it where the task's data has a test file")
    table = read_table(str(path), "none")
    if table.columns[:2] != ("id", "prediction"):
        raise InputError(f"{path}:1: expected the columns id and prediction, found {reprlib.repr(', '.join(table.columns))}")
    rows = list(table.rows)
    if len(rows) != file.rows:
        raise InputError(f"{path}: {len(rows)} predictions, expected {file.rows}: predict the whole of GLUE's test file")
    known, words = spellings(TASKS[file.task]), []
    for place, values in rows:
        prediction = values["prediction"]
        if prediction in known:
            words.append(known[prediction])
        elif not known and (score := _parse(prediction)) is not None:
            words.append(f"{min(max(0.0, score), 5.0):.3f}")
        else:
            allowed = f"one of {', '.join(known)}" if known else "a finite number"
            raise InputError(f"{place}: {reprlib.repr(prediction)} is not {allowed} (task {file.task})")
    return words


def _write(out: Path, members: Mapping[str, str]) -> None:
    try:
        with disk.whole(out) as temporary:
            with zipfile.ZipFile(temporary, "w") as archive:
                for name, text in members.items():
                    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # the earliest: equal predictions give equal bytes
                    info.create_system, info.external_attr = 3, 0o644 << 16  # as Unix writes it, on every system
                    archive.writestr(info, text, zipfile.ZIP_DEFLATED)
            if problems := check_zip(temporary):
                raise InputError("\n  ".join([f"{out}: the zip does not read back right; is the disk sound?", *problems]))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None


# --- checking ---


def check_zip(path: str | Path) -> list[str]:
    """Returns a line for each fault that makes the leaderboard refuse or misread a zip; an empty list if there is none.

    It is strict where readers differ: no quotes, no byte order mark, only line feeds at the ends of lines. Of several lines with
    the same fault, the first is named. Raises InputError if the zip cannot be read.
    """
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # its type depends on the damage
        return [f"{path}: not a zip, or a damaged one ({error})"]
    with archive:
        problems = list(_check_names(archive.namelist()))
        table, left = {file.name: file for file in FILES}, _MOST_BYTES
        for info in archive.infolist():
            if file := table.get(_base(info.filename)):
                data, fault = _unpack(archive, info, left)
                left -= len(data)
                problems += [fault] if fault else _check_member(info.filename, data, file)
    return problems


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _check_names(names: Sequence[str]) -> Iterator[str]:
    wanted, bases = [file.name for file in FILES], [_base(name) for name in names]
    for name, count in Counter(names).items():
        if name not in wanted and (base := _base(name)):  # no base: a folder's own entry, which is harmless
            yield (
                f"{name}: in a folder; files must stand at the top level of the zip" if base in wanted
                else f"{name}: not one of the {len(wanted)} files{did_you_mean(base, set(wanted) - set(bases))}"
            )  # fmt: skip
        if count > 1:
            yield f"{name}: {count} times in the zip"
    yield from (f"{name}: missing" for name in wanted if name not in bases)


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> tuple[bytes, str]:
    try:
        with archive.open(info) as member:
            data = member.read(most + 1)
    except Exception as error:  # zipfile, zlib, lzma and bz2 each have their own for a damaged or encrypted member
        return b"", f"{info.filename}: cannot be unpacked ({error})"
    if len(data) > most:
        return b"", f"{info.filename}: a zip bomb, or no submission: it unpacks to more than {_MOST_BYTES >> 20} MiB"
    return data, ""


def _check_member(name: str, data: bytes, file: GlueFile) -> list[str]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return [f"{name}:{line}: not UTF-8 (byte 0x{data[error.start]:02x})"]
    problems = []
    if text.startswith("\ufeff"):
        problems.append(f"{name}:1: a byte order mark; save the file without")
    if "\r\n" in text:
        problems.append(f"{name}: lines end in \\r\\n; save the file with \\n")
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n").split("\n")
    if lines[0] != _HEADER:
        problems.append(f"{name}:1: {reprlib.repr(lines[0])} is not the header {_HEADER!r}")
    rows = lines if lines[0].startswith("0\t") else lines[1:]  # a header that was forgotten is one problem, not one a line
    if len(rows) != file.rows:
        problems.append(f"{name}: {len(rows)} rows, expected {file.rows}")
    faults: dict[str, list[str]] = {}
    for number, kind, fault in _faults(file, rows):
        faults.setdefault(kind, []).append(f"{name}:{number + 1 + len(lines) - len(rows)}: {fault}")
    return problems + [first + (f" (and {len(more)} more lines like it)" if more else "") for first, *more in faults.values()]


def _faults(file: GlueFile, rows: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yields (number of the row, kind of fault, message)."""
    words = spellings(TASKS[file.task]).values()
    allowed = f"one of {', '.join(words)}" if words else "a number from 0 to 5"
    for number, row in enumerate(rows):
        index, tab, word = row.partition("\t")
        if not tab or "\t" in word or '"' in row:
            yield number, "fields", f"{reprlib.repr(row)} is not an index, one tab and a prediction, without quotes"
            continue
        if index != str(number):
            yield number, "index", f"index {reprlib.repr(index)}, expected {number}: they count from 0, in order"
        score = _parse(word) if not words else None
        if word not in words if words else score is None or not 0 <= score <= 5:
            yield number, "word", f"{reprlib.repr(word)} is not {allowed}"
