"""Shards of the token cache: rows of token ids from the text of some segments, and counts.

A shard becomes two files: `shard-00000.npy`, the rows [n, L], training rows first, and `shard-00000.npz`, the counts. Its rows
depend only on its text, its number, the tokenizer and the options, so any process on any machine makes the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

import numpy as np

from bert_jax.config import DataConfig
from bert_jax.data import examples, packing, repeats, sources, store
from bert_jax.data.repeats import Sample
from bert_jax.data.store import AnyPath, RemotePath, as_path, write
from bert_jax.data.tokenizer import SpecialTokens, Tokenizer, in_portions
from bert_jax.errors import InputError

Shard = tuple[sources.Segment, ...]


def document_hash(text: str) -> int:
    """Returns a 64-bit hash of a document's text with white space folded."""
    return int.from_bytes(hashlib.blake2b(examples.fold(text).encode(), digest_size=8).digest(), "little")


def is_held_out(document: int, fraction: float) -> bool:
    """Returns True if the document with this hash is in the share `fraction` that is held out from training."""
    return document % 1_000_000 < fraction * 1_000_000


PASSAGE_CHARS = 2000  # the length of runs of sentences that are held out together


def _passages(text: str, ends: str) -> Iterator[str]:
    return map("\n".join, in_portions(examples.iterate_sentences(text, ends), len, PASSAGE_CHARS))


@dataclass(frozen=True)
class HoldOut:
    """The rule that holds out a share `fraction` of the documents, or of their `passages`, by their hash."""

    fraction: float
    passages: bool = False

    def parts(self, text: str, ends: str) -> Iterator[tuple[str, int, bool]]:
        """Yields (text, hash, held out?) of a document, or of each run of its passages on one side; `ends`: data.sentences."""
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
    """Returns the rule for a text: by documents if that leaves some on both sides, else by passages."""
    rule, count = HoldOut(cfg.eval_fraction), sum(segment.stop - segment.start for segment in segments)
    if not rule.fraction or count * min(rule.fraction, 1 - rule.fraction) > 20:  # odds of over 1e8 to 1 for both sides
        return rule
    sides = set[bool]()
    for text in _texts(cfg, segments):
        sides.update(held_out for _, _, held_out in rule.parts(text, cfg.sentences))
        if len(sides) == 2:
            return rule
    marks = {document_hash(each) % 1_000_000 for text in _texts(cfg, segments) for each in _passages(text, cfg.sentences)}
    if len(marks) < 2:
        raise InputError(one_sided(count if True in sides else 0, count, cfg))
    print(
        f"held-out text is taken by passages of some {PASSAGE_CHARS:,} characters: of {count:,} documents data.eval_fraction="
        f"{cfg.eval_fraction} takes {'all' if True in sides else 'none'}", file=sys.stderr,
    )  # fmt: skip
    return HoldOut(min(max(rule.fraction, (min(marks) + 0.5) / 1e6), (max(marks) - 0.5) / 1e6), passages=True)


def _texts(cfg: DataConfig, segments: Iterable[sources.Segment]) -> Iterator[str]:
    reader = sources.reader_of(cfg)
    for segment in segments:
        yield from sources.read(segment, reader, sources.ReadReport())


def one_sided(held_out: int, count: int, cfg: DataConfig) -> str:
    """Returns the message for a text that has documents on one side only."""
    return (
        f"{held_out} of {count} documents of {', '.join(cfg.source)} are held out by data.eval_fraction={cfg.eval_fraction}, and "
        "they are too short, or too much alike, to hold out passages: change it, set it to 0, give more text, or data.eval_source"
    )


@dataclass(frozen=True)
class ShardTask:
    """A shard to make, with all that a worker process needs."""

    number: int
    shard: Shard
    file_numbers: tuple[int, ...]
    cfg: DataConfig
    tokenizer_path: str
    directory: str
    rule: HoldOut = HoldOut(0.0)


def load_tokenizer(path: str, special_tokens: SpecialTokens) -> Tokenizer:
    """Reads a tokenizer from a local folder or a URL."""
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(remote := as_path(path), RemotePath):
            path = str(store.fetch(remote, Path(folder), lambda items, *_: items))
        return Tokenizer.load(path, special_tokens=special_tokens)


_tokenizer = lru_cache(maxsize=2)(load_tokenizer)


def make_shard(task: ShardTask) -> None:
    """Writes the files of one shard, unless they or the whole cache exist."""
    directory = as_path(task.directory)
    rows_path, counts_path = (directory / name for name in shard_files(task.number))
    if (directory / "index.json").exists():
        return
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile):
        if rows_path.exists() and counts_path.exists() and "crc32" in read_counts(counts_path):
            return
    write_shard(task, rows_path, counts_path)


def write_shard(task: ShardTask, rows_path: AnyPath, counts_path: AnyPath) -> None:
    """Writes the rows of a shard, then its counts with the checksum of the rows."""
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
    """The text of a shard, read once, sentence by sentence, and its counts."""

    def __init__(self, task: ShardTask) -> None:
        self.number, self._task, self._report = task.number, task, sources.ReadReport()
        self._hashes, self._files, self._held_out = list[int](), list[int](), list[bool]()
        self._sentences, self._unknown, self._sentence_hashes = list[int](), list[int](), bytearray()
        self._tokens = self.examples = 0

    def documents(self, tokenizer: Tokenizer) -> Iterator[tuple[bool, Iterator[np.ndarray]]]:
        """Yields (held out?, ids of its sentences) of each document; consume the ids before the next document."""
        for number, each in itertools.groupby(self._encoded(tokenizer), key=lambda pair: pair[0]):
            yield self._held_out[number], (ids for _, ids in each)

    def _read(self) -> Iterator[tuple[int, str]]:
        """Yields (number of its document, sentence)."""
        cfg, reader = self._task.cfg, sources.reader_of(self._task.cfg)
        for segment, file_number in zip(self._task.shard, self._task.file_numbers, strict=True):
            texts = sources.read(segment, reader, self._report)
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
        """Yields (number of its document, ids) of each sentence that has ids."""
        for portion in in_portions(self._read(), lambda pair: len(pair[1])):
            for (number, sentence), ids in zip(portion, tokenizer.encode_batch([text for _, text in portion]), strict=True):
                structure = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}
                if self._task.cfg.special_tokens == "read" and (found := structure & set(ids.tolist())):
                    raise InputError(
                        f"the text has the special token {tokenizer.tokens(found)[0]}, which has a meaning of its own in "
                        f"pretraining: {sentence[:80]!r}; remove it, or read special tokens as text (--data.special-tokens text)"
                    )
                self._tokens += len(ids)
                self._unknown[number] += int((ids == tokenizer.unk_id).sum())
                if len(ids):
                    yield number, ids

    def counts(self) -> dict[str, np.ndarray]:
        """Returns the counts, once all the text has been read."""
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


def _examples(text: _ShardText, cfg: DataConfig, tokenizer: Tokenizer) -> list[np.ndarray]:
    """Returns rows of the training and of the held-out documents: [n, L], with sentence pairs [n, L + 1] for their label."""
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


def shard_files(number: int) -> tuple[str, str]:
    """Returns the names of the files of a shard: its rows and its counts."""
    return f"shard-{number:05d}.npy", f"shard-{number:05d}.npz"


def read_counts(path: AnyPath) -> dict[str, np.ndarray]:
    """Returns the counts of a shard."""
    return dict(np.load(io.BytesIO(path.read_bytes())))


class Found(TypedDict):
    """Repeated and unknown text, which the doctor reports; `unknown` is [file, tokens] of the worst three files."""

    documents: repeats.Repeats
    sentences: repeats.Repeats
    leaked: repeats.Repeats
    unknown: list[list[int]]


class Counted:
    """The sums of the counts of shards, added one by one, in the memory of the sums."""

    def __init__(self, num_files: int) -> None:
        self.documents, self.sentences = Sample(), Sample()
        self.rows, self.train_rows, self.checksums = list[int](), list[int](), list[int]()
        self.number, self.skipped, self.empty = Counter[str](), Counter[str](), Counter[str]()
        self.sums, self.first = dict[str, np.ndarray](), dict[str, str]()
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
            self.rows.append(int(shard["num_rows"]))
            self.train_rows.append(int(shard["num_train"]))
            self.checksums.append(int(shard["crc32"]))
            self.number.update({name: int(shard[name]) for name in ("text_tokens", "unknown_tokens", "real_tokens", "examples")})
            self.sums = {name: shard[name] + self.sums.get(name, 0) for name in ("row_lengths", "token_counts")}
            self.skipped.update(json.loads(str(shard["skipped"])))
            self.empty.update(json.loads(str(shard["empty"])) if "empty" in shard else {})  # older shards did not count them
            self.first = json.loads(str(shard["skipped_first"])) | self.first
        self.documents, self.sentences = repeats.joined(documents), repeats.joined(sentences)

    def repeats(self) -> Found:
        """Returns the repeated and unknown text."""
        worst = np.argsort(-self._unknown, kind="stable")[:3]
        return {
            "documents": repeats.copies(self.documents),
            "sentences": repeats.copies(self.sentences),
            "leaked": repeats.leaked(self.sentences, self.sentences),
            "unknown": [[int(i), int(self._unknown[i])] for i in worst if self._unknown[i]],
        }
