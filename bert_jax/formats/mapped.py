"""Memory-mapped files."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TypeVar

from bert_jax.errors import InputError

M = TypeVar("M", bound=mmap.mmap)


def map_file(path: str | Path, kind: type[M]) -> M:
    """Maps a file, read-only. Raises InputError if it is missing, empty or cannot be read."""
    try:
        with open(path, "rb") as file:
            return kind(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise InputError(f"no {path}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
