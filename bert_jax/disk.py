"""Small files: written whole or not at all, and read within bounds."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bert_jax.errors import InputError

J = TypeVar("J", dict[str, Any], list[Any])
MOST_JSON = 16 << 20  # bytes
_TEMPORARY = re.compile(r".+\.\d+\.tmp|\.tokenizer(_config)?\.json\.\d+")  # names of unfinished files, also of earlier versions


def seal(record: dict[str, Any]) -> int:
    """Returns the CRC-32 of an object's JSON, which is stored beside it: JSON with a flipped digit is still JSON."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def check_regular(path: Path, most: int) -> None:
    """Raises InputError unless `path` is a regular file (a pipe would block) of at most `most` bytes."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise InputError(f"{path} is a {'folder' if stat.S_ISDIR(info.st_mode) else 'pipe or device'}, not a file")
    if info.st_size > most:
        raise InputError(f"{path} has {info.st_size:,} bytes, more than the {most:,} that are allowed")


def read_json(path: Path, kind: type[J], fix: str = "") -> J | None:
    """Returns the dict or list (`kind`) of a JSON file, None without the file. A byte order mark is skipped.

    Memory: at most 16 MiB are read, and JSON of that size takes up to 25 times as much.

    Raises:
      InputError: the file cannot be read, is too large, is not UTF-8 or JSON, is nested too deeply, or holds another kind of
        value. `fix` ends the message.
    """
    try:
        check_regular(path, MOST_JSON)
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}{fix}") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply to be read as JSON{fix}") from None
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{path} is not JSON: {error}{fix}") from None
    if not isinstance(value, kind):
        what = {dict: "an object of names and values", list: "a list"}[kind]
        raise InputError(f"{path} holds a {type(value).__name__}, not {what}{fix}")
    return value


def beside(path: Path) -> Path:
    """Returns a temporary name next to `path` that no other process or thread, on any host, uses."""
    return path.with_name(f"{path.name}.{uuid.uuid4().int}.tmp")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary file to write, in the folder of `path`. It becomes `path` at the end; after an error it is removed."""
    temporary = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def remove_temporary(folder: Path) -> None:
    """Removes the unfinished files of killed processes from a folder that only this process writes to."""
    for path in folder.rglob("*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def put(path: Path, text: str | Iterable[str]) -> None:
    """Writes a file in UTF-8, several parts one by one. Raises OSError if it cannot be written."""
    with whole(path) as temporary:
        if isinstance(text, str):
            temporary.write_text(text, encoding="utf-8")
        else:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(text)


def write_text(path: Path, text: str | Iterable[str]) -> Path:
    """Writes a file as `put` does, and returns its path. Raises InputError if it cannot be written."""
    try:
        put(path, text)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def write_json(path: Path, content: object) -> Path:
    """Writes JSON. Numbers that are not finite, which JSON lacks, become "nan", "inf" and "-inf", as in metrics.jsonl."""
    return write_text(path, json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def as_numbers(values: Mapping[str, object]) -> dict[str, object]:
    """Returns the values of an object that `write_json` wrote, with "nan", "inf" and "-inf" as numbers again."""
    return {name: float(v) if isinstance(v, str) and v in ("nan", "inf", "-inf") else v for name, v in values.items()}
