"""Compiled programs kept in the user's cache folder, so that a second run of a command starts fast."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_MOST_BYTES = 1 << 30


def keep() -> None:
    """Turns JAX's compilation cache on, in `~/.cache/bert_jax/xla` (`XDG_CACHE_HOME`), for this process.

    Only the commands call this: a library leaves JAX's settings to its user. A folder that is set already
    (JAX_COMPILATION_CACHE_DIR) stays, JAX_ENABLE_COMPILATION_CACHE=0 turns the cache off, and without a writable folder there is
    none. Programs are stored by their code, compiler and devices, so a stored program computes the same bits.
    """
    import jax  # here, so that a mistake in a command line is reported before this slow import

    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "bert_jax" / "xla"
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that cannot be written to
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            _remove_oldest(folder, _MOST_BYTES)
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _remove_oldest(folder: Path, most: int) -> None:
    """Removes the least recently used files until the rest has at most `most` bytes."""
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process removed it
            info = path.stat()
            files.append((max(info.st_atime, info.st_mtime), info.st_size, path))
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > most:
            with contextlib.suppress(OSError):
                path.unlink()
