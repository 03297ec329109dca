"""The contract of a work directory: it belongs to one config, and the same command, run again, continues."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_jax import files
from bert_jax.config import COMPUTED, InputError, TrainConfig, differences, to_dict

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

Change = tuple[str, Any, Any]  # dotted name, value there, value here

# May differ between runs of one work directory: where and how often, never what is computed.
FREE_FIELDS = frozenset(
    ["workdir", "eval_every", "checkpoint_every", "keep_checkpoints", "checkpoint_dir", "log_every", "profile",
     "extend", "fill_masks", "data.cache_dir", "data.num_workers", *(f"model.{name}" for name in COMPUTED - {"dtype"})]
)  # fmt: skip


@contextlib.contextmanager
def errors(path: Path) -> Iterator[None]:
    """InputError where a work directory's config.json, `path`, cannot be read or written, or is not JSON."""
    try:
        yield
    except OSError as e:
        raise InputError(f"cannot use the work directory {path.parent}: {e.strerror or e}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise InputError(f"{path} is not JSON ({e}): use another --workdir, or delete that file") from None


def filled(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the defaults of fields that are newer than the file they come from."""
    return {
        name: filled(values[name], default) if isinstance(default, dict) and isinstance(values.get(name), dict)
        else values.get(name, default)
        for name, default in defaults.items()
    } | {name: value for name, value in values.items() if name not in defaults}  # fmt: skip


def hold(folder: Path) -> None:
    """Keeps other processes out of a work directory for as long as this one lives, where the system and the disk know locks.

    Raises InputError where one is in there: two would write the same files.
    """
    if fcntl is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)  # never closed: that would give the lock back
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        who = os.read(file, 200).decode(errors="replace") or "another process"
        raise InputError(f"{folder} is in use by {who}: wait for its end or stop it, or use another --workdir") from None
    except OSError:  # a disk without locks
        return
    os.truncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())


def changed(old: Mapping[str, Any], cfg: Any, free: frozenset[str]) -> list[Change]:
    """What would change what is computed; a field that is newer than `old` has had its default."""
    there = filled(old, to_dict(type(cfg)()))
    return [c for c in differences(there, to_dict(cfg)) if c[0] not in free and not c[0].startswith("parallel.")]


def write(path: Path, cfg: Any) -> None:
    """Writes the config.json. Raises OSError."""
    files.put(path, json.dumps(to_dict(cfg), indent=2) + "\n")


def claim(cfg: TrainConfig, first: bool = True) -> list[str]:
    """Writes the work directory's config.json, or holds `cfg` against the one that is there.

    The `first` process of several keeps other programs out. Returns lines to show. Raises InputError, listing the fields,
    where something differs that would change what is computed (see FREE_FIELDS), where num_steps grows without `extend`, and
    where the folder cannot be written or another program is at work in it.
    Before the first checkpoint nothing is lost by another config: it replaces the old one, with the vocabulary trained for that.
    """
    path = Path(cfg.workdir) / "config.json"
    lines: list[str] = []
    with errors(path):
        if first:
            hold(path.parent)
        if path.exists():
            old = json.loads(path.read_text())
            if not isinstance(old, dict) or not isinstance(old.get("num_steps"), int):
                raise InputError(f"{path} is not a run's config: use another --workdir, or delete that file")
            different = changed(old, cfg, FREE_FIELDS)
            grown = [c for c in different if c[0] == "num_steps" and c[2] > c[1]]
            if grown and cfg.extend:
                different.remove(grown[0])
                lines.append(
                    f"extending from {grown[0][1]} to {cfg.num_steps} steps: the {cfg.optim.schedule} schedule now ends there, "
                    "so the learning rate jumps to where that schedule stands"
                )
            checkpoints = path.parent / "checkpoints"
            begun = old.get("checkpoint_dir") or (checkpoints.is_dir() and any(checkpoints.iterdir()))
            if different and not begun:
                shutil.rmtree(path.parent / "tokenizer", ignore_errors=True)
            elif different:
                refuse(cfg, different, ", or --extend to go on past its num_steps" if grown else "")
        write(path, cfg)
    return lines


def refuse(cfg: Any, different: list[Change], advice: str) -> None:
    """Raises the InputError that lists what differs."""
    listing = "\n".join(f"  {name}: {there!r} there, {here!r} here" for name, there, here in different)
    raise InputError(f"{cfg.workdir} holds another run:\n{listing}\nuse another --workdir{advice}")
