"""Finds a pretrained model: a local directory, or a name on the Hugging Face hub, whose files are fetched. No jax in here."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from bert_jax.errors import InputError, did_you_mean
from bert_jax.modules import ENCODERS, STATIC, every_module

_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "flax_model*.msgpack")  # the first that is there is fetched
_OTHER_FILES = ("*.json", "*.txt", "*.model", "*/config.json")


def find(path_or_name: str | Path) -> Path:
    """Returns the directory of a model, from the hub (offline: its cache) if there is no such directory here.

    A path that does not exist and cannot be a name on the hub is returned as it is.
    """
    path, name = Path(path_or_name), str(path_or_name)
    if path.is_file() or Path(f"{path}.index").is_file():  # the second: a prefix of a TF1 checkpoint
        raise InputError(f"{path} is a file; give its directory, {path.parent}")
    if path.exists() or not _NAME.fullmatch(name):
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(f"no directory {name}; if it is a name on the hub: pip install 'bert_jax[hub]'") from None

    def fetch(folder: str) -> Path:
        for weights in _WEIGHTS:
            directory = Path(snapshot_download(name, allow_patterns=[folder + p for p in (*_OTHER_FILES, weights)]))
            if list((directory / folder).glob(weights)):
                break
        return directory

    try:
        directory = fetch("")
        for folder in _module_folders(directory):
            fetch(f"{folder}/")
    except Exception as error:  # many kinds, the HTTP library's among them
        reason = str(error).strip().splitlines()
        raise InputError(
            f"no directory {name}, and the hub did not give it ({type(error).__name__}: {reason[0] if reason else ''})"
            f"{nearest(path)}"
        ) from None
    return directory


def _module_folders(directory: Path) -> list[str]:
    with contextlib.suppress(InputError):  # read_pooling reports it
        holders = (*ENCODERS, STATIC, "Dense", "SparseStaticEmbedding")
        weighted = [path for kind, path in every_module(directory) if kind in holders and path != directory]
        return [str(path.relative_to(directory)) for path in weighted]
    return []


def nearest(path: Path) -> str:
    """Returns `; did you mean ...?` with the neighbour of almost the same name, or the empty string."""
    return did_you_mean(str(path), [str(p) for p in path.parent.glob("*")] if path.parent.is_dir() else [])
