"""Readers of two sources that are not files: TensorFlow Datasets, without TensorFlow, and the English text in Python itself."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bert_jax.data.files.formats import Cell, Located, Request, Values, with_class_names
from bert_jax.data.files.storage import Hasher, need
from bert_jax.errors import InputError

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder


def _hash(raw: bytes, hasher: Hasher | None) -> bytes:
    """Returns `raw`, and adds its length and itself to the hash."""
    if hasher:
        hasher.update(b"%d:%b" % (len(raw), raw))
    return raw


# ---- TensorFlow Datasets


def tfds_name(path: str) -> tuple[str, str]:
    """Returns the dataset and the split, train if there is none.

    >>> tfds_name("tfds:glue/sst2:2.0.0:train[:10]")
    ('glue/sst2:2.0.0', 'train[:10]')
    """
    match = re.fullmatch(r"tfds:(\w[\w/.,=-]*(?::(?:\d+|\*)\.(?:\d+|\*)\.(?:\d+|\*))?)(?::(.+))?", path)
    if not match:
        raise InputError(f"{path}: not of the form tfds:NAME[/CONFIG][:SPLIT], as in tfds:glue/sst2:train")
    return match[1], match[2] or "train"


@contextmanager
def _tfds_builder(path: str) -> Iterator[DatasetBuilder]:
    """Makes the builder of a prepared dataset. Every error of reading from it becomes an InputError."""
    tfds = need("tensorflow_datasets", "tensorflow-datasets array_record importlib_resources")
    name, _ = tfds_name(path)
    # TFDS knows some of its own datasets (glue) only once their module is imported.
    stem, data_dir = re.split("[/:]", name)[0], os.environ.get("TFDS_DATA_DIR")
    found = Path(str(tfds.__file__)).parent.glob(f"[a-z]*/{stem}.py")
    modules = [f"{tfds.__name__}.{file.parent.name}.{stem}" for file in found]
    prepare = (
        f'python -c "import {", ".join([tfds.__name__ + " as tfds", *modules])}; tfds.builder({name!r}, '
        f"data_dir='FOLDER', file_format='array_record').download_and_prepare()\", then set TFDS_DATA_DIR=FOLDER"
    )
    try:
        try:  # a prepared dataset is read without the code that prepared it
            builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError:
            for module in modules:
                importlib.import_module(module)
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
        yield builder
    except InputError:
        raise
    except NotImplementedError:
        why = f"is prepared as {builder.info.file_format.value}, which cannot be read by index without TensorFlow"
        raise InputError(f"{path}: {builder.data_dir} {why}; prepare it again: {prepare}") from None
    except Exception as error:  # a builder is a program of its own: a download, a parser, a missing library
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise InputError(f"{path}: {why}; to prepare it: {prepare}") from None


def tfds_splits(path: str) -> list[str]:
    """Returns the names of the splits that a dataset has."""
    with _tfds_builder(path) as builder:
        return list(builder.info.splits)


def read_tfds(request: Request) -> Iterator[Located[Values]]:
    """Yields the records of one split. The hash is that of the wanted column, or of all columns as JSON."""
    path, split = request.path, tfds_name(request.path)[1]
    with _tfds_builder(path) as builder:
        if re.split(r"[\[+]", split)[0] not in builder.info.splits:
            raise InputError(f"{path}: no split {split!r}, it has {', '.join(sorted(builder.info.splits))}")
        features, source = builder.info.features, builder.as_data_source(split=split)
        classes = {name: names for name in features if (names := getattr(features[name], "names", None))}
        for row in range(request.start, len(source)):
            values = {name: _plain(value) for name, value in sorted(source[row].items())}
            content = values.get(request.columns[0]) if request.columns else json.dumps(values, default=str)
            _hash(content if isinstance(content, bytes) else str(content).encode(), request.hasher)
            yield (row, f": row {row}", with_class_names(values, classes))


def _plain(value: Cell) -> Cell:
    """Converts bytes, NumPy's arrays and numbers, also nested, to JSON's types; bytes that are not UTF-8 stay bytes."""
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [_plain(v) for v in value]
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


# ---- the standard library

_NO_PROSE = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "_bundled", "lib-dynload"}
_NO_PROSE |= {"site-packages", "dist-packages", "__pycache__"}
_NOISE = re.compile(r"\s*(>>>|\.\.\.|[^\w\s][\W_]*$)")  # doctest input, table rules, underlines
_COMMENTS = re.compile(r"(?m)(?:^[ \t]*#.*\n){2,}")


def read_stdlib(request: Request) -> Iterator[Located[bytes]]:
    """Yields the topics of `help()`, then one document a module: its docstrings and longer comments, in order."""
    root, seen, row = Path(sysconfig.get_path("stdlib")), set[str](), 0
    topics = importlib.import_module("pydoc_data.topics").topics
    documents: list[list[str]] = [[topics[name]] for name in sorted(topics)]
    for file in sorted(root.rglob("*.py")):
        if _NO_PROSE.isdisjoint(file.relative_to(root).parts):
            documents.append(module_prose(file.read_bytes()))
    for pieces in documents:
        cleaned = (inspect.cleandoc(piece).splitlines() for piece in pieces)
        prose = ("\n".join(line.rstrip() for line in lines if not _NOISE.match(line)).strip() for lines in cleaned)
        fresh = [piece for piece in dict.fromkeys(prose) if piece and piece not in seen]
        seen.update(fresh)
        raw = "\n\n".join(fresh).encode()
        if len(_hash(raw, request.hasher)) >= 200:
            if row >= request.start:
                yield (row, f": row {row}", raw)
            row += 1


def module_prose(source: bytes) -> list[str]:
    """Returns the docstrings, and the comments of two lines or more, of a Python file, which is not imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the string literals of others
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return []
    text = source.decode(errors="replace")
    pieces = []
    for match in _COMMENTS.finditer(text):
        pieces.append((text.count("\n", 0, match.start()) + 1, re.sub(r"(?m)^[ \t]*#+ ?", "", match[0])))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            pieces.append((node.body[0].lineno if node.body else 0, ast.get_docstring(node) or ""))
    return [piece for _, piece in sorted(pieces)]
