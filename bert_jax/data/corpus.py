"""Text -> an indexed cache of token rows, made once, in parallel.

The cache is a folder named by a hash of the text, the tokenizer and the options. Each shard (consecutive documents, about
SHARD_BYTES of text) becomes two files, written whole or not at all: `shard-00000.npy`, the rows [n, L], training rows
before held-out ones, and `shard-00000.npz`, what was counted. `index.json`, written last, makes the folder a cache; without
it, whole shards are kept and the others made. No row crosses a shard, so the rows do not depend on who made them: the
processes of this machine, or Beam's workers (`beam`).

index.json has a checksum of each shard and of itself. A shard is held against its own when it is first read, which costs
no more than reading it; one that is damaged is made anew from the text, and is then the same to the byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config import DataConfig, InputError
from bert_jax.data import examples, packing, places, sources
from bert_jax.data.places import Place, Progress, Remote, place, write
from bert_jax.data.tokenizer import SpecialTokens, Tokenizer
from bert_jax.files import seal

FORMAT = 1  # of the cache; raise it when the same text would give other rows
SHARD_BYTES = 4 << 20

Shard = tuple[sources.Segment, ...]
# (function, items, what) -> [function(item) ...], with None for what was lost on the way
Run = Callable[[Callable[[Any], Any], Sequence[Any], str], list[Any]]


def document_hash(text: str) -> int:
    """64 bits of a document's text, white space folded: equal documents have equal hashes."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "little")


def is_held_out(document: int, fraction: float) -> bool:
    """Whether the document of this hash is held out from training, a share `fraction` of all."""
    return document % 1_000_000 < fraction * 1_000_000


@dataclass
class Rows:
    """Rows of token ids by index, over memory-mapped shards."""

    shards: list[tuple[Path, int, int]]  # file, rows [start, stop) of it
    length: int
    check: Callable[[Path], None] = lambda path: None  # called before a shard is read
    _ends: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._ends = np.cumsum([stop - start for _, start, stop in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """int32 [n, columns]: the rows at `indices`."""
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
    """Holds shards against their checksums, each when it is first read, and has damaged ones made anew."""

    def __init__(self, sums: dict[Path, int], make: Callable[[Path], None]) -> None:
        self._left, self._make = sums, make

    def __call__(self, path: Path) -> None:
        expected = self._left.get(path)
        if expected is None:
            return
        if not self._is_whole(path, expected):
            print(f"{path} is damaged: it is made anew from the text", file=sys.stderr)
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
    """A finished cache: training and held-out rows, and what was counted on the way."""

    train: Rows
    held_out: Rows
    token_counts: np.ndarray  # int64 [V], of the training rows; 0 for special tokens, which are never predicted
    summary: dict[str, Any]
    document_hashes: np.ndarray  # uint64 [documents], with the file and split of each below
    document_files: np.ndarray  # int32: index into summary["files"]
    document_held_out: np.ndarray  # bool
    document_sentences: np.ndarray  # int32: sentences of each
    document_unknown: np.ndarray  # int32: unknown tokens of each
    sentence_hashes: np.ndarray  # uint64 [sentences], in the order of documents


@dataclass(frozen=True)
class _Task:
    """One shard to make; all that a worker process needs."""

    number: int
    shard: Shard
    file_numbers: tuple[int, ...]
    cfg: DataConfig
    tokenizer_path: str
    directory: str


def other_text(source: Sequence[str], run: str) -> str:
    """What is said where a run would go on with another text."""
    return f"the text of {', '.join(source)} is not what {run} was begun with: restore it, or begin anew with another --workdir"


def prepare(
    cfg: DataConfig, tokenizer_path: str | Path, cache_dir: str | Path, progress: Progress, copies: Path | None = None,
    begun: tuple[str, str] | None = None,
) -> Corpus:  # fmt: skip
    """Tokenizes on this machine what is not in the cache yet and opens it; one that is remote, from its copy in `copies`.

    `begun` is (key, run) of a run that goes on: before anything is tokenized the text must prove to be its text.

    Raises InputError for unreadable text, for a source without documents, for too few documents to hold some out, and for
    another text than that of `begun`.
    """
    run = partial(_run, workers=cfg.num_workers, progress=progress)
    for attempt in (1, 2):
        directory, tasks = _make(cfg, tokenizer_path, cache_dir, run, begun)
        if isinstance(directory, Remote):
            if copies is None:
                raise InputError(f"the token cache {directory} cannot be memory-mapped: give a local folder for its copy")
            if not (copies / directory.name / "index.json").exists():
                places.remove_folder(copies / directory.name)  # begun here and never finished
            directory = places.fetch(directory, copies, progress)
        try:
            return _open(directory, tasks)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as e:
            if attempt == 2:
                raise InputError(f"the token cache {directory} is damaged ({e}); delete that folder and run again") from None
            print(f"the token cache {directory} is damaged ({e}): it is made anew", file=sys.stderr)
            places.remove_folder(directory)
    raise AssertionError("unreachable")


def make(cfg: DataConfig, tokenizer_path: str | Path, cache_dir: str | Path, run: Run) -> Place:
    """Tokenizes what is not in the cache yet, by `run`; the folder of the finished cache. A path may be a URL.

    Raises InputError as `prepare` does, and where shards are missing behind `run`.
    """
    return _make(cfg, tokenizer_path, cache_dir, run, None)[0]


def _make(
    cfg: DataConfig, tokenizer_path: str | Path, cache_dir: str | Path, run: Run, begun: tuple[str, str] | None
) -> tuple[Place, list[_Task]]:
    """The folder of the finished cache, and how its shards are made."""
    files = sources.list_files(cfg.source)
    tokenizer = _load_tokenizer(str(tokenizer_path), cfg.special_tokens)
    cache = place(cache_dir)
    places.make_folder(cache)
    segments, hashes = _scan(files, cfg, cache, run)
    directory = cache / _cache_key(hashes, tokenizer, cfg)
    if begun and directory.name != begun[0]:
        raise InputError(other_text(cfg.source, begun[1]))
    numbers = {path: i for i, path in enumerate(files)}
    tasks = [
        _Task(i, shard, tuple(numbers[s.path] for s in shard), cfg, str(tokenizer_path), str(directory))
        for i, shard in enumerate(plan_shards(segments))
    ]
    if not _has_index(directory):
        places.make_folder(directory)
        run(_make_shard, tasks, "tokenize")
        if not (directory / "index.json").exists():  # nobody else has made the same cache meanwhile
            _write_index(directory, len(tasks), files, cfg, tokenizer)
    return directory, tasks


def _has_index(directory: Place) -> bool:
    """Whether the cache is finished. An index that is damaged or older than checksums is removed: all is then made anew."""
    index = directory / "index.json"
    if not index.exists():
        return False
    try:
        _read_index(directory)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        print(f"the token cache {directory} is made anew: {e}", file=sys.stderr)
        index.unlink()
        return False
    return True


def _read_index(directory: Place) -> dict[str, Any]:
    """What index.json says; ValueError and the like where it is damaged or older than checksums."""
    summary: dict[str, Any] = json.loads((directory / "index.json").read_bytes())
    if "checksums" not in summary:
        raise ValueError("it has no checksums")
    if summary.pop("crc32") != seal(summary):
        raise ValueError("index.json does not match its checksum")
    return summary


def _reader(cfg: DataConfig) -> sources.Reader:
    return sources.Reader(documents=cfg.documents, text_column=cfg.text_column, on_error=cfg.on_error)


def read_texts(cfg: DataConfig, progress: Progress) -> Iterator[str]:
    """The documents of `cfg.source` that are not held out: what a vocabulary is trained on."""
    report = sources.ReadReport()
    for path in progress(files := sources.list_files(cfg.source), len(files), "read"):
        for segment in sources.scan(path, _reader(cfg), SHARD_BYTES)[0]:
            for text in sources.read(segment, _reader(cfg), report):
                if not is_held_out(document_hash(text), cfg.eval_fraction):
                    yield text


def _scan(files: Sequence[str], cfg: DataConfig, cache: Place, run: Run) -> tuple[list[sources.Segment], list[str]]:
    """Segments and content hash of every file. Files that have not been touched since the last time are not read again."""
    kept = cache / "scan.json"
    try:
        record = json.loads(kept.read_bytes())
        known = record["files"] if record.pop("crc32") == seal(record) else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        known = {}
    names = places.each(partial(_unchanged_name, cfg=cfg), files)
    new = [path for path, name in zip(files, names, strict=True) if name not in known]
    scanned = dict(zip(new, run(partial(_scan_file, _reader(cfg), SHARD_BYTES), new, "scan"), strict=True))
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
    """Segments, as plain values, and content hash of one file."""
    segments, content_hash = sources.scan(path, reader=reader, segment_bytes=segment_bytes)
    return [dataclasses.astuple(segment) for segment in segments], content_hash


def _unchanged_name(path: str, cfg: DataConfig) -> str:
    """Another for a file that was touched or is cut in another way; empty for what is no file."""
    if not (state := sources.state(path)):
        return ""
    return json.dumps([path, *state, dataclasses.astuple(_reader(cfg)), SHARD_BYTES, FORMAT])


def plan_shards(segments: Sequence[sources.Segment]) -> list[Shard]:
    """Consecutive segments in groups of about SHARD_BYTES: many small files share a shard, a large one has several."""
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
    options = {name: getattr(cfg, name) for name in parts}
    text = json.dumps([FORMAT, SHARD_BYTES, list(hashes), tokenizer.fingerprint(), options])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _run(function: Callable[[Any], Any], items: Sequence[Any], what: str, workers: int | None, progress: Progress) -> list[Any]:
    """[function(item) ...], by several processes where there is work for them. They start fresh (spawn): JAX's threads
    must not be forked."""
    workers = min(workers or os.cpu_count() or 1, len(items))
    if workers <= 1 or len(items) < 4:
        return list(progress(map(function, items), len(items), what))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            return list(progress(pool.map(function, items), len(items), what))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _load_tokenizer(path: str, special_tokens: SpecialTokens) -> Tokenizer:
    if isinstance(remote := place(path), Remote):
        with tempfile.TemporaryDirectory() as folder:
            path = str(places.fetch(remote, Path(folder), lambda items, *_: items))
            return Tokenizer.load(path, special_tokens=special_tokens)
    return Tokenizer.load(path, special_tokens=special_tokens)


@lru_cache(maxsize=2)
def _tokenizer(path: str, special_tokens: SpecialTokens) -> Tokenizer:
    return _load_tokenizer(path, special_tokens)


def _make_shard(task: _Task) -> None:
    """Makes the files of one shard, unless they or the whole cache are there: made twice, it is made once."""
    directory = place(task.directory)
    rows_path, counts_path = (directory / name for name in _shard_files(task.number))
    if (directory / "index.json").exists():
        return
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile):
        if rows_path.exists() and counts_path.exists() and "crc32" in _read_counts(counts_path):
            return
    _write_shard(task, rows_path, counts_path)


def _write_shard(task: _Task, rows_path: Place, counts_path: Place) -> None:
    cfg, tokenizer = task.cfg, _tokenizer(task.tokenizer_path, task.cfg.special_tokens)
    documents, counted = _tokenize(task, tokenizer)
    sides = [
        _examples([tokens for tokens, held_out in documents if held_out == side], cfg, tokenizer, task.number)
        for side in (False, True)
    ]
    rows = np.concatenate([side[0] for side in sides])
    train = sides[0][0][:, : cfg.max_seq_length]
    counted["num_rows"], counted["num_train"] = np.array(len(rows)), np.array(len(train))
    ordinary = train[~np.isin(train, tokenizer.special_ids)]
    counted["token_counts"] = np.bincount(ordinary, minlength=tokenizer.vocab_size)
    counted["real_tokens"] = np.array((rows[:, : cfg.max_seq_length] != tokenizer.pad_id).sum())
    counted["examples"] = np.array(sum(side[1] for side in sides))
    counted["row_lengths"] = np.bincount((train != tokenizer.pad_id).sum(1), minlength=cfg.max_seq_length + 1)
    small = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    buffer = io.BytesIO()
    np.save(buffer, rows.astype(small))
    counted["crc32"] = np.array(zlib.crc32(buffer.getbuffer()))
    write(rows_path, lambda f: f.write(buffer.getbuffer()))
    write(counts_path, lambda f: np.savez(f, **counted))  # type: ignore[arg-type]


def _tokenize(task: _Task, tokenizer: Tokenizer) -> tuple[list[tuple[list[np.ndarray], bool]], dict[str, np.ndarray]]:
    """(sentences' ids, held out?) of each document of the shard, and what was counted."""
    cfg, report = task.cfg, sources.ReadReport()
    hashes: list[int] = []
    files: list[int] = []
    lengths: list[int] = []
    sentences: list[str] = []
    for segment, file_number in zip(task.shard, task.file_numbers, strict=True):
        for text in sources.read(segment, _reader(cfg), report):
            own = examples.split_sentences(text, cfg.sentences)
            hashes.append(document_hash(text))
            files.append(file_number)
            lengths.append(len(own))
            sentences += own
    ids = tokenizer.encode_batch(sentences)
    if cfg.special_tokens == "read":
        _check_special_tokens(ids, sentences, tokenizer)
    held_out = [is_held_out(h, cfg.eval_fraction) for h in hashes]
    each = iter(ids)
    documents = [([next(each) for _ in range(n)], held) for n, held in zip(lengths, held_out, strict=True)]
    unknown = [sum(int((s == tokenizer.unk_id).sum()) for s in own) for own, _ in documents]
    sentence_hashes = [hashlib.blake2b(s.encode(), digest_size=8).digest() for s in sentences]
    return documents, {
        "document_hashes": np.array(hashes, np.uint64),
        "document_files": np.array(files, np.int32),
        "document_held_out": np.array(held_out, bool),
        "document_sentences": np.array(lengths, np.int32),
        "sentence_hashes": np.frombuffer(b"".join(sentence_hashes), np.uint64),
        "text_tokens": np.array(sum(map(len, ids))),
        "document_unknown": np.array(unknown, np.int32),
        "unknown_tokens": np.array(sum(unknown)),
        "skipped": np.array(json.dumps(report.skipped)),
        "skipped_first": np.array(json.dumps(report.first)),
        "empty": np.array(json.dumps(report.empty)),
    }  # fmt: skip


def _check_special_tokens(ids: Sequence[np.ndarray], sentences: Sequence[str], tokenizer: Tokenizer) -> None:
    """Raises InputError where the text has a special token that says in rows where examples begin, are divided and end."""
    for own, sentence in zip(ids, sentences, strict=True):
        if found := {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id} & set(own.tolist()):
            raise InputError(
                f"the text has the special token {tokenizer.tokens(found)[0]}, which has a meaning of its own in pretraining: "
                f"{sentence[:80]!r}; remove it, or read special tokens as text (--data.special-tokens text)"
            )


def _examples(
    documents: list[list[np.ndarray]], cfg: DataConfig, tokenizer: Tokenizer, shard_number: int
) -> tuple[np.ndarray, int]:
    """Rows [n, L] of one side of a shard, and the number of examples in them; with sentence pairs [n, L + 1]: the
    last column is the next-sentence label."""
    documents = [[s for s in own if len(s)] for own in documents]
    length, ids = cfg.max_seq_length, (tokenizer.cls_id, tokenizer.sep_id)
    if cfg.examples == "full_sentences":
        pieces = [piece for own in documents for piece in examples.full_sentences(own, length, *ids)]
        packed = packing.pack([len(piece) for piece in pieces], length)
        return packing.to_rows(pieces, packed, length, tokenizer.pad_id), len(pieces)
    pairs, labels = [], []
    for copy in range(cfg.dupe_factor):
        rng = np.random.default_rng([shard_number, copy])
        made = examples.sentence_pairs(documents, length, *ids, cfg.short_seq_prob, rng)
        pairs += made[0]
        labels += made[1]
    rows = packing.to_rows(pairs, [[i] for i in range(len(pairs))], length, tokenizer.pad_id)
    return np.concatenate([rows, np.array(labels, np.int32).reshape(-1, 1)], axis=1), len(pairs)


def _shard_files(number: int) -> tuple[str, str]:
    """The names of a shard's rows and of what was counted."""
    return f"shard-{number:05d}.npy", f"shard-{number:05d}.npz"


_PER_DOCUMENT = ("document_hashes", "document_files", "document_held_out", "document_sentences", "document_unknown",
                 "sentence_hashes")  # fmt: skip


def _read_counts(path: Place) -> dict[str, np.ndarray]:
    return dict(np.load(io.BytesIO(path.read_bytes())))


def _require_shards(directory: Place, num_shards: int) -> None:
    """Raises InputError where a shard is not there: a worker that is lost with its work tells nobody."""
    there = {path.name for path in directory.iterdir()}
    missing = [str(i) for i in range(num_shards) if not there.issuperset(_shard_files(i))]
    if missing:
        more = f" and {len(missing) - 10:,} more" if missing[10:] else ""
        raise InputError(f"shards {', '.join(missing[:10])}{more} of {num_shards:,}: what was made {_lost(directory)}")


def _lost(place: Place) -> str:
    return f"was lost before it came to {place}, which all workers must see; run the same command again: it keeps what is there"


def _write_index(directory: Place, num_shards: int, files: Sequence[str], cfg: DataConfig, tokenizer: Tokenizer) -> None:
    """Adds up what the shards counted, checks it, and makes the folder a cache."""
    _require_shards(directory, num_shards)
    counts_paths = [directory / _shard_files(i)[1] for i in range(num_shards)]
    counted = places.each(_read_counts, counts_paths)
    joined = {name: np.concatenate([c[name] for c in counted]) for name in _PER_DOCUMENT}
    total = {n: int(sum(c[n] for c in counted)) for n in ("text_tokens", "unknown_tokens", "real_tokens", "examples")}
    held_out_documents = int(joined["document_held_out"].sum())
    if cfg.eval_fraction and held_out_documents in (0, len(joined["document_hashes"])):
        raise InputError(
            f"{held_out_documents} of {len(joined['document_hashes'])} documents of {', '.join(cfg.source)} are held out by "
            f"data.eval_fraction={cfg.eval_fraction}; change it, set it to 0, split the text into more documents "
            "(data.documents), or give data.eval_source"
        )
    summary = {
        "key": directory.name,
        "files": list(files),
        "documents": len(joined["document_hashes"]),
        "held_out_documents": held_out_documents,
        "duplicated_documents": len(joined["document_hashes"]) - len(np.unique(joined["document_hashes"])),
        "skipped": _sum_counts(json.loads(str(c["skipped"])) for c in counted),
        "skipped_first": {k: v for c in reversed(counted) for k, v in json.loads(str(c["skipped_first"])).items()},
        "empty": _sum_counts(json.loads(str(c.get("empty", "{}"))) for c in counted),  # older shards did not count them
        **total,
        "vocab_size": tokenizer.vocab_size,
        "max_seq_length": cfg.max_seq_length,
        "columns": cfg.max_seq_length + (cfg.examples == "sentence_pairs"),
        "rows": [int(c["num_rows"]) for c in counted],
        "train_rows": [int(c["num_train"]) for c in counted],
        "checksums": [int(c["crc32"]) for c in counted],
        "row_lengths": np.sum([c["row_lengths"] for c in counted], axis=0).tolist(),
    }
    joined["token_counts"] = np.sum([c["token_counts"] for c in counted], axis=0)
    write(directory / "counts.npz", lambda f: np.savez(f, **joined))  # type: ignore[arg-type]
    write(directory / "index.json", lambda f: f.write(json.dumps(summary | {"crc32": seal(summary)}).encode()))
    places.each(lambda path: path.unlink(), counts_paths)


def _sum_counts(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return total


def _open(directory: Path, tasks: Sequence[_Task]) -> Corpus:
    """The finished cache; its shards are not touched before they are read. Raises OSError, ValueError ... where it is damaged."""
    summary = _read_index(directory)
    with open(directory / "counts.npz", "rb") as f:
        counts = dict(np.load(f))
    paths = [directory / _shard_files(i)[0] for i in range(len(summary["rows"]))]

    def remake(path: Path) -> None:
        counts_path = path.with_suffix(".npz")
        _write_shard(tasks[paths.index(path)], path, counts_path)
        counts_path.unlink(missing_ok=True)

    check = _Checks(dict(zip(paths, summary["checksums"], strict=True)), remake)
    train = [(path, 0, n) for path, n in zip(paths, summary["train_rows"], strict=True)]
    held_out = [(p, a, b) for p, a, b in zip(paths, summary["train_rows"], summary["rows"], strict=True)]
    columns = summary["columns"]
    return Corpus(Rows(train, columns, check), Rows(held_out, columns, check), summary=summary, **counts)
