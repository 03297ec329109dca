"""A cell of the label column -> the label that it stands for: one rule for all splits and all formats of files.

    read = LabelReader(find_task("multi_label"), TaskData())
    read("['toxic', 'obscene']", "a.csv:2")    ("toxic", "obscene"), as of the list in a .jsonl
    read("nan", "a.csv:3")                     None: the row is unlabelled; read.unlabelled counts it

A cell is text in .csv and .tsv; in .jsonl and .parquet it is a string, a number, a list or null.

What has no label: null, NaN, an empty cell, and the texts in `MARKS` (`TaskData.unlabelled_mark` gives others), unless the task
has a class of that name. Whether -1 is a class depends on the others: `without_minus_one`. In multi_label an empty cell or list
means that none of the classes applies. Tags are compared with the marks that the user names alone, as `-` may be a tag.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
import reprlib
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bert_jax.config import InputError
from bert_jax.data.files import ClassName
from bert_jax.data.records import Record, labels_of, with_labels
from bert_jax.tasks.task import Kind, Task, TaskData

# What pandas.read_csv takes for a missing value, SNLI's "-" and the "?" of UCI's files. NONE and none are classes (of stances).
MARKS = frozenset(["-", "?", "nan", "-nan", "NaN", "-NaN", "None", "null", "NULL", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>"])


Span = tuple[int, int, str, str | None]  # start, end, type, and the text that the file says is there


class Spans(tuple[Span, ...]):
    """tagging: the entities in a text, by characters."""


class Indicators(tuple[str, ...]):
    """A list of 0 and 1 in multi_label. Whether it says which classes apply, or names classes, is seen from all rows."""


class LabelReader:
    """Reads the label cells of one split.

    Attributes:
      unlabelled: how often each mark was found that means "no label"; an empty cell, null and NaN count as "empty".
      rows, blank: cells that were read, and those of them that are empty text.
    """

    def __init__(self, task: Task, cfg: TaskData) -> None:
        self.task, self.separator = task, cfg.label_separator
        usual = frozenset() if task.kind == "tagging" else MARKS
        given = None if cfg.unlabelled_mark is None else frozenset(map(_canonical, cfg.unlabelled_mark))
        self._marks = (usual if given is None else given) - {*task.labels, *task.words}
        self.unlabelled: Counter[str] = Counter()
        self.rows = self.blank = 0

    def __call__(self, value: Any, place: str) -> Any:
        """The label (see Record), None where there is none. Raises InputError where the cell is no label of the task's kind."""
        return self._counted(_READ[self.task.kind](self, value, place), value)

    def of_columns(self, cells: Mapping[str, Any], place: str) -> tuple[str, ...] | None:
        """multi_label from a column of 0 and 1 for each class, by its name. Any cell without a value, or -1: no label."""
        names = {column: self._name(value, place) for column, value in cells.items()}
        for column, name in names.items():
            if name not in (*_FLAGS, None, "-1"):
                raise InputError(
                    f"{place}: {column!r} is {cells[column]!r}, where several label columns hold 0 or 1 each; a column that "
                    "names the classes is given alone: --label-column NAME"
                )
        missing = next((column for column, name in names.items() if name in (None, "-1")), None)
        label = None if missing is not None else tuple(column for column, name in names.items() if _FLAGS[str(name)])
        return self._counted(label, cells.get(missing or ""))

    def _counted(self, label: Any, value: Any) -> Any:
        text = "" if value is None or value != value else str(value).strip()
        self.rows += 1
        self.blank += isinstance(value, str) and not text and label is not None
        if label is None:
            self.unlabelled[repr(text) if text else "empty"] += 1
        return label

    def _name(self, value: Any, place: str) -> str | None:
        """A class's name as text: 3, 3.0, "3" and "3.0" are one class. None for what has no label."""
        if isinstance(value, ClassName):
            return str(value)
        if isinstance(value, list | dict | bytes):
            raise InputError(f"{place}: the label is {reprlib.repr(value)}, not a name or a number")
        if isinstance(value, float):
            value = None if math.isnan(value) else int(value) if value.is_integer() else value
        name = "" if value is None else _canonical(str(value))
        return None if not name or name in self._marks else name

    # ---- one function a kind

    def _class(self, value: Any, place: str) -> str | None:
        items = _items(value, f"{place}: the label")
        if items is not None:
            items = [item for item in items if self._name(item, place) is not None]
            if len(items) > 1:
                raise InputError(f"{place}: the label is {reprlib.repr(value)}; several labels a row are --task multi_label")
            value = items[0] if items else None
        name = self._name(value, place)
        return None if name is None else self.task.words.get(name, name)

    def _classes(self, value: Any, place: str) -> tuple[str, ...] | None:
        items = _items(value, f"{place}: the label", bare=True)
        if items is None:
            if value is None or value != value:
                return None
            items = str(value).split(self.separator) if isinstance(value, str) and not isinstance(value, ClassName) else [value]
        if any(isinstance(item, float) and not item.is_integer() and item == item for item in items):
            raise InputError(f"{place}: the label is {reprlib.repr(value)}; a number between 0 and 1 is no label")
        names = [self._name(item, place) for item in items]
        there = [self.task.words.get(name, name) for name in names if name is not None]
        if not there:  # nothing but empty items: none of the classes; a mark among them: no label
            return None if any(item is None or item != item or str(item).strip() for item in items) else ()
        if len(items) > 1 and len(there) == len(items) and {*there} <= {*_FLAGS}:
            return Indicators(there)
        return tuple(dict.fromkeys(there))

    def _number(self, value: Any, place: str) -> float | None:
        if (name := self._name(value, place)) is None:
            return None
        try:
            number = float(name)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{place}: the label is {name!r}, not a number")
        return number

    def _choice(self, value: Any, place: str) -> int | None:
        name = self._name(value, place)
        return None if name in (None, "-1") else whole_number(str(name), f"{place}: the label")

    def _tags(self, value: Any, place: str) -> tuple[str, ...] | Spans | None:
        if (spans := _spans(value, f"{place}: the label")) is not None:
            return spans
        items = tokens(value, f"{place}: the label")
        if not items:
            return None
        tags = [self._name(tag, place) for tag in items]
        if not any(tags):
            return None
        if None in tags:
            raise InputError(f"{place}: the label is {reprlib.repr(value)}, not a list of tags: word {tags.index(None)} has none")
        return tuple(tag for tag in tags if tag is not None)

    def _answers(self, value: Any, place: str) -> tuple[tuple[str, int], ...] | None:
        """From SQuAD's list of {text, answer_start}, or the object of two lists that TFDS and Hugging Face make of it."""
        if value is None:
            return None
        try:
            if isinstance(value, dict):
                pairs = list(zip(value["text"], value["answer_start"], strict=True))
            else:
                pairs = [(answer["text"], answer["answer_start"]) for answer in value]
        except (KeyError, TypeError, ValueError):
            pairs = [(None, None)]
        if not all(isinstance(text, str) and isinstance(start, int) for text, start in pairs):
            raise InputError(f"{place}: answers are {reprlib.repr(value)}, not a list of {{text, answer_start}}")
        return tuple(pairs)


_READ: dict[Kind, Callable[[LabelReader, Any, str], Any]] = {
    "classification": LabelReader._class,
    "multi_label": LabelReader._classes,
    "regression": LabelReader._number,
    "similarity": LabelReader._number,
    "multiple_choice": LabelReader._choice,
    "tagging": LabelReader._tags,
    "question_answering": LabelReader._answers,
}
_FLAGS = {"0": False, "1": True, "False": False, "True": True, "false": False, "true": True, "FALSE": False, "TRUE": True}


def whole_number(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{what} is {text!r}, not a whole number") from None


_DECIMAL = re.compile(r"([+-]?\d+)\.(\d*?)0*")


def _canonical(text: str) -> str:
    """Without blanks around it; a decimal number without zeros at its end.

    >>> [_canonical(text) for text in (" 1.0", "2.50", "-0.0", "007", "1.0.0")]
    ['1', '2.5', '0', '007', '1.0.0']
    """
    text = text.strip()
    if match := _DECIMAL.fullmatch(text):
        text = f"{match[1]}.{match[2]}" if match[2] else match[1]
    return "0" if text == "-0" else text


# ---- lists written as text

_QUOTED = r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\""""
_ITEM = re.compile(rf"""\s*+(?:({_QUOTED})\s*+(?:,|$|(?=['"]))|([^,'"\[\]{{}}()]*+)(?:,|$))""", re.DOTALL)
_NUMBER = re.compile(r"[+-]?\d+\.?\d*")
_BRACKETS = ("[]", "{}", "()")


def _items(value: Any, place: str, bare: bool = False) -> list[Any] | None:
    """The items of a list, or of a text that is one in JSON, Python, NumPy or PostgreSQL; None for what is no list.

    `bare`: a single word without quotes in [] or {} is a list as well, not a name with brackets.

    >>> _items("['a', 'b']", ""), _items('["a"]', ""), _items("{'a'}", ""), _items("[]", ""), _items("['a' 'b']", "")
    (['a', 'b'], ['a'], ['a'], [], ['a', 'b'])
    >>> _items("[1, 0]", ""), _items("[1. 0.]", ""), _items("{a,b}", ""), _items("[other]", ""), _items("a, b", "")
    ([1, 0], ['1.', '0.'], ['a', 'b'], None, None)
    """
    if isinstance(value, list | tuple):
        items: list[Any] | None = list(value)
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


def _parsed(text: str) -> list[Any] | None:
    """The items of a text in brackets, None where it is not a flat list."""
    if text[0] + text[-1] not in _BRACKETS or len(text) < 2:
        return None
    try:
        found = json.loads(text)
        return found if isinstance(found, list) else [] if not found else None
    except (ValueError, RecursionError):
        pass
    inner, at, items = text[1:-1].strip(), 0, list[Any]()
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
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
            return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return None


def tokens(value: Any, place: str) -> list[Any] | None:
    """Words or tags of a sentence, given as a list, as the text of one, or with blanks between them; None for null."""
    if value is None or value != value:
        return None
    if not isinstance(value, str | list):
        raise InputError(f"{place} is {reprlib.repr(value)}, not a list with an entry a word")
    items = _items(value, place) if isinstance(value, list) or value.strip()[:1] == "[" else None
    return value.split() if isinstance(value, str) and items is None else items


_SPAN_KEYS = (("start", "start_offset"), ("end", "end_offset"), ("label", "labels", "type", "entity", "entity_group"))


def _spans(value: Any, place: str) -> Spans | None:
    """Entities as [start, end, type] or objects with these, as doccano, spaCy, Prodigy and Label Studio (JSON-MIN) write them.

    Also of the text of such a list. None for another list; no entity for an empty one.
    """
    if isinstance(value, str) and re.match(r"\s*\[\s*([\[({]|\])", value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = ast.literal_eval(value.strip())
    if not isinstance(value, list) or (value and not isinstance(value[0], list | tuple | dict)):
        return None
    return Spans(_span(item, place) for item in value)


def _span(item: Any, place: str) -> Span:
    found: Sequence[Any] = ()
    said = None
    if isinstance(item, dict):
        item = item["value"] if isinstance(item.get("value"), dict) else item
        said = item.get("text") if isinstance(item.get("text"), str) else None
        found = [next((item[key] for key in keys if key in item), None) for keys in _SPAN_KEYS]
    elif isinstance(item, list | tuple):
        found = item
    if len(found) == 3 and isinstance(found[2], list) and len(found[2]) == 1:
        found = [*found[:2], found[2][0]]
    if len(found) != 3 or not isinstance(found[2], str) or not found[2].strip() or any(type(at) is not int for at in found[:2]):
        raise InputError(f"{place} has {reprlib.repr(item)}, not [start, end, type] or {{'start', 'end', 'label'}} of an entity")
    return found[0], found[1], found[2].strip(), said


# ---- what all rows say together


def classes_of(kind: Kind, label: Any) -> tuple[str, ...]:
    """The classes that a record's label names."""
    if label is None or kind not in ("classification", "multi_label", "tagging"):
        return ()
    return (label,) if kind == "classification" else tuple(label)


def without_minus_one(task: Task, splits: Mapping[str, Sequence[Record]], given: bool) -> dict[str, Sequence[Record]]:
    """Records by split; those of label -1 are unlabelled where -1 is no class.

    It is a class if training has it, and has not two or more other classes that are all whole numbers from 0 on. As a number
    (regression, similarity) it means no label in a test set, unless training has numbers below 0. `given`: the user named the
    marks, so that nothing changes.
    """
    train = labels_of(splits.get("train", []))
    rest = {name for label in train for name in classes_of(task.kind, label)}
    found = "-1" in rest
    rest -= {"-1"}
    is_class = "-1" in task.labels or (found and not task.labels and not (len(rest) >= 2 and all(n.isdecimal() for n in rest)))
    is_number = any(isinstance(label, float) and label < 0 for label in train)

    def hidden(split: str, label: Any) -> bool:
        if task.kind in ("regression", "similarity"):
            return not is_number and split.startswith("test") and label == -1
        return not is_class and task.kind != "tagging" and label in ("-1", ("-1",))

    def settled(split: str, records: Sequence[Record]) -> Sequence[Record]:
        own = labels_of(records)
        gone = {label for label in set(own) if label is not None and hidden(split, label)}
        return with_labels(records, [None if label in gone else label for label in own]) if gone else records

    return {split: records if given else settled(split, records) for split, records in splits.items()}


def by_place(
    splits: Mapping[str, Sequence[Record]], classes: tuple[str, ...] = ()
) -> tuple[dict[str, Sequence[Record]], tuple[str, ...]]:
    """multi_label: lists of 0 and 1 by what they mean, and the classes that they are about, none where they are no such lists.

    Where every label of training (of a test set alone, its own) is such a list, and all are of one length, that of `classes` if
    there are any, 1 at place i says that class i applies; without `classes` it is called by its place. Elsewhere the numbers are
    the classes. Raises InputError for a list of another length in dev or test.
    """
    first = splits["train"] if "train" in splits else next(iter(splits.values()), [])
    labels = [label for label in labels_of(first) if label]
    number = len(labels[0]) if labels and all(isinstance(label, Indicators) for label in labels) else 0
    if any(len(label) != number for label in labels) or (classes and number != len(classes)):
        number = 0
    called = classes or tuple(map(str, range(number)))

    def meant(records: Sequence[Record], i: int, label: Any) -> Any:
        if number and label and (not isinstance(label, Indicators) or len(label) != number):
            raise InputError(f"{records[i].place}: the label is {list(label)}, where training has lists of {number} 0 and 1")
        if not isinstance(label, Indicators):
            return label
        applies = (name for name, flag in zip(called, label, strict=True) if _FLAGS[flag]) if number else label
        return tuple(dict.fromkeys(applies))

    settled = {
        split: with_labels(records, [meant(records, i, label) for i, label in enumerate(labels_of(records))])
        for split, records in splits.items()
    }
    return settled, called if number else ()


def look_alikes(found: Iterable[str]) -> list[list[str]]:
    """Names that differ in case, blanks or the form of their characters (Unicode) alone, in groups of two or more."""
    groups: dict[str, list[str]] = {}
    for name in sorted(found):
        groups.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def are_numbers(found: Sequence[str]) -> bool:
    """Whether all names are numbers, and there are any."""
    return bool(found) and all(re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", name) for name in found)
