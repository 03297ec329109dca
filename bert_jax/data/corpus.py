"""The token cache: rows of token ids with an index, made once from the text, in parallel.

The cache is a folder named by a hash of the text, the tokenizer and the options. Each shard (consecutive documents, about
SHARD_BYTES of text) becomes two files (`shards`), each written whole or not at all. `index.json`, written last, makes the
folder a cache; without it, whole shards are kept and the others made. No row crosses a shard, so the rows are the same whether
processes of this machine or Beam's workers (`bert_jax.beam`) made them.

index.json has a checksum of each shard and of itself. A shard is checked when it is first read, which costs no more than
reading it; a damaged one is made again from the text, with the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config import DataConfig
from bert_jax.data import files, sources, store, tokenizer_training
from bert_jax.data.repeats import Sample
from bert_jax.data.shards import (
    Counted,
    HoldOut,
    Shard,
    ShardTask,
    hold_out,
    load_tokenizer,
    make_shard,
    one_sided,
    read_counts,
    shard_files,
    write_shard,
)
from bert_jax.data.store import AnyPath, RemotePath, as_path, write
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.data.workers import Progress, Run, run_in_processes
from bert_jax.disk import seal
from bert_jax.errors import InputError

FORMAT = 1  # the version of the cache, which changes when the same text would give other rows
SHARD_BYTES = 4 << 20
Index = dict[str, Any]  # the content of index.json


@dataclass
class Rows:
    """Rows of token ids by index, over memory-mapped shards."""

    shards: list[tuple[Path, int, int]]  # a file and its rows [start, stop)
    length: int
    check: Callable[[Path], None] = lambda path: None  # called before a shard is read
    _ends: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._ends = np.cumsum([stop - start for _, start, stop in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the rows at `indices`, int32 [n, columns]."""
        indices = np.asarray(indices)
        shard_of = np.searchsorted(self._ends, indices, side="right")
        rows = np.empty((len(indices), self.length), np.int32)
        for out, index, shard in zip(rows, indices.tolist(), shard_of.tolist(), strict=True):
            path, _, stop = self.shards[shard]
            self.check(path)
            out[:] = _open_rows(path)[index - int(self._ends[shard]) + stop]
        return rows


@lru_cache(maxsize=128)  # each keeps a file open, and the limit may be 256
def _open_rows(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def _check_shard(path: Path, left: dict[Path, int], make: Callable[[Path], None]) -> None:
    """Compares a shard with its checksum when it is first read, and makes it again if it is damaged."""
    if (expected := left.get(path)) is None:
        return
    if not _is_whole(path, expected):
        print(f"{path} is damaged: it is made again from the text", file=sys.stderr)
        make(path)
        _open_rows.cache_clear()
        if not _is_whole(path, expected):
            raise InputError(f"{path} is damaged and cannot be made again, as the text has changed: restore the text")
    left.pop(path, None)


def _is_whole(path: Path, expected: int) -> bool:
    try:
        return zlib.crc32(np.memmap(path, np.uint8, "r").data) == expected
    except (OSError, ValueError):  # it is not there, or empty
        return False


@dataclass
class Corpus:
    """A finished cache: training and held-out rows, and the counts."""

    train: Rows
    held_out: Rows
    token_counts: np.ndarray  # int64 [V], of the training rows; 0 for special tokens, which are never predicted
    summary: Index
    sentences: Sample  # hashes of its sentences, or of a share of them
    sources: dict[str, tuple[int, int]]  # the training rows [first, stop) of each source of a mixture


def other_text(source: Sequence[str], run: str) -> str:
    """Returns the message for a run that would continue with another text."""
    return f"the text of {', '.join(source)} is not what {run} was begun with: restore it, or start again with another --workdir"


def prepare(
    cfg: DataConfig, tokenizer_path: str | Path, cache_dir: str | Path, progress: Progress, copies: Path | None = None,
    begun: tuple[str, str] | None = None,
) -> Corpus:  # fmt: skip
    """Tokenizes on this machine what is not in the cache yet, and opens the cache, or the copy in `copies` of a remote one.

    `begun` is (key, run) of a run that continues. Its text is checked before anything is tokenized.
    """
    run = partial(run_in_processes, workers=cfg.num_workers, progress=progress)
    for attempt in (1, 2):
        directory, tasks = make(cfg, tokenizer_path, cache_dir, run, begun)
        if isinstance(directory, RemotePath):
            if copies is None:
                raise InputError(f"the token cache {directory} cannot be memory-mapped: give a local folder for its copy")
            if not (copies / directory.name / "index.json").exists():
                store.remove_folder(copies / directory.name)  # unfinished
            directory = store.fetch(directory, copies, progress)
        try:
            return _open(directory, tasks)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as e:
            if attempt == 2:
                raise InputError(f"the token cache {directory} is damaged ({e}); delete that folder and run again") from None
            print(f"the token cache {directory} is damaged ({e}): it is made again", file=sys.stderr)
            store.remove_folder(directory)
    raise AssertionError("unreachable")


def make(
    cfg: DataConfig, tokenizer_path: str | Path, cache_dir: str | Path, run: Run, begun: tuple[str, str] | None = None
) -> tuple[AnyPath, list[ShardTask]]:
    """Tokenizes what is not in the cache yet, by `run`. Paths may be URLs.

    Returns:
      The folder of the finished cache, and the tasks that make its shards.
    """
    files_of = list_files(cfg)
    files = [path for each in files_of.values() for path in each]
    tokenizer = load_tokenizer(str(tokenizer_path), cfg.special_tokens)
    cache = as_path(cache_dir)
    store.make_folder(cache)
    segments, hashes = _scan(files, cfg, cache, run)
    directory = cache / _cache_key(hashes, tokenizer, cfg, files_of)
    if begun and directory.name != begun[0]:
        raise InputError(other_text(cfg.source, begun[1]))
    numbers = {path: i for i, path in enumerate(files)}
    name_of = {path: name for name, each in files_of.items() for path in each}
    shards_of = {name: plan_shards([s for s in segments if name_of[s.path] == name]) for name in files_of}
    tasks = [
        ShardTask(i, shard, tuple(numbers[s.path] for s in shard), cfg, str(tokenizer_path), str(directory))
        for i, shard in enumerate(shard for shards in shards_of.values() for shard in shards)
    ]
    if not _has_index(directory):
        store.make_folder(directory)
        rule = hold_out(cfg, tuple(segments))
        run(make_shard, [dataclasses.replace(task, rule=rule) for task in tasks], "tokenize")
        if not (directory / "index.json").exists():  # else another run has made the same cache meanwhile
            _write_index(directory, {name: len(shards) for name, shards in shards_of.items()}, files, cfg, tokenizer, rule)
    return directory, tasks


def list_files(cfg: DataConfig) -> dict[str, list[str]]:
    """Returns the files of each source of a mixture; without one, all files under the empty name."""
    found: dict[str, list[str]] = {}
    for name, paths in cfg.by_name.items():
        try:
            found[name] = sources.list_files(paths, sources.reader_of(cfg))
        except InputError as error:
            if cfg.mixture is None and any(re.match(r"[A-Za-z0-9_.-]+=", path) for path in paths):
                raise InputError(f"{error}; if NAME=PATH is meant, give --data.mixture, the weights of the names") from None
            raise
        for other in found.keys() - {name}:
            if both := set(found[name]) & set(found[other]):
                raise InputError(f"data.source: {min(both)} is in the sources {other} and {name}: leave it in one of them")
    return found


def _has_index(directory: AnyPath) -> bool:
    """Returns True for a finished cache. Removes an index that is damaged or older than checksums: all is then made again."""
    index = directory / "index.json"
    if not index.exists():
        return False
    try:
        _read_index(directory)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        print(f"the token cache {directory} is made again: {e}", file=sys.stderr)
        index.unlink()
        return False
    return True


def _read_index(directory: AnyPath) -> Index:
    """Reads index.json. Raises ValueError and the like where it is damaged or older than checksums."""
    summary: Index = json.loads((directory / "index.json").read_bytes())
    if "checksums" not in summary:
        raise ValueError("it has no checksums")
    if "repeats" not in summary:
        raise ValueError("it has no counts of repeated text")
    if summary.pop("crc32") != seal(summary):
        raise ValueError("index.json does not match its checksum")
    return summary


def read_texts(cfg: DataConfig, progress: Progress) -> Iterator[str]:
    """Yields the text that a vocabulary is trained on: the documents of `cfg.source` that are not held out.

    Of more than `cfg.tokenizer_sample_mb`, it yields about that much: lines from all over the text, drawn by their hash, so
    they are the same each time.
    """
    report, reader = sources.ReadReport(), sources.reader_of(cfg)
    files = [path for each in list_files(cfg).values() for path in each]
    scanned = run_in_processes(partial(_scan_file, reader, SHARD_BYTES), files, "scan", cfg.num_workers, progress)
    segments = [sources.Segment(*values) for found, _ in scanned for values in found]
    rule = hold_out(cfg, tuple(segments))
    every, share = _sampling(sum(segment.num_bytes for segment in segments), cfg.tokenizer_sample_bytes)
    some = segments[::every]
    for segment in progress(some, len(some), "read"):
        texts = sources.read(segment, reader, report)
        for text, _, held_out in (part for whole in texts for part in rule.parts(whole, cfg.sentences)):
            if held_out:
                continue
            if share == 1:
                yield text
            else:
                yield from (line for line in tokenizer_training.lines(text) if zlib.crc32(line.encode()) < share * 2**32)


def _sampling(num_bytes: int, most_bytes: int | None) -> tuple[int, float]:
    """Returns n and a share: about `most_bytes` of `num_bytes` are that share of the lines of every n-th segment.

    >>> _sampling(100, 200), _sampling(400, 200), _sampling(8000, 200)
    ((1, 1.0), (1, 0.5), (10, 0.25))
    """
    if most_bytes is None or num_bytes <= most_bytes:
        return 1, 1.0
    every = max(1, num_bytes // (4 * most_bytes))
    print(
        f"the vocabulary is trained on about {most_bytes / 1e6:,.0f} of {num_bytes / 1e6:,.0f} MB, lines from all over the text "
        "(data.tokenizer_sample_mb)", file=sys.stderr,
    )  # fmt: skip
    return every, every * most_bytes / num_bytes


def _scan(files: Sequence[str], cfg: DataConfig, cache: AnyPath, run: Run) -> tuple[list[sources.Segment], list[str]]:
    """Returns the segments and content hash of every file. Files that have not changed since the last time are not read."""
    kept = cache / "scan.json"
    try:
        record = json.loads(kept.read_bytes())
        known = record["files"] if record.pop("crc32") == seal(record) else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        known = {}
    reader = sources.reader_of(cfg)
    names = store.each(partial(_unchanged_name, reader=reader), files)
    new = [path for path, name in zip(files, names, strict=True) if name not in known]
    scanned = dict(zip(new, run(partial(_scan_file, reader, SHARD_BYTES), new, "scan"), strict=True))
    if lost := [path for path, found in scanned.items() if found is None]:
        raise InputError(f"{len(lost):,} of {len(new):,} files, {lost[0]} first, were read, but the result {_lost(cache)}")
    segments, hashes = [], []
    for path, name in zip(files, names, strict=True):
        if path in scanned:
            known[name] = scanned[path]
        found, content_hash = known[name]
        segments += [sources.Segment(*values) for values in found]
        hashes.append(content_hash)
    known.pop("", None)
    if scanned:
        record = {"files": known}
        write(kept, lambda f: f.write(json.dumps(record | {"crc32": seal(record)}).encode()))
    return segments, hashes


def _scan_file(reader: sources.Reader, segment_bytes: int, path: str) -> tuple[list[tuple[str, int, int, int, int, int]], str]:
    segments, content_hash = sources.scan(path, reader=reader, segment_bytes=segment_bytes)
    return [dataclasses.astuple(segment) for segment in segments], content_hash


def _unchanged_name(path: str, reader: sources.Reader) -> str:
    """Returns a name that changes with the file and with the way it is cut; empty for a source that is no file."""
    if not (state := files.state(path)):
        return ""
    return json.dumps([path, *state, dataclasses.astuple(reader), SHARD_BYTES, FORMAT])


def plan_shards(segments: Sequence[sources.Segment]) -> list[Shard]:
    """Groups consecutive segments into shards of about SHARD_BYTES."""
    shards: list[list[sources.Segment]] = []
    size = SHARD_BYTES
    for segment in segments:
        if size + segment.num_bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(segment)
        size += segment.num_bytes
    return [tuple(shard) for shard in shards]


def _cache_key(hashes: Sequence[str], tokenizer: Tokenizer, cfg: DataConfig, files_of: Mapping[str, Sequence[str]]) -> str:
    parts = ["documents", "text_column", "sentences", "on_error", "max_seq_length", "examples", "short_seq_prob",
             "dupe_factor", "eval_fraction"]  # fmt: skip
    options = {name: getattr(cfg, name) for name in parts} | ({"format": cfg.format} if cfg.format != "auto" else {})
    if cfg.mixture is not None:  # no shard has text of two sources
        options["sources"] = {name: len(each) for name, each in files_of.items()}
    text = json.dumps([FORMAT, SHARD_BYTES, list(hashes), tokenizer.fingerprint(), options])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _lost(place: AnyPath) -> str:
    return f"was lost before it came to {place}, which all workers must reach; run the same command again: it keeps what is there"


def _write_index(
    directory: AnyPath, shards_of: Mapping[str, int], files: Sequence[str], cfg: DataConfig, tokenizer: Tokenizer, rule: HoldOut
) -> None:
    """Adds up the counts of the shards, and writes the index. `shards_of`: the number of shards of each source."""
    num_shards = sum(shards_of.values())
    there = {path.name for path in directory.iterdir()}
    if missing := [str(i) for i in range(num_shards) if not there.issuperset(shard_files(i))]:  # a lost worker reports nothing
        more = f" and {len(missing) - 10:,} more" if missing[10:] else ""
        raise InputError(f"shards {', '.join(missing[:10])}{more} of {num_shards:,}: the result {_lost(directory)}")
    counts_paths = [directory / shard_files(i)[1] for i in range(num_shards)]
    counted = Counted(len(files))
    for first in range(0, num_shards, 64):  # at a time: several threads read a remote store
        counted.add(store.each(read_counts, counts_paths[first : first + 64]))
    documents, held_out = counted.number["documents"], counted.number["held_out_documents"]
    if cfg.eval_fraction and held_out in (0, documents):
        raise InputError(one_sided(held_out, documents, cfg))
    found = counted.repeats()
    summary = {
        "key": directory.name,
        "files": list(files),
        "hold_out": list(dataclasses.astuple(rule)),
        "duplicated_documents": found["documents"]["count"],
        "skipped": dict(counted.skipped),
        "skipped_first": counted.first,
        "empty": dict(counted.empty),
        **counted.number,
        "vocab_size": tokenizer.vocab_size,
        "max_seq_length": cfg.max_seq_length,
        "columns": cfg.max_seq_length + (cfg.examples == "sentence_pairs"),
        "rows": counted.rows,
        "train_rows": counted.train_rows,
        "checksums": counted.checksums,
        "row_lengths": counted.sums["row_lengths"].tolist(),
        "repeats": found,
    } | ({} if cfg.mixture is None else {"sources": dict(shards_of)})
    arrays = {"token_counts": counted.sums["token_counts"], **dataclasses.asdict(counted.sentences)}
    write(directory / "counts.npz", lambda f: np.savez(f, **arrays))
    write(directory / "index.json", lambda f: f.write(json.dumps(summary | {"crc32": seal(summary)}).encode()))
    store.each(lambda path: path.unlink(), counts_paths)


def _open(directory: Path, tasks: Sequence[ShardTask]) -> Corpus:
    """Opens the finished cache without reading its shards. Raises OSError, ValueError ... where it is damaged."""
    summary = _read_index(directory)
    with open(directory / "counts.npz", "rb") as f:
        counts = dict(np.load(f))
    token_counts, halvings = counts.pop("token_counts"), int(counts.pop("halvings"))
    paths = [directory / shard_files(i)[0] for i in range(len(summary["rows"]))]

    def remake(path: Path) -> None:
        counts_path = path.with_suffix(".npz")
        task = tasks[paths.index(path)]
        rule = HoldOut(*summary.get("hold_out", [task.cfg.eval_fraction]))  # an older index has none
        write_shard(dataclasses.replace(task, rule=rule), path, counts_path)
        counts_path.unlink(missing_ok=True)

    check = partial(_check_shard, left=dict(zip(paths, summary["checksums"], strict=True)), make=remake)
    train = [(path, 0, n) for path, n in zip(paths, summary["train_rows"], strict=True)]
    held_out = list(zip(paths, summary["train_rows"], summary["rows"], strict=True))
    train_rows, held_out_rows = (Rows(shards, summary["columns"], check) for shards in (train, held_out))
    ends, parts = np.cumsum([0, *summary["train_rows"]]).tolist(), dict[str, tuple[int, int]]()
    shard = 0
    for name, number in summary.get("sources", {"": len(paths)}).items():
        parts[name] = (ends[shard], ends[shard + number])
        shard += number
    return Corpus(train_rows, held_out_rows, token_counts, summary, Sample(**counts, halvings=halvings), parts)
