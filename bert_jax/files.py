"""Small files, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import zlib
from pathlib import Path
from typing import Any

from bert_jax.config import InputError


def seal(record: dict[str, Any]) -> int:
    """The CRC-32 of an object's JSON: kept beside what JSON itself does not protect, as a flipped digit is JSON too."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def put(path: Path, text: str) -> None:
    """Writes a file in UTF-8, its folder too. Raises OSError where it cannot be written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


_TEMPORARY = re.compile(r".+\.\d+\.tmp|\.tokenizer(_config)?\.json\.\d+")  # of a process that writes a file


def remove_temporary(folder: Path) -> None:
    """Removes what killed processes have left unfinished in a folder that is held: nobody else writes there."""
    for path in folder.rglob("*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def write_text(path: Path, text: str) -> Path:
    """`put`; the file's path. Raises InputError where it cannot be written."""
    try:
        put(path, text)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def write_json(path: Path, content: Any) -> Path:
    """Numbers that are not finite, which JSON lacks, become the strings "nan", "inf", "-inf", as in metrics.jsonl."""
    return write_text(path, json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def as_numbers(values: dict[str, Any]) -> dict[str, Any]:
    """The values of an object that `write_json` wrote, as they were."""
    return {name: float(v) if v in ("nan", "inf", "-inf") else v for name, v in values.items()}
