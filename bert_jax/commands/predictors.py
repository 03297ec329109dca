"""The commands that predict: a text a line or row in, a JSON object a line out, in the same order, as soon as it is there."""

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import bert_jax
from bert_jax.config import InputError, did_you_mean
from bert_jax.data import sources, tables
from bert_jax.pooling import PoolingMode

_FIRST, _MOST, _MOST_BYTES = 256, 4096, 1 << 22  # lines of the first chunk and of later ones, and bytes of one
_TABLES = (".csv", ".tsv", ".parquet")
_SQUAD = '{"data": [{"paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ...}]}]}]}'
_Flag = tyro.conf.FlagCreatePairsOff[bool]  # without a --no-... of its own
_Model = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
_File = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[FILE]")]
_Row = dict[str, Any]


@dataclass(frozen=True)
class Texts:
    """What the commands that read texts have in common."""

    model: _Model
    """Pretrained directory, work directory of train.py, or name on the hub."""
    file: _File = "-"
    """A text a line; .jsonl, a JSON object a line; .csv or .tsv with a header; .parquet. `-` is standard input."""
    text_column: str | None = None
    """Column, or field of the JSON objects, that holds the text; default: text. Where given, standard input is JSON too."""
    special_tokens: Literal["read", "text"] | None = None
    """Whether `[SEP]` in a text is that token, or text like any other; default: as the model's files say, mostly read."""


# --- reading ---


def _name(path: str) -> str:
    return "stdin" if path == "-" else path


def _suffix(path: str) -> str:
    return Path(path.removesuffix(sources.codec_of(path))).suffix.lower()


def _open(path: str, say: bool = True) -> tuple[Iterator[Any], Callable[[], bool]]:
    """The lines (of a .json: questions; of a table: rows), and a function that says whether the next one is there and need not be
    waited for. `say`: what was found out about a table is shown."""
    if path != "-" and (os.path.isfile(path) or os.path.isdir(path) or not os.path.exists(path)):
        lines: Iterator[Any] = (line for _, line in sources.read_lines(path, 0, None))
        if _suffix(path) == ".json":
            lines = _questions(path)
        elif _suffix(path) in _TABLES:
            table = tables.read_table(path)
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
            yield file.readline().removeprefix(sources.BOM)
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


def _questions(path: str) -> Iterator[_Row]:
    """The questions of a file in SQuAD's layout, each with its context."""
    try:
        articles = json.loads(b"".join(line for _, line in sources.read_lines(path, 0, None)))["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
        yield from [question | {"context": paragraph["context"]} for paragraph in paragraphs for question in paragraph["qas"]]
    except (KeyError, TypeError):
        raise InputError(f"{path}: not in SQuAD's layout, {_SQUAD}") from None
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{path}: not JSON ({error})") from None


def _chunks(rows: Iterator[_Row], ready: Callable[[], bool]) -> Iterator[list[_Row]]:
    """Rows in lists: at least one, and more while the next is `ready`. An InputError comes behind the rows before it."""
    most, end = _FIRST, None
    while end is None:
        chunk: list[_Row] = []
        size = 0
        while end is None and len(chunk) < most and size < _MOST_BYTES and (not chunk or ready()):
            try:
                chunk.append(next(rows))
                size += sum(len(text) for text in chunk[-1].values() if isinstance(text, str))
            except (StopIteration, InputError) as error:
                end = error
        most = min(most * 4, _MOST)
        yield chunk
    if isinstance(end, InputError):
        raise end


def _row(where: str, line: Any, columns: dict[str, str], jsonl: bool, mask: str) -> _Row:
    """A line's texts, and the id that a question has; nothing for an empty line of JSONL. `mask` must be in the text.

    `columns` says for each field of the output which one of the JSON object it is; a plain line has them in this order.
    """
    if isinstance(line, bytes):
        text = sources.decode(line)
        if not isinstance(text, str):
            raise InputError(f"{where}: {text.reason}")
        if jsonl and not text.strip():
            return {}
        parts = text.split("\t") if len(columns) > 1 and text else [text] * len(columns)
        if not jsonl and len(parts) != len(columns):
            raise InputError(f"{where}: {len(parts) - 1} tabs; --pairs expects one, between the two texts")
        try:
            line = json.loads(text) if jsonl else dict(zip(columns.values(), parts, strict=True))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not a JSON object ({error})") from None
    if isinstance(line, tables.Row):
        where, line = line
    if not isinstance(line, dict):
        raise InputError(f"{where}: a JSON {type(line).__name__}, not an object")
    row = {"id": line["id"]} if "question" in columns and "id" in line else {}
    for name, column in columns.items():
        if column not in line:
            flag = {"text": " (--text-column)", "text_pair": " (--pair-column)"}.get(name, "")
            raise InputError(f"{where}: no {column!r}, it has {', '.join(line) or 'nothing'}{did_you_mean(column, line)}{flag}")
        if not isinstance(text := line[column], str):
            raise InputError(f"{where}: {column!r} is a {type(text).__name__}, not a string")
        if re.search("[\ud800-\udfff]", text):
            raise InputError(f"{where}: {column!r} has half of a surrogate pair; remove it")
        if mask not in text:
            raise InputError(f"{where}: no {mask} in {text[:60]!r}")
        row[name] = text
    return row


def _texts(texts: Texts, pair_column: str | None = None, pairs: bool = False) -> tuple[Texts, dict[str, str], bool]:
    """What `_predict` needs to know of texts: the columns, and whether lines are JSON objects or rows of a table."""
    if _suffix(texts.file) == ".json":
        raise InputError(
            f"{texts.file}: expected plain text, a text a line, .jsonl, a JSON object a line, .csv, .tsv or .parquet"
        )
    named = _suffix(texts.file) in (".jsonl", *_TABLES) or bool(texts.text_column or pair_column)
    if pairs and named:
        raise InputError(
            "--pairs is for plain text; --text-column and --pair-column name the two texts of JSON objects and tables"
        )
    pair = {"text_pair": pair_column or ""} if pair_column or pairs else {}
    return texts, {"text": texts.text_column or "text"} | pair, named


# --- predicting ---


def _cache_compilations() -> None:
    """Keeps compiled programs in the user's cache folder, where no other is set: a second run starts fast."""
    import jax

    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "bert_jax" / "xla"
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that is not to be written to
        if jax.config.jax_compilation_cache_dir is None:
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                jax.config.update("jax_compilation_cache_dir", str(folder))
                jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _predict(
    texts: Texts, columns: dict[str, str], jsonl: bool, make: Callable[[Any], tuple[Any, Callable[[Any], _Row]]],
    write: Callable[[Any], None] | None = None,
) -> None:  # fmt: skip
    """Prints each row with what is predicted of it, or gives the predictions to `write`.

    `make` gives for a model its predictor, and a function from a prediction to the fields that tell it.
    """
    from bert_jax.console import predicting

    path = texts.file
    lines, ready = _open(path)
    _cache_compilations()
    predictor, fields = make(bert_jax.load(texts.model, special_tokens=texts.special_tokens))
    mask = predictor.tokenizer.mask_token if isinstance(predictor, bert_jax.FillMask) else ""
    place = f"{_name(path)}{', question ' if _suffix(path) == '.json' else ':'}"
    rows = (_row(f"{place}{number}", line, columns, jsonl, mask) for number, line in enumerate(lines, 1))
    typed = path == "-" and sys.stdin.isatty()
    shown = sys.stderr.isatty() and not typed and (write is not None or not sys.stdout.isatty())
    total = sum(1 for _ in _open(path, say=False)[0]) if shown and os.path.isfile(path) else None
    with predicting(total, shown) as advance:
        for chunk in _chunks(rows, ready):
            some = [row for row in chunk if row]
            items = [tuple(row[name] for name in columns) for row in some]
            answers = predictor([item if len(item) > 1 else item[0] for item in items])
            if write is not None:
                write(answers)
            else:
                for row, answer in zip(some, answers, strict=True):
                    row.pop("context", None)
                    line = json.dumps(_plain(row | fields(answer)), ensure_ascii=False)
                    sys.stdout.buffer.write(line.encode() + b"\n")
                sys.stdout.buffer.flush()
            advance(len(chunk))


def _plain(value: Any) -> Any:
    """JSON's types; floats have 7 significant digits, as float32 does, and null stands for what is no number."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def _npy(path: str) -> Iterator[Callable[[Any], None]]:
    """A function that appends rows to a float32 array; the file appears when all are written, or not at all."""
    import numpy as np

    temporary, shape = f"{path}.{os.getpid()}.tmp", (0, 0)

    def write_header() -> None:  # of a length that does not depend on the number of rows
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})

    def append(rows: Any) -> None:
        nonlocal shape
        shape = (shape[0] + len(rows), rows.shape[1])
        if not file.tell():
            write_header()
        file.write(rows.astype("<f4").tobytes())

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


def fill_mask(texts: Texts, top_k: int = 5) -> None:
    """Say what the masks of texts may stand for: {"text", "fillings": [{"token", "score", "text", "mask"}]}.

    A mask is what the model's tokenizer calls so, [MASK] or <mask>; each text has at least one.

    Args:
        texts: What is read.
        top_k: Candidates for each mask.
    """
    _predict(*_texts(texts), lambda model: (bert_jax.FillMask(model, top_k), lambda found: {"fillings": found}))


def classify(texts: Texts, pair_column: str | None = None, pairs: _Flag = False, threshold: float | None = None) -> None:
    """Say of what class texts or pairs of texts are: {"text", "label", "score", "scores"}.

    Pairs have "text_pair" too, and models with several labels a text give "labels". Of a regression the score is the value.

    Args:
        texts: What is read.
        pair_column: Column, or field of the JSON objects, that holds the second text of a pair.
        pairs: Plain lines are pairs of texts with a tab between.
        threshold: Probability from which on a text has a label, for models with several labels a text. Default: for each
            label the one that finetune.py tuned on the dev set, else 0.5.
    """

    def make(model: bert_jax.Model) -> tuple[bert_jax.Classifier, Callable[[Any], _Row]]:
        classifier = bert_jax.Classifier(model, threshold)
        several = classifier.problem_type == "multi_label_classification"
        names = ["label", "score", "scores", *["labels"] * several]
        return classifier, lambda found: {name: getattr(found, name) for name in names}

    _predict(*_texts(texts, pair_column, pairs), make)


def tag(texts: Texts, aggregation: Literal["simple", "first", "average", "max"] = "first", outside: str = "O") -> None:
    """Find the entities in texts: {"text", "entities": [{"label", "start", "end", "text", "score"}]}.

    Of a model whose labels are no entities, as parts of speech, every word is given with its label.

    Args:
        texts: What is read.
        aggregation: Label of a word of several tokens: each token's own (simple), that of its first token, that of the mean
            of their probabilities, or that of the token that is surest.
        outside: Label of what is no entity.
    """
    _predict(*_texts(texts), lambda model: (bert_jax.Tagger(model, aggregation, outside), lambda found: {"entities": found}))


def answer(
    model: _Model, file: _File = "-", top_k: int = 1, no_answer: _Flag = False, null_threshold: float | None = None,
    max_answer_length: int = 30, max_length: int | None = None, stride: int = 128, max_question_length: int | None = None,
    special_tokens: Literal["read", "text"] | None = None,
) -> None:  # fmt: skip
    """Answer questions out of contexts: {"id", "question", "answers": [{"text", "start", "end", "score"}]}.

    Args:
        model: Pretrained directory with a span classifier, or name on the hub.
        file: .jsonl with the fields question, context and perhaps id, or .json in SQuAD's layout; `-` is JSONL from standard
            input.
        top_k: Answers to each question.
        no_answer: "There is none", an empty text, is a candidate, as in SQuAD 2.0; it is by default, where finetune.py tuned a
            threshold for it.
        null_threshold: No answer is given where its logit is above the best answer's by more than this; `inf`: there is always
            an answer. Default: the threshold that finetune.py tuned on the dev set, else 0.
        max_answer_length: Tokens of an answer.
        max_length: Tokens of a window: question, stretch of the context and special ones. Default: as many as in fine-tuning,
            of other models 384.
        stride: Tokens from the start of one window to the next.
        max_question_length: Tokens of a question that are read. Default: 64, or half of a shorter window.
        special_tokens: Whether `[SEP]` in a text is that token, or text like any other; default: as the model's files say, mostly
            read.
    """
    if os.path.isfile(file) and _suffix(file) not in (".json", ".jsonl"):
        raise InputError(f'{file}: expected .jsonl, with {{"question": ..., "context": ...}} a line, or .json: {_SQUAD}')

    def make(loaded: bert_jax.Model) -> tuple[bert_jax.Answerer, Callable[[Any], _Row]]:
        answerer = bert_jax.Answerer(
            loaded, top_k, no_answer or None, null_threshold, max_answer_length, max_length, stride, max_question_length
        )
        names = ("text", "start", "end", "score")
        return answerer, lambda found: {"answers": [{name: getattr(one, name) for name in names} for one in found]}

    _predict(Texts(model, file, None, special_tokens), {"question": "question", "context": "context"}, True, make)


def embed(
    texts: Texts, out: str | None = None, pooling: PoolingMode | None = None, normalize: _Flag = False,
    no_normalize: _Flag = False, max_length: int | None = None, prompt_name: str | None = None,
) -> None:  # fmt: skip
    """Make a vector of each text: {"text", "embedding": [...]}, or one array of all.

    Args:
        texts: What is read.
        out: File to write a float32 array [texts, width] to (NumPy's .npy), in the place of JSONL.
        pooling: How tokens become a vector (docs/reference.md, Pooling); default: as the model's files say, else the mean.
        normalize: Scale vectors to length 1; default: as the model's files say, else yes.
        no_normalize: Do not.
        max_length: Tokens of a text that are read; default: as the model's files say, else as many as it takes.
        prompt_name: Which of the model's prompts is put before each text, such as query; default: as the model's files say.
    """
    if normalize and no_normalize:
        raise InputError("--normalize and --no-normalize: give one of them")

    def make(model: bert_jax.Model) -> tuple[bert_jax.Embedder, Callable[[Any], _Row]]:
        changes = {"mode": pooling, "normalize": normalize if normalize or no_normalize else None, "max_length": max_length}
        chosen: Any = {name: value for name, value in changes.items() if value is not None}
        how = replace(model.pooling, **chosen) if isinstance(model.pooling, bert_jax.Pooling) else None
        if how is None and chosen:
            how = bert_jax.Pooling(**chosen)
        embedder = bert_jax.Embedder(model, how)
        if prompt_name is not None:
            embedder = bert_jax.Embedder(model, embedder.pooling.with_prompt(prompt_name))
        return embedder, lambda vector: {"embedding": vector.tolist()}

    with _npy(out) if out else contextlib.nullcontext() as write:
        _predict(*_texts(texts), make, write)
