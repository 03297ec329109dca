"""Reads the cells of the label column: one rule for all splits and all formats of files.

    read = LabelReader(find_task("multi_label"), TaskData())
    read("['toxic', 'obscene']", "a.csv:2")    ("toxic", "obscene"), as for the list in a .jsonl
    read("nan", "a.csv:3")                     None: the row is unlabelled; read.unlabelled counts it

A cell is text in .csv and .tsv; in .jsonl and .parquet it is a string, a number, a list or null. `Kind.read_label` reads it with
the functions of this module. A row is unlabelled where its cell is null, NaN, empty or one of `MARKS` (`TaskData.unlabelled_mark`
replaces these), unless the task has a class of that name. The other labels decide whether -1 is a class: `without_minus_one`.
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

# The missing values of pandas.read_csv, SNLI's "-" and the "?" of UCI's files; NONE and none are classes (of stances).
MARKS = frozenset(["-", "?", "nan", "-nan", "NaN", "-NaN", "None", "null", "NULL", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>"])
FLAGS = {"0": False, "1": True, "False": False, "True": True, "false": False, "true": True, "FALSE": False, "TRUE": True}


T = TypeVar("T")


class LabelReader:
    """Reads the label cells of one split."""

    def __init__(self, task: Task, data: TaskData) -> None:
        self.task, self.separator = task, data.label_separator  # between two labels of a cell
        self.named = bool(data.label_column)  # by the user
        given = None if data.unlabelled_mark is None else frozenset(map(_canonical, data.unlabelled_mark))
        self._marks = (task.kind.label_marks if given is None else given) - {*task.labels, *task.words}
        self.unlabelled: Counter[str] = Counter()  # cells by mark for "no label"; an empty cell, null and NaN are "empty"
        self.blank = 0  # cells that are empty texts and have a label: no class applies

    def __call__(self, value: object, place: str) -> object:
        """Returns the label, or None where there is none. Raises InputError for a cell that cannot be a label."""
        return self._counted(self.task.kind.read_label(self, value, place), value)

    def of_columns(self, cells: Mapping[str, object], place: str) -> tuple[str, ...] | None:
        """Returns the names of the columns that hold 1; None where a cell has no value, or -1."""
        names = {column: self.name(value, place) for column, value in cells.items()}
        for column, name in names.items():
            if name not in (*FLAGS, None, "-1"):
                raise InputError(
                    f"{place}: {column!r} is {cells[column]!r}, but several label columns hold 0 or 1; give a column that names "
                    "the classes alone: --label-column NAME"
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
        """Returns the name of a class as text (3, 3.0, "3" and "3.0" are one class), or None for a mark."""
        if isinstance(value, ClassName):
            return str(value)
        if isinstance(value, list | dict | bytes):
            raise InputError(f"{place}: the label is {reprlib.repr(value)}, not a name or a number")
        if isinstance(value, float):
            value = None if math.isnan(value) else int(value) if value.is_integer() else value
        name = "" if value is None else _canonical(str(value))
        return None if not name or name in self._marks else name

    def number(self, value: object, place: str) -> float | None:
        """Returns a finite number, or None for a mark."""
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
    """Returns the text without surrounding blanks; a decimal number also loses the zeros at its end.

    >>> [_canonical(text) for text in (" 1.0", "2.50", "-0.0", "007", "1.0.0")]
    ['1', '2.5', '0', '007', '1.0.0']
    """
    text = text.strip()
    if match := _DECIMAL.fullmatch(text):
        text = f"{match[1]}.{match[2]}" if match[2] else match[1]
    return "0" if text == "-0" else text


def whole_number(text: str, what: str) -> int:
    """Returns the number. Raises InputError, which begins with `what`, for another text."""
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{what} is {text!r}, not a whole number") from None


# --- lists written as text ---

_QUOTED = r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\""""
_ITEM = re.compile(rf"""\s*+(?:({_QUOTED})\s*+(?:,|$|(?=['"]))|([^,'"\[\]{{}}()]*+)(?:,|$))""", re.DOTALL)
_NUMBER = re.compile(r"[+-]?\d+\.?\d*")
_BRACKETS = ("[]", "{}", "()")


def list_items(value: object, place: str, bare: bool = False) -> Sequence[object] | None:
    """Returns the items of a list, or of the text of a list in JSON, Python, NumPy or PostgreSQL; None for other values.

    A single word without quotes in [] or {} is a list only with `bare`; otherwise it is a name with brackets.

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
            raise InputError(f"{place} is {reprlib.repr(text)}, which cannot be read as a list: expected ['a', 'b']")
        if items and len(items) == 1 and not re.search("[,'\"]", text):  # "[other]" and "(1)" are names
            known = _NUMBER.fullmatch(str(items[0])) or items[0] is None or items[0] in MARKS
            if text[0] == "(" or not (bare or known):
                return None
    if any(isinstance(item, list | tuple | dict) for item in items or ()):
        raise InputError(f"{place} is {reprlib.repr(value)}, which has lists or objects in it; expected a list of names")
    return items


def _parsed(text: str) -> Sequence[object] | None:
    """Returns the items of a text in brackets, or None where it is not a flat list."""
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
            return None  # NumPy shortens long arrays by ...; a mapping is no list
        items.append(_unquoted(quoted) if quoted else plain.strip())
        at = match.end()
    if None in items:
        return None
    numbers = inner.split()
    return numbers if len(items) == 1 < len(numbers) and all(map(_NUMBER.fullmatch, numbers)) else items


def _unquoted(text: str) -> str | None:
    try:
        with warnings.catch_warnings(action="ignore"):  # about unknown escapes
            return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return None


def tokens(value: object, place: str) -> Sequence[object] | None:
    """Returns the words or tags in a list, in the text of a list, or in a text with blanks between them; None for a null."""
    if value is None or value != value:
        return None
    if not isinstance(value, str | list):
        raise InputError(f"{place} is {reprlib.repr(value)}, not a list with an entry for each word")
    items = list_items(value, place) if isinstance(value, list) or value.strip()[:1] == "[" else None
    return value.split() if isinstance(value, str) and items is None else items


# --- the labels of all rows together ---


def without_minus_one(task: Task, splits: Mapping[str, Sequence[Record]], given: bool) -> dict[str, Sequence[Record]]:
    """Returns the records by split; those of label -1 are unlabelled where `Kind.hides_minus_one` says so.

    Nothing changes where the user named the marks (`given`).
    """
    train, found, minus_one = labels_of(splits.get("train", [])), dict(splits), (-1, "-1", ("-1",))
    for split, records in splits.items():
        own = labels_of(records)
        if not given and set(minus_one) & set(own) and task.kind.hides_minus_one(task, split, train):
            found[split] = with_labels(records, [None if label in minus_one else label for label in own])
    return found


def classes_by_id(task: Task, train: Sequence[Record], others: Iterable[Sequence[Record]]) -> tuple[str, ...]:
    """Returns the task's classes, or else those of training, in order. Raises InputError for a label that is none of them."""
    classes_of = task.kind.classes_of
    labels = task.labels or _sorted({name for label in labels_of(train) for name in classes_of(label)})
    known_labels = set(labels)
    for records in [train, *others]:
        for i, label in enumerate(labels_of(records)):
            if odd := [name for name in classes_of(label) if name not in known_labels]:
                whose = f"the classes of task {task.name}" if task.labels else "the classes of the training rows"
                known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
                near = "; to predict numbers, give --task regression" if not task.labels and are_numbers(labels) else ""
                near = near if are_numbers(odd[:1]) else did_you_mean(odd[0], labels)
                raise InputError(f"{records[i].place}: label {odd[0]!r} is not among {whose}: {known}{near}")
    return labels


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names sorted by value if all are numbers, else by spelling."""
    names = sorted(names)
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(names)


def count_classes(task: Task, train: Sequence[Record], labels: Sequence[str], least: int) -> tuple[Counter[str], list[str]]:
    """Returns the training rows of each class, and lines to show. Raises InputError for fewer than `least` classes."""
    counts = Counter(name for label in labels_of(train) for name in task.kind.classes_of(label))
    if labels and len(counts) < least:
        found = f"no label but {', '.join(counts)}" if counts else "no label"
        raise InputError(f"the {len(train)} training rows have {found}, so there is nothing to learn: add rows of other labels")
    shown = [f"{name} {counts[name]}" for name in labels[:20]]
    notes = [f"labels: {', '.join(shown)}{f', ... ({len(labels)} in all)' if len(labels) > 20 else ''}"] if labels else []
    return counts, notes + [f"warning: no training row has label {name!r}" for name in labels if name not in counts]


def look_alike_notes(labels: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Returns warnings about classes whose names look alike."""
    each = [", ".join(f"{name!r} {counts[name]}" for name in group) for group in look_alikes(labels)]
    return [f"warning: labels that differ only in case or blanks are separate classes: {group}" for group in each]


def rare_notes(labels: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Returns a warning about classes that have a single training row."""
    rare = [name for name in labels if counts[name] == 1]
    more = "class has" if len(rare) == 1 else "classes have"
    return [f"warning: {len(rare)} {more} one training row: {few(rare)}"] * bool(rare)


def look_alikes(found: Iterable[str]) -> list[list[str]]:
    """Returns groups of names that differ only in case, blanks or Unicode's form of their characters."""
    groups: dict[str, list[str]] = {}
    for name in sorted(found):
        groups.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def are_numbers(found: Sequence[str]) -> bool:
    """Returns True where there are names and all are numbers."""
    return bool(found) and all(re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", name) for name in found)


def few(names: Sequence[str]) -> str:
    """Returns the first three names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
