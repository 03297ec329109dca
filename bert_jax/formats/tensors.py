"""Reads the weights of a directory in any file format, as views of mapped files."""

from __future__ import annotations

import json
import mmap
import re
import stat
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bert_jax.disk import read_json, whole
from bert_jax.errors import InputError
from bert_jax.formats.flax_msgpack import read_flax
from bert_jax.formats.mapped import map_file
from bert_jax.formats.torch_bin import read_torch

_DTYPES: dict[str, type[np.generic]] = {
    "F32": np.float32, "F64": np.float64, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Returns {name: read-only view of the mapped file} (safetensors' own reader copies, and NumPy alone has no bfloat16).

    Memory: the header, at most 100 MB, is read twice; the arrays stay in the file.
    """
    try:
        with safe_open(path, "np"):  # the library's own checks of header, offsets and length
            pass
    except FileNotFoundError:
        raise InputError(f"no {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    mapped = map_file(path, mmap.mmap)
    size = int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise InputError(f"{path}: {name} is of type {entry['dtype']}; known: {', '.join(_DTYPES)}")
        offset = 8 + size + entry["data_offsets"][0]
        try:
            tensors[name] = np.ndarray(entry["shape"], _DTYPES[entry["dtype"]], mapped, offset)
        except (ValueError, OverflowError) as error:  # more dimensions, or longer ones, than arrays have
            raise InputError(f"{path}: {name} has the shape {str(entry['shape'])[:80]}, which no array has ({error})") from None
    return tensors


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes contiguous arrays, whole or not at all. Raises OSError or SafetensorError if they cannot be written."""
    with whole(path) as temporary:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        save_file(tensors, temporary, metadata={"format": "pt"})  # makes files that only their owner can read
        temporary.chmod(mode)


_FILES: list[tuple[str, Callable[[Path], dict[str, np.ndarray]]]] = [
    ("model.safetensors", read_safetensors),
    ("pytorch_model.bin", read_torch),
    ("flax_model.msgpack", read_flax),
]
"""The files that a pretrained directory may hold, each with its reader. The first that is there is read."""


def has_weights(directory: Path) -> bool:
    """Returns True if `directory` has a file that `read_directory` would read."""
    return any((directory / file).is_file() for name, _ in _FILES for file in (name, f"{name}.index.json"))


def read_directory(directory: Path) -> tuple[dict[str, np.ndarray], Path]:
    """Returns the weights of a directory, whole or in shards with an index, and their file."""
    for name, read in _FILES:
        if (directory / name).is_file():
            return read(directory / name), directory / name
        index = directory / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index, read), index
    tried = ", ".join(f"{name} (or {name}.index.json)" for name, _ in _FILES)
    raise InputError(f"{directory} has no weights: none of {tried}, nor a TensorFlow checkpoint{say_not_read(directory)}")


_NOT_READ = {
    "adapter_*.*": "an adapter of PEFT: merge it into its model, merge_and_unload() and save_pretrained(DIR) in Python",
    "tf_model*.h5": "Keras weights: from_pretrained(DIR, from_tf=True) and save_pretrained(DIR) in transformers 4",
    "*.h5": "Keras weights, perhaps: save them by save_pretrained(DIR) of transformers 4",
    **dict.fromkeys(("*.onnx", "onnx/*.onnx"), "a graph to be run: get the model.safetensors that it was made from"),
    "*.ot": "weights for rust-bert: get the model.safetensors that they were made from",
    "*.gguf": "quantized weights: get the model.safetensors that they were made from",
    "*.npz": "arrays of NumPy: save them by safetensors.numpy.save_file(arrays, 'model.safetensors')",
    "*.safetensors": "rename it model.safetensors, if it is this model's",
    "*.ckpt": "a checkpoint of Lightning: torch.save(torch.load(PATH)['state_dict'], 'pytorch_model.bin') in Python",
    **dict.fromkeys(("*.pt", "*.pth", "*.bin"), "rename it pytorch_model.bin, if torch.save wrote it of a state dict"),
}
"""Patterns of files that are not read, each with its kind and how to get a file that is read."""
_OF_TRAINING = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)")


def say_not_read(directory: Path) -> str:
    """Returns `; it has FILE (its kind and what to do)` for the first file of weights that cannot be read, else ""."""
    for pattern, advice in _NOT_READ.items():
        found = [path for path in sorted(directory.glob(pattern)) if not _OF_TRAINING.fullmatch(path.name)]
        if found:
            return f"; it has {found[0].relative_to(directory)}, which is not read ({advice})"
    return ""


def _read_shards(index: Path, read: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Reads the tensors that an index names from the files beside it."""
    file_of = (read_json(index, dict) or {}).get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(file, str) for file in file_of.values()):
        raise InputError(f"{index} is not an index of shards: it has no weight_map of tensors to files")
    files = sorted(set(file_of.values()))
    strange = [file for file in files if file in ("", "..") or Path(file).name != file]
    if strange:
        raise InputError(f"{index} names {strange[0]}, which is not a file beside it")
    if missing := [file for file in files if not (index.parent / file).is_file()]:
        raise InputError(f"{index} names {missing[0]}, which is missing: fetch it too")
    shards = {file: read(index.parent / file) for file in files}
    absent = [name for name, file in file_of.items() if name not in shards[file]]
    if absent:
        raise InputError(f"{index} says that {absent[0]} is in {file_of[absent[0]]}, which lacks it: fetch both again")
    return {name: shards[file][name] for name, file in file_of.items()}
