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
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache, partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config import DataConfig, InputError
from bert_jax.data import examples, files, packing, places, repeats, sources, tokenizer_training
from bert_jax.data.places import Place, Progress, Remote, place, write
from bert_jax.data.repeats import Sample
from bert_jax.data.tokenizer import SpecialTokens, Tokenizer, in_portions
from bert_jax.disk import seal

FORMAT = 1  # of the cache; raise it when the same text would give other rows
SHARD_BYTES = 4 << 20

Shard = tuple[sources.Segment, ...]
# (function, items, what) -> [function(item) ...], with None for what was lost on the way
Run = Callable[[Callable[[Any], Any], Sequence[Any], str], list[Any]]


def document_hash(text: str) -> int:
    """64 bits of a document's text, white space folded: equal documents have equal hashes."""
    return int.from_bytes(hashlib.blake2b(examples.fold(text).encode(), digest_size=8).digest(), "little")


def is_held_out(document: int, fraction: float) -> bool:
    """Whether the document of this hash is held out from training, a share `fraction` of all."""
    return document % 1_000_000 < fraction * 1_000_000


PASSAGE_CHARS = 2000  # of sentences that are held out together


def _passages(text: str, ends: str) -> Iterator[str]:
    return map("\n".join, in_portions(examples.iterate_sentences(text, ends), len, PASSAGE_CHARS))


@dataclass(frozen=True)
class HoldOut:
    """What is held out: a share `fraction` of the documents, by their hash; of their `passages` where documents are too few."""

    fraction: float
    passages: bool = False

    def parts(self, text: str, ends: str) -> Iterator[tuple[str, int, bool]]:
        """(text, hash, held out?) of a document, or of its runs of passages on the same side; `ends` are its sentences'."""
        if not self.passages:
            hash = document_hash(text)
            yield text, hash, is_held_out(hash, self.fraction)
            return
        sides = ((passage, is_held_out(document_hash(passage), self.fraction)) for passage in _passages(text, ends))
        for held_out, run in itertools.groupby(sides, key=lambda pair: pair[1]):
            own = "\n".join(passage for passage, _ in run)
            yield own, document_hash(own), held_out


@lru_cache(maxsize=4)
def hold_out(cfg: DataConfig, segments: tuple[sources.Segment, ...]) -> HoldOut:
    """What is held out of a text: documents where that leaves some on both sides; else passages, at least one.

    Raises InputError where the text is too short for that.
    """
    rule, count = HoldOut(cfg.eval_fraction), sum(segment.stop - segment.start for segment in segments)
    if not rule.fraction or count * min(rule.fraction, 1 - rule.fraction) > 20:  # then the odds are over 1e8 to 1
        return rule
    sides = set[bool]()
    for text in _texts(cfg, segments):
        sides.update(held_out for _, _, held_out in rule.parts(text, cfg.sentences))
        if len(sides) == 2:
            return rule
    marks = {document_hash(each) % 1_000_000 for text in _texts(cfg, segments) for each in _passages(text, cfg.sentences)}
    if len(marks) < 2:
        raise InputError(_one_sided(count if True in sides else 0, count, cfg))
    print(
        f"held-out text is taken by passages of some {PASSAGE_CHARS:,} characters: of {count:,} documents data.eval_fraction="
        f"{cfg.eval_fraction} takes {'all' if True in sides else 'none'}", file=sys.stderr,
    )  # fmt: skip
    return HoldOut(min(max(rule.fraction, (min(marks) + 0.5) / 1e6), (max(marks) - 0.5) / 1e6), passages=True)


def _texts(cfg: DataConfig, segments: Iterable[sources.Segment]) -> Iterator[str]:
    return itertools.chain.from_iterable(sources.read(segment, _reader(cfg), sources.ReadReport()) for segment in segments)


def _one_sided(held_out: int, count: int, cfg: DataConfig) -> str:
    return (
        f"{held_out} of {count} documents of {', '.join(cfg.source)} are held out by data.eval_fraction={cfg.eval_fraction}, and "
        "they are too short, or too much alike, to hold out passages: change it, set it to 0, give more text, or data.eval_source"
    )


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
    sentences: Sample  # hashes of its sentences, or of a share of them


@dataclass(frozen=True)
class _Task:
    """One shard to make; all that a worker process needs."""

    number: int
    shard: Shard
    file_numbers: tuple[int, ...]
    cfg: DataConfig
    tokenizer_path: str
    directory: str
    rule: HoldOut = HoldOut(0.0)


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
    files = sources.list_files(cfg.source, _reader(cfg))
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
        rule = hold_out(cfg, tuple(segments))
        run(_make_shard, [dataclasses.replace(task, rule=rule) for task in tasks], "tokenize")
        if not (directory / "index.json").exists():  # nobody else has made the same cache meanwhile
            _write_index(directory, len(tasks), files, cfg, tokenizer, rule)
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
    if "repeats" not in summary:
        raise ValueError("it does not say what repeats in the text")
    if summary.pop("crc32") != seal(summary):
        raise ValueError("index.json does not match its checksum")
    return summary


def _reader(cfg: DataConfig) -> sources.Reader:
    return sources.Reader(cfg.documents, cfg.text_column, cfg.on_error, cfg.format)


def read_texts(cfg: DataConfig, progress: Progress) -> Iterator[str]:
    """What a vocabulary is trained on: the documents of `cfg.source` that are not held out.

    Where these are more than `cfg.tokenizer_sample_mb`, about so much of them: lines, drawn by a hash from places all over the
    text, so the same ones each time.
    """
    report, files = sources.ReadReport(), sources.list_files(cfg.source, _reader(cfg))
    scanned = _run(partial(_scan_file, _reader(cfg), SHARD_BYTES), files, "scan", cfg.num_workers, progress)
    segments = [sources.Segment(*values) for found, _ in scanned for values in found]
    rule = hold_out(cfg, tuple(segments))
    every, share = _sampling(sum(segment.num_bytes for segment in segments), cfg.tokenizer_sample_bytes)
    some = segments[::every]
    for segment in progress(some, len(some), "read"):
        texts = sources.read(segment, _reader(cfg), report)
        for text, _, held_out in (part for whole in texts for part in rule.parts(whole, cfg.sentences)):
            if held_out:
                continue
            if share == 1:
                yield text
            else:
                yield from (line for line in tokenizer_training.lines(text) if zlib.crc32(line.encode()) < share * 2**32)


def _sampling(num_bytes: int, most_bytes: int | None) -> tuple[int, float]:
    """(every which segment is read, which share of its lines is taken) to have about `most_bytes` of `num_bytes`.

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
    if not (state := files.state(path)):
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
    options = {name: getattr(cfg, name) for name in parts} | ({"format": cfg.format} if cfg.format != "auto" else {})
    text = json.dumps([FORMAT, SHARD_BYTES, list(hashes), tokenizer.fingerprint(), options])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _run(function: Callable[[Any], Any], items: Sequence[Any], what: str, workers: int | None, progress: Progress) -> list[Any]:
    """[function(item) ...], by several processes where there is work for them. They start fresh (spawn): JAX's threads
    must not be forked."""
    workers = min(workers or os.cpu_count() or 1, len(items))
    if workers <= 1 or len(items) < 4:
        return list(progress(map(function, items), len(items), what))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with _terminable(), ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        try:
            with _uninterrupted():
                futures = [pool.submit(function, item) for item in items]
            return list(progress((future.result() for future in futures), len(items), what))
        except BaseException as error:
            # shutdown() alone would wait for what they are at; and a pool that finds futures cancelled, as map() leaves them,
            # when its processes end has an error of its own.
            started: Any = getattr(pool, "_processes", None) or {}
            for worker in list(started.values()):
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise InputError(
                    f"a process that was to {what} was killed, for want of memory maybe: set --data.num-workers lower; the same "
                    "command keeps what was made"
                ) from None
            raise


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes that are started in here do not hear of Ctrl-C, which a terminal sends to all: this one ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # not a POSIX system
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends this process by way of its cleaning up, unless somebody else deals with it."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, be it killed."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


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
    small = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    text = _ShardText(task)
    sides = _examples(text, cfg, tokenizer)
    rows, counted = np.concatenate(sides, dtype=small, casting="unsafe"), text.counts()
    num_train = len(sides[0])
    del sides
    train = rows[:num_train, : cfg.max_seq_length]
    counted["num_rows"], counted["num_train"] = np.array(len(rows)), np.array(num_train)
    counted["token_counts"] = np.bincount(train.reshape(-1), minlength=tokenizer.vocab_size)
    counted["token_counts"][list(tokenizer.special_ids)] = 0
    counted["real_tokens"] = np.array((rows[:, : cfg.max_seq_length] != tokenizer.pad_id).sum())
    counted["row_lengths"] = np.bincount((train != tokenizer.pad_id).sum(1), minlength=cfg.max_seq_length + 1)
    buffer = io.BytesIO()
    np.save(buffer, rows)
    counted["crc32"] = np.array(zlib.crc32(buffer.getbuffer()))
    write(rows_path, lambda f: f.write(buffer.getbuffer()))
    write(counts_path, lambda f: np.savez(f, **counted))  # type: ignore[arg-type]


class _ShardText:
    """The text of a shard, read once, sentence after sentence, and what is counted on the way."""

    def __init__(self, task: _Task) -> None:
        self.number, self._task, self._report = task.number, task, sources.ReadReport()
        self._hashes, self._files, self._held_out = list[int](), list[int](), list[bool]()
        self._sentences, self._unknown, self._sentence_hashes = list[int](), list[int](), bytearray()
        self._tokens = self.examples = 0

    def documents(self, tokenizer: Tokenizer) -> Iterator[tuple[bool, Iterator[np.ndarray]]]:
        """(held out?, ids of its sentences) of each document, to be gone through in this order."""
        for number, each in itertools.groupby(self._encoded(tokenizer), key=lambda pair: pair[0]):
            yield self._held_out[number], (ids for _, ids in each)

    def _read(self) -> Iterator[tuple[int, str]]:
        """(number of its document, sentence) of each sentence."""
        cfg = self._task.cfg
        for segment, file_number in zip(self._task.shard, self._task.file_numbers, strict=True):
            texts = sources.read(segment, _reader(cfg), self._report)
            for text, hash, held_out in (part for whole in texts for part in self._task.rule.parts(whole, cfg.sentences)):
                self._hashes.append(hash)
                self._held_out.append(held_out)
                self._files.append(file_number)
                self._sentences.append(0)
                self._unknown.append(0)
                for sentence in examples.iterate_sentences(text, cfg.sentences):
                    self._sentences[-1] += 1
                    self._sentence_hashes += hashlib.blake2b(sentence.encode(), digest_size=8).digest()
                    yield len(self._hashes) - 1, sentence

    def _encoded(self, tokenizer: Tokenizer) -> Iterator[tuple[int, np.ndarray]]:
        """(number of its document, ids) of each sentence that has any."""
        for portion in in_portions(self._read(), lambda pair: len(pair[1])):
            for (number, sentence), ids in zip(portion, tokenizer.encode_batch([text for _, text in portion]), strict=True):
                if self._task.cfg.special_tokens == "read":
                    _check_special_tokens(ids, sentence, tokenizer)
                self._tokens += len(ids)
                self._unknown[number] += int((ids == tokenizer.unk_id).sum())
                if len(ids):
                    yield number, ids

    def counts(self) -> dict[str, np.ndarray]:
        """What was counted, when all has been read."""
        return {
            "document_hashes": np.array(self._hashes, np.uint64),
            "document_files": np.array(self._files, np.int32),
            "document_held_out": np.array(self._held_out, bool),
            "document_sentences": np.array(self._sentences, np.int32),
            "sentence_hashes": np.frombuffer(self._sentence_hashes, np.uint64),
            "text_tokens": np.array(self._tokens),
            "document_unknown": np.array(self._unknown, np.int32),
            "unknown_tokens": np.array(sum(self._unknown)),
            "examples": np.array(self.examples),
            "skipped": np.array(json.dumps(self._report.skipped)),
            "skipped_first": np.array(json.dumps(self._report.first)),
            "empty": np.array(json.dumps(self._report.empty)),
        }  # fmt: skip


def _check_special_tokens(ids: np.ndarray, sentence: str, tokenizer: Tokenizer) -> None:
    """Raises InputError where the text has a special token that says in rows where examples begin, are divided and end."""
    if found := {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id} & set(ids.tolist()):
        raise InputError(
            f"the text has the special token {tokenizer.tokens(found)[0]}, which has a meaning of its own in pretraining: "
            f"{sentence[:80]!r}; remove it, or read special tokens as text (--data.special-tokens text)"
        )


def _examples(text: _ShardText, cfg: DataConfig, tokenizer: Tokenizer) -> list[np.ndarray]:
    """Rows [n, L] of the training and of the held-out documents; with sentence pairs [n, L + 1]: the last column is the
    next-sentence label."""
    length, ids = cfg.max_seq_length, (tokenizer.cls_id, tokenizer.sep_id)
    if cfg.examples == "full_sentences":
        pieces: tuple[list[np.ndarray], ...] = [], []
        for held_out, sentences in text.documents(tokenizer):
            pieces[held_out].extend(examples.full_sentences(sentences, length, *ids))
        text.examples = sum(map(len, pieces))
        packed = (packing.pack([len(piece) for piece in own], length) for own in pieces)
        return [packing.to_rows(own, rows, length, tokenizer.pad_id) for own, rows in zip(pieces, packed, strict=True)]
    documents: tuple[list[list[np.ndarray]], ...] = [], []
    for held_out, sentences in text.documents(tokenizer):
        documents[held_out].append(list(sentences))
    sides = []
    for own in documents:
        pairs, labels = [], []
        for copy in range(cfg.dupe_factor):
            rng = np.random.default_rng([text.number, copy])
            made = examples.sentence_pairs(own, length, *ids, cfg.short_seq_prob, rng)
            pairs += made[0]
            labels += made[1]
        text.examples += len(pairs)
        rows = packing.to_rows(pairs, [[i] for i in range(len(pairs))], length, tokenizer.pad_id)
        sides.append(np.concatenate([rows, np.array(labels, np.int32).reshape(-1, 1)], axis=1))
    return sides


def _shard_files(number: int) -> tuple[str, str]:
    """The names of a shard's rows and of what was counted."""
    return f"shard-{number:05d}.npy", f"shard-{number:05d}.npz"


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


class _Counted:
    """What shards counted, added up one after the other: memory is that of the sums."""

    def __init__(self, num_files: int) -> None:
        self.documents, self.sentences = Sample(), Sample()
        self.rows, self.train_rows, self.checksums = list[int](), list[int](), list[int]()
        self.number, self.skipped, self.empty = Counter[str](), Counter[str](), Counter[str]()
        self.sums, self.first = dict[str, Any](), dict[str, str]()
        self._unknown = np.zeros(num_files)

    def add(self, shards: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Adds the next shards."""
        documents, sentences = [self.documents], [self.sentences]
        for shard in shards:
            files, held_out, each = (shard[f"document_{name}"] for name in ("files", "held_out", "sentences"))
            documents.append(Sample(shard["document_hashes"], files, held_out))
            sentences.append(Sample(shard["sentence_hashes"], np.repeat(files, each), np.repeat(held_out, each)))
            self._unknown += np.bincount(files, shard["document_unknown"], len(self._unknown))
            self.number.update(documents=len(files), held_out_documents=int(held_out.sum()))
            self._add_counts(shard)
        self.documents, self.sentences = repeats.joined(documents), repeats.joined(sentences)

    def _add_counts(self, shard: Mapping[str, np.ndarray]) -> None:
        self.rows.append(int(shard["num_rows"]))
        self.train_rows.append(int(shard["num_train"]))
        self.checksums.append(int(shard["crc32"]))
        self.number.update({name: int(shard[name]) for name in ("text_tokens", "unknown_tokens", "real_tokens", "examples")})
        self.sums = {name: shard[name] + self.sums.get(name, 0) for name in ("row_lengths", "token_counts")}
        self.skipped.update(json.loads(str(shard["skipped"])))
        self.empty.update(json.loads(str(shard["empty"])) if "empty" in shard else {})  # older shards did not count them
        self.first = json.loads(str(shard["skipped_first"])) | self.first

    def repeats(self) -> dict[str, Any]:
        """What the doctor says of the text, made once a cache."""
        worst = np.argsort(-self._unknown, kind="stable")[:3]
        return {
            "documents": repeats.copies(self.documents),
            "sentences": repeats.copies(self.sentences),
            "leaked": repeats.leaked(self.sentences, self.sentences),
            "unknown": [[int(i), int(self._unknown[i])] for i in worst if self._unknown[i]],
        }


def _write_index(
    directory: Place, num_shards: int, files: Sequence[str], cfg: DataConfig, tokenizer: Tokenizer, rule: HoldOut
) -> None:
    """Adds up what the shards counted, checks it, and makes the folder a cache."""
    _require_shards(directory, num_shards)
    counts_paths = [directory / _shard_files(i)[1] for i in range(num_shards)]
    counted = _Counted(len(files))
    for first in range(0, num_shards, 64):  # at a time: a store far away is read by several threads
        counted.add(places.each(_read_counts, counts_paths[first : first + 64]))
    documents, held_out = counted.number["documents"], counted.number["held_out_documents"]
    if cfg.eval_fraction and held_out in (0, documents):
        raise InputError(_one_sided(held_out, documents, cfg))
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
    places.each(lambda path: path.unlink(), counts_paths)


def _open(directory: Path, tasks: Sequence[_Task]) -> Corpus:
    """The finished cache; its shards are not touched before they are read. Raises OSError, ValueError ... where it is damaged."""
    summary = _read_index(directory)
    with open(directory / "counts.npz", "rb") as f:
        counts = dict(np.load(f))
    token_counts, halvings = counts.pop("token_counts"), int(counts.pop("halvings"))
    paths = [directory / _shard_files(i)[0] for i in range(len(summary["rows"]))]

    def remake(path: Path) -> None:
        counts_path = path.with_suffix(".npz")
        task = tasks[paths.index(path)]
        rule = HoldOut(*summary.get("hold_out", [task.cfg.eval_fraction]))  # older ones do not say
        _write_shard(dataclasses.replace(task, rule=rule), path, counts_path)
        counts_path.unlink(missing_ok=True)

    check = _Checks(dict(zip(paths, summary["checksums"], strict=True)), remake)
    train = [(path, 0, n) for path, n in zip(paths, summary["train_rows"], strict=True)]
    held_out = [(p, a, b) for p, a, b in zip(paths, summary["train_rows"], summary["rows"], strict=True)]
    columns = summary["columns"]
    sides = Rows(train, columns, check), Rows(held_out, columns, check)
    return Corpus(*sides, token_counts, summary, Sample(**counts, halvings=halvings))
