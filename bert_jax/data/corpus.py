"""Text -> an indexed cache of token rows, made once, in parallel.

The cache is a folder named by a hash of the text, the tokenizer and the options. Each shard (consecutive documents, about
SHARD_BYTES of text) becomes two files (`shards`), each written whole or not at all. `index.json`, written last, makes the
folder a cache; without it, whole shards are kept and the others made. No row crosses a shard, so the rows do not depend on
what made them: the processes of this machine, or Beam's workers (`bert_jax.beam`).

index.json has a checksum of each shard and of itself. A shard is checked when it is first read, which costs no more than
reading it; a damaged one is made again from the text, the same to the byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config import DataConfig, InputError
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

FORMAT = 1  # the version of the cache: raise it when the same text would give other rows
SHARD_BYTES = 4 << 20


@dataclass
class Rows:
    """Rows of token ids by index, over memory-mapped shards."""

    shards: list[tuple[Path, int, int]]  # file, rows [start, stop) of it
    length: int
    check: Callable[[Path], None] = lambda path: None  # called with a shard before it is read
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


@lru_cache(maxsize=128)  # each holds a file open, and the limit may be 256
def _open_rows(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


class _Checks:
    """Compares each shard with its checksum when it is first read, and has damaged ones made again."""

    def __init__(self, sums: dict[Path, int], make: Callable[[Path], None]) -> None:
        self._left, self._make = sums, make

    def __call__(self, path: Path) -> None:
        expected = self._left.get(path)
        if expected is None:
            return
        if not self._is_whole(path, expected):
            print(f"{path} is damaged: it is made again from the text", file=sys.stderr)
            self._make(path)
            _open_rows.cache_clear()
            if not self._is_whole(path, expected):
                raise InputError(f"{path} is damaged, and the text no longer gives what it held: restore the text of the run")
        self._left.pop(path, None)

    @staticmethod
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
    summary: dict[str, Any]
    sentences: Sample  # hashes of its sentences, or of a share of them


def other_text(source: Sequence[str], run: str) -> str:
    """Returns the message for a run that would continue with another text."""
    return f"the text of {', '.join(source)} is not what {run} was begun with: restore it, or start again with another --workdir"


def prepare(
    cfg: DataConfig, tokenizer_path: str | Path, cache_dir: str | Path, progress: Progress, copies: Path | None = None,
    begun: tuple[str, str] | None = None,
) -> Corpus:  # fmt: skip
    """Tokenizes on this machine what is not in the cache yet, and opens the cache; a remote one from its copy in `copies`.

    `begun` is (key, run) of a run that continues: before anything is tokenized, the text must prove to be its text.

    Raises:
      InputError: unreadable text, a source without documents, too few documents to hold some out, another text than `begun`'s.
    """
    run = partial(run_in_processes, workers=cfg.num_workers, progress=progress)
    for attempt in (1, 2):
        directory, tasks = _make(cfg, tokenizer_path, cache_dir, run, begun)
        if isinstance(directory, RemotePath):
            if copies is None:
                raise InputError(f"the token cache {directory} cannot be memory-mapped: give a local folder for its copy")
            if not (copies / directory.name / "index.json").exists():
                store.remove_folder(copies / directory.name)  # an unfinished one of this machine
            directory = store.fetch(directory, copies, progress)
        try:
            return _open(directory, tasks)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as e:
            if attempt == 2:
                raise InputError(f"the token cache {directory} is damaged ({e}); delete that folder and run again") from None
            print(f"the token cache {directory} is damaged ({e}): it is made again", file=sys.stderr)
            store.remove_folder(directory)
    raise AssertionError("unreachable")


def make(cfg: DataConfig, tokenizer_path: str | Path, cache_dir: str | Path, run: Run) -> AnyPath:
    """Tokenizes what is not in the cache yet, by `run`, and returns the folder of the finished cache. Paths may be URLs.

    Raises:
      InputError: as `prepare`; shards that are missing after `run`.
    """
    return _make(cfg, tokenizer_path, cache_dir, run, None)[0]


def _make(
    cfg: DataConfig, tokenizer_path: str | Path, cache_dir: str | Path, run: Run, begun: tuple[str, str] | None
) -> tuple[AnyPath, list[ShardTask]]:
    """Returns the folder of the finished cache, and the tasks that make its shards."""
    files = sources.list_files(cfg.source, sources.reader_of(cfg))
    tokenizer = load_tokenizer(str(tokenizer_path), cfg.special_tokens)
    cache = as_path(cache_dir)
    store.make_folder(cache)
    segments, hashes = _scan(files, cfg, cache, run)
    directory = cache / _cache_key(hashes, tokenizer, cfg)
    if begun and directory.name != begun[0]:
        raise InputError(other_text(cfg.source, begun[1]))
    numbers = {path: i for i, path in enumerate(files)}
    tasks = [
        ShardTask(i, shard, tuple(numbers[s.path] for s in shard), cfg, str(tokenizer_path), str(directory))
        for i, shard in enumerate(plan_shards(segments))
    ]
    if not _has_index(directory):
        store.make_folder(directory)
        rule = hold_out(cfg, tuple(segments))
        run(make_shard, [dataclasses.replace(task, rule=rule) for task in tasks], "tokenize")
        if not (directory / "index.json").exists():  # no other run has made the same cache meanwhile
            _write_index(directory, len(tasks), files, cfg, tokenizer, rule)
    return directory, tasks


def _has_index(directory: AnyPath) -> bool:
    """Tells whether the cache is finished. Removes an index that is damaged or older than checksums: all is then made again."""
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


def _read_index(directory: AnyPath) -> dict[str, Any]:
    """Reads index.json. Raises ValueError and the like where it is damaged or older than checksums."""
    summary: dict[str, Any] = json.loads((directory / "index.json").read_bytes())
    if "checksums" not in summary:
        raise ValueError("it has no checksums")
    if "repeats" not in summary:
        raise ValueError("it does not say what repeats in the text")
    if summary.pop("crc32") != seal(summary):
        raise ValueError("index.json does not match its checksum")
    return summary


def read_texts(cfg: DataConfig, progress: Progress) -> Iterator[str]:
    """Yields the text that a vocabulary is trained on: the documents of `cfg.source` that are not held out.

    Where these are more than `cfg.tokenizer_sample_mb`, yields about so much of them: lines from all over the text, drawn by
    their hash, so the same ones each time.
    """
    report, files = sources.ReadReport(), sources.list_files(cfg.source, sources.reader_of(cfg))
    scanned = run_in_processes(partial(_scan_file, sources.reader_of(cfg), SHARD_BYTES), files, "scan", cfg.num_workers, progress)
    segments = [sources.Segment(*values) for found, _ in scanned for values in found]
    rule = hold_out(cfg, tuple(segments))
    every, share = _sampling(sum(segment.num_bytes for segment in segments), cfg.tokenizer_sample_bytes)
    some = segments[::every]
    for segment in progress(some, len(some), "read"):
        texts = sources.read(segment, sources.reader_of(cfg), report)
        for text, _, held_out in (part for whole in texts for part in rule.parts(whole, cfg.sentences)):
            if held_out:
                continue
            if share == 1:
                yield text
            else:
                yield from (line for line in tokenizer_training.lines(text) if zlib.crc32(line.encode()) < share * 2**32)


def _sampling(num_bytes: int, most_bytes: int | None) -> tuple[int, float]:
    """Returns (read every n-th segment, take this share of its lines) to have about `most_bytes` of `num_bytes`.

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
    """Returns segments and content hash of every file. Files that have not changed since the last time are not read again."""
    kept = cache / "scan.json"
    try:
        record = json.loads(kept.read_bytes())
        known = record["files"] if record.pop("crc32") == seal(record) else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        known = {}
    names = store.each(partial(_unchanged_name, cfg=cfg), files)
    new = [path for path, name in zip(files, names, strict=True) if name not in known]
    scanned = dict(zip(new, run(partial(_scan_file, sources.reader_of(cfg), SHARD_BYTES), new, "scan"), strict=True))
    if lost := [path for path, found in scanned.items() if found is None]:
        raise InputError(f"{len(lost):,} of {len(new):,} files were read, {lost[0]} first, and what was found {_lost(cache)}")
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


def _scan_file(reader: sources.Reader, segment_bytes: int, path: str) -> tuple[list[tuple[Any, ...]], str]:
    """Returns segments, as plain values, and content hash of one file."""
    segments, content_hash = sources.scan(path, reader=reader, segment_bytes=segment_bytes)
    return [dataclasses.astuple(segment) for segment in segments], content_hash


def _unchanged_name(path: str, cfg: DataConfig) -> str:
    """Returns a name that differs for a file that has changed or is cut in another way; empty for a source that is no file."""
    if not (state := files.state(path)):
        return ""
    return json.dumps([path, *state, dataclasses.astuple(sources.reader_of(cfg)), SHARD_BYTES, FORMAT])


def plan_shards(segments: Sequence[sources.Segment]) -> list[Shard]:
    """Groups consecutive segments to about SHARD_BYTES: many small files share a shard, a large one has several."""
    shards: list[list[sources.Segment]] = []
    size = SHARD_BYTES
    for segment in segments:
        if size + segment.num_bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(segment)
        size += segment.num_bytes
    return [tuple(shard) for shard in shards]


def _cache_key(hashes: Sequence[str], tokenizer: Tokenizer, cfg: DataConfig) -> str:
    parts = ["documents", "text_column", "sentences", "on_error", "max_seq_length", "examples", "short_seq_prob",
             "dupe_factor", "eval_fraction"]  # fmt: skip
    options = {name: getattr(cfg, name) for name in parts} | ({"format": cfg.format} if cfg.format != "auto" else {})
    text = json.dumps([FORMAT, SHARD_BYTES, list(hashes), tokenizer.fingerprint(), options])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _require_shards(directory: AnyPath, num_shards: int) -> None:
    """Raises InputError where a shard is missing: a worker that is lost with its work reports nothing."""
    there = {path.name for path in directory.iterdir()}
    missing = [str(i) for i in range(num_shards) if not there.issuperset(shard_files(i))]
    if missing:
        more = f" and {len(missing) - 10:,} more" if missing[10:] else ""
        raise InputError(f"shards {', '.join(missing[:10])}{more} of {num_shards:,}: what was made {_lost(directory)}")


def _lost(place: AnyPath) -> str:
    return f"was lost before it came to {place}, which all workers must see; run the same command again: it keeps what is there"


def _write_index(
    directory: AnyPath, num_shards: int, files: Sequence[str], cfg: DataConfig, tokenizer: Tokenizer, rule: HoldOut
) -> None:
    """Adds up the counts of the shards, checks them, and makes the folder a cache."""
    _require_shards(directory, num_shards)
    counts_paths = [directory / shard_files(i)[1] for i in range(num_shards)]
    counted = Counted(len(files))
    for first in range(0, num_shards, 64):  # at a time: a store far away is read by several threads
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
    }
    arrays = {"token_counts": counted.sums["token_counts"], **dataclasses.asdict(counted.sentences)}
    write(directory / "counts.npz", lambda f: np.savez(f, **arrays))
    write(directory / "index.json", lambda f: f.write(json.dumps(summary | {"crc32": seal(summary)}).encode()))
    store.each(lambda path: path.unlink(), counts_paths)


def _open(directory: Path, tasks: Sequence[ShardTask]) -> Corpus:
    """Opens the finished cache, without touching its shards. Raises OSError, ValueError ... where it is damaged."""
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

    check = _Checks(dict(zip(paths, summary["checksums"], strict=True)), remake)
    train = [(path, 0, n) for path, n in zip(paths, summary["train_rows"], strict=True)]
    held_out = [(p, a, b) for p, a, b in zip(paths, summary["train_rows"], summary["rows"], strict=True)]
    columns = summary["columns"]
    sides = Rows(train, columns, check), Rows(held_out, columns, check)
    return Corpus(*sides, token_counts, summary, Sample(**counts, halvings=halvings))
