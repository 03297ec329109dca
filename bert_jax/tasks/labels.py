"""Cells of the label column -> labels: one rule for all splits and all formats of files.

    read = LabelReader(find_task("multi_label"), TaskData())
    read("['toxic', 'obscene']", "a.csv:2")    ("toxic", "obscene"), the same as for the list in a .jsonl
    read("nan", "a.csv:3")                     None: the row is unlabelled; read.unlabelled counts it

A cell is text in .csv and .tsv; in .jsonl and .parquet it is a string, a number, a list or null. The kind of the task reads it
(`Kind.read_label`), with the functions of this module.

A row is unlabelled where its cell is null, NaN, empty or one of `MARKS` (`TaskData.unlabelled_mark` gives others), unless the
task has a class of that name. Whether -1 is a class depends on the other labels: `without_minus_one`.
"""

from __future__ import annotations

import ast
import json
import math
import re
import reprlib
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from bert_jax.data.files import ClassName
from bert_jax.data.records import Record, labels_of, with_labels
from bert_jax.errors import InputError, did_you_mean
from bert_jax.tasks.task import Task, TaskData

# What pandas.read_csv takes for a missing value, SNLI's "-" and the "?" of UCI's files. NONE and none are classes (of stances).
MARKS = frozenset(["-", "?", "nan", "-nan", "NaN", "-NaN", "None", "null", "NULL", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>"])
FLAGS = {"0": False, "1": True, "False": False, "True": True, "false": False, "true": True, "FALSE": False, "TRUE": True}


T = TypeVar("T")


class LabelReader:
    """Reads the label cells of one split.

    Attributes:
      task: the task.
      separator: the text between two labels in a cell of several.
      unlabelled: the number of cells for each mark that means "no label"; an empty cell, null and NaN count as "empty".
      blank: the number of cells that are empty texts, and yet a label.
    """

    def __init__(self, task: Task, data: TaskData) -> None:
        self.task, self.separator = task, data.label_separator
        given = None if data.unlabelled_mark is None else frozenset(map(_canonical, data.unlabelled_mark))
        self._marks = (task.kind.label_marks if given is None else given) - {*task.labels, *task.words}
        self.unlabelled: Counter[str] = Counter()
        self.blank = 0

    def __call__(self, value: object, place: str) -> object:
        """Returns the label (see Record), None where there is none. Raises InputError for a cell that holds no label."""
        return self._counted(self.task.kind.read_label(self, value, place), value)

    def of_columns(self, cells: Mapping[str, object], place: str) -> tuple[str, ...] | None:
        """Returns the names of the columns that hold 1; None where a cell has no value, or -1."""
        names = {column: self.name(value, place) for column, value in cells.items()}
        for column, name in names.items():
            if name not in (*FLAGS, None, "-1"):
                raise InputError(
                    f"{place}: {column!r} is {cells[column]!r}, where several label columns hold 0 or 1 each; a column that "
                    "names the classes is given alone: --label-column NAME"
                )
        missing = next((column for column, name in names.items() if name in (None, "-1")), None)
        label = None if missing is not None else tuple(column for column, name in names.items() if FLAGS[str(name)])
        return self._counted(label, cells.get(missing or ""))

    def _counted(self, label: T, value: object) -> T:
        text = "" if value is None or value != value else str(value).strip()
        self.blank += isinstance(value, str) and not text and label is not None
        if label is None:
            self.unlabelled[repr(text) if text else "empty"] += 1
        return label

    def name(self, value: object, place: str) -> str | None:
        """Returns the name of a class as text (3, 3.0, "3" and "3.0" are one class); None for a mark."""
        if isinstance(value, ClassName):
            return str(value)
        if isinstance(value, list | dict | bytes):
            raise InputError(f"{place}: the label is {reprlib.repr(value)}, not a name or a number")
        if isinstance(value, float):
            value = None if math.isnan(value) else int(value) if value.is_integer() else value
        name = "" if value is None else _canonical(str(value))
        return None if not name or name in self._marks else name

    def number(self, value: object, place: str) -> float | None:
        """Returns a finite number, None for a mark."""
        if (name := self.name(value, place)) is None:
            return None
        try:
            number = float(name)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{place}: the label is {name!r}, not a number")
        return number


_DECIMAL = re.compile(r"([+-]?\d+)\.(\d*?)0*")


def _canonical(text: str) -> str:
    """Returns the text without blanks around it, and a decimal number without zeros at its end.

    >>> [_canonical(text) for text in (" 1.0", "2.50", "-0.0", "007", "1.0.0")]
    ['1', '2.5', '0', '007', '1.0.0']
    """
    text = text.strip()
    if match := _DECIMAL.fullmatch(text):
        text = f"{match[1]}.{match[2]}" if match[2] else match[1]
    return "0" if text == "-0" else text


def whole_number(text: str, what: str) -> int:
    """Returns the number; raises InputError, which begins with `what`, for another text."""
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{what} is {text!r}, not a whole number") from None


# ---- lists written as text

_QUOTED = r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\""""
_ITEM = re.compile(rf"""\s*+(?:({_QUOTED})\s*+(?:,|$|(?=['"]))|([^,'"\[\]{{}}()]*+)(?:,|$))""", re.DOTALL)
_NUMBER = re.compile(r"[+-]?\d+\.?\d*")
_BRACKETS = ("[]", "{}", "()")


def list_items(value: object, place: str, bare: bool = False) -> Sequence[object] | None:
    """Returns the items of a list, or of a text that is one in JSON, Python, NumPy or PostgreSQL; None for other values.

    With `bare`, a single word without quotes in [] or {} is a list too; otherwise it is a name with brackets.

    >>> list_items("['a', 'b']", ""), list_items('["a"]', ""), list_items("{'a'}", ""), list_items("['a' 'b']", "")
    (['a', 'b'], ['a'], ['a'], ['a', 'b'])
    >>> list_items("[1, 0]", ""), list_items("[1. 0.]", ""), list_items("{a,b}", ""), list_items("[other]", "")
    ([1, 0], ['1.', '0.'], ['a', 'b'], None)
    """
    if isinstance(value, list | tuple):
        items: Sequence[object] | None = value
    elif not isinstance(value, str) or isinstance(value, ClassName) or (text := value.strip())[:1] not in ("[", "{", "("):
        return None
    else:
        items = _parsed(text)
        if items is None and (text.lstrip("[{( ")[:1] in ("'", '"') or (bare and text[0] != "(")):
            raise InputError(f"{place} is {reprlib.repr(text)}, a list that cannot be read: expected ['a', 'b']")
        if items and len(items) == 1 and not re.search("[,'\"]", text):  # "[other]" and "(1)" are names
            known = _NUMBER.fullmatch(str(items[0])) or items[0] is None or items[0] in MARKS
            if text[0] == "(" or not (bare or known):
                return None
    if any(isinstance(item, list | tuple | dict) for item in items or ()):
        raise InputError(f"{place} is {reprlib.repr(value)}, lists or objects in a list; expected a list of names")
    return items


def _parsed(text: str) -> Sequence[object] | None:
    """Returns the items of a text in brackets, None where it is not a flat list."""
    if text[0] + text[-1] not in _BRACKETS or len(text) < 2:
        return None
    try:
        found = json.loads(text)
        return found if isinstance(found, list) else [] if not found else None
    except (ValueError, RecursionError):
        pass
    inner, at, items = text[1:-1].strip(), 0, list[object]()
    while at < len(inner):
        match = _ITEM.match(inner, at)
        if match is None or match.end() == at:
            return None
        quoted, plain = match.groups()
        if plain is not None and (plain.strip() == "..." or (text[0] == "{" and ":" in plain)):
            return None  # NumPy writes ... for what it leaves out; a mapping is no list
        items.append(_unquoted(quoted) if quoted else plain.strip())
        at = match.end()
    if None in items:
        return None
    numbers = inner.split()
    return numbers if len(items) == 1 < len(numbers) and all(map(_NUMBER.fullmatch, numbers)) else items


def _unquoted(text: str) -> str | None:
    try:
        with warnings.catch_warnings(action="ignore"):  # about escapes that Python does not know
            return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return None


def tokens(value: object, place: str) -> Sequence[object] | None:
    """Returns the words or tags of a sentence: a list, the text of a list, or a text with blanks between them; None for null."""
    if value is None or value != value:
        return None
    if not isinstance(value, str | list):
        raise InputError(f"{place} is {reprlib.repr(value)}, not a list with an entry a word")
    items = list_items(value, place) if isinstance(value, list) or value.strip()[:1] == "[" else None
    return value.split() if isinstance(value, str) and items is None else items


# ---- the labels of all rows together


def without_minus_one(task: Task, splits: Mapping[str, Sequence[Record]], given: bool) -> dict[str, Sequence[Record]]:
    """Returns the records by split; those of label -1 are unlabelled where `Kind.hides_minus_one` says so.

    `given`: the user named the marks, so that nothing changes.
    """
    train = labels_of(splits.get("train", []))

    def settled(split: str, records: Sequence[Record]) -> Sequence[Record]:
        own = labels_of(records)
        if not {-1, "-1", ("-1",)} & set(own) or not task.kind.hides_minus_one(task, split, train):
            return records
        return with_labels(records, [None if label in (-1, "-1", ("-1",)) else label for label in own])

    return {split: records if given else settled(split, records) for split, records in splits.items()}


def classes_by_id(task: Task, train: Sequence[Record], others: Iterable[Sequence[Record]]) -> tuple[str, ...]:
    """Returns the task's classes, else those in training, in order. Raises InputError for a label that is none of them."""
    classes_of = task.kind.classes_of
    labels = task.labels or _sorted({name for label in labels_of(train) for name in classes_of(label)})
    known_labels = set(labels)
    for records in [train, *others]:
        for i, label in enumerate(labels_of(records)):
            if odd := [name for name in classes_of(label) if name not in known_labels]:
                whose = f"task {task.name}'s" if task.labels else "the training rows'"
                known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
                near = "; numbers to be predicted are --task regression" if not task.labels and are_numbers(labels) else ""
                near = near if are_numbers(odd[:1]) else did_you_mean(odd[0], labels)
                raise InputError(f"{records[i].place}: label {odd[0]!r} is none of {whose}: {known}{near}")
    return labels


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names by value if all are numbers, else by spelling."""
    names = sorted(names)
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(names)


def count_classes(task: Task, train: Sequence[Record], labels: Sequence[str], least: int) -> tuple[Counter[str], list[str]]:
    """Returns how often each class is in training, and lines about it. Raises InputError for fewer than `least` classes."""
    counts = Counter(name for label in labels_of(train) for name in task.kind.classes_of(label))
    if labels and len(counts) < least:
        raise InputError(f"the {len(train)} training rows have no label but {', '.join(counts) or 'none'}: nothing to learn")
    shown = [f"{name} {counts[name]}" for name in labels[:20]]
    notes = [f"labels: {', '.join(shown)}{f', ... ({len(labels)} in all)' if len(labels) > 20 else ''}"] if labels else []
    return counts, notes + [f"warning: no training row has label {name!r}" for name in labels if name not in counts]


def look_alike_notes(labels: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Returns warnings about classes whose names look alike."""
    each = [", ".join(f"{name!r} {counts[name]}" for name in group) for group in look_alikes(labels)]
    return [f"warning: labels that differ in case or blanks alone are classes of their own: {group}" for group in each]


def rare_notes(labels: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Returns a warning about classes that have a single training row."""
    rare = [name for name in labels if counts[name] == 1]
    more = "class has" if len(rare) == 1 else "classes have"
    return [f"warning: {len(rare)} {more} one training row: {few(rare)}"] * bool(rare)


def look_alikes(found: Iterable[str]) -> list[list[str]]:
    """Returns names that differ in case, blanks or the form of their characters (Unicode) alone, in groups of two or more."""
    groups: dict[str, list[str]] = {}
    for name in sorted(found):
        groups.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def are_numbers(found: Sequence[str]) -> bool:
    """Returns True where all names are numbers, and there are any."""
    return bool(found) and all(re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", name) for name in found)


def few(names: Sequence[str]) -> str:
    """Returns the first three names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
