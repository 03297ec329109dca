"""Checkpoints of a training state by Orbax: asynchronous, atomic, and checked when read. Orbax is imported only here.

Orbax does not notice a flipped bit in the numbers (a zstd block that did not shrink has no checksum), takes an empty folder for
the newest checkpoint, and cannot start beside an incomplete metrics file. So each checkpoint has, next to `state`, an item
`meta`: the step, the caller's meta, the ranking metric, and checksums of each array and of itself. A difference is damage.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from bert_jax.config import InputError, Json
from bert_jax.disk import seal
from bert_jax.workdir import read_record, unusable


class _Damaged(Exception):
    """Raised if a checkpoint cannot be used; the text is the reason."""


def _not_orbax(record: logging.LogRecord) -> bool:
    return not re.search(r"[/\\]orbax[/\\]|tensorstore", record.pathname + record.getMessage(), re.IGNORECASE)


def _hush() -> None:
    """Keeps from the terminal the pages of log and the unfinished reads that Orbax adds to an error that it raises."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_orbax)
    hook = sys.unraisablehook

    def filtered(unraisable: sys.UnraisableHookArgs) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # present in a coroutine
        if str(unraisable.exc_value) != "Event loop is closed" and "orbax" not in getattr(code, "co_filename", ""):
            hook(unraisable)

    if getattr(hook, "__name__", "") != filtered.__name__:
        sys.unraisablehook = filtered


def _reason(error: BaseException) -> str:
    """Returns an error of Orbax or TensorStore as one line: the innermost cause, without the dump of its spec."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.split(r" \[(?:tensorstore_spec|source locations)", str(error))[0]
    text = re.sub(r'Error opening "\w+" driver: | in OCDBT database', "", text)
    text = " ".join(re.sub(r'(?: at local file|Failed writing:) "[^"]*checkpoint-tmp[^"]*":?', "", text).split())
    text = text if len(text) < 300 else f"{text[:80]} ... {text[-200:]}"  # the gist is at the end
    return text if isinstance(error, _Damaged) else f"{type(error).__name__}: {text}"


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """Returns the sum of the bits of `x` modulo 2**32: equal for any sharding, and different after one flipped bit."""
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    bits = x.astype(unsigned) if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, unsigned)
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)


def _named(tree: PyTree) -> dict[str, PyTree]:
    """Returns the leaves (arrays, or their abstract values) by path."""
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def _arrays(tree: PyTree) -> dict[str, list]:
    """Returns [dtype, shape, checksum] of each array by path; one after another, as the sums may cross hosts."""
    return {n: [str(x.dtype), list(x.shape), int(_checksum(x))] for n, x in _named(tree).items()}


def _empty(tree: PyTree) -> list[str]:
    """Returns the paths of the parts without arrays, which also tell one optimizer's state from another's."""
    parts = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: not jax.tree.leaves(x))
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, x in parts if not jax.tree.leaves(x)]


def _template(x: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = getattr(x, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding.shard_shape(np.shape(x))  # a ValueError here is the caller's; later it would look like damage
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype if hasattr(x, "dtype") else jnp.result_type(x), sharding=sharding)


def _some(names: list[str]) -> str:
    return (", ".join(names[:20]) or "none") + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _check_same_model(folder: epath.Path, record: Json, like: PyTree) -> None:
    saved, here, empty = record["arrays"], _named(like), _empty(like)
    both = ((name, tuple(saved[name][1]), here[name].shape) for name in sorted(saved.keys() & here.keys()))
    shapes = [f"{name} {there} in the checkpoint, {shape} in this run" for name, there, shape in both if there != shape]
    there, own = {*saved, *record.get("empty", empty)}, {*here, *empty}  # older checkpoints do not record "empty"
    if shapes or there != own:
        raise InputError(
            f"checkpoint {folder} is of another model or optimizer: other shapes: {_some(shapes)}; only in the checkpoint: "
            f"{_some(sorted(there - own))}; only in this run: {_some(sorted(own - there))}. Use its config, or another --workdir"
        )


class Checkpointer:
    """Orbax checkpoints of a training state: async, atomic, the last `keep` and the best.

    A passing checkpoint, such as one that a signal asked for, is there to go on from: the next save removes it, and it takes no
    place among the last `keep`, which are therefore the same however often a run was stopped.

    All processes of a multi-host run make the same calls.

    Args:
      directory: The folder, or a URL.
      keep: The number of the newest checkpoints, but for passing ones, that are kept.
      best_metric: The entry of `metrics` that ranks checkpoints, lower being better; None ranks none.
      report: Receives a line for each damaged checkpoint.
      read_only: Leaves the folder as it is, for one in which a run may be saving.

    Raises:
      InputError: `directory` cannot be created or read.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int = 3,
        best_metric: str | None = "eval/masked_lm_loss",
        report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
        read_only: bool = False,
    ) -> None:
        _hush()
        self.directory = epath.Path(directory).expanduser().resolve()
        self._metric, self._read_only = best_metric, read_only
        self._report = report if jax.process_index() == 0 else lambda line: None
        self._keep, self._saving, self._metrics, self._passing = keep, 0, dict[int, float](), set[int]()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,  # see should_preserve
            cleanup_tmp_directories=not read_only, read_only=read_only, lightweight_initialize=True,
            # Otherwise a folder that cannot be made leaves threads that wait ten minutes for it, and the process with them.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )  # fmt: skip
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options)
            next(self.directory.iterdir(), None)  # Orbax takes a file for an empty folder
        except OSError as error:
            raise unusable(self.directory, _reason(error)) from error
        for step in self.steps:
            with contextlib.suppress(Exception):  # restore_latest reports a damaged record
                record = self._record(step)
                self._passing |= {step} if record.get("passing") else set()
                self._metrics[step] = float(record["metrics"][best_metric])

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    @property
    def lasting_steps(self) -> list[int]:
        """The steps of the checkpoints that are not passing, in order."""
        return [step for step in self.steps if step not in self._passing]

    @property
    def best_step(self) -> int | None:
        """The step of the lowest `best_metric`, the newer of equals; None if no checkpoint has the metric."""
        return min((s for s in reversed(self.steps) if s in self._metrics), key=self._metrics.__getitem__, default=None)

    def should_preserve(self, checkpoints: Sequence, *, context: object) -> list[bool]:
        """Implements Orbax's PreservationPolicy: keeps the newest, the last `keep` that are not passing, and the best.

        Orbax's BestN needs a metrics file of its own.
        """
        steps = [info.step for info in checkpoints]  # in order
        lasting = [step for step in steps if step not in self._passing]
        kept = {*steps[-1:], *lasting[-self._keep :], self.best_step}
        return [step in kept for step in steps]

    def save(
        self, step: int, state: PyTree, meta: Json, metrics: Mapping[str, float | np.floating] | None = None,
        passing: bool = False,
    ) -> None:  # fmt: skip
        """Starts to save `state` and `meta` (JSON) as `step`; the files are written while training goes on.

        Raises:
          InputError: This save or the one before it failed (a full disk), or `step` is not past the newest checkpoint.
          TypeError: `meta` is not JSON.
        """
        self.wait()
        if self.steps and step <= self.steps[-1]:
            raise InputError(
                f"step {step} cannot be saved in checkpoint folder {self.directory}: it holds step {self.steps[-1]}; "
                "has another run written there? Give each run a --workdir of its own"
            )
        state = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), state)
        ranked = {k: float(v) for k, v in (metrics or {}).items() if k == self._metric and math.isfinite(v)}
        record = {"step": step, "arrays": _arrays(state), "empty": _empty(state), "meta": meta, "metrics": ranked}
        record = json.loads(json.dumps(record | ({"passing": True} if passing else {})))
        record["crc32"] = seal(record)
        self._saving = step
        self._passing = self._passing - {step} | ({step} if passing else set())
        self._metrics.pop(step, None)  # that of a damaged checkpoint that was moved aside
        self._metrics.update((step, value) for value in ranked.values())
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(record))
        with self._failures_named():
            if not self._manager.save(step, args=args):
                raise RuntimeError("Orbax declined to save it")

    def wait(self) -> None:
        """Waits until the last save is on the disk. Raises InputError if it failed; those before it are whole."""
        with self._failures_named():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, and raises as it does, then ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def restore_latest(self, like: PyTree) -> tuple[PyTree, Json, int] | None:
        """Returns the newest whole checkpoint as (state, meta, step), with placement and types of `like`; None without any.

        Newer ones that are damaged are reported and renamed to `NAME.damaged`; their steps can be saved again.

        Raises:
          InputError: The checkpoint is of another model, or there are checkpoints and none of them is whole.
        """
        self.wait()
        like, damaged = jax.tree.map(_template, like), dict[epath.Path, str]()
        folders = [path for path in self.directory.iterdir() if path.is_dir()]
        for path in folders:
            if not re.fullmatch(r"0|[1-9]\d*|.*\.damaged.*|.*\.orbax-checkpoint-tmp.*", path.name):
                self._report(f"{path} is ignored: its name is not a step, so it is not a checkpoint")
        for step in reversed(self.steps):
            folder = self.directory / str(step)
            try:
                state, meta = self._restore(folder, like)
            except _Damaged as error:
                damaged[folder] = str(error)
                continue
            for path, reason in damaged.items():
                moved = "" if self._read_only else f"moved to {self._move_aside(path)}, "
                self._report(f"checkpoint {path} is damaged ({reason}): {moved}using {step}")
            if not self._read_only:
                self._manager.reload()
            return state, meta, step
        damaged |= {path: "moved aside before" for path in folders if ".damaged" in path.name}
        if damaged:
            each = "".join(f"\n  {path}: {reason}" for path, reason in damaged.items())
            raise InputError(
                f"no checkpoint in {self.directory} is complete:{each}\n"
                "Restore one from a backup; to start again from step 0, remove that folder or give another --workdir"
            )
        return None

    def restore(self, step: int | None, like: PyTree) -> tuple[PyTree, Json, int]:
        """Returns the checkpoint of `step`, or the newest whole one, as `restore_latest` does.

        Raises:
          InputError: There is none, it is damaged, or it is of another model.
        """
        self.wait()
        if step is not None and step in self.steps:
            try:
                return *self._restore(self.directory / str(step), jax.tree.map(_template, like)), step
            except _Damaged as error:
                raise InputError(f"checkpoint {self.directory / str(step)} is damaged ({error}): use another step") from None
        if step is None and (newest := self.restore_latest(like)) is not None:
            return newest
        raise InputError(f"checkpoint folder {self.directory} has no step {step}; it has {self.steps}")

    def _restore(self, folder: epath.Path, like: PyTree) -> tuple[PyTree, Json]:
        """Returns a checkpoint's state and meta; raises _Damaged on all processes if one of them cannot read it."""
        result, reason = None, "another process cannot read it"
        try:
            result = self._read(folder, like)
        except (InputError, MemoryError, jax.errors.JaxRuntimeError):  # out of memory is not damage
            raise
        except Exception as error:
            reason = _reason(error)
        everyone = multihost_utils.process_allgather(np.array(result is not None)).all()
        if result is None or not everyone:
            raise _Damaged(reason)
        return result

    def _record(self, step: int) -> Json:
        """Returns the record beside a checkpoint's state; raises _Damaged if its checksum does not match."""
        if (record := read_record(self.directory / str(step))) is None:
            raise _Damaged("meta does not match its checksum")
        return record

    def _read(self, folder: epath.Path, like: PyTree) -> tuple[PyTree, Json]:
        if next(folder.iterdir(), None) is None:
            raise _Damaged("the folder is empty")
        for part in ("state", "meta", "meta/metadata", "state/_METADATA", "state/manifest.ocdbt"):
            if not (folder / part).exists():
                raise _Damaged(f"{part} is missing")
        step, here = int(folder.name), _named(like)
        record = self._record(step)
        saved = record["arrays"]
        if record.get("step", step) != step:  # older checkpoints do not record it
            raise _Damaged(f"it was saved as step {record['step']}: its folder was renamed")
        _check_same_model(folder, record, like)
        as_saved = [jax.ShapeDtypeStruct(x.shape, saved[name][0], sharding=x.sharding) for name, x in here.items()]
        template = jax.tree.unflatten(jax.tree.structure(like), as_saved)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(template))
        state = self._manager.restore(step, args=args).state
        if wrong := [name for name, array in _arrays(state).items() if array != saved[name]]:
            raise _Damaged(f"the numbers of {_some(wrong)} do not match their checksum")
        return jax.tree.map(lambda x, t: x.astype(t.dtype), state, like), record["meta"]

    @contextlib.contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._metrics.pop(self._saving, None)
            with contextlib.suppress(OSError):
                self._manager.reload()
            raise InputError(
                f"step {self._saving} could not be saved in checkpoint folder {self.directory}: {_reason(error)}; free "
                f"space or fix the permissions, then run the same command again (complete checkpoints: {self.steps})"
            ) from error

    def _move_aside(self, path: epath.Path) -> epath.Path:
        """Renames `path` to the first free name of NAME.damaged, NAME.damaged.2, ...; one process does it."""
        names = (f"{path.name}.damaged{end}" for end in ("", *(f".{n}" for n in range(2, 1000))))
        target = next(path.parent / name for name in names if not (path.parent / name).exists())
        multihost_utils.sync_global_devices(f"name for {path}")
        if jax.process_index() == 0:
            path.rename(target)
        multihost_utils.sync_global_devices(f"moved {path}")
        return target
