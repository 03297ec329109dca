r"""A retrieval data set from texts with headings: a heading is a query, and the text below it is its document.

    sections("Wings\n\nA wing lifts.\n\nDrag\n\nA wing drags.")    queries "Wings" and "Wings: Drag"

A heading is a line that begins with one to six `#`, as in Markdown, or a line between blank lines that is short and does not end
as a sentence does. The first heading of a text, if nothing is before it, is the title of the whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bert_jax.data import files
from bert_jax.data.files import Bad, Row
from bert_jax.errors import InputError
from bert_jax.tasks.parsing import checked_text, text_in, value_in

_MOST_WORDS, _MOST_CHARACTERS = 12, 120  # the limits of a heading
_MARKED = re.compile(r"#{1,6}\s+(.*?)[\s#]*")
_FENCE = re.compile(r"\s*```")
_PLAIN = re.compile(  # begins no list and no table; ends no sentence, neither in quotes nor in brackets
    r"(?![-*+•|>=_])[^\W_].*[^-.!?:;,。！？：；，…–—'\"’”»)\]」』]['\"’”»)\]」』]*"
)


class Titled(NamedTuple):
    """A text, and the title that a table gives it, or an empty one.

    Attributes:
      id: the file and the place of the text in it.
    """

    id: str
    title: str
    text: str


class Section(NamedTuple):
    """The text below a heading, which is empty for the text below the title itself."""

    title: str
    heading: str
    text: str

    @property
    def query(self) -> str:
        """The heading after the title."""
        return ": ".join(part for part in (self.title, self.heading) if part)


def sections(text: str, title: str = "") -> Iterator[Section]:
    """Yields the sections of a text in order. Headings without text below them are left out."""
    heading, held, begun, blocks = "", list[str](), bool(title), list(_blocks(text))
    for number, block in enumerate(blocks, 1):
        found = _heading(block, last=number == len(blocks))
        if found is None:
            held.append(block)
        else:
            if held:
                yield Section(title, heading, "\n\n".join(held))
            held = []
            title, heading = (title, found if found != title else "") if begun else (found, "")
        begun = True
    if held:
        yield Section(title, heading, "\n\n".join(held))


def _blocks(text: str) -> Iterator[str]:
    """Yields the parts between blank lines; a line with `#` is a part of its own, unless it is in a block of code."""
    held, fenced = list[str](), False
    for line in [*text.splitlines(), ""]:
        own = not fenced and _MARKED.fullmatch(line) is not None
        if held and (own or (not line.strip() and not fenced)):
            yield "\n".join(held).strip()
            held = []
        fenced ^= _FENCE.match(line) is not None
        if own:
            yield line.strip()
        elif line.strip() or held:
            held.append(line)
    if held:
        yield "\n".join(held).strip()


def _heading(block: str, last: bool) -> str | None:
    """Returns the words of a block that is a heading; the last one is none without `#`."""
    if marked := _MARKED.fullmatch(block):
        return marked[1] or None
    short = not last and "\n" not in block and len(block.split()) <= _MOST_WORDS and len(block) <= _MOST_CHARACTERS
    return block if short and not block[0].islower() and _PLAIN.fullmatch(block) else None


def read(paths: Sequence[str], title_column: str, text_column: str, skipped: list[str] | None = None) -> Iterator[Titled]:
    """Yields the texts of files. A plain text is a file; the title of a row is in a column, if it is there.

    Args:
      paths: files of text, or tables.
      title_column: the column of the title in tables.
      text_column: the column of the text in tables.
      skipped: the places of records that cannot be read are added to it; None: they are errors.

    Raises:
      InputError: a file or a record cannot be read, or a table lacks the text.
    """
    fix = "; name text files or tables only, with a pattern such as 'folder/**/*.txt'"
    for path in paths:
        format = files.format_of(path, files.DOCUMENTS, fix)
        request = files.Request(path, (title_column, text_column), documents="file")
        for number, (_, place, record) in enumerate(files.read_records(request, format)):
            id = path if format == "txt" else f"{path}#{number}"
            try:
                one = _titled(id, path + place, record, title_column, text_column)
            except InputError as error:
                if skipped is None:
                    raise InputError(f"{error}; correct it, or leave it out (--on-error skip)") from None
                skipped.append(path + place)
            else:
                yield one


def _titled(id: str, place: str, record: bytes | Mapping[str, Any] | Bad, title_column: str, text_column: str) -> Titled:
    """Returns the text of a record. Raises InputError if it cannot be read, or has no text."""
    values = files.decode(record) if isinstance(record, bytes) else record
    if isinstance(values, Bad):
        raise InputError(f"{place}: {values.reason}")
    if isinstance(values, str):
        return Titled(id, "", values)
    row = Row(place, values)
    title = value_in(row, title_column) if title_column in values else None
    shown = "" if title is None else checked_text(row, title_column, str(title))
    return Titled(id, " ".join(shown.split()), text_in(row, text_column))


@dataclass
class Collected:
    """Queries that were found in texts, and the documents that answer them. Equal texts are one document.

    Attributes:
      least: words of a document; shorter ones are left out.
      queries: the number of each query, from 1.
      titles: the title of each query.
      answers: the ids of the documents of each query.
      short, copies: ids of documents that were left out.
      untitled: ids of documents that answer no query.
    """

    least: int
    queries: dict[str, int] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    short: list[str] = field(default_factory=list)
    untitled: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    _seen: dict[bytes, str] = field(default_factory=dict)

    def documents(self, texts: Iterable[Titled]) -> Iterator[tuple[str, str]]:
        """Yields the id and the text of each new document, and keeps its query."""
        for one in texts:
            for number, section in enumerate(sections(one.text, one.title), 1):
                query, text, id = section.query, section.text, f"{one.id}#{number}"
                if len(text.split()) < self.least:
                    self.short.append(id)
                    continue
                first = self._seen.setdefault(hashlib.sha256(text.encode()).digest(), id)
                self.copies += [id] * (first != id)
                if query:
                    self.queries.setdefault(query, len(self.queries) + 1)
                    self.titles.setdefault(query, section.title or query)
                    own = self.answers.setdefault(query, [])
                    own += [first] * (first not in own)
                else:
                    self.untitled.append(id)
                if first == id:
                    yield id, text


def split(titles: Iterable[str], dev_size: float, test_size: float) -> Mapping[str, str]:
    """Returns the split of each title, by the order of the titles' SHA-256. Sizes below 1 are shares.

    Raises:
      InputError: a split would be empty.
    """
    order = sorted(set(titles), key=lambda title: hashlib.sha256(title.encode()).digest())
    test, dev = (max(1, round(size * len(order) if size < 1 else size)) for size in (test_size, dev_size))
    if test + dev >= len(order):
        raise InputError(f"{len(order)} titles are too few for {dev} in dev and {test} in test (--dev-size, --test-size)")
    return {title: "test" if i < test else "dev" if i < test + dev else "train" for i, title in enumerate(order)}
