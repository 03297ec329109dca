"""Configs of runs, read from config files and command lines."""

from __future__ import annotations

import argparse
import dataclasses
import re
import runpy
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from bert_jax.config.data import DataConfig
from bert_jax.config.dicts import COMPUTE_FIELDS
from bert_jax.config.masking import MaskingConfig
from bert_jax.config.optim import OptimConfig
from bert_jax.config.parallel import ParallelConfig
from bert_jax.config.phases import Phase
from bert_jax.config.replaced_tokens import ReplacedTokensConfig
from bert_jax.config.train import TrainConfig
from bert_jax.errors import InputError, did_you_mean
from bert_jax.model.config import CHOSEN_BY_RUN, BertConfig, ComputeConfig

_CLASSES = (
    BertConfig, ComputeConfig, DataConfig, MaskingConfig, OptimConfig, ParallelConfig, Phase, ReplacedTokensConfig, TrainConfig,
)  # fmt: skip


def shipped_configs() -> dict[str, Path]:
    """Returns the files of configs/ by name: inside an installed package, beside the package in a clone."""
    package = Path(__file__).parent.parent
    inside = package / "configs"
    folder = inside if inside.is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def load_config_file(path: str | Path) -> TrainConfig:
    """Returns `get_config()` of a Python file: a path, or a name in `shipped_configs` such as `quickstart`.

    Raises:
        InputError: The file is missing, has no get_config that returns a TrainConfig, or its code raises (with the line).
    """
    shipped = shipped_configs()
    path = shipped.get(str(path), Path(path))
    if not path.is_file():
        nearby = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        known = f"; shipped configs: {', '.join(shipped)}" if path.name == str(path) or path.stem in shipped else ""
        raise InputError(f"no config file {path}{did_you_mean(str(path), [*nearby, *shipped])}{known}")
    if path.suffix != ".py":
        raise InputError(f"{path} is not a Python file: a config is a .py file with get_config()")
    try:
        names = runpy.run_path(str(path), run_name=f"bert_jax_config_{path.stem}")
        cfg = names["get_config"]() if "get_config" in names else None
    except SyntaxError as e:
        raise InputError(f"{path}:{e.lineno}: {e.msg}") from None
    except Exception as e:
        raise InputError(_mistake(path, e)) from None
    if "get_config" not in names:
        raise InputError(f"{path} has no get_config() that returns a TrainConfig")
    if not isinstance(cfg, TrainConfig):
        raise InputError(f"{path}: get_config() returned a {type(cfg).__name__}, not a TrainConfig")
    return cfg


def _mistake(path: Path, error: Exception) -> str:
    """Returns an error of a config file's own code, with its line."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"{path}:{lines[-1]}" if lines else str(path)
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    cls = next((cls for cls in _CLASSES if unknown and cls.__name__ == unknown[1]), None)
    if unknown is None or cls is None:
        return f"{where}: {error}" if isinstance(error, InputError) else f"{where}: {type(error).__name__}: {error}"
    name, advice = unknown[2], did_you_mean(unknown[2], [f.name for f in dataclasses.fields(cls)])
    if cls is BertConfig and name in COMPUTE_FIELDS:
        flag = f"--compute.{name.replace('_', '-')}"
        advice = f": give TrainConfig(compute=ComputeConfig({name}=...)), or {flag} on the command line"
    return f"{where}: {cls.__name__} has no field {name!r}{advice}"


def load_train_config(
    argv: Sequence[str], prog: str = "bert_jax train", architecture: Callable[[str, str], BertConfig] | None = None
) -> TrainConfig:
    """Returns the config of a command line `CONFIG [--field value ...]`; `--help` lists every field.

    With `init_from`, `--model.*` override the model `architecture(init_from, workdir)`, not that of the file.

    Raises:
        InputError: There is no CONFIG, or it cannot be loaded.
        SystemExit: A field or its value is wrong (tyro prints near names), or after `--help`.
    """
    import tyro

    argv = [_renamed(argument) for argument in argv]
    if argv and not argv[0].startswith("-"):
        default, rest = load_config_file(argv[0]), argv[1:]
    elif "--help" in argv or "-h" in argv:
        default, rest = TrainConfig(), argv
    else:
        raise InputError(f"usage: {prog} CONFIG [--field value ...]; --help lists the fields")
    if architecture is not None and (start := _given(rest, "init-from") or default.init_from):
        taken = architecture(start, _given(rest, "workdir") or default.workdir)
        default = _started(default, taken, start, _given(rest, "data.max-seq-length"))
    description = "The fields of a pretraining run. The defaults shown are the values of the given config file."
    return tyro.cli(TrainConfig, default=default, args=list(rest), prog=f"{prog} CONFIG", description=description)


def _renamed(argument: str) -> str:
    """Returns a command-line argument with `--compute.` where `--model.` once named a field of ComputeConfig."""
    name = argument.partition("=")[0].removeprefix("--model.").replace("-", "_")
    return argument.replace("--model.", "--compute.", 1) if name in COMPUTE_FIELDS else argument


def _given(argv: Sequence[str], option: str) -> str | None:
    """Returns the value of a text option, before the command line is parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{option}", f"--{option.replace('-', '_')}", dest="value", nargs="?")
    value: str | None = parser.parse_known_args(list(argv))[0].value
    return value


def _started(cfg: TrainConfig, taken: BertConfig, start: str, length: str | None) -> TrainConfig:
    """Returns `cfg` with the architecture `taken` from the model `start`, its own dropout, and rows that fit the model.

    `length` is the row length on the command line, which is checked later.
    """
    model = taken.replace(**{name: getattr(cfg.model, name) for name in CHOSEN_BY_RUN})
    if length is None and cfg.data.max_seq_length > model.max_length:
        raise InputError(
            f"data.max_seq_length={cfg.data.max_seq_length} is longer than --init-from {start} allows: give "
            f"--data.max-seq-length {model.max_length} or less"
        )
    return cfg.replace(model=model, data=cfg.data.replace(max_seq_length=min(cfg.data.max_seq_length, model.max_length)))
