"""The token cache: same rows whoever makes it, whole or not at all, and everything in it counted."""

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers import make_documents, make_words, quiet, write_documents

from bert_jax.config import DataConfig, InputError
from bert_jax.data import corpus, shards
from bert_jax.data.corpus import plan_shards, prepare
from bert_jax.data.shards import document_hash, is_held_out
from bert_jax.data.sources import Segment
from bert_jax.data.store import as_path, write
from bert_jax.data.tokenizer import Tokenizer

L = 32


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_BYTES", 3000)
    yield
    corpus._open_rows.cache_clear()


@pytest.fixture
def documents():
    """Four files: one of several shards, two that share one, and one with a copy of a document and unknown characters."""
    many = make_documents(60, seed=2)
    return [many[:40], many[40:45], many[45:50], [*many[50:], many[3], ["Ωψξ ξψΩ bako."]]]


@pytest.fixture
def folder(tmp_path, documents):
    for name, own in zip("abcd", documents, strict=True):
        write_documents(tmp_path / "text" / f"{name}.txt", own)
    return tmp_path


@pytest.fixture
def build(folder, tokenizer_dir):
    """Prepares the corpus in `folder`; the options are DataConfig's."""

    def build(cache="cache", tokenizer=tokenizer_dir, **options):
        given = dict(source=(str(folder / "text"),), max_seq_length=L, eval_fraction=0.2, num_workers=1)
        return prepare(DataConfig(**{**given, **options}), tokenizer, folder / cache, quiet)

    return build


def everything(made):
    """All rows, training ones first."""
    return np.concatenate([rows[np.arange(len(rows))] for rows in (made.train, made.held_out)])


def assert_same(one, other):
    np.testing.assert_array_equal(everything(one), everything(other))
    np.testing.assert_array_equal(one.token_counts, other.token_counts)
    np.testing.assert_equal(dataclasses.asdict(one.sentences), dataclasses.asdict(other.sentences))
    assert one.summary == other.summary


def shard_files(folder, suffix="npy"):
    return sorted((folder / "cache").glob(f"*/shard-*.{suffix}"))


def text_of(rows, tokenizer):
    return [tokenizer.decode(row.tolist()) for row in rows[np.arange(len(rows))]]


# ---- rows


@pytest.mark.parametrize("examples", ["full_sentences", "sentence_pairs"])
def test_rows_do_not_depend_on_the_number_of_workers(build, examples, folder):
    one = build("one", examples=examples, dupe_factor=1 + (examples == "sentence_pairs"))
    two = build("two", examples=examples, dupe_factor=1 + (examples == "sentence_pairs"), num_workers=2)
    assert len(one.summary["rows"]) >= 5
    assert_same(one, two)


def test_no_row_crosses_a_shard(build, documents, tokenizer, folder):
    """A shard's rows hold the tokens of its own documents and no others."""
    build(eval_fraction=0.0)
    ids = [np.concatenate(tokenizer.encode_batch(doc)) for own in documents for doc in own]
    first = 0
    for path in shard_files(folder):
        rows, last = np.load(path).astype(int), first
        count = (~np.isin(rows, [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id])).sum()
        while last < len(ids) and count > 0:
            count -= len(ids[last])
            last += 1
        assert count == 0
        expected = np.bincount(np.concatenate(ids[first:last]), minlength=tokenizer.vocab_size)
        found = np.bincount(rows.ravel(), minlength=tokenizer.vocab_size)
        for special in (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id):
            found[special] = 0
        np.testing.assert_array_equal(found, expected)
        first = last
    assert first == len(ids)


def test_special_tokens_are_text_unless_asked_and_are_part_of_the_key(folder, build, tokenizer):
    write_documents(folder / "text" / "e.txt", [["Bako [MASK] tine.", "Rodusi."]])
    as_text, read = build(), build(special_tokens="read")
    assert as_text.summary["key"] != read.summary["key"]
    assert [int((everything(made) == tokenizer.mask_id).sum()) for made in (as_text, read)] == [0, 1]
    assert build().summary == as_text.summary
    write_documents(folder / "text" / "e.txt", [["Bako [SEP] tine.", "Rodusi."]])
    with pytest.raises(InputError, match=r"the text has the special token \[SEP\], .*: 'Bako \[SEP\] tine.'; remove it, or "):
        build(special_tokens="read")
    build()


def test_shards_are_consecutive_segments_of_about_the_size():
    def segment(path, start, size):
        return Segment(path, start, start + 1, 0, size)

    segments = [segment("a", 0, 3500), segment("a", 1, 900), segment("b", 0, 1000), segment("c", 0, 1000), segment("d", 0, 200)]
    assert plan_shards(segments) == [(segments[0],), tuple(segments[1:4]), (segments[4],)]
    assert plan_shards([]) == []


def test_rows_are_read_by_index_in_any_order(build):
    made = build()
    whole = everything(made)
    for rows, expected in ((made.train, whole[: len(made.train)]), (made.held_out, whole[len(made.train) :])):
        order = np.random.default_rng(0).permutation(len(rows))
        np.testing.assert_array_equal(rows[order], expected[order])
        assert rows[[0, 0]].dtype == np.int32
        assert rows[[]].shape == (0, L)
        with pytest.raises(IndexError):
            rows[[len(rows)]]


def test_more_shards_than_open_files_can_be_read(tmp_path):
    resource = pytest.importorskip("resource")
    shards = [(tmp_path / f"{i}.npy", 0, 1) for i in range(300)]
    for i, (path, _, _) in enumerate(shards):
        np.save(path, np.full((1, 4), i, np.uint16))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))  # macOS's; Linux has 1024
    try:
        assert corpus.Rows(shards, 4)[np.arange(300)][:, 0].tolist() == list(range(300))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_the_last_column_of_pairs_is_their_label(build, tokenizer):
    made = build(examples="sentence_pairs")
    rows = everything(made)
    assert rows.shape[1] == L + 1
    assert set(rows[:, -1].tolist()) == {0, 1}
    assert ((rows[:, :-1] == tokenizer.cls_id).sum(1) == 1).all()
    assert ((rows[:, :-1] == tokenizer.sep_id).sum(1) == 2).all()


def test_pairs_are_cut_otherwise_in_each_copy(build):
    once, twice = build(examples="sentence_pairs"), build(examples="sentence_pairs", dupe_factor=2)
    assert abs(len(twice.train) / len(once.train) - 2) < 0.2
    rows = twice.train[np.arange(len(twice.train))]
    assert len(np.unique(rows, axis=0)) > 0.8 * len(rows)


# ---- held out


def test_held_out_documents_never_occur_in_training_rows(build, folder, documents, tokenizer):
    """Each document gets a word that no other has."""
    words = make_words()
    marks = [f"{a}{b}" for a in words[100:110] for b in words[110:120]]
    marked = [[s.replace(".", f" {mark}.") for s in doc] for doc, mark in zip(documents[0] * 2, marks, strict=False)]
    for old in (folder / "text").iterdir():
        old.unlink()
    write_documents(folder / "text" / "a.txt", marked)
    held_out = {mark for mark, doc in zip(marks, marked, strict=False) if is_held_out(document_hash("\n".join(doc)), 0.2)}
    assert 5 < len(held_out) < 30
    for examples in ("full_sentences", "sentence_pairs"):
        made = build(examples=examples, max_seq_length=64)
        trained, evaluated = (" ".join(text_of(rows, tokenizer)) for rows in (made.train, made.held_out))
        for mark in marks[: len(marked)]:
            assert (mark in evaluated) == (mark in held_out)
            assert (mark in trained) == (mark not in held_out)


def test_copies_of_a_document_fall_on_the_same_side_whatever_their_white_space():
    assert document_hash("a b\nc") == document_hash(" a  b c\n") != document_hash("a bc")
    hashes = [document_hash(str(i)) for i in range(20_000)]
    share = np.mean([is_held_out(h, 0.1) for h in hashes])
    assert abs(share - 0.1) < 0.01
    assert not any(is_held_out(h, 0.0) for h in hashes)
    assert all(is_held_out(h, 0.2) for h in hashes if is_held_out(h, 0.1))  # a larger share holds the smaller


def test_a_vocabulary_is_trained_on_training_text_only(folder, documents):
    cfg = DataConfig(source=(str(folder / "text"),), eval_fraction=0.2)
    texts = list(corpus.read_texts(cfg, quiet))
    expected = ["\n".join(doc) for own in documents for doc in own]
    assert texts == [text for text in expected if not is_held_out(document_hash(text), 0.2)]
    assert len(texts) < len(expected)


def test_a_vocabulary_of_much_text_is_trained_on_lines_from_all_over_it(folder, monkeypatch, capsys):
    """The same ones each time, and about as much as is asked for; what fits is used whole."""
    cfg = DataConfig(source=(str(folder / "text"),), eval_fraction=0.2)
    whole = list(corpus.read_texts(cfg, quiet))
    assert capsys.readouterr().err == ""
    lines = [line for text in whole for line in text.splitlines()]
    size = sum(path.stat().st_size for path in (folder / "text").iterdir())
    for share in (0.5, 0.02):
        monkeypatch.setattr(DataConfig, "tokenizer_sample_bytes", int(share * size))
        some = list(corpus.read_texts(cfg, quiet))
        assert some == list(corpus.read_texts(cfg, quiet))
        assert set(some) < set(lines)
        assert 0.5 < sum(map(len, some)) / (share * sum(map(len, lines))) < 1.5
        assert "lines from all over the text" in capsys.readouterr().err
    monkeypatch.setattr(DataConfig, "tokenizer_sample_bytes", size)
    assert list(corpus.read_texts(cfg, quiet)) == whole


@pytest.mark.parametrize(("fraction", "held_out"), [(1e-6, 1), (0.999_999, 60)])
def test_a_share_that_takes_no_document_or_all_leaves_one_on_each_side(build, fraction, held_out, capsys):
    """These documents are a passage each; one of the 62 is there twice, and copies go together."""
    made = build(eval_fraction=fraction)
    assert made.summary["documents"] == 62
    assert abs(made.summary["held_out_documents"] - held_out) <= 1
    assert len(made.train) > 0
    assert len(made.held_out) > 0
    assert "held-out text is taken by passages" in capsys.readouterr().err


@pytest.fixture
def book(folder):
    """One file, one document, of sentences with a word each that no other has."""
    for old in (folder / "text").iterdir():
        old.unlink()
    words = make_words()
    marks = [f"{a}{b}" for a in words[100:140] for b in words[110:120]]
    sentences = [s for doc in make_documents(100, seed=3) for s in doc][: len(marks)]
    marked = [s.replace(".", f" {mark}.") for s, mark in zip(sentences, marks, strict=True)]
    write_documents(folder / "text" / "book.txt", [marked])
    return marks


@pytest.mark.parametrize("sentences", ["punctuation", "line"])
@pytest.mark.parametrize("examples", ["full_sentences", "sentence_pairs"])
def test_of_a_single_document_passages_are_held_out(build, folder, book, tokenizer, examples, sentences):
    made = build(eval_fraction=0.01, examples=examples, sentences=sentences, max_seq_length=64)
    trained, evaluated = (" ".join(text_of(rows, tokenizer)) for rows in (made.train, made.held_out))
    held_out = [mark for mark in book if mark in evaluated]
    assert 10 < len(held_out) < 60  # a passage or two
    assert not [mark for mark in held_out if mark in trained]
    assert sum(mark in trained for mark in book) > 0.9 * len(book) - len(held_out)  # the others are cut by the end of a row
    cfg = DataConfig(source=(str(folder / "text"),), eval_fraction=0.01, sentences=sentences)
    vocabulary = " ".join(corpus.read_texts(cfg, quiet))
    assert not [mark for mark in held_out if mark in vocabulary]
    assert sum(mark not in vocabulary for mark in book) < 60
    corpus._open_rows.cache_clear()
    path = shard_files(folder)[0]
    before = path.read_bytes()
    path.unlink()
    again = build(eval_fraction=0.01, examples=examples, sentences=sentences, max_seq_length=64)
    np.testing.assert_array_equal(everything(again), everything(made))
    assert path.read_bytes() == before


def test_copies_of_one_short_document_cannot_be_divided(build, folder):
    for old in (folder / "text").iterdir():
        old.unlink()
    write_documents(folder / "text" / "a.txt", [["Bako tine rodusi."]] * 40)
    with pytest.raises(InputError, match=r"0 of 40 documents of .*text are held out by data\.eval_fraction=0\.01, and they are"):
        build(eval_fraction=0.01)


def test_nothing_is_held_out_where_nothing_is_asked(build):
    made = build(eval_fraction=0.0)
    assert len(made.held_out) == 0
    assert made.held_out[[]].shape == (0, L)
    assert made.summary["held_out_documents"] == 0


# ---- counts


@pytest.mark.parametrize("examples", ["full_sentences", "sentence_pairs"])
def test_counts_are_those_of_a_brute_force_count(build, documents, tokenizer, folder, examples, monkeypatch):
    pieces, add = [], shards.Counted.add
    monkeypatch.setattr(shards.Counted, "add", lambda self, some: pieces.extend(some) or add(self, some))
    made = build(examples=examples)
    counted = {name: np.concatenate([np.atleast_1d(piece[name]) for piece in pieces]) for name in pieces[0]}
    texts = [" ".join(doc) for own in documents for doc in own]
    ids = [[tokenizer.encode_batch([s])[0] for s in doc] for own in documents for doc in own]
    flat = [np.concatenate(own) for own in ids]
    hashes = [int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8).digest(), "little") for t in texts]
    held = [h % 1_000_000 < 200_000 for h in hashes]
    s = made.summary
    assert s["files"] == [str(folder / "text" / f"{name}.txt") for name in "abcd"]
    assert s["documents"] == 62
    assert s["held_out_documents"] == sum(held)
    assert s["duplicated_documents"] == 1
    assert s["text_tokens"] == sum(map(len, flat))
    unknown = [int((own == tokenizer.unk_id).sum()) for own in flat]
    assert counted["document_unknown"].tolist() == unknown
    assert s["unknown_tokens"] == sum(unknown) > 0
    assert counted["document_hashes"].tolist() == hashes
    assert counted["document_held_out"].tolist() == held
    files = [i for i, own in enumerate(documents) for _ in own]
    assert counted["document_files"].tolist() == files
    assert counted["document_sentences"].tolist() == list(map(len, ids))
    assert len(made.sentences.hashes) == sum(map(len, ids))
    different = {s for own in documents for doc in own for s in doc}
    assert len(np.unique(made.sentences.hashes)) == len(different)
    assert made.sentences.files.tolist() == np.repeat(files, list(map(len, ids))).tolist()
    assert made.sentences.held_out.tolist() == np.repeat(held, list(map(len, ids))).tolist()
    copied = s["repeats"]["sentences"]
    assert (copied["count"], copied["of"]) == (sum(map(len, ids)) - len(different), sum(map(len, ids)))
    by_file = np.bincount(files, unknown)
    assert s["repeats"]["unknown"] == [[int(i), int(by_file[i])] for i in np.argsort(-by_file, kind="stable")[:3] if by_file[i]]
    rows, train = everything(made)[:, :L], made.train[np.arange(len(made.train))][:, :L]
    assert s["real_tokens"] == (rows != tokenizer.pad_id).sum()
    assert s["examples"] == (rows == tokenizer.cls_id).sum()
    assert (s["vocab_size"], s["max_seq_length"]) == (tokenizer.vocab_size, L)
    assert (sum(s["rows"]), sum(s["train_rows"])) == (len(rows), len(train))
    lengths = (train != tokenizer.pad_id).sum(1)
    assert s["row_lengths"] == [int((lengths == n).sum()) for n in range(L + 1)]
    assert (s["skipped"], s["skipped_first"]) == ({}, {})
    if examples == "full_sentences":
        trained = np.concatenate([own for own, h in zip(flat, held, strict=True) if not h])
        counts = np.bincount(trained, minlength=tokenizer.vocab_size)
        counts[list(tokenizer.special_ids)] = 0
        np.testing.assert_array_equal(made.token_counts, counts)


def test_token_counts_leave_out_what_is_never_predicted(build, tokenizer):
    for examples in ("full_sentences", "sentence_pairs"):
        counts = build(examples=examples).token_counts
        assert counts.shape == (tokenizer.vocab_size,)
        assert counts.sum() > 1000
        assert not counts[list(tokenizer.special_ids)].any()


def test_skipped_documents_are_counted_and_named_by_file_and_place(build, folder, documents):
    write_documents(folder / "text" / "c.txt", documents[2])
    bad = (folder / "text" / "c.txt").read_bytes().replace(b"\n\n", b"\n\n\xff\xfe bad\n\n", 2)
    (folder / "text" / "c.txt").write_bytes(bad)
    with pytest.raises(InputError, match=r"c\.txt:\d+ .*--data\.on-error skip"):
        build()
    made = build(on_error="skip")
    path = str(folder / "text" / "c.txt")
    assert made.summary["skipped"] == {path: 2}
    line = bad[: bad.index(b"\xff")].count(b"\n") + 1
    assert made.summary["skipped_first"][path].startswith(f"{path}:{line} ")
    assert made.summary["documents"] == 62


def test_a_file_of_many_shards_counts_its_skipped_documents_together(build, folder, documents):
    path = folder / "text" / "a.txt"
    path.write_bytes(path.read_bytes().replace(b"\n\n", b"\n\n\xff\n\n"))
    summary = build(on_error="skip").summary
    assert summary["skipped"] == {str(path): len(documents[0]) - 1}
    line = path.read_bytes().split(b"\xff")[0].count(b"\n") + 1
    assert summary["skipped_first"][str(path)].startswith(f"{path}:{line} ")


# ---- whole or not at all


def stop_at_shard(monkeypatch, number, function, argument):
    """Makes shards.`function` die once it gets to shard `number`."""
    original = getattr(shards, function)

    def dying(*args):
        name = str(getattr(args[argument], "number", getattr(args[argument], "name", "")))
        found = re.search(r"\d+", name)
        if found and int(found[0]) == number and not name.endswith(".npy"):
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(shards, function, dying)


@pytest.mark.parametrize(("function", "argument"), [("_examples", 0), ("write", 0)], ids=["before", "between its two files"])
def test_an_interrupted_preparation_is_completed_and_its_whole_shards_kept(build, folder, monkeypatch, function, argument):
    expected = build("elsewhere")
    with monkeypatch.context() as patch:
        stop_at_shard(patch, 2, function, argument)
        with pytest.raises(KeyboardInterrupt):
            build()
    (directory,) = (folder / "cache").glob("*/")
    assert not (directory / "index.json").exists()
    assert len(list(directory.glob("shard-*.npz"))) == 2
    (directory / "shard-00003.npy.123.tmp").write_bytes(b"half")
    (directory / "index.json.123.tmp").write_bytes(b"{}")
    for path in (whole := sorted(directory.glob("shard-0000[01].npy"))):
        os.utime(path, ns=(1, 1))
    assert_same(build(), expected)
    assert len(whole) == 2
    assert [path.stat().st_mtime_ns for path in whole] == [1, 1]
    assert (directory / "shard-00002.npy").stat().st_mtime_ns > 1


def test_a_preparation_that_dies_while_it_writes_its_index_is_completed(build, folder, monkeypatch):
    expected = build("elsewhere")
    original = corpus.write
    for name in ("counts.npz", "index.json"):
        with monkeypatch.context() as patch:
            patch.setattr(corpus, "write", lambda path, save, name=name: 1 / (path.name != name) and original(path, save))
            with pytest.raises(ZeroDivisionError):
                build()
        assert not list((folder / "cache").glob("*/index.json"))
    for path in (made := shard_files(folder)):
        os.utime(path, ns=(1, 1))
    assert_same(build(), expected)
    assert {path.stat().st_mtime_ns for path in made} == {1}


def test_a_cache_that_lost_its_index_is_made_anew(build, folder):
    expected = everything(build())
    next((folder / "cache").glob("*/index.json")).unlink()
    np.testing.assert_array_equal(everything(build()), expected)


def test_a_half_written_file_never_bears_the_final_name(tmp_path):
    def dies(file):
        file.write(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        corpus.write(tmp_path / "shard-00000.npy", dies)
    assert not (tmp_path / "shard-00000.npy").exists()


def test_a_finished_cache_holds_rows_counts_and_index_and_nothing_else(build, folder):
    made = build()
    (directory,) = (folder / "cache").glob("*/")
    expected = [f"shard-{i:05d}.npy" for i in range(len(made.summary["rows"]))]
    assert sorted(path.name for path in directory.iterdir()) == ["counts.npz", "index.json", *expected]


@pytest.mark.slow
def test_a_document_of_many_megabytes_takes_a_few_times_its_size(build, folder, documents):
    """Its words one by one, or the encodings of all of it at once, would take 50 times."""
    text = " ".join(sentence for own in documents for doc in own for sentence in doc)
    text = " ".join([text] * (6_000_000 // len(text)))
    for path in (folder / "text").iterdir():
        path.unlink()
    (folder / "text" / "book.txt").write_text(text)
    tracemalloc.start()
    made = build(eval_fraction=0.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.summary["documents"] == 1
    assert peak < 12 * len(text)


def test_what_is_unchanged_is_not_tokenized_again(build, monkeypatch):
    first = build()
    monkeypatch.setattr(corpus, "make_shard", None)
    monkeypatch.setattr(Tokenizer, "encode_batch", None)
    assert_same(build(), first)
    assert_same(build(num_workers=2), first)


def test_only_touched_files_are_read_again(build, folder, monkeypatch):
    first, scanned, original = build(), [], corpus.sources.scan

    def scan(path, **options):
        scanned.append(path)
        return original(path, **options)

    monkeypatch.setattr(corpus.sources, "scan", scan)
    assert_same(build(), first)
    assert scanned == []
    path = folder / "text" / "b.txt"
    path.write_text(path.read_text().replace("a", "e", 1))  # of the same size
    assert build().summary["key"] != first.summary["key"]
    assert scanned == [str(path)]
    build(documents="line")
    assert len(scanned) == 5


@pytest.mark.parametrize("content", [b"", b'{"a', b"[]", b"3", b"\xff", b"{}", b'{"files": {}, "crc32": 1}'])
def test_a_damaged_memory_of_scans_is_made_anew(build, folder, content):
    first = build()
    (folder / "cache" / "scan.json").write_bytes(content)
    assert_same(build(), first)


def test_changed_text_tokenizer_or_options_are_another_cache(build, folder, documents, tokenizer, tmp_path):
    keys = {build().summary["key"]}
    others = [
        dict(max_seq_length=64), dict(eval_fraction=0.3), dict(sentences="line"), dict(documents="line"), dict(on_error="skip"),
        dict(examples="sentence_pairs"), dict(examples="sentence_pairs", short_seq_prob=0.5),
        dict(examples="sentence_pairs", dupe_factor=2),
    ]  # fmt: skip
    keys |= {build(**options).summary["key"] for options in others}
    Tokenizer.train(["\n".join(doc) for own in documents for doc in own], 200, "unigram").save(tmp_path / "other")
    keys.add(build(tokenizer=tmp_path / "other").summary["key"])
    path = folder / "text" / "b.txt"
    path.write_text(path.read_text().replace(".", "!", 1))
    keys.add(build().summary["key"])
    path.unlink()
    keys.add(build().summary["key"])
    assert len(keys) == 1 + len(others) + 3
    assert {d.name for d in (folder / "cache").glob("*/")} == keys


def flipped(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


def edited(data):
    """The index, with another share of training rows: JSON like any other."""
    values = json.loads(data)
    values["train_rows"][1] += 1
    return json.dumps(values).encode()


def without_checksums(data):
    """As the index was before there were any."""
    return json.dumps({name: value for name, value in json.loads(data).items() if name not in ("checksums", "crc32")}).encode()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"[]", edited,
                                    without_checksums, lambda data: b"\xff" + data])  # fmt: skip
@pytest.mark.parametrize("name", ["index.json", "counts.npz"])
def test_a_cache_whose_index_or_counts_are_damaged_is_made_anew(build, folder, name, damage, capsys):
    if name == "counts.npz" and damage in (edited, without_checksums):
        damage = flipped
    expected = build("elsewhere")
    build()
    path = next((folder / "cache").glob(f"*/{name}"))
    path.write_bytes(damage(path.read_bytes()))
    assert_same(build(), expected)
    assert f"the token cache {path.parent} is " in (said := capsys.readouterr().err)
    assert len(said.splitlines()) == 1
    assert_same(build(), expected)
    assert capsys.readouterr().err == ""


def test_a_cache_that_lost_its_counts_is_made_anew(build, folder):
    expected = build("elsewhere")
    build()
    next((folder / "cache").glob("*/counts.npz")).unlink()
    assert_same(build(), expected)


@pytest.mark.parametrize("damage", [None, lambda data: b"", lambda data: data[:999], flipped, lambda data: data[:40] + data[41:]])
def test_a_damaged_shard_is_made_anew_when_it_is_first_read(build, folder, damage, capsys):
    expected = everything(build("elsewhere"))
    build()
    corpus._open_rows.cache_clear()
    path = shard_files(folder)[1]
    before = path.read_bytes()
    path.write_bytes(damage(before)) if damage else path.unlink()
    made = build()
    assert capsys.readouterr().err == ""  # opening reads no shard
    np.testing.assert_array_equal(everything(made), expected)
    assert capsys.readouterr().err == f"{path} is damaged: it is made again from the text\n"
    assert path.read_bytes() == before
    assert shard_files(folder, "npz") == []


def test_flipped_bits_in_every_shard_never_reach_a_batch(build, folder):
    """One bit of an id each: other ids, as good as any."""
    expected = everything(build())
    for path in shard_files(folder):
        data = bytearray(path.read_bytes())
        data[128 + 2 * 7] ^= 1
        path.write_bytes(data)
    corpus._open_rows.cache_clear()
    np.testing.assert_array_equal(everything(build()), expected)


def test_a_damaged_shard_whose_text_is_gone_is_refused_and_named(build, folder):
    made = build()
    path = shard_files(folder)[1]
    path.write_bytes(flipped(path.read_bytes()))
    text = folder / "text" / "a.txt"
    text.write_text(text.read_text().replace("a", "e"))
    corpus._open_rows.cache_clear()
    with pytest.raises(InputError, match=rf"{path} is damaged and cannot be made again, as the text has changed"):
        everything(made)


def test_shards_of_before_there_were_checksums_are_not_kept(build, folder, monkeypatch):
    expected = build("elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_write_index", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build()
    for path in shard_files(folder, "npz"):
        counts = dict(np.load(path))
        del counts["crc32"]
        np.savez(path, **counts)
    assert_same(build(), expected)


def test_a_cache_that_cannot_be_written_is_an_input_error(build, folder, monkeypatch):
    (folder / "file").write_text("")
    for cache in ("file", "file/below"):
        with pytest.raises(InputError, match=r"cannot write the token cache .*file.*--data\.cache-dir"):
            build(cache)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write the token cache .*No space left on device"):
        build("full")
    assert not list((folder / "full").glob("*/*"))


def test_an_error_in_a_worker_process_is_the_users_message(build, folder):
    path = folder / "text" / "a.txt"
    path.write_bytes(path.read_bytes()[:-10] + b"\xff\n")
    with pytest.raises(InputError, match=r"a\.txt:\d+ .*0xff"):
        build(num_workers=2)


POOL = """
import os, signal, sys, time
from bert_jax import console
from bert_jax.data import workers

def work(item):
    if sys.argv[1] == "dies":
        os._exit(9)
    os.write(1, b"at work\\n")  # in one call: two processes write
    time.sleep(600)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background hands down that it is ignored
    run = lambda argv: workers.run_in_processes(work, list(range(4)), "tokenize", 2, lambda items, *_: items)
    console.run(run, [], "the same command continues")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, None])
def test_processes_that_tokenize_end_with_the_one_that_started_them(tmp_path, number):
    """They hold its output: its end is theirs."""
    (tmp_path / "pool.py").write_text(POOL)
    command = [sys.executable, str(tmp_path / "pool.py"), "sleeps" if number else "dies"]
    root = Path(__file__).parent.parent
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True)
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(root)}, **pipes) as process:
        if number:
            assert process.stdout.readline() == process.stdout.readline() == "at work\n"
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)  # a terminal's Ctrl-C reaches all
        try:
            _, said = process.communicate(timeout=300)
        finally:
            process.kill()  # none outlives the test
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, None: 1}.get(number, -(number or 0))
    killed = "error: a worker process (tokenize) was killed, perhaps for lack of memory: lower --data.num-workers and run the "
    wanted = {
        signal.SIGINT: "interrupted; the same command continues\n",
        None: f"{killed}same command again, which keeps the finished work\n",
    }
    if number != signal.SIGKILL:  # then Python's own cleaner has its word
        assert said == wanted.get(number, "")


# ---- a remote cache


@pytest.fixture
def bucket():
    fs = pytest.importorskip("fsspec").filesystem("memory")
    yield "memory://bucket"
    fs.rm("/bucket", recursive=True)


@pytest.fixture
def prepare_remote(folder, tokenizer_dir, bucket):
    """As `build`, with the cache and the tokenizer in an object store, and the text too."""
    for path in [*(folder / "text").iterdir(), *tokenizer_dir.iterdir()]:
        write(as_path(f"{bucket}/{path.parent.name if path.suffix == '.txt' else 'tokenizer'}/{path.name}"), copy_of(path))

    def prepare_remote(copies):
        cfg = DataConfig(source=(f"{bucket}/text",), max_seq_length=L, eval_fraction=0.2, num_workers=1)
        return prepare(cfg, f"{bucket}/tokenizer", f"{bucket}/cache", quiet, folder / copies)

    return prepare_remote


def copy_of(path):
    return lambda f: f.write(path.read_bytes())


def test_a_remote_cache_is_opened_from_a_copy_that_is_made_once(build, prepare_remote, folder, monkeypatch):
    expected = build()
    made = prepare_remote("copies")
    made.summary["files"] = expected.summary["files"]
    assert_same(made, expected)
    (copy,) = (folder / "copies").glob("*")
    (local,) = (folder / "cache").glob("*/")
    for path in local.iterdir():  # but for the names of the files
        assert path.name == "index.json" or (copy / path.name).read_bytes() == path.read_bytes()
    monkeypatch.setattr(corpus.sources, "scan", None)  # what is unchanged is not read again, remote or not
    monkeypatch.setattr(corpus, "make_shard", None)
    elsewhere = everything(prepare_remote("elsewhere"))
    np.testing.assert_array_equal(elsewhere, everything(expected))
    os.utime(copy / "index.json", ns=(1, 1))
    np.testing.assert_array_equal(everything(prepare_remote("copies")), everything(expected))
    assert (copy / "index.json").stat().st_mtime_ns == 1


def test_a_copy_replaces_what_was_begun_here(prepare_remote, folder):
    key = prepare_remote("copies").summary["key"]
    (folder / "copies" / key / "index.json").unlink()
    assert len(prepare_remote("copies").train) > 0


def test_a_remote_cache_without_a_place_for_its_copy_is_refused(folder, tokenizer_dir, bucket):
    cfg = DataConfig(source=(str(folder / "text"),), max_seq_length=L, eval_fraction=0.2, num_workers=1)
    with pytest.raises(InputError, match=r"memory://bucket/cache/\w+ cannot be memory-mapped"):
        prepare(cfg, tokenizer_dir, f"{bucket}/cache", quiet)


def test_missing_shards_are_named(build, folder, monkeypatch):
    original = corpus.make_shard
    monkeypatch.setattr(corpus, "make_shard", lambda task: task.number in (1, 3) or original(task))
    with pytest.raises(InputError, match=r"shards 1, 3 of \d+: .*run the same command again"):
        build()
