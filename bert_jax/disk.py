"""Small files: written whole or not at all, and read within bounds."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from bert_jax.config import InputError


def seal(record: dict[str, Any]) -> int:
    """Returns the CRC-32 of an object's JSON, which is stored beside it: JSON with a flipped digit is still JSON."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


J = TypeVar("J", dict[str, Any], list[Any])
MOST_JSON = 16 << 20  # bytes


def check_regular(path: Path, most: int) -> None:
    """Raises InputError unless `path` is a file (a pipe would be waited for) of at most `most` bytes, OSError without one."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise InputError(f"{path} is a {'folder' if stat.S_ISDIR(info.st_mode) else 'pipe or device'}, not a file")
    if info.st_size > most:
        raise InputError(f"{path} has {info.st_size:,} bytes, more than the {most:,} that such a file may have")


def read_json(path: Path, kind: type[J], fix: str = "") -> J | None:
    """Returns the dict or list (`kind`) that a JSON file holds, None without the file. A byte order mark is skipped.

    Memory: at most 16 MiB are read, and JSON of that size takes up to 25 times as much.

    Raises:
        InputError: The file cannot be read, is too large, is not UTF-8 or JSON, is nested too deeply, or holds another kind of
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
        raise InputError(f"{path} is not JSON that is read: it is nested too deeply{fix}") from None
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{path} is not JSON: {error}{fix}") from None
    if not isinstance(value, kind):
        what = {dict: "an object of names and values", list: "a list"}[kind]
        raise InputError(f"{path} holds a {type(value).__name__}, not {what}{fix}")
    return value


def put(path: Path, text: str | Iterable[str]) -> None:
    """Writes a file in UTF-8, several parts one by one, and makes its folder. Raises OSError if it cannot be written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, str):
            temporary.write_text(text, encoding="utf-8")
        else:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(text)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


_TEMPORARY = re.compile(r".+\.\d+\.tmp|\.tokenizer(_config)?\.json\.\d+")  # the names of files that are being written


def remove_temporary(folder: Path) -> None:
    """Removes the unfinished files of killed processes from a folder that this process holds, so that nobody writes there."""
    for path in folder.rglob("*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def write_text(path: Path, text: str | Iterable[str]) -> Path:
    """Writes a file as `put` does; returns its path. Raises InputError if it cannot be written."""
    try:
        put(path, text)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def write_json(path: Path, content: Any) -> Path:
    """Writes JSON; numbers that are not finite, which JSON lacks, become strings: "nan", "inf", "-inf", as in metrics.jsonl."""
    return write_text(path, json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def as_numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of an object that `write_json` wrote, with "nan", "inf" and "-inf" as numbers again."""
    return {name: float(v) if v in ("nan", "inf", "-inf") else v for name, v in values.items()}
