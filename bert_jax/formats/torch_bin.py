"""PyTorch state dicts (pytorch_model.bin, *.pt) without torch, and without running what their pickles ask for.

Two formats, both of torch/serialization.py: a zip file (`_save`, since torch 1.6) of data.pkl and one record per storage, and
before it (`_legacy_save`) five pickles in a row (magic number, protocol, system, object, storage keys) and then the storages.
A pickle is a program. The one here is run by an interpreter of our own, which has no way to import, to call or to set an
attribute: it knows numbers, strings, tuples, lists and dicts, and names (`_Global`) that stand for nothing but themselves.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bert_jax.config import InputError

_LIMIT = 1 << 21  # bytes of pickles or of a zip directory: 10 000 tensors. What they build takes at most 200 times that
_INFLATION = 16  # times its size that a compressed file may unpack to: weights hardly compress
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_DIMS = 64  # NumPy's
# The names of types, as of storages and of tensors -> ours.
_TYPES: dict[str, np.dtype] = {
    f"torch.{name}": np.dtype(ours)
    for names, ours in [
        ("FloatStorage float32", "<f4"), ("DoubleStorage float64", "<f8"), ("HalfStorage float16", "<f2"),
        ("BFloat16Storage bfloat16", ml_dtypes.bfloat16), ("CharStorage int8", "i1"), ("ShortStorage int16", "<i2"),
        ("IntStorage int32", "<i4"), ("LongStorage int64", "<i8"), ("ByteStorage uint8", "u1"), ("BoolStorage bool", "?"),
        ("storage.UntypedStorage", "u1"),
    ]
    for name in names.split()
}  # fmt: skip
_A_TYPE = re.compile(r"torch\.(\w+\.)?(\w*Storage|(b?float|complex|q?u?int|bits)\d\w*)")
_CALLABLE = {
    "collections.OrderedDict", "torch.Size", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
}  # fmt: skip
_LITERALS = {
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINFLOAT", "BINSTRING",
    "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False}
_NESTED = ("state_dict", "model_state_dict", "model")  # where training checkpoints keep the state dict

Record = tuple[Any, int, int]  # the bytes of a storage: (buffer, where they start, how many)


@dataclass(frozen=True, eq=False)
class _Global:
    name: str


@dataclass(frozen=True, eq=False)
class _Storage:
    key: str
    dtype: np.dtype
    first: int  # elements of the record before this storage: 0 but for the views of old torch
    count: int


@dataclass(frozen=True, eq=False)
class _Tensor:
    storage: _Storage
    dtype: np.dtype
    offset: Any  # this and the next are checked in _array
    size: tuple[Any, ...]
    stride: tuple[Any, ...]


class _Map(mmap.mmap):
    """A mapped file of which zipfile, given a false directory, cannot read everything."""

    def read(self, n: int | None = None) -> bytes:
        if n is not None and n > _LIMIT:
            raise InputError(f"its zip directory is of {n} bytes, too many for a file of weights")
        return super().read(n)


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """Tensor name -> array of a state dict that `torch.save` wrote, alone or in a training checkpoint.

    The arrays are read-only views, perhaps strided or unaligned, on the mapped file: nothing is read before it is used (but
    members of a zip file that someone compressed). Numbers, strings and None beside the tensors are left out. No more than
    400 MB are taken, whatever the file holds, or for compressed ones 16 times their size.

    Raises InputError, naming the file, where it is missing, damaged or cut short, where it asks for anything to be called
    or imported, which is never done, and for what is not supported: TorchScript, tar files of torch before 0.1.10,
    big-endian files, quantized, complex or sparse tensors, other contents than one dict of tensors.
    """
    try:
        with open(path, "rb") as file:
            mapped = _Map(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise InputError(f"no {path}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    try:
        if mapped[257:262] == b"ustar":
            raise InputError("a tar file of torch before 0.1.10: load it in torch and save the state dict anew")
        found, locate = _open_zip(mapped) if mapped[:4] == b"PK\3\4" else _open_legacy(mapped)
        return {name: _array(name, tensor, locate) for name, tensor in _state_dict(found).items()}
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, LookupError, zipfile.BadZipFile, NotImplementedError, zlib.error, Warning) as error:
        # of pickletools, zipfile and the interpreter's stack; a Warning is of odd escapes in a name, where warnings are errors
        what = f"{str(error)[:200]}; it begins with {mapped[:16]!r}"
        raise InputError(f"{path} is damaged, cut short or no file of torch.save ({what})") from None


# ---- the two formats: what was pickled, and where the bytes of each storage are


def _open_zip(mapped: _Map) -> tuple[Any, Callable[[str], Record]]:
    with zipfile.ZipFile(mapped) as archive:  # the directory only: zipfile's own reading copies
        members = {info.filename: info for info in archive.infolist()}
    tops = [name.removesuffix("data.pkl") for name in members if re.fullmatch(r"[^/]*/data\.pkl", name)]
    if len(tops) != 1:
        raise InputError(f"a zip file with {len(tops) or 'no'} FOLDER/data.pkl, so not of torch.save")
    top = tops[0]
    if f"{top}constants.pkl" in members or any(name.startswith(f"{top}code/") for name in members):
        raise InputError("a TorchScript archive, which is a program: save the state dict of the model it was made from")
    unpacked = sum(info.file_size for info in members.values() if info.compress_type != zipfile.ZIP_STORED)
    if unpacked > max(_INFLATION * len(mapped), _LIMIT):
        raise InputError(f"a zip bomb: {len(mapped)} bytes that unpack to {unpacked}")
    records: dict[str, Record] = {}

    def locate(name: str) -> Record:
        if name not in records:
            if top + name not in members:
                raise InputError(f"lacks its record {name[:80]!r}")
            records[name] = _member(mapped, members[top + name])
        return records[name]

    def small(name: str) -> bytes:
        buffer, start, size = locate(name)
        if size > _LIMIT:
            raise InputError(f"its record {name} is of {size} bytes, too many for a file of weights")
        return buffer[start : start + size]

    if f"{top}byteorder" in members and small("byteorder") != b"little":
        raise InputError("a big-endian file: load it in torch and save it on a little-endian machine")
    return _unpickle(io.BytesIO(small("data.pkl")), {}), lambda key: locate(f"data/{key}")


def _member(mapped: _Map, info: zipfile.ZipInfo) -> Record:
    """Where the bytes of a member are; its local header has a length of its own."""
    header = mapped[info.header_offset : info.header_offset + 30]
    start = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if info.header_offset < 0 or header[:4] != b"PK\3\4" or start + info.compress_size > len(mapped):
        raise InputError(f"is cut short or damaged at {info.filename[:80]!r}")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{info.filename[:80]!r} is encrypted or compressed by another method than deflate")
    if info.compress_type == zipfile.ZIP_STORED:
        return mapped, start, info.compress_size
    with memoryview(mapped) as view, view[start : start + info.compress_size] as packed:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, info.file_size + 1)  # at most that much (0: no bound)
    if len(data) != info.file_size:
        raise InputError(f"{info.filename[:80]!r} does not unpack to the {info.file_size} bytes of the zip directory")
    return data, 0, len(data)


def _open_legacy(mapped: _Map) -> tuple[Any, Callable[[str], Record]]:
    stream = io.BytesIO(mapped[:_LIMIT])
    dtypes: dict[str, np.dtype] = {}
    if (magic := _unpickle(stream, {})) != _MAGIC or type(magic) is not int:
        raise InputError("a pickle, but not of torch.save: it lacks the magic number")
    if _unpickle(stream, {}) != _PROTOCOL:
        raise InputError(f"its format is of another version than {_PROTOCOL}")
    system = _unpickle(stream, {})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InputError("a big-endian file: load it in torch and save it on a little-endian machine")
    found, keys = _unpickle(stream, dtypes), _unpickle(stream, {})
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in dtypes for key in keys):
        raise InputError("its list of storages is not that of its tensors")
    records: dict[str, Record] = {}
    position = stream.tell()
    for key in keys:
        count = int.from_bytes(mapped[position : position + 8], "little", signed=True)
        records[key] = (mapped, position + 8, count * dtypes[key].itemsize)
        position += 8 + records[key][2]
        if count < 0 or position > len(mapped):
            raise InputError(f"is cut short: storage {key[:80]!r} has {count} elements, and the file {len(mapped)} bytes")
    return found, records.__getitem__


# ---- the pickles


def _unpickle(stream: io.BytesIO, dtypes: dict[str, np.dtype]) -> Any:
    """The next pickle of `stream`, as plain values and _Tensors; `dtypes` gets the type of each storage it names.

    Time and memory are linear in its length: what may be a deep or shared tuple is never hashed, compared or printed.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, arg, _ in pickletools.genops(stream):
        match opcode.name:
            case name if name in _LITERALS:
                stack.append(_LITERALS[name](arg))
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack.append(tuple([stack.pop() for _ in range(int(name[-1]))][::-1]))
            case "APPEND" | "APPENDS" as name:
                items = since_mark() if name == "APPENDS" else [stack.pop()]
                _a(list, stack[-1]).extend(items)
            case "SETITEM" | "SETITEMS" as name:
                items = since_mark() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
                _fill(_a(dict, stack[-1]), items[::2], items[1::2])
            case "GLOBAL" | "INST":  # INST would also call it; the name that we put there is not to be called
                stack.append(_global(arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = _a(str, stack.pop()), _a(str, stack.pop())
                stack.append(_global(f"{module}.{name}"))
            case "BINPERSID":
                stack.append(storage := _storage(stack.pop()))
                dtypes.setdefault(storage.key, storage.dtype)
            case "REDUCE":
                args, function = stack.pop(), stack.pop()
                stack.append(_call(_a(_Global, function).name, args))
            case "BUILD":  # attributes: an OrderedDict's `_metadata`
                stack.pop()
                _a(dict, stack[-1])
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case name:
                raise InputError(f"its pickle has the opcode {name}, which no state dict needs")
    raise AssertionError  # genops ends after STOP or raises


def _a(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise InputError(f"its pickle has a {type(value).__name__} where a {kind.__name__} should be")
    return value


def _fill(target: dict[str, Any], keys: list[Any], values: list[Any]) -> None:
    """Sets items; those of other keys than strings are left out (an optimizer's, or made to collide)."""
    target.update((key, value) for key, value in zip(keys, values, strict=True) if isinstance(key, str))


def _global(name: str) -> _Global:
    """The inert name that stands for a global of the pickle, if it is one of those that a state dict has."""
    if name not in _TYPES and name not in _REBUILD and name not in _CALLABLE:
        if _A_TYPE.fullmatch(name):
            raise InputError(f"has tensors of type {name[:80]}; known are {', '.join(n for n in _TYPES if n.islower())}")
        raise InputError(
            f"holds code: {_short(name)}; refused, for a file of weights needs none. Get model.safetensors instead, or save "
            "the state dict alone: torch.save(model.state_dict(), ...)"
        )
    return _Global(name)


def _call(name: str, args: Any) -> Any:
    """What the call of a global stands for (torch/_utils.py)."""
    match name, args:
        case _, (_Storage() as storage, offset, tuple() as size, tuple() as stride, *rest) if name in _REBUILD:
            if len(rest) < _REBUILD[name] or any(rest[_REBUILD[name] :]):  # metadata: the conjugate or negative of what is stored
                raise InputError(f"its pickle calls {name} with arguments that are not supported")
            dtype = _TYPES.get(_a(_Global, rest[2]).name) if name.endswith("v3") else storage.dtype
            return _Tensor(storage, dtype, offset, size, stride)
        case ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" | "torch.nn.parameter.Parameter",
              (_Tensor() as tensor, *_)):  # fmt: skip
            return tensor
        case "torch.Size", (tuple() as size,):
            return size
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list() as pairs,):  # Python 2's
            result: dict[str, Any] = {}
            _fill(result, *(list(column) for column in zip(*pairs, strict=True)))
            pairs.clear()  # or the same list, used again and again, takes quadratic time
            return result
    raise InputError(f"its pickle calls {name} with arguments that torch does not write")


def _storage(reference: Any) -> _Storage:
    """From a persistent id: ("storage", type, key, device, elements), in the legacy format with a view's place or None."""
    match reference:
        case ("storage", _Global(name), str(key), _, int(count), *view) if name in _TYPES and len(view) <= 1:
            match view:
                case [] | [None]:
                    return _Storage(key, _TYPES[name], 0, count)
                case [(_, int(first), int(size))] if first >= 0:
                    return _Storage(key, _TYPES[name], first, size)
    raise InputError("its pickle refers to something else than a storage")


# ---- the tensors


def _array(name: str, tensor: _Tensor, locate: Callable[[str], Record]) -> np.ndarray:
    """The view that `tensor` is of its record, which it is checked against."""
    storage, size, stride, itemsize = tensor.storage, tensor.size, tensor.stride, tensor.dtype.itemsize
    buffer, start, nbytes = locate(storage.key)
    if (storage.first + storage.count) * storage.dtype.itemsize > nbytes:
        raise InputError(f"is cut short: {_short(name)} is of {storage.count} elements, its storage of {nbytes} bytes")
    if len(size) != len(stride) or len(size) > _MAX_DIMS or not all(type(n) is int and n >= 0 for n in (tensor.offset, *size, *stride)):
        raise InputError(f"{_short(name)} has a shape, strides or an offset that no tensor has")
    if not all(size):
        return np.ndarray(size, tensor.dtype, b"")
    last = tensor.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if (last + 1) * itemsize > storage.count * storage.dtype.itemsize:
        raise InputError(f"{_short(name)} reaches past its storage of {storage.count} elements")
    strides = [step * itemsize if n > 1 else itemsize for n, step in zip(size, stride, strict=True)]
    return np.ndarray(size, tensor.dtype, buffer, start + storage.first * storage.dtype.itemsize + tensor.offset * itemsize, strides)


def _state_dict(found: Any) -> dict[str, _Tensor]:
    """The one dict of tensors in what was unpickled."""
    if isinstance(found, dict):
        nested = [name for name in _NESTED if (inner := found.get(name)) and isinstance(inner, dict) and _tensors(inner) == inner]
        if len(nested) == 1:
            return found[nested[0]]
        tensors = _tensors(found)
        plain = all(value is None or isinstance(value, int | float | str | _Tensor) for value in found.values())
        if tensors and plain:
            return tensors
    raise InputError(f"holds {_describe(found)}; expected one dict of tensors, at the top or as one of {', '.join(_NESTED)}")
