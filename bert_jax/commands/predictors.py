"""The commands that predict: one text per line or row in, one JSON object per line out, in the same order and without delay."""

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple

import tyro

import bert_jax
from bert_jax import compilation_cache
from bert_jax.config import InputError, did_you_mean
from bert_jax.data import files
from bert_jax.pooling import PoolingMode

_FIRST, _MOST, _MOST_BYTES = 256, 4096, 1 << 22  # lines of the first chunk and of later ones, and bytes of one
_TABLES = (".csv", ".tsv", ".parquet")
_SQUAD = '{"data": [{"paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ...}]}]}]}'
_Flag = tyro.conf.FlagCreatePairsOff[bool]  # without a --no-... of its own
_Model = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
_File = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[FILE]")]
_Length = Annotated[int | None, tyro.conf.arg(aliases=["--max-length"])]
_Row = dict[str, Any]
_Fields = dict[str, Callable[[Any], Any]]  # of the output, from a prediction


@dataclass(frozen=True)
class Rows:
    """The options that all commands that predict share."""

    model: _Model
    """Pretrained directory, work directory of `bert_jax train`, or name on the hub."""
    file: _File = "-"
    """File to read, of a format named above; `-` is standard input."""
    max_seq_length: _Length = None
    """Tokens of a text, special tokens included. Default: the length of fine-tuning, else the longest that the model takes."""
    keep_columns: _Flag = False
    """Print all columns or fields of a row under their names; input_NAME for a name that a prediction has too."""
    quotes: files.Quotes = "auto"
    """Whether double quotes enclose fields of a .csv or .tsv; auto: in a .csv, and in a .tsv whose fields look quoted."""
    special_tokens: Literal["read", "text"] | None = None
    """Read `[SEP]` in a text as that token, or as plain text; default: what the model's files say, mostly read."""
    exact: _Flag = False
    """Compute the same bits for a text in any file and at any place (docs/numerics.md); slower."""


@dataclass(frozen=True)
class Texts(Rows):
    """The options of the commands that read texts."""

    file: _File = "-"
    """Plain text, one per line; .jsonl, one JSON object per line; .csv or .tsv with a header; .parquet. `-` is standard input."""
    text_column: str | None = None
    """Column, or field of the JSON objects, that holds the text; default: text. If it is given, standard input is JSONL."""


class _Item(NamedTuple):
    """A line or row: its texts by field of the output, None for a null, and the fields that are printed."""

    texts: dict[str, str | None]
    shown: _Row


# --- reading ---


def _name(path: str) -> str:
    return "stdin" if path == "-" else path


def _open(path: str, quotes: files.Quotes = "auto", say: bool = True) -> tuple[Iterator[Any], Callable[[], bool]]:
    """Returns the lines (questions of a .json, rows of a table), and a function: is the next one there, without waiting?

    With `say`, remarks on how a table was read are printed.
    """
    if path != "-" and (os.path.isfile(path) or os.path.isdir(path) or not os.path.exists(path)):
        lines: Iterator[Any] = (line for _, line in files.read_lines(path))
        if files.suffix_of(path) == ".json":
            lines = files.squad_questions(path)
        elif files.suffix_of(path) in _TABLES:
            table = files.read_table(path, quotes)
            for remark in table.remarks if say else ():
                print(remark, file=sys.stderr)
            lines = table.rows
        # the first is read at once: a file that is missing is missed before the model is loaded
        return chain(list(islice(lines, 1)), lines), lambda: True
    handle = sys.stdin.fileno() if path == "-" else path
    if path == "-" and sys.stdin.isatty():
        print("a text a line; Ctrl-D ends", file=sys.stderr)

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
    """Yields rows in lists of one or, while the next is `ready`, more. An InputError is raised after the rows before it."""
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


def _item(where: str, line: Any, columns: dict[str, str], jsonl: bool, mask: str, keep: bool) -> _Item:
    """Returns the texts of a line or row; none for an empty line of JSONL. A text that is not empty must have a `mask`.

    `columns` maps each field of the output to the column or JSON field that it comes from; a plain line holds them in this order.
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
        line = files.json_object(text) if jsonl else dict(zip(columns.values(), parts, strict=True))
        if isinstance(line, files.Bad):
            raise InputError(f"{where}: {line.reason}")
    if isinstance(line, files.Row):
        where, line = line
    texts: dict[str, str | None] = {}
    for name, column in columns.items():
        if column not in line:
            flag = {"text": " (--text-column)", "text_pair": " (--pair-column)"}.get(name, "")
            raise InputError(f"{where}: no {column!r}, it has {', '.join(line) or 'nothing'}{did_you_mean(column, line)}{flag}")
        text = line[column]
        texts[name] = None if text is None or text != text or (mask and text == "") else text  # NaN: pandas' null
        if texts[name] is None:
            continue
        if not isinstance(text, str):
            raise InputError(f"{where}: {column!r} is a {type(text).__name__}, not a string")
        if re.search("[\ud800-\udfff]", text):
            raise InputError(f"{where}: {column!r} has half of a surrogate pair; remove it")
        if mask not in text:
            raise InputError(f"{where}: no {mask} in {text[:60]!r}")
    if keep:
        return _Item(texts, dict(line))
    shown = {"id": line["id"]} if "question" in columns and "id" in line else {}
    return _Item(texts, shown | {name: line[column] for name, column in columns.items() if name != "context"})


def _texts(texts: Texts, pair_column: str | None = None, pairs: bool = False) -> tuple[Texts, dict[str, str], bool]:
    """Returns the first arguments of `_predict`: options, columns, and True for JSON objects and rows of a table."""
    if files.suffix_of(texts.file) == ".json":
        raise InputError(
            f"{texts.file}: expected plain text, a text a line, .jsonl, a JSON object a line, .csv, .tsv or .parquet"
        )
    named = files.suffix_of(texts.file) in (".jsonl", *_TABLES) or bool(texts.text_column or pair_column)
    if pairs and named:
        raise InputError(
            "--pairs is for plain text; --text-column and --pair-column name the two texts of JSON objects and tables"
        )
    pair = {"text_pair": pair_column or ""} if pair_column or pairs else {}
    return texts, {"text": texts.text_column or "text"} | pair, named


# --- predicting ---


def _predict(
    texts: Rows, columns: dict[str, str], jsonl: bool, make: Callable[[Any], tuple[Any, _Fields]],
    write: Callable[[Any, list[bool]], None] | None = None,
) -> None:  # fmt: skip
    """Prints each row with its prediction, or passes the predictions to `write`.

    `make` returns the predictor of a model and the fields of its predictions. A row with a null text has null as prediction (NaN
    for `write`); these rows are counted on stderr.
    """
    from bert_jax.console import predicting

    path = texts.file
    if texts.quotes != "auto" and files.suffix_of(path) not in (".csv", ".tsv"):
        raise InputError(f"--quotes {texts.quotes} is for .csv and .tsv, and {_name(path)} is neither")
    lines, ready = _open(path, texts.quotes)
    compilation_cache.keep()
    predictor, fields = make(bert_jax.load(texts.model, special_tokens=texts.special_tokens))
    mask = predictor.tokenizer.mask_token if isinstance(predictor, bert_jax.FillMask) else ""
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
                warnings.warn(f"{lost} of {len(some)} texts are null{empty}: so are their predictions", stacklevel=1)
            if write is not None:
                write(answers, whole)
            else:
                each = iter(answers)
                for item, can in zip(some, whole, strict=True):
                    answer = next(each) if can else None
                    found = {name: _plain(tell(answer)) if can else None for name, tell in fields.items()}
                    sys.stdout.buffer.write(_line(item.shown, found))
                sys.stdout.buffer.flush()
            advance(len(chunk))


def _line(shown: _Row, found: _Row) -> bytes:
    """Returns a line of JSON: a row and its prediction. A column with the name of a prediction gets the prefix `input_`."""
    row: _Row = {}
    for name, value in shown.items():
        while name in found or name in row:
            name = f"input_{name}"
        row[name] = _kept(value)
    line = json.dumps(row | found, ensure_ascii=False, default=str)  # dates and the like
    return line.encode("utf-8", "backslashreplace") + b"\n"  # of half a surrogate pair, JSON's own spelling


def _kept(value: Any) -> Any:
    """Returns a value of a row in JSON's types: null for numbers that are not finite, text for bytes."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {str(name): _kept(each) for name, each in value.items()}
    return [_kept(each) for each in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    """Returns a prediction in JSON's types: floats with the 7 significant digits of float32, null if they are not finite."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def _npy(path: str) -> Iterator[Callable[[Any, list[bool]], None]]:
    """Yields a function that appends rows to a float32 array, a row of NaN for each False.

    The file appears when all rows are written, or not at all.
    """
    import numpy as np

    temporary, shape = f"{path}.{os.getpid()}.tmp", (0, 0)

    def write_header() -> None:  # of a length that does not depend on the number of rows
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})

    def append(vectors: Any, whole: list[bool]) -> None:
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


def _whole(found: Any) -> Any:
    return found


def fill_mask(texts: Texts, top_k: int = 5, targets: tuple[str, ...] = ()) -> None:
    """Predict the tokens at the masks of texts: {"text", "fillings": [{"token", "score", "text", "mask"}]}.

    A mask is the mask token of the model's tokenizer, [MASK] or <mask>; each text that is not empty needs at least one.

    Args:
        texts: The texts.
        top_k: Candidates for each mask.
        targets: Candidates, each a single token of the model; default: the whole vocabulary.
    """

    def make(model: bert_jax.Model) -> tuple[bert_jax.FillMask, _Fields]:
        fill = bert_jax.FillMask(model, top_k, targets or None, max_length=texts.max_seq_length, exact=texts.exact)
        return fill, {"fillings": _whole}

    _predict(*_texts(texts), make)


def classify(texts: Texts, pair_column: str | None = None, pairs: _Flag = False, threshold: float | None = None) -> None:
    """Classify texts or pairs of texts: {"text", "label", "score", "scores"}.

    Pairs also have "text_pair", and a multi-label model also gives "labels". The score of a regression is its value.

    Args:
        texts: The texts.
        pair_column: Column, or field of the JSON objects, that holds the second text of a pair.
        pairs: Each plain line is a pair of texts with a tab between them.
        threshold: Probability from which a text has a label (multi-label models). Default: for each label the threshold that
            fine-tuning chose on the dev set, else 0.5.
    """

    def make(model: bert_jax.Model) -> tuple[bert_jax.Classifier, _Fields]:
        classifier = bert_jax.Classifier(model, threshold, max_length=texts.max_seq_length, exact=texts.exact)
        several = classifier.problem_type == "multi_label_classification"
        return classifier, {name: attrgetter(name) for name in ("label", "score", "scores", *["labels"] * several)}

    _predict(*_texts(texts, pair_column, pairs), make)


def tag(texts: Texts, aggregation: Literal["simple", "first", "average", "max"] = "first", outside: str = "O") -> None:
    """Find the entities in texts: {"text", "entities": [{"label", "start", "end", "text", "score"}]}.

    A model whose labels are not entities, such as parts of speech, gives every word with its label.

    Args:
        texts: The texts.
        aggregation: Label of a word of several tokens: each token's own (simple), the first token's, the one with the highest
            mean probability (average), or that of the token with the highest probability (max).
        outside: Label of the words that are in no entity.
    """

    def make(model: bert_jax.Model) -> tuple[bert_jax.Tagger, _Fields]:
        tagger = bert_jax.Tagger(model, aggregation, outside, max_length=texts.max_seq_length, exact=texts.exact)
        return tagger, {"entities": _whole}

    _predict(*_texts(texts), make)


def answer(
    rows: Rows, top_k: int = 1, no_answer: _Flag = False, null_threshold: float | None = None, max_answer_length: int = 30,
    stride: int = 128, max_question_length: int | None = None,
) -> None:  # fmt: skip
    """Answer questions from contexts: {"id", "question", "answers": [{"text", "start", "end", "score"}]}.

    FILE has the columns or fields question, context and optionally id (.jsonl, .csv, .tsv, .parquet), or is a .json in SQuAD's
    layout; `-` is JSONL from standard input. Long contexts are read in windows of --max-seq-length tokens, which hold the
    question, a part of the context and special tokens; default: the length of fine-tuning, for other models 384.

    Args:
        rows: The questions and contexts.
        top_k: Answers to each question.
        no_answer: Allow the empty answer, "there is none", as in SQuAD 2.0. Default: if fine-tuning chose a threshold for it.
        null_threshold: Give no answer if its logit exceeds that of the best answer by more than this; `inf`: always answer.
            Default: the threshold that fine-tuning chose on the dev set, else 0.
        max_answer_length: Most tokens of an answer.
        stride: Tokens from the start of one window to the start of the next.
        max_question_length: Most tokens of a question; the rest is cut. Default: 64, or half of a shorter window.
    """
    if os.path.isfile(rows.file) and files.suffix_of(rows.file) not in (".json", ".jsonl", *_TABLES):
        expected = f'.jsonl, with {{"question": ..., "context": ...}} a line, .csv, .tsv or .parquet, or .json: {_SQUAD}'
        raise InputError(f"{rows.file}: expected {expected}")

    def make(model: bert_jax.Model) -> tuple[bert_jax.Answerer, _Fields]:
        answerer = bert_jax.Answerer(
            model, top_k, no_answer or None, null_threshold, max_answer_length, rows.max_seq_length, stride, max_question_length,
            exact=rows.exact,
        )  # fmt: skip
        names = ("text", "start", "end", "score")
        return answerer, {"answers": lambda found: [{name: getattr(one, name) for name in names} for one in found]}

    _predict(rows, {"question": "question", "context": "context"}, True, make)


def embed(
    texts: Texts, out: str | None = None, pooling: PoolingMode | None = None, normalize: _Flag = False,
    no_normalize: _Flag = False, prompt_name: str | None = None,
) -> None:  # fmt: skip
    """Embed each text as a vector: {"text", "embedding": [...]}, or one array of all vectors.

    Args:
        texts: The texts.
        out: File for a float32 array [texts, width] (NumPy's .npy), instead of JSONL.
        pooling: How the tokens become one vector (docs/reference.md, Pooling); default: what the model's files say, else mean.
        normalize: Scale vectors to length 1; default: what the model's files say, else yes.
        no_normalize: Do not scale vectors.
        prompt_name: Name of the model's prompt that precedes each text, such as query; default: what the model's files say.
    """
    if normalize and no_normalize:
        raise InputError("--normalize and --no-normalize: give one of them")
    if texts.keep_columns and out:
        raise InputError(f"--keep-columns and --out {out}: an array has no columns; leave one of them out")
    scaled = normalize if normalize or no_normalize else None

    def make(model: bert_jax.Model) -> tuple[bert_jax.Embedder, _Fields]:
        changes = {"mode": pooling, "normalize": scaled, "max_length": texts.max_seq_length}
        chosen: Any = {name: value for name, value in changes.items() if value is not None}
        how = replace(model.pooling, **chosen) if isinstance(model.pooling, bert_jax.Pooling) else None
        if how is None and chosen:
            how = bert_jax.Pooling(**chosen)
        embedder = bert_jax.Embedder(model, how, exact=texts.exact)
        if prompt_name is not None:
            embedder = bert_jax.Embedder(model, embedder.pooling.with_prompt(prompt_name), exact=texts.exact)
        return embedder, {"embedding": lambda vector: vector.tolist()}

    with _npy(out) if out else contextlib.nullcontext() as write:
        _predict(*_texts(texts), make, write)
