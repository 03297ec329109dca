"""Records of a task's files, stored in little memory: texts in one buffer, and a few numbers for each record.

    records = Records()
    records.append(Record(("A fine film.",), "positive", "0", "a.csv:2"))
    records[0]                          an equal record
    take(records, [0])                  the records at these places; the buffer is shared

The functions below take lists of records too. Reading only labels or texts is faster than making records.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, overload

import numpy as np

Label = Any  # its type depends on the kind of task: see Record
_TEXT, _FIELD = b"\xff", b"\xfe"  # between texts; between texts, id, group and place. UTF-8 does not have these bytes
_SHARED = 1 << 16  # the most labels that are kept once


@dataclass(frozen=True)
class Record:
    """One example before it is tokenized.

    Attributes:
      texts: one text or a pair; tagging: the words; question_answering: (question, context); multiple_choice: the context,
        then the choices; similarity: a pair, or (anchor, positive, negative).
      label: None where there is none. classification: the name of the class; multi_label: a tuple of names; regression and
        similarity: a float; tagging: a tag for each word; multiple_choice: the number of the right choice, from 0;
        question_answering: a tuple of answers (text, start), empty where there is no answer.
      id: the id in the file, else the number of the record in its split, from 0.
      place: `file:line` (or row, for parquet; `file: id` in JSON), for messages.
      group: the value of the group column, None without one. Records of one group are held out together.
    """

    texts: tuple[str, ...]
    label: Label
    id: str
    place: str
    group: str | None = None


class Records(Sequence[Record]):
    """Records stored in columns: about 30 bytes each, and the bytes of their texts in UTF-8.

    A place that differs from the first one only by its number is stored as that number. An id is stored only where it is not
    the number of the record. Equal labels are stored once.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("q", [0])
        self._numbers = array("q")
        self._prefix: str | None = None
        self._rows: Sequence[int] = range(0)
        self._groups = False
        self._known: dict[tuple[type, Label], Label] = {}
        self.labels: list[Label] = []

    def append(self, record: Record) -> None:
        """Adds a record at the end. Not for records that `take` or `with_labels` returned, which share their buffer."""
        row, id, place, group = len(self._numbers), record.id, record.place, record.group
        prefix = place.rstrip("0123456789")
        number = place[len(prefix) :]
        self._prefix = prefix if self._prefix is None else self._prefix
        plain = prefix == self._prefix and 0 < len(number) < 19 and (number[0] != "0" or number == "0")
        fields = [_TEXT.join([_encoded(text) for text in record.texts])]
        if id != str(row) or group is not None or not plain:
            fields += [_encoded(id), b"" if group is None else b"=" + _encoded(group), b"" if plain else _encoded(place)]
        self._data += _FIELD.join(fields)
        self._ends.append(len(self._data))
        self._numbers.append(int(number) if plain else -1)
        self._groups = self._groups or group is not None
        self._rows = range(row + 1)
        self.labels.append(self._shared(record.label))

    def _shared(self, label: Label) -> Label:
        """Returns an equal label that is stored already. The items of a tuple, as the tags of a sentence, are shared too."""
        if isinstance(label, tuple):
            label = type(label)(map(self._shared, label))
        if not isinstance(label, str | tuple) or len(self._known) >= _SHARED:
            return label
        return self._known.setdefault((type(label), label), label)

    def _fields(self, row: int) -> list[bytearray]:
        return self._data[self._ends[row] : self._ends[row + 1]].split(_FIELD)

    def _record(self, row: int, label: Label) -> Record:
        texts, *more = self._fields(row)
        id, group, place = map(_decoded, more) if more else (str(row), "", "")
        number = self._numbers[row]
        return Record(_texts(texts), label, id, f"{self._prefix}{number}" if number >= 0 else place, group[1:] if group else None)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return list(map(self._record, self._rows[index], self.labels[index]))
        return self._record(self._rows[index], self.labels[index])

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, self._rows, self.labels)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Records | list):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} records>"

    def _like(self, rows: Sequence[int], labels: list[Label]) -> Records:
        other = Records()
        vars(other).update(vars(self) | {"_rows": rows, "labels": labels})
        return other


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(text: bytes | bytearray) -> str:
    return text.decode("utf-8", "surrogatepass")


def _texts(joined: bytearray) -> tuple[str, ...]:
    return tuple([_decoded(text) for text in joined.split(_TEXT)])


def labels_of(records: Sequence[Record]) -> list[Label]:
    """Returns the label of each record; do not change the list."""
    return records.labels if isinstance(records, Records) else [record.label for record in records]


def texts_of(records: Sequence[Record]) -> Iterator[tuple[str, ...]]:
    """Returns the texts of each record."""
    if isinstance(records, Records):
        return (_texts(records._fields(row)[0]) for row in records._rows)
    return (record.texts for record in records)


def groups_of(records: Sequence[Record]) -> Iterator[str | None]:
    """Returns the group of each record."""
    if isinstance(records, Records) and not records._groups:
        return repeat(None, len(records))
    return (record.group for record in records)


def take(records: Sequence[Record], indices: Sequence[int] | np.ndarray) -> Sequence[Record]:
    """Returns the records at these places."""
    if not isinstance(records, Records):
        return [records[i] for i in indices]
    own = np.asarray(indices, np.int64)
    rows, places = (array("i", at.astype(np.int32).tobytes()) for at in (np.asarray(records._rows)[own], own))
    return records._like(rows, [records.labels[i] for i in places])


def with_labels(records: Sequence[Record], labels: Sequence[Label]) -> Sequence[Record]:
    """Returns the same records with other labels, one each."""
    if isinstance(records, Records):
        return records._like(records._rows, list(labels))
    both = zip(records, labels, strict=True)
    return [record if record.label is label else dataclasses.replace(record, label=label) for record, label in both]


def hashes(keys: Iterable[Hashable], count: int = -1) -> np.ndarray:
    """Returns int64 [N], equal for equal keys. Of a million keys, two share a hash by chance in 1 of 3e7 processes."""
    return np.fromiter(map(hash, keys), np.int64, count)


def numbered(keys: Iterable[Hashable], count: int = -1) -> np.ndarray:
    """Returns int32 [N], the number of each key among the different keys in the order of their first occurrence.

    >>> numbered(["b", "a", "b", "c"]).tolist()
    [0, 1, 0, 2]
    """
    own = hashes(keys, count)
    order = np.argsort(own, kind="stable")
    new = np.diff(own[order], prepend=0) != 0
    del own
    new[:1] = True
    order = order.astype(np.int32)
    first = np.empty(len(order), np.int32)  # place of the first equal key; np.unique takes twice the memory for this
    first[order] = order[new][np.cumsum(new, dtype=np.int32) - 1]
    ranks: np.ndarray = np.cumsum(first == np.arange(len(first)), dtype=np.int32) - 1
    return ranks[first]
