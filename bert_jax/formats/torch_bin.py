"""Reads PyTorch state dicts (pytorch_model.bin, *.pt) without torch, and without running the code in their pickles.

torch/serialization.py has two formats: a zip file (`_save`, since torch 1.6) of data.pkl and one record per storage, and before
that (`_legacy_save`) five pickles in a row (magic number, protocol, system, object, storage keys) followed by the storages.

A pickle is a program. `_unpickle` interprets the few opcodes that state dicts need, as `weights_only` of torch does: it knows
numbers, strings, tuples, lists and dicts, and names (`_Global`) that nothing can call. `pickle.Unpickler` with `find_class` runs
no code either, but has no bounds: a memo index of four bytes allocates up to 64 GB, and keys of dicts are hashed, which takes
exponential time for tuples that share their parts and quadratic time for numbers that collide.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import ml_dtypes
import numpy as np

from bert_jax.errors import InputError
from bert_jax.formats.mapped import map_file

T = TypeVar("T")
Record = tuple[mmap.mmap | bytes, int, int]
"""The bytes of a storage: (buffer, offset, length)."""

_LIMIT = 1 << 21  # bytes of the longest pickle or zip directory that is read, for about 10,000 tensors
_INFLATION = 16  # a file may unpack to this many times its size; weights hardly compress
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_NESTED = ("state_dict", "model_state_dict", "model")  # the entries of a training checkpoint that may hold the state dict
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
_REBUILD = {
    "torch._utils._rebuild_tensor": 0, "torch._utils._rebuild_tensor_v2": 2, "torch._utils._rebuild_tensor_v3": 3,
}  # fmt: skip
"""Functions of torch/_utils.py that make a tensor, with the number of arguments between its stride and its metadata."""
_PARAMETER = {
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state", "torch.nn.parameter.Parameter",
}  # fmt: skip
_NAMES = {*_TYPES, *_REBUILD, *_PARAMETER, "torch.Size", "collections.OrderedDict"}
_LITERALS = {
    "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINFLOAT",
    "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}
"""The number of values that an opcode takes from the stack; others take all since the last MARK."""
_BITS, _MOST_ARGUMENTS = 128, 16  # limits for an integer and for a call


@dataclass(frozen=True, eq=False)
class _Global:
    name: str


@dataclass(frozen=True, eq=False)
class _Storage:
    key: str
    dtype: np.dtype
    first: int  # elements of the record before the storage: 0, except in views that old versions of torch wrote
    count: int


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor as its pickle describes it. Offset, size and stride count elements; `_array` checks that they are numbers."""

    storage: _Storage
    dtype: np.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Map(mmap.mmap):
    """A mapped file of which zipfile never reads more than a bounded directory."""

    def read(self, n: int | None = None) -> bytes:
        if n is not None and n > _LIMIT:
            raise InputError(f"its zip directory has {n} bytes, too many for a file of weights")
        return super().read(n)


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """Returns {name: array} of a state dict that `torch.save` wrote, by itself or in a training checkpoint.

    The arrays are read-only views, perhaps strided or unaligned, of the mapped file. Only compressed members of a zip file are
    unpacked. All arrays together have at most 16 times the file's size; everything else takes at most 400 MB for any file.
    Numbers, strings and None beside the tensors are left out.

    Raises:
      InputError: the file is missing, damaged or cut short; its pickle would import or call anything; or it is not supported:
        TorchScript, tar files of torch before 0.1.10, big-endian files, quantized, sparse or complex tensors, contents other
        than one dict of tensors.
    """
    mapped = map_file(path, _Map)
    try:
        found, locate = _open_zip(mapped) if mapped[:4] == b"PK\3\4" else _open_legacy(mapped)
        arrays = {name: _array(name, tensor, locate) for name, tensor in _state_dict(found).items()}
        claimed = sum(array.nbytes for array in arrays.values())
        if claimed > _INFLATION * len(mapped) + _LIMIT:  # through strides of 0, or storages that share their bytes
            raise InputError(f"its tensors have {claimed:,} bytes, in a file of {len(mapped):,}")
        return arrays
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, LookupError, OverflowError, zipfile.BadZipFile, NotImplementedError, zlib.error, Warning) as error:
        # pickletools, zipfile and the stack raise these; a Warning is for odd escapes in a name, where warnings are errors
        what = f"{str(error)[:200]}; it begins with {mapped[:16]!r}"
        raise InputError(f"{path} is damaged, cut short or not written by torch.save ({what})") from None


def _open_zip(mapped: _Map) -> tuple[object, Callable[[str], Record]]:
    """Returns the unpickled object, and a function from the key of a storage to its record."""
    with zipfile.ZipFile(cast(IO[bytes], mapped)) as archive:  # only its directory: zipfile would copy the members
        members = {info.filename: info for info in archive.infolist()}
    tops = [name.removesuffix("data.pkl") for name in members if re.fullmatch(r"[^/]*/data\.pkl", name)]
    if len(tops) != 1:
        raise InputError(f"a zip file, but not written by torch.save: it has {len(tops) or 'no'} FOLDER/data.pkl")
    if any(name.startswith((f"{tops[0]}code/", f"{tops[0]}constants.pkl")) for name in members):
        raise InputError("a TorchScript archive, which is a program: save the state dict of the model that it was made from")
    unpacked = sum(info.file_size for info in members.values() if info.compress_type != zipfile.ZIP_STORED)
    if unpacked > max(_INFLATION * len(mapped), _LIMIT):
        raise InputError(f"a zip bomb: {len(mapped)} bytes that unpack to {unpacked}")

    def locate(name: str) -> Record:
        if tops[0] + name not in members:
            raise InputError(f"lacks its record {name[:80]!r}")
        return _member(mapped, members[tops[0] + name])

    def contents(name: str) -> bytes:
        buffer, start, size = locate(name)
        if size > _LIMIT:
            raise InputError(f"its record {name} has {size} bytes, too many for a file of weights")
        return buffer[start : start + size]

    if f"{tops[0]}byteorder" in members and contents("byteorder") != b"little":
        raise InputError("a big-endian file: load it in torch and save it on a little-endian machine")
    return _unpickle(io.BytesIO(contents("data.pkl")), {}), cache(lambda key: locate(f"data/{key}"))


def _member(mapped: _Map, info: zipfile.ZipInfo) -> Record:
    """Locates a member's bytes, which follow a header of a length that the directory does not hold."""
    header = mapped[info.header_offset : info.header_offset + 30]
    start = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if header[:4] != b"PK\3\4" or start + info.compress_size > len(mapped):
        raise InputError(f"is cut short or damaged at {info.filename[:80]!r}")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{info.filename[:80]!r} is encrypted, or compressed by another method than deflate")
    if info.compress_type == zipfile.ZIP_STORED:
        return mapped, start, info.compress_size
    with memoryview(mapped) as whole, whole[start : start + info.compress_size] as packed:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, info.file_size + 1)  # 0 would mean no bound
    if len(data) != info.file_size:
        raise InputError(f"{info.filename[:80]!r} does not unpack to the {info.file_size} bytes of the zip directory")
    return data, 0, len(data)


def _open_legacy(mapped: _Map) -> tuple[object, Callable[[str], Record]]:
    """Returns the same as `_open_zip`, for a file of pickles in a row."""
    if mapped[257:262] == b"ustar":
        raise InputError("a tar file, written by torch before 0.1.10: load it in torch and save the state dict again")
    stream = io.BytesIO(mapped[:_LIMIT])
    dtypes: dict[str, np.dtype] = {}
    if _unpickle(stream, {}) != _MAGIC:
        raise InputError("a pickle, but not written by torch.save: it has no magic number")
    if _unpickle(stream, {}) != _PROTOCOL:
        raise InputError(f"has another version of the format than {_PROTOCOL}")
    if _a(dict, _unpickle(stream, {})).get("little_endian") is not True:
        raise InputError("a big-endian file: load it in torch and save it on a little-endian machine")
    found, keys = _unpickle(stream, dtypes), _a(list, _unpickle(stream, {}))
    records: dict[str, Record] = {}
    position = stream.tell()
    for key in keys:
        count = int.from_bytes(mapped[position : position + 8], "little", signed=True)
        records[key] = (mapped, position + 8, count * dtypes[_a(str, key)].itemsize)
        position += 8 + records[key][2]
        if count < 0 or position > len(mapped):
            raise InputError(f"is cut short: the storage {key[:80]!r} claims to end at byte {position} of {len(mapped)}")
    return found, records.__getitem__


def _unpickle(stream: io.BytesIO, dtypes: dict[str, np.dtype]) -> object:
    """Reads the next pickle of `stream` as plain values and `_Tensor`s, and adds the type of each storage to `dtypes`.

    Time and memory are linear in its length: values may be deep tuples of shared parts, and are never hashed or compared.
    """
    stack: list[object] = []
    marks: list[int] = []
    memo: dict[int, object] = {}

    def take(name: str) -> list[object]:
        start = len(stack) - _TAKES[name] if name in _TAKES else marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    arg: Any
    for opcode, arg, _ in pickletools.genops(stream):
        match opcode.name:
            case name if name in _LITERALS:
                if isinstance(arg, int) and arg.bit_length() > _BITS:  # arithmetic with it would take long
                    raise InputError(f"its pickle has an integer of {arg.bit_length():,} bits")
                stack.append(_CONSTANTS.get(name, arg))
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack.append(tuple(take(name)))
            case "EMPTY_LIST" | "EMPTY_DICT" as name:
                stack.append([] if name == "EMPTY_LIST" else {})
            case "APPEND" | "APPENDS" as name:
                items = take(name)
                _a(list, stack[-1]).extend(items)
            case "SETITEM" | "SETITEMS" as name:
                items = take(name)
                pairs = zip(items[::2], items[1::2], strict=True)
                # Keys that are no strings are an optimizer's numbers, or numbers that were made to collide.
                _a(dict, stack[-1]).update((key, value) for key, value in pairs if isinstance(key, str))
            case "GLOBAL" | "INST":  # INST would also call it; here it gives the name
                stack.append(_global(arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = _a(str, stack.pop()), _a(str, stack.pop())
                stack.append(_global(f"{module}.{name}"))
            case "REDUCE":
                args, function = stack.pop(), stack.pop()
                stack.append(_call(_a(_Global, function).name, args))
            case "BINPERSID":
                stack.append(storage := _storage(stack.pop()))
                dtypes.setdefault(storage.key, storage.dtype)
            case "BUILD":  # sets attributes, such as `_metadata` of a state dict
                del stack[-1]
                _a(dict, stack[-1])
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case name:
                raise InputError(f"its pickle has the opcode {name}, which no state dict needs")
    raise AssertionError("genops ends with STOP")


def _a(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise InputError(f"its pickle has a {type(value).__name__} where a {kind.__name__} should be")
    return value


def _global(name: str) -> _Global:
    """Returns the inert name of a global that state dicts have."""
    if name in _NAMES:
        return _Global(name)
    if _A_TYPE.fullmatch(name):
        raise InputError(f"has tensors of the type {name[:80]}; known are {', '.join(n for n in _TYPES if n.islower())}")
    raise InputError(
        f"holds code: {name[:200]!r}; refused, because a file of weights needs none. Get model.safetensors instead, or save "
        "the state dict alone: torch.save(model.state_dict(), path)"
    )


def _call(name: str, args: object) -> object:
    """Returns the value of a call of a global (torch/_utils.py)."""
    if not isinstance(args, tuple) or len(args) > _MOST_ARGUMENTS:  # more would be copied at each call
        raise InputError(f"its pickle calls {name} with arguments that are not supported")
    match args:
        case (_Storage() as storage, int() as offset, tuple() as size, tuple() as stride, *rest) if name in _REBUILD:
            if len(rest) >= _REBUILD[name] and not any(rest[_REBUILD[name] :]):  # metadata: a conjugate or a negative
                dtype = _TYPES[_a(_Global, rest[2]).name] if name.endswith("_v3") else storage.dtype
                return _Tensor(storage, dtype, offset, size, stride)
        case (_Tensor() as tensor, *_) if name in _PARAMETER:
            return tensor
        case (tuple() as size,) if name == "torch.Size":
            return size
        case () if name == "collections.OrderedDict":
            return {}
        case (list() as pairs,) if name == "collections.OrderedDict":  # as Python 2 wrote it
            items = {key: value for key, value in (_a(list, pair) for pair in pairs) if isinstance(key, str)}
            pairs.clear()  # the same list, given again and again, would take quadratic time
            return items
    raise InputError(f"its pickle calls {name} with arguments that are not supported")


def _storage(reference: object) -> _Storage:
    """Reads a persistent id: ("storage", type, key, device, elements), in the legacy format followed by a view or None."""
    match reference:
        case ("storage", _Global() as kind, str() as key, _, int() as count, *view) if kind.name in _TYPES:
            match view:
                case [] | [None]:
                    return _Storage(key, _TYPES[kind.name], 0, count)
                case [(_, int() as first, int() as size)]:
                    return _Storage(key, _TYPES[kind.name], first, size)
    raise InputError("its pickle refers to something other than a storage")


def _array(name: str, tensor: _Tensor, locate: Callable[[str], Record]) -> np.ndarray:
    """Returns a tensor as a view of its record, checked against its storage, and that against the record."""
    storage, size, stride, itemsize = tensor.storage, tensor.size, tensor.stride, tensor.dtype.itemsize
    buffer, start, nbytes = locate(storage.key)
    first, end = (n * storage.dtype.itemsize for n in (storage.first, storage.first + storage.count))
    if not 0 <= first <= end <= nbytes:
        raise InputError(f"is cut short: {name[:80]!r} needs bytes {first} to {end} of a storage of {nbytes}")
    numbers = (tensor.offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
        raise InputError(f"{name[:80]!r} has a shape, strides or an offset that no tensor has")
    if 0 in size:
        return np.ndarray(size, tensor.dtype, b"")
    steps = [step if n > 1 else 0 for n, step in zip(size, stride, strict=True)]  # the step of a lone element may be anything
    last = tensor.offset + sum((n - 1) * step for n, step in zip(size, steps, strict=True))
    if first + (last + 1) * itemsize > end:
        raise InputError(f"{name[:80]!r} reaches past its storage, to element {last} of {storage.count}")
    return np.ndarray(size, tensor.dtype, buffer, start + first + tensor.offset * itemsize, [step * itemsize for step in steps])


def _state_dict(found: object) -> dict[str, _Tensor]:
    """Returns the only dict of tensors: the whole object, or a nested dict of nothing but tensors."""
    entries: dict[str, object] = found if isinstance(found, dict) else {}
    inner = [value for name in _NESTED if isinstance(value := entries.get(name), dict) and value]
    nested = [each for each in inner if all(isinstance(value, _Tensor) for value in each.values())]
    if len(nested) == 1:
        return nested[0]
    tensors = {name: value for name, value in entries.items() if isinstance(value, _Tensor)}
    if tensors and all(value is None or isinstance(value, int | float | str | bytes | _Tensor) for value in entries.values()):
        return tensors
    entries = dict(list(entries.items())[:5]) or {"": found}
    kinds = [f"{name[:40]!r} ({type(value).__name__.strip('_')})" for name, value in entries.items()]
    expected = f"a dict of tensors, at the top or as one of {', '.join(_NESTED)}"
    raise InputError(f"expected {expected}; it holds {', '.join(kinds)}{', ...' if len(kinds) == 5 else ''}")
