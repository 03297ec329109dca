"""The commands that predict: they read a text per line or row, and write a JSON object per line, in order and without delay."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import re
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

import bert_jax
from bert_jax import compilation_cache
from bert_jax.config import InputError, did_you_mean
from bert_jax.data import files
from bert_jax.hub import find
from bert_jax.pooling import PoolingMode
from bert_jax.static import is_static, refuse_for_tables

if TYPE_CHECKING:  # numpy is imported with the model
    import numpy as np

    _Line = bytes | files.Row | Mapping[str, object]  # text, a row of a table, or a question of a .json
    _Write = Callable[[np.ndarray, list[bool]], None]

_FIRST, _MOST, _MOST_BYTES = 256, 4096, 1 << 22  # lines of the first chunk and of later ones, and bytes of one
_SQUAD = '{"data": [{"paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ...}]}]}]}'
_Flag = tyro.conf.FlagCreatePairsOff[bool]  # without a --no-... of its own
_Model = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
_File = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[FILE]")]
_Length = Annotated[int | None, tyro.conf.arg(aliases=["--max-length"])]


@dataclass(frozen=True)
class Rows:
    """The options that all commands that predict share."""

    model: _Model
    """Pretrained directory, work directory of `bert_jax train`, or name on the hub."""
    file: _File = "-"
    """File to read, in a format named above; `-` is standard input."""
    max_seq_length: _Length = None
    """Maximum tokens per text, special tokens included. Default: the length of fine-tuning, else that of the model."""
    keep_columns: _Flag = False
    """Print all columns or fields of a row, too; a column named like a field of the prediction becomes input_NAME."""
    quotes: files.Quotes = "auto"
    """Double quotes enclose fields (csv) or are text (none). auto: csv in .csv, and in .tsv if the whole file agrees with it."""
    special_tokens: Literal["read", "text"] | None = None
    """Read special tokens in a text, such as `[SEP]`, as these tokens, or as text. Default: as in the model's files."""
    exact: _Flag = False
    """Make predictions independent, bit by bit, of the other texts in the file (docs/numerics.md); slower."""


@dataclass(frozen=True)
class Texts(Rows):
    """The options of the commands that read texts."""

    file: _File = "-"
    """Plain text, one per line; .jsonl, one JSON object per line; .csv or .tsv with header; .parquet. `-`: standard input."""
    text_column: str | None = None
    """Column or JSON field of the text. Default: text. With it, standard input is JSONL."""


class _Item(NamedTuple):
    """A line or row: its texts by output field, None for a null, and the fields that are printed."""

    texts: dict[str, str | None]
    shown: dict[str, object]


class _Made(NamedTuple):
    """A predictor, the fields of its predictions, and the mask that each text needs, if there is one."""

    predictor: Callable[[Sequence[Any]], Sequence[Any] | np.ndarray]
    fields: dict[str, Callable[[Any], object]]
    mask: str = ""


# --- reading ---


def _name(path: str) -> str:
    return "stdin" if path == "-" else path


def _open(path: str, quotes: files.Quotes = "auto", say: bool = True) -> tuple[Iterator[_Line], Callable[[], bool]]:
    """Returns the lines, and a function that tells whether the next one is there; with `say`, remarks on a table are printed."""
    if path != "-" and (os.path.isfile(path) or os.path.isdir(path) or not os.path.exists(path)):
        lines: Iterator[_Line] = (line for _, line in files.read_lines(path))
        if files.suffix_of(path) == ".json":
            lines = files.squad_questions(path)
        elif files.suffix_of(path) in files.HEADED_SUFFIXES:
            table = files.read_table(path, quotes)
            for remark in table.remarks if say else ():
                print(remark, file=sys.stderr)
            lines = table.rows
        # The first line is read at once, so that a missing file is reported before the model is loaded.
        return chain(list(islice(lines, 1)), lines), lambda: True
    handle = sys.stdin.fileno() if path == "-" else path
    if path == "-" and sys.stdin.isatty():
        print("Type one text per line; Ctrl-D ends.", file=sys.stderr)

    def opened() -> Iterator[bytes]:  # not sys.stdin: a thread that waits for it holds its lock when the interpreter ends
        with open(handle, "rb", closefd=path != "-") as file:
            yield file.readline().removeprefix(files.BOM)
            yield from file

    if stat.S_ISREG(os.stat(handle).st_mode):
        return filter(None, opened()), lambda: True
    ahead: queue.Queue[bytes | Exception] = queue.Queue(_MOST)

    def fill() -> None:
        try:
            for line in filter(None, opened()):
                ahead.put(line)
            ahead.put(StopIteration())
        except OSError as error:
            ahead.put(InputError(f"{_name(path)}: cannot be read ({error.strerror})"))

    def taken() -> Iterator[bytes]:
        while not isinstance(line := ahead.get(), StopIteration):
            if isinstance(line, Exception):
                raise line
            yield line

    threading.Thread(target=fill, daemon=True).start()
    return taken(), lambda: not ahead.empty()


def _chunks(rows: Iterator[_Item], ready: Callable[[], bool]) -> Iterator[list[_Item]]:
    """Yields lists of rows: one, and more while the next is `ready`. Raises an InputError after the rows before it."""
    most, end = _FIRST, None
    while end is None:
        chunk: list[_Item] = []
        size = 0
        while end is None and len(chunk) < most and size < _MOST_BYTES and (not chunk or ready()):
            try:
                chunk.append(next(rows))
                size += sum(len(text or "") for text in chunk[-1].texts.values())
            except (StopIteration, InputError) as error:
                end = error
        most = min(most * 4, _MOST)
        yield chunk
    if isinstance(end, InputError):
        raise end


def _item(where: str, line: _Line, columns: dict[str, str], jsonl: bool, mask: str, keep: bool) -> _Item:
    """Returns the texts of a line or row; none for an empty line of JSONL. A text that is not empty must have a `mask`.

    `columns` maps each field of the output to a column or JSON field of the input; a plain line holds them in this order.
    """
    if isinstance(line, bytes):
        text = files.decode(line)
        if not isinstance(text, str):
            raise InputError(f"{where}: {text.reason}")
        if jsonl and not text.strip():
            return _Item({}, {})
        parts = text.split("\t") if len(columns) > 1 and text else [text] * len(columns)
        if not jsonl and len(parts) != len(columns):
            raise InputError(f"{where}: {len(parts) - 1} tabs; --pairs expects one, between the two texts")
        values = files.json_object(text) if jsonl else dict(zip(columns.values(), parts, strict=True))
        if isinstance(values, files.Bad):
            raise InputError(f"{where}: {values.reason}")
        line = values
    if isinstance(line, files.Row):
        where, line = line
    texts = {name: _text(where, line, name, column, mask) for name, column in columns.items()}
    if keep:
        return _Item(texts, dict(line))
    shown = {"id": line["id"]} if "question" in columns and "id" in line else {}
    return _Item(texts, shown | {name: line[column] for name, column in columns.items() if name != "context"})


def _text(where: str, line: Mapping[str, object], name: str, column: str, mask: str) -> str | None:
    """Returns the text of a column; None for a null and, where a mask is needed, for an empty text."""
    if column not in line:
        flag = {"text": " (--text-column)", "text_pair": " (--pair-column)"}.get(name, "")
        raise InputError(f"{where}: no {column!r}, it has {', '.join(line) or 'nothing'}{did_you_mean(column, line)}{flag}")
    text = line[column]
    if text is None or text != text or (mask and text == ""):  # NaN is pandas' null
        return None
    if not isinstance(text, str):
        raise InputError(f"{where}: {column!r} is a {type(text).__name__}, not a string")
    if re.search("[\ud800-\udfff]", text):
        raise InputError(f"{where}: {column!r} has half of a surrogate pair; remove it")
    if mask not in text:
        raise InputError(f"{where}: no {mask} in {text[:60]!r}")
    return text


def _texts(texts: Texts, pair_column: str | None = None, pairs: bool = False) -> tuple[Texts, dict[str, str], bool]:
    """Returns the first arguments of `_predict`: the options, the columns, and True where the input is JSON or a table."""
    if files.suffix_of(texts.file) == ".json":
        raise InputError(f"{texts.file}: give plain text, one per line; .jsonl, one JSON object per line; .csv, .tsv or .parquet")
    named = files.suffix_of(texts.file) in (".jsonl", *files.HEADED_SUFFIXES) or bool(texts.text_column or pair_column)
    if pairs and named:
        raise InputError(
            "--pairs is for plain text; for JSON objects and tables, name the two texts: --text-column NAME --pair-column NAME"
        )
    pair = {"text_pair": pair_column or ""} if pair_column or pairs else {}
    return texts, {"text": texts.text_column or "text"} | pair, named


# --- predicting ---


def _model(rows: Rows) -> bert_jax.Model:
    """Reads the model of a command."""
    compilation_cache.keep()
    return bert_jax.load(rows.model, special_tokens=rows.special_tokens)


def _table(texts: Texts, home: Path, scaled: bool | None, prompt_name: str | None) -> _Made:
    """Reads a table of token vectors."""
    refuse_for_tables(texts.model, {"max_seq_length": texts.max_seq_length, "special_tokens": texts.special_tokens})
    table = bert_jax.StaticEmbedder.load(home)
    table = table if scaled is None else replace(table, normalize=scaled)
    return _Made(partial(table, prompt_name=prompt_name), {"embedding": lambda vector: vector.tolist()})


def _predict(texts: Rows, columns: dict[str, str], jsonl: bool, make: Callable[[], _Made], write: _Write | None = None) -> None:
    """Prints each row with its prediction, or passes the predictions to `write`.

    The prediction for a row with a null text is null (NaN for `write`); these rows are counted on stderr.
    """
    import numpy as np

    from bert_jax.console import predicting

    path = texts.file
    delimited = [suffix for suffix in files.DELIMITED_SUFFIXES if suffix != ".txt"]
    if texts.quotes != "auto" and files.suffix_of(path) not in delimited:
        raise InputError(
            f"--quotes {texts.quotes} is for {' and '.join(delimited)} files, and {_name(path)} is none: leave it out"
        )
    lines, ready = _open(path, texts.quotes)
    predictor, fields, mask = make()
    items = (_item(f"{_name(path)}:{n}", line, columns, jsonl, mask, texts.keep_columns) for n, line in enumerate(lines, 1))
    typed = path == "-" and sys.stdin.isatty()
    shown = sys.stderr.isatty() and not typed and (write is not None or not sys.stdout.isatty())
    total = sum(1 for _ in _open(path, texts.quotes, say=False)[0]) if shown and os.path.isfile(path) else None
    with predicting(total, shown) as advance:
        for chunk in _chunks(items, ready):
            some = [item for item in chunk if item.texts]
            whole = [None not in item.texts.values() for item in some]
            asked = [tuple(item.texts.values()) for item, can in zip(some, whole, strict=True) if can]
            answers = predictor([item if len(item) > 1 else item[0] for item in asked])
            if lost := len(some) - len(asked):
                empty = " or empty" if mask else ""
                warnings.warn(f"{lost} of {len(some)} texts are null{empty}, so their predictions are null", stacklevel=1)
            if write is not None:
                write(np.asarray(answers), whole)
            else:
                each = iter(answers)
                for item, can in zip(some, whole, strict=True):
                    answer = next(each) if can else None
                    found = {name: _plain(tell(answer)) if can else None for name, tell in fields.items()}
                    sys.stdout.buffer.write(_line(item.shown, found))
                sys.stdout.buffer.flush()
            advance(len(chunk))


def _line(shown: dict[str, object], found: dict[str, object]) -> bytes:
    """Returns a line of JSON: a row and its prediction. A column with the name of a prediction gets the prefix `input_`."""
    row = dict[str, object]()
    for name, value in shown.items():
        while name in found or name in row:
            name = f"input_{name}"
        row[name] = _kept(value)
    line = json.dumps(row | found, ensure_ascii=False, default=str)  # dates and the like
    return line.encode("utf-8", "backslashreplace") + b"\n"  # half a surrogate pair as JSON spells it


def _kept(value: object) -> object:
    """Returns a value of a row in JSON's types: null for numbers that are not finite, text for bytes."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {str(name): _kept(each) for name, each in value.items()}
    return [_kept(each) for each in value] if isinstance(value, (list, tuple)) else value


def _plain(value: object) -> object:
    """Returns a prediction in JSON's types: floats with the 7 significant digits of float32, null if they are not finite."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def _npy(path: str) -> Iterator[_Write]:
    """Yields a function that appends rows to a float32 array, a row of NaN for each False; a whole file appears, or none."""
    import numpy as np

    temporary, shape = f"{path}.{os.getpid()}.tmp", (0, 0)

    def write_header() -> None:  # its length does not depend on the number of rows
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})

    def append(vectors: np.ndarray, whole: list[bool]) -> None:
        nonlocal shape
        shape = (shape[0] + len(whole), vectors.shape[1])
        if not file.tell():
            write_header()
        rows = np.full((len(whole), vectors.shape[1]), np.nan, "<f4")
        rows[whole] = vectors
        file.write(rows.tobytes())

    try:
        with open(temporary, "wb") as file:
            yield append
            write_header()
        os.replace(temporary, path)
        print(f"{shape[0]} vectors of {shape[1]} in {path}", file=sys.stderr)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


# --- the commands ---


def fill_mask(texts: Texts, top_k: int = 5, targets: tuple[str, ...] = ()) -> None:
    """Predict the tokens at the masks of texts: {"text", "fillings": [{"token", "score", "text", "mask"}]}.

    Each text needs the mask token of the tokenizer, [MASK] or <mask>.

    Args:
        texts: The texts.
        top_k: Number of candidates for each mask.
        targets: Consider only these candidates, each a single token of the model. Default: the whole vocabulary.
    """

    def make() -> _Made:
        fill = bert_jax.FillMask(_model(texts), top_k, targets or None, max_length=texts.max_seq_length, exact=texts.exact)
        return _Made(fill, {"fillings": list}, fill.tokenizer.mask_token)

    _predict(*_texts(texts), make)


def classify(texts: Texts, pair_column: str | None = None, pairs: _Flag = False, threshold: float | None = None) -> None:
    """Classify texts or pairs of texts: {"text", "label", "score", "scores"}.

    Pairs also have "text_pair", and multi-label models add "labels". The score of a regression is its value.

    Args:
        texts: The texts.
        pair_column: Column or JSON field of the second text of a pair.
        pairs: Each plain line is a pair of texts, separated by a tab.
        threshold: Minimum probability of the labels that a text gets (multi-label models). Default: the best for each label on
            the dev set of fine-tuning, else 0.5.
    """

    def make() -> _Made:
        classifier = bert_jax.Classifier(_model(texts), threshold, max_length=texts.max_seq_length, exact=texts.exact)
        several = classifier.problem_type == "multi_label_classification"
        return _Made(classifier, {name: attrgetter(name) for name in ("label", "score", "scores", *["labels"] * several)})

    _predict(*_texts(texts, pair_column, pairs), make)


def tag(texts: Texts, aggregation: Literal["simple", "first", "average", "max"] = "first", outside: str = "O") -> None:
    """Find the entities in texts: {"text", "entities": [{"label", "start", "end", "text", "score"}]}.

    If the labels are not entities, such as parts of speech, every word is printed with its label.

    Args:
        texts: The texts.
        aggregation: Label of a word of several tokens: that of each token by itself (simple), of the first token (first), with
            the highest mean probability (average), or of the token with the highest probability (max).
        outside: Label of words outside entities.
    """

    def make() -> _Made:
        tagger = bert_jax.Tagger(_model(texts), aggregation, outside, max_length=texts.max_seq_length, exact=texts.exact)
        return _Made(tagger, {"entities": list})

    _predict(*_texts(texts), make)


def answer(
    rows: Rows, top_k: int = 1, no_answer: _Flag = False, null_threshold: float | None = None, max_answer_length: int = 30,
    stride: int = 128, max_question_length: int | None = None,
) -> None:  # fmt: skip
    """Answer questions from contexts: {"id", "question", "answers": [{"text", "start", "end", "score"}]}.

    FILE has the columns or fields question, context and optionally id (.jsonl, .csv, .tsv, .parquet), or is a .json in SQuAD's
    layout; `-` is JSONL from standard input. Long contexts are read in windows of --max-seq-length tokens: the question, a part
    of the context and special tokens. Default: the length of fine-tuning, else 384.

    Args:
        rows: The questions and contexts.
        top_k: Number of answers to each question.
        no_answer: Allow "no answer" (the empty text), as in SQuAD 2.0. Default: on if fine-tuning found a threshold for it.
        null_threshold: Give no answer if its logit exceeds that of the best answer by more than this; `inf`: always answer.
            Default: the best on the dev set of fine-tuning, else 0.
        max_answer_length: Maximum tokens per answer.
        stride: Tokens between the starts of windows.
        max_question_length: Maximum tokens per question; the rest is cut. Default: 64, or half of a shorter window.
    """
    if os.path.isfile(rows.file) and files.suffix_of(rows.file) not in (".json", ".jsonl", *files.HEADED_SUFFIXES):
        expected = f'.jsonl, with {{"question": ..., "context": ...}} on each line, .csv, .tsv or .parquet, or .json: {_SQUAD}'
        raise InputError(f"{rows.file}: expected {expected}")

    def make() -> _Made:
        answerer = bert_jax.Answerer(
            _model(rows), top_k, no_answer or None, null_threshold, max_answer_length, rows.max_seq_length, stride,
            max_question_length, exact=rows.exact,
        )  # fmt: skip
        names = ("text", "start", "end", "score")
        return _Made(answerer, {"answers": lambda found: [{name: getattr(one, name) for name in names} for one in found]})

    _predict(rows, {"question": "question", "context": "context"}, True, make)


def embed(
    texts: Texts, out: str | None = None, pooling: PoolingMode | None = None, normalize: _Flag = False,
    no_normalize: _Flag = False, prompt_name: str | None = None,
) -> None:  # fmt: skip
    """Embed each text as a vector: {"text", "embedding": [...]}, or all as one array.

    A sparse retriever (finetune --form sparse) gives the weights of tokens instead: {"text", "embedding": {token: weight}}; one
    with --query-weights looks up those of queries with --prompt-name query. One of --form multi_vector gives a vector for each
    token of a document, or with --prompt-name query of a query. A table of `bert_jax static` is read, too.

    Args:
        texts: The texts.
        out: File for a float32 array [texts, width] (NumPy's .npy), instead of JSONL.
        pooling: How vectors of tokens become one (docs/reference.md, Pooling). Default: as in the model's files, else mean.
        normalize: Scale vectors to length 1. Default: as in the model's files, else on.
        no_normalize: Do not scale vectors.
        prompt_name: Put this prompt of the model, such as query, before each text. Default: as in the model's files.
    """
    if normalize and no_normalize:
        raise InputError("--normalize and --no-normalize exclude each other: give one of them")
    if texts.keep_columns and out:
        raise InputError(f"--keep-columns and --out {out}: an array has no columns: leave out one of the two")
    scaled = normalize if normalize or no_normalize else None

    def make() -> _Made:
        home = find(texts.model)
        if is_static(home):
            refuse_for_tables(texts.model, {"pooling": pooling})
            return _table(texts, home, scaled, prompt_name)
        model = _model(replace(texts, model=str(home)))
        if isinstance(model.pooling, bert_jax.SparsePooling):
            if out or pooling or scaled is not None:
                raise InputError(f"{texts.model} is a sparse retriever: leave out --out, --pooling and --[no-]normalize")
            sparse = bert_jax.SparseEmbedder(model, max_length=texts.max_seq_length, exact=texts.exact)
            if prompt_name == "query" and sparse.pooling.query_weights is not None:
                return _Made(lambda some: sparse.words(sparse.queries(some)), {"embedding": dict})
            return _Made(lambda some: sparse.words(sparse(some, prompt_name)), {"embedding": dict})
        if isinstance(model.pooling, bert_jax.TokenVectors):
            if out or pooling or scaled is not None:
                raise InputError(f"{texts.model} has vectors of tokens: leave out --out, --pooling and --[no-]normalize")
            late = bert_jax.MultiVector(model, max_length=texts.max_seq_length, exact=texts.exact)
            named = None if prompt_name == "document" else prompt_name  # the default, under any of its names
            read = late.queries if prompt_name == "query" else partial(late.documents, prompt_name=named)
            return _Made(read, {"embedding": lambda rows: rows.tolist()})
        changes = {"mode": pooling, "normalize": scaled, "max_length": texts.max_seq_length}
        chosen: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        own = model.pooling
        how = replace(own if isinstance(own, bert_jax.Pooling) else bert_jax.Pooling(), **chosen) if chosen else None
        embedder = bert_jax.Embedder(model, how, exact=texts.exact)
        if prompt_name is not None:
            embedder = bert_jax.Embedder(model, embedder.pooling.with_prompt(prompt_name), exact=texts.exact)
        return _Made(embedder, {"embedding": lambda vector: vector.tolist()})

    with _npy(out) if out else contextlib.nullcontext() as write:
        _predict(*_texts(texts), make, write)
