"""Work directories: each belongs to one config, and the same command, run again, continues."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bert_jax import disk
from bert_jax.config import (
    CHOSEN_BY_RUN,
    TRAINED,
    Change,
    Checked,
    InputError,
    Json,
    TrainConfig,
    differences,
    to_dict,
    upgrade,
)

if TYPE_CHECKING:
    from etils import epath

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Reached:
    """The result of `bert_jax.train` and `bert_jax.finetune`.

    Attributes:
        metrics: The values that the exported model reached, by name: `eval/masked_lm_loss`, `test/accuracy`.
        export: The folder of the exported model; None if there is none.
        signal: The number of the signal that stopped the run, which the same call continues; None if the run is finished.
    """

    metrics: dict[str, float]
    export: Path | None
    signal: int | None = None

    @property
    def status(self) -> int:
        """The exit status of a program that ends with this result."""
        return 0 if self.signal is None else 128 + self.signal


# May differ between runs of one work directory: where and how often, never what is computed.
FREE_FIELDS = frozenset(
    ["workdir", "eval_every", "eval_sources", "checkpoint_every", "keep_checkpoints", "checkpoint_dir", "log_every", "profile",
     "extend", "fill_masks", "data.cache_dir", "data.num_workers", "compute.remat", "compute.scan_layers", "compute.attention"]
)  # fmt: skip

ANOTHER = ": use another --workdir, or delete that file"


@contextlib.contextmanager
def errors(path: Path) -> Iterator[None]:
    """Raises InputError if `path`, the config.json of a work directory, cannot be written."""
    try:
        yield
    except OSError as e:
        raise InputError(f"cannot use the work directory {path.parent}: {e.strerror or e}") from None


def filled(values: Mapping[str, object], defaults: Mapping[str, object]) -> Json:
    """Returns `values` with the defaults of the fields that they lack, as a file of an older version does."""
    result = {**defaults, **values}
    for name, default in defaults.items():
        value = result[name]
        if isinstance(default, dict) and isinstance(value, dict):
            result[name] = filled(value, default)
    return result


def hold(folder: Path, option: str = "--workdir") -> None:
    """Locks a folder for as long as this process lives, if the system and the disk have locks.

    Raises InputError, which names the `option` that sets the folder, if another process holds it and would write the same files.
    """
    if fcntl is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)  # never closed: that would give the lock back
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        who = os.read(file, 200).decode(errors="replace") or "another process"
        raise InputError(f"{folder} is in use by {who}: wait for its end or stop it, or use another {option}") from None
    except OSError:  # a disk without locks
        return
    os.truncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())


def read_record(folder: epath.Path) -> Json | None:
    """Returns the record beside the state in a checkpoint's folder; None if it does not match its checksum. Raises OSError."""
    text = (folder / "meta" / "metadata").read_bytes()
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        record: Json = json.loads(text)
        if record.pop("crc32", None) == disk.seal(record):
            return record
    return None


def recorded(checkpoints: str, only: int | None = None) -> Json | None:
    """Returns the caller's part (`data`, `config`, ...) and the `step` of a run's newest whole checkpoint; None without any.

    With `only`, it is the record of that step.

    The states are not read, so this takes no time. A folder that cannot be read counts as empty here.
    """
    from etils import epath  # reads gs:// too

    folder = epath.Path(checkpoints).expanduser()
    with contextlib.suppress(OSError, ImportError, ValueError):
        steps = [int(path.name) for path in folder.iterdir() if re.fullmatch(r"0|[1-9]\d*", path.name)]
        for step in sorted(steps, reverse=True) if only is None else {only} & set(steps):
            with contextlib.suppress(OSError, KeyError, TypeError):
                if record := read_record(folder / str(step)):
                    return {**record["meta"], "step": step}
    return None


@dataclass(frozen=True)
class Branch:
    """The checkpoint of another run from which a run goes on: the folders and the caller's part of its record."""

    run: Path
    checkpoints: str
    record: Json

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        step: int = self.record["step"]
        return step

    @property
    def tokenizer(self) -> Path:
        """The folder of the run's tokenizer."""
        return self.run / "tokenizer"


def begun(cfg: TrainConfig) -> tuple[Json | None, Branch | None]:
    """Returns the record of the checkpoint that a run goes on from, and the branch if that is another run's; None without any.

    Raises:
        InputError: As `branch`.
    """
    if (own := recorded(cfg.checkpoints)) is not None:
        return own, None
    other = branch(cfg)
    return (None if other is None else other.record), other


def branch(cfg: TrainConfig) -> Branch | None:
    """Returns the checkpoint that `cfg.branch_from` names, without its state.

    Raises:
        InputError: There is none; its step is not before the end of the run; it is of another model or optimizer; or the run
            makes fewer checkpoints after it than it is to average.
    """
    if cfg.branch_from is None:
        return None
    parts = re.fullmatch(r"(.+?)(?:@(\d+))?", cfg.branch_from, re.DOTALL)
    if parts is None:
        raise InputError("branch_from is empty: give the work directory of another run, or RUN@STEP")
    run, step = Path(parts[1]), None if parts[2] is None else int(parts[2])
    old = disk.read_json(run / "config.json", dict) or {}
    checkpoints = old.get("checkpoint_dir") or str(run / "checkpoints")
    if (record := recorded(checkpoints, step)) is None:
        there = sorted(int(path.name) for path in Path(checkpoints).glob("*") if path.name.isdecimal())
        which = "has no checkpoint" if step is None else f"has no whole checkpoint of step {step}"
        raise InputError(f"branch_from: {run} {which}; it has {', '.join(map(str, there)) or 'none'}")
    found = Branch(run, checkpoints, record)
    if found.step >= cfg.num_steps:
        raise InputError(f"--branch-from {cfg.branch_from} stands at step {found.step}: give a --num-steps above it")
    cfg.check_average(found.step)
    if not isinstance(record.get("config"), dict):
        raise InputError(f"branch_from: {run} is no pretraining run")
    if different := [c for c in changed(upgrade(record["config"]), cfg, _FREE_IN_BRANCHES) if _is_of_state(*c)]:
        fix = "a branch has those of its run: give them here, too"
        raise InputError(f"branch_from: {run} has another model or optimizer:\n{listed(different)}\n{fix}")
    return found


_FREE_IN_BRANCHES = FREE_FIELDS | {f"model.{name}" for name in CHOSEN_BY_RUN}


def _is_of_state(name: str, there: object, here: object) -> bool:
    """Returns True for a difference between two runs by which the state of one does not fit the other."""
    if name == "optim.average":  # a moving average is a part of the state
        return str(there).startswith("ema:") != str(here).startswith("ema:")
    return name in ("objective", "optim.name") or name.startswith(("model.", "replaced_tokens.generator_"))


def changed(old: Mapping[str, object], cfg: Checked, free: frozenset[str]) -> list[Change]:
    """Returns the differences that change the computation; a field that `old` lacks had its default."""
    there = filled(old, to_dict(type(cfg)()))
    return [c for c in differences(there, to_dict(cfg)) if c[0] not in free and not c[0].startswith("parallel.")]


def write(path: Path, cfg: Checked) -> None:
    """Writes the config.json. Raises OSError."""
    disk.put(path, json.dumps(to_dict(cfg), indent=2) + "\n")


def other_run(old: Mapping[str, object], cfg: TrainConfig, moved: bool) -> list[Change]:
    """Returns the differences from the config `old` that change the computation.

    With `moved`, the text and a tokenizer's file may lie elsewhere, as a checkpoint identifies them by their contents.
    """

    def may_move(name: str, there: object, here: object) -> bool:
        if name == "data.tokenizer":
            return there not in TRAINED and here not in TRAINED
        return name in ("data.source", "data.eval_source") and bool(there) and bool(here)

    return [change for change in changed(upgrade(old), cfg, FREE_FIELDS) if not (moved and may_move(*change))]


def _read(path: Path) -> Json | None:
    """Returns the config.json of a run; None if there is none."""
    old = disk.read_json(path, dict, ANOTHER)
    if old is not None and not isinstance(old.get("num_steps"), int):
        raise InputError(f"{path} is not a run's config{ANOTHER}")
    return old


def claim(cfg: TrainConfig, first: bool = True) -> list[str]:
    """Writes the work directory's config.json after comparing `cfg` with the old one and with that of the newest checkpoint.

    The `first` process of several locks the folder and that of the checkpoints. Returns lines to print. Before the first
    checkpoint nothing can be lost, so another config replaces the old one and the vocabulary that was trained for it.

    Raises:
        InputError: A field differs that changes the computation (see FREE_FIELDS; the message lists them), num_steps grows
            without `extend`, the folder cannot be written, or another program uses it.
    """
    path = Path(cfg.workdir) / "config.json"
    lines: list[str] = []
    with errors(path):
        if first:
            hold(path.parent)
            _hold_checkpoints(cfg)
            disk.remove_temporary(path.parent)
        saved, old = recorded(cfg.checkpoints), _read(path)
        begun = saved is not None or bool((old or {}).get("checkpoint_dir")) or _has_folders(path.parent / "checkpoints")
        if old is not None and (different := other_run(old, cfg, moved=saved is not None)):
            if begun:
                lines = _allow(cfg, different, f"{cfg.workdir} holds another run")
            else:
                shutil.rmtree(path.parent / "tokenizer", ignore_errors=True)
        # Once a run is extended it stays so, though its newest checkpoint may be older than that.
        extended = old is not None and [old["num_steps"], old.get("checkpoint_dir")] == [cfg.num_steps, cfg.checkpoint_dir]
        if saved is not None:
            if not isinstance(saved.get("config"), dict):
                raise InputError(f"{cfg.checkpoints} holds checkpoints of another kind of run: use another --checkpoint-dir")
            different = other_run(saved["config"], cfg, moved=True)
            different = [c for c in different if not (extended and c in grown(different))]
            lines = lines or _allow(cfg, different, f"{cfg.checkpoints} holds checkpoints of another run")
        write(path, cfg)
    return lines


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() for path in folder.iterdir())


def unusable(checkpoints: str | epath.Path, reason: str, option: str = "--workdir") -> InputError:
    """Returns the error of a folder of checkpoints that cannot be made, read or written."""
    fix = f"make it a folder that you may write to, or give another {option}"
    return InputError(f"checkpoint folder {checkpoints} cannot be used: {reason}; {fix}")


def _hold_checkpoints(cfg: TrainConfig) -> None:
    """Locks the checkpoints' folder, which two work directories may name; an object store has no locks."""
    if "://" in cfg.checkpoints:
        return
    try:
        hold(Path(cfg.checkpoints).expanduser(), "--checkpoint-dir")
    except OSError as error:
        option = "--checkpoint-dir" if cfg.checkpoint_dir else "--workdir"
        raise unusable(cfg.checkpoints, error.strerror or str(error), option) from None


def grown(different: list[Change]) -> list[Change]:
    """Returns those of the differences that let a run go on past its end: its num_steps, and phases until then."""
    ends = [there for name, there, here in different if name == "num_steps" and here > there]

    def further(name: str, there: object, here: Any) -> bool:
        if re.fullmatch(r"phases\[[1-9]\d*\]", name):
            return there is None
        return re.fullmatch(r"num_steps|phases\[\d+\]\.until", name) is not None and there in ends and here > there

    return [change for change in different if ends and further(*change)]


def _allow(cfg: TrainConfig, different: list[Change], reason: str) -> list[str]:
    """Returns lines to print if the only differences let the run go on, with `extend`; otherwise raises InputError."""
    longer = grown(different)
    if rest := [c for c in different if not (cfg.extend and c in longer)]:
        refuse(reason, rest, ", or --extend to go on past its num_steps" if longer and not cfg.extend else "")
    return [
        f"extending from {there} to {here} steps: the {cfg.optim.schedule} schedule now ends there, so the learning rate jumps "
        "to where that schedule stands, as shares do that change on a line to the end"
        for name, there, here in longer
        if name == "num_steps"
    ]


def refuse(reason: str, different: list[Change], advice: str = "") -> NoReturn:
    """Raises the InputError that lists what differs."""
    raise InputError(f"{reason}:\n{listed(different)}\nuse another --workdir{advice}")


def listed(different: list[Change]) -> str:
    """Returns a line for each difference."""
    return "\n".join(f"  {name}: {there!r} there, {here!r} here" for name, there, here in different)
