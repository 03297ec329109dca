"""Every input is made here, in tmp_path: nothing is downloaded."""

import bz2
import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import json
import lzma
import multiprocessing
import os
import pickle
import re
import shutil
import sys
import sysconfig
import tempfile
import time
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import InputError
from bert_jax.data.files import datasets, state
from bert_jax.data.sources import Reader, ReadReport, Segment, list_files, read, scan

ENCODERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
ENCODERS[".zst"] = zstandard.ZstdCompressor().compress
TEXTS = ["one\ntwo", "Füße auf 日本語.", "three " * 50, "four", "five\n six\nseven"]


DEFAULT = Reader()


def texts(path, reader=DEFAULT, segment_bytes=1 << 20, report=None):
    """All documents of a file, by way of its segments."""
    segments, _ = scan(str(path), reader, segment_bytes)
    assert [s.start for s in segments] == [0, *(s.stop for s in segments[:-1])]
    report = ReadReport() if report is None else report
    return [text for segment in segments for text in read(segment, reader, report)]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def jsonl(values):
    return "".join(json.dumps({"id": i, "text": value}) + "\n" for i, value in enumerate(values))


# ---- formats


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("segment_bytes", [1, 30, 1 << 20])
def test_text_files_give_their_paragraphs_compressed_or_not(tmp_path, codec, segment_bytes):
    path = write(tmp_path / f"a.txt{codec}", ENCODERS[codec]("\n \n\n".join(TEXTS).encode()))
    assert texts(path, segment_bytes=segment_bytes) == TEXTS


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("segment_bytes", [1, 30, 1 << 20])
def test_jsonl_gives_its_text_column_and_passes_over_empty_texts(tmp_path, codec, segment_bytes):
    data = jsonl(["", *TEXTS[:2], None, " \n\u3000", *TEXTS[2:]]).replace("\n", "\n\n", 1)
    path = write(tmp_path / f"a.jsonl{codec}", ENCODERS[codec](b"\xef\xbb\xbf" + data.encode()))
    assert texts(path, segment_bytes=segment_bytes) == TEXTS


def table(values):
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows([["id", "text"], *enumerate(values)])
    return rows.getvalue()


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("segment_bytes", [1, 30, 1 << 20])
def test_csv_gives_its_text_column_with_line_breaks_and_quotes_in_it(tmp_path, codec, segment_bytes):
    wanted = [*TEXTS, 'a "quoted" word, and\n\na blank line']
    path = write(tmp_path / f"a.csv{codec}", ENCODERS[codec](table(["", *wanted[:2], " ", *wanted[2:]]).encode()))
    assert texts(path, segment_bytes=segment_bytes) == [text.strip("\r\n") for text in wanted]


@pytest.mark.parametrize("segment_bytes", [1, 30, 1 << 20])
def test_tsv_gives_its_text_column_a_line_a_record(tmp_path, segment_bytes):
    path = write(tmp_path / "a.tsv", "text\tid\nIt's 5\" long.\t1\n\n\t2\ntwo words\t3\n")
    assert texts(path, segment_bytes=segment_bytes) == ["It's 5\" long.", "two words"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", "id,text\n1,a\n2,b,c\n", r"a\.csv:3 \(byte 12\): 3 fields where 2 \(id, text\) are expected; --data"),
        ("a.csv", 'id,text\n1,"a"b\n', r"a\.csv:2 .*not a record of delimited values"),
        ("a.csv", 'id,text\n1,"a\n2,b\n', r"a\.csv:2 .*not a record of delimited values"),
        ("a.csv", b"id,text\n1,caf\xe9\n", r"a\.csv:2 \(byte 13\): byte 0xe9 is not UTF-8 \(Western .* iconv -f WINDOWS-1252"),
        ("a.tsv", "id\ttxt\n1\ta\n", r"a\.tsv: no 'text', it has id, txt; did you mean 'txt'\? \(--data\.text-column\)"),
        ("a.csv", "", r"a\.csv: holds no document, only whitespace or nothing"),
        ("a.txt.xz", b"no xz", r"a\.txt\.xz: cannot be read .*it is cut short or not in this compression"),
        ("a.txt.bz2", b"no bz2", r"a\.txt\.bz2: cannot be read .*it is cut short or not in this compression"),
    ],
)
def test_what_is_wrong_with_a_table_or_its_compression_is_told_with_its_place(tmp_path, name, data, message):
    with pytest.raises(InputError, match=message):
        texts(write(tmp_path / name, data))


def test_a_given_format_is_that_of_all_files_whatever_their_names(tmp_path):
    plain = write(tmp_path / "wiki", "one\n\ntwo")
    assert texts(plain, Reader(format="txt")) == texts(write(tmp_path / "a.md", "one\n\ntwo")) == ["one", "two"]
    assert texts(write(tmp_path / "a.part.gz", gzip.compress(jsonl(["x", "y"]).encode())), Reader(format="jsonl")) == ["x", "y"]
    assert list_files([str(tmp_path / "wiki")], Reader(format="txt")) == [plain]
    with pytest.raises(InputError, match=r"wiki: 'no suffix' is not a known format .*--data\.format txt"):
        list_files([str(tmp_path / "wiki")])


def test_a_folder_is_meant_as_it_is_called_brackets_or_not(tmp_path):
    for folder in ("my [text]", "my t", "z"):
        write(tmp_path / folder / "a.txt", "one")
    assert list_files([str(tmp_path / "my [text]" / "*.txt")]) == [str(tmp_path / "my [text]" / "a.txt")]
    assert list_files([str(tmp_path / "[mz]*" / "*.txt")]) == [str(tmp_path / f / "a.txt") for f in ("my [text]", "my t", "z")]
    assert list_files([str(tmp_path / "[z]" / "*.txt")]) == [str(tmp_path / "z" / "a.txt")]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("segment_bytes", [1, 30, 1 << 20])
def test_parquet_gives_its_text_column_over_row_groups(tmp_path, kind, segment_bytes):
    values = ["", *TEXTS[:2], None, " ", *TEXTS[2:]]
    path = str(tmp_path / "a.parquet")
    array = pa.array(values).cast(kind) if not pa.types.is_dictionary(kind) else pa.array(values).dictionary_encode()
    pq.write_table(pa.table({"n": range(len(values)), "body": array}), path, row_group_size=3)
    assert texts(path, Reader(text_column="body"), segment_bytes) == TEXTS


def test_a_zstd_file_may_have_several_frames_and_a_gzip_file_several_members(tmp_path):
    for codec in (".gz", ".zst"):
        path = write(tmp_path / f"a.txt{codec}", b"".join(ENCODERS[codec](t.encode() + b"\n\n") for t in TEXTS))
        assert texts(path) == TEXTS


@pytest.mark.parametrize("mode, expected", [("blank_line", 2), ("line", 3), ("file", 1)])
def test_documents_end_where_the_reader_says(tmp_path, mode, expected):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbf\r\none\r\ntwo\r\n\r\n\t\r\nthree\r\n \r\n")
    found = texts(path, Reader(mode))
    assert len(found) == expected
    assert (
        found
        == {
            "blank_line": ["one\ntwo", "three"],
            "line": ["one", "two", "three"],
            "file": ["one\ntwo\n\n\t\nthree\n "],
        }[mode]
    )


pieces = st.sampled_from(["a", "bc", " ", "\t", "\n", "\n\n", "\r\n", "é", "\u3000", "\x85", "\x1c", "\ufeff", "日"])


@given(st.lists(pieces, max_size=30).map("".join), st.sampled_from(["blank_line", "line", "file"]),
       st.sampled_from(list(ENCODERS)), st.integers(1, 20))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_cut_into_segments_gives_the_documents_of_a_plain_definition(text, mode, codec, segment_bytes):
    plain = text.removeprefix("\ufeff").replace("\r\n", "\n")
    lines = plain.split("\n")
    expected = {
        "blank_line": ["\n".join(group) for filled, group in itertools.groupby(lines, lambda x: x.strip() != "") if filled],
        "line": [line for line in lines if line.strip()],
        "file": [plain.strip("\n")] if plain.strip() else [],
    }[mode]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"a.txt{codec}")
        with open(path, "wb") as file:
            file.write(ENCODERS[codec](text.encode()))
        if not expected:
            with pytest.raises(InputError, match="holds no document"):
                scan(path, Reader(mode), segment_bytes)
        else:
            assert texts(path, Reader(mode), segment_bytes) == expected
            assert texts(path, Reader(mode), 1 << 20) == expected


def test_segments_hold_about_segment_bytes_and_all_of_the_text(tmp_path):
    path = write(tmp_path / "a.txt", "\n\n".join(["x" * 99] * 1000))
    segments, _ = scan(path, Reader(), 5000)
    assert len(segments) == 20
    assert all(5000 <= s.num_bytes < 5102 for s in segments[:-1])
    assert sum(s.num_bytes for s in segments) == 1000 * 100 - 1


def test_reading_the_last_segment_of_a_plain_file_does_not_read_the_first(tmp_path):
    for name, data in (("a.txt", "\n\n".join(TEXTS)), ("a.jsonl", jsonl(TEXTS))):
        path = write(tmp_path / name, data)
        last = scan(path, Reader(), 1)[0][-1]
        with open(path, "r+b") as file:
            file.write(b"\0" * last.offset)
        assert list(read(last, Reader(), ReadReport())) == TEXTS[-1:]


def test_the_hash_is_that_of_the_raw_file(tmp_path):
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet")
    paths = [str(tmp_path / "a.parquet")]
    for codec, encode in ENCODERS.items():
        paths.append(write(tmp_path / f"a.txt{codec}", encode("\n\n".join(TEXTS).encode())))
        paths.append(write(tmp_path / f"a.jsonl{codec}", encode(jsonl(TEXTS).encode())))
    for path in paths:
        with open(path, "rb") as file:
            assert scan(path, Reader(), 10)[1] == hashlib.sha256(file.read()).hexdigest()


def test_segments_and_reader_go_to_worker_processes(tmp_path):
    path = write(tmp_path / "a.txt", "\n\n".join(TEXTS))
    segment = scan(path, Reader(), 1)[0][1]
    assert pickle.loads(pickle.dumps((segment, Reader("line")))) == (segment, Reader("line"))


def test_a_line_of_50_mb_costs_a_few_copies(tmp_path):
    size = 50_000_000
    path = write(tmp_path / "a.txt", b"word " * (size // 5) + b"\n\nshort\n")
    for mode in ("blank_line", "line"):
        tracemalloc.start()
        began = time.process_time()
        segments, _ = scan(path, Reader(mode), 1 << 20)
        lengths = [len(t) for s in segments for t in read(s, Reader(mode), ReadReport())]
        seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert lengths == [size, 5]
        assert peak < 4.5 * size
        assert seconds < 15


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_records_without_a_text_are_no_documents_and_are_counted_whatever_the_segments(tmp_path, suffix):
    values = [None, "one", None, "", "two", " \n\u00a0", "three", "four", None, None]
    path = str(tmp_path / f"a{suffix}")
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": pa.array(values)}), path)
    else:
        write(tmp_path / f"a{suffix}", ENCODERS[suffix.removeprefix(".jsonl")]((jsonl(values) + "\n\n").encode()))
    for segment_bytes, empty in ((1, [3, 1, 0, 2]), (6, [4, 2]), (1000, [6])):  # blank lines are no records
        report = ReadReport()
        assert texts(path, segment_bytes=segment_bytes, report=report) == ["one", "two", "three", "four"]
        assert [segment.empty for segment in scan(path, Reader(), segment_bytes)[0]] == empty
        assert report.empty == {path: 6}
    path = write(tmp_path / "b.jsonl", jsonl([None, ""]))
    with pytest.raises(InputError, match=r"b.jsonl: holds no document, 2 records without a text: leave it out"):
        scan(path, Reader(), 100)
    path = write(tmp_path / "c.txt", "one\n\n\n\ntwo\n\n")
    assert [segment.empty for segment in scan(path, Reader(), 100)[0]] == [0]


# ---- what is wrong with a file


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("bad, reason", [(b"caf\xe9!", "byte 0xe9 is not UTF-8"), (b"bi\0n", "a NUL byte")])
def test_an_undecodable_document_raises_with_its_place_or_is_skipped(tmp_path, codec, bad, reason):
    path = write(tmp_path / f"a.txt{codec}", ENCODERS[codec](b"one\ntwo\n\nthree\n" + bad + b"\n\nfour\n"))
    at = 15 + bad.index(b"\xe9" if b"\xe9" in bad else b"\0")
    for segment_bytes in (1, 1000):
        with pytest.raises(InputError) as error:
            texts(path, segment_bytes=segment_bytes)
        assert str(error.value).startswith(f"{path}:5 (byte {at}): {reason}")
        assert str(error.value).endswith("--data.on-error skip skips and counts such documents")
        report = ReadReport()
        assert texts(path, Reader(on_error="skip"), segment_bytes, report) == ["one\ntwo", "four"]
        assert report.skipped == {path: 1}
        assert report.first[path].startswith(f"{path}:5 (byte {at}): {reason}")


def test_bad_documents_count_in_the_indexes_when_they_are_skipped(tmp_path):
    path = write(tmp_path / "a.txt", b"one\n\n\xff\n\n\0\n\nfour\n")
    report = ReadReport()
    assert [s.stop for s in scan(path, Reader(on_error="skip"), 1)[0]] == [1, 2, 3, 4]
    assert texts(path, Reader(on_error="skip"), 1, report) == ["one", "four"]
    assert report.skipped == {path: 2}
    assert ":3 (byte 5)" in report.first[path]


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"texts": "x", "id": 1}', "no 'text', it has texts, id; did you mean 'texts'? (--data.text-column)"),
        ("{}", "no 'text', it has nothing"),
        ('{"text": ["x"]}', "'text' is a list, not a string"),
        ('["x"]', "a JSON list, not an object"),
        ('{"text": "x"', "not a JSON object (Expecting"),
        ('{"text": "\\ud800"}', "'text' is not text ('utf-8' codec can't encode"),
        ('{"text": "\\u0000"}', "a NUL byte"),
        ("[" * 100_000, "not a JSON object ("),
    ],
)
def test_a_malformed_json_line_raises_with_its_place_or_is_skipped(tmp_path, line, reason):
    line = line.encode() if isinstance(line, str) else line
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}\n')
    with pytest.raises(InputError) as error:
        texts(path)
    assert str(error.value).startswith(f"{path}:3 (byte 17): {reason}")
    assert "--data.on-error skip" in str(error.value)
    report = ReadReport()
    assert texts(path, Reader(on_error="skip"), 1, report) == ["one", "two"]
    assert report.skipped == {path: 1}


def test_a_json_line_that_is_not_utf8_is_named_by_its_byte_or_skipped(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n\n{"text": "caf\xe9"}\n{"text": "two"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:3 \(byte 30\): byte 0xe9 is not UTF-8 \(Western .*--data\.on-error skip"):
        texts(path)
    report = ReadReport()
    assert texts(path, Reader(on_error="skip"), 1, report) == ["one", "two"]
    assert report.skipped == {path: 1}


def test_a_quoted_record_of_several_lines_one_of_which_is_not_utf8_is_skipped_whole(tmp_path):
    path = write(tmp_path / "a.csv", b'id,text\n1,"one\n\xe9\nthree"\n2,four\n')
    with pytest.raises(InputError, match=r"a\.csv:3 \(byte 15\): byte 0xe9 is not UTF-8"):
        texts(path)
    assert texts(path, Reader(on_error="skip"), 1) == ["four"]


def test_a_single_quote_within_a_field_of_a_csv_belongs_to_the_text(tmp_path):
    path = write(tmp_path / "a.csv", 'id,text\n1,5" nails\n2,"a\nb"\n')
    for segment_bytes in (1, 1000):
        assert texts(path, segment_bytes=segment_bytes) == ['5" nails', "a\nb"]


def test_skipping_every_record_of_a_file_is_an_error(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"body": "x"}\n{"body": "y"}\n')
    with pytest.raises(InputError, match=r"all 2 documents would be skipped.*it has body"):
        scan(path, Reader(on_error="skip"), 100)


def test_a_parquet_file_without_the_column_or_with_numbers_in_it_or_that_is_none_is_named(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), path)
    with pytest.raises(InputError, match=r"a.parquet: no 'bodi', it has body, n; did you mean 'body'"):
        scan(path, Reader(text_column="bodi"), 100)
    with pytest.raises(InputError, match=r"a.parquet: row 0: 'n' is a int, not a string"):
        scan(path, Reader(text_column="n"), 100)
    write(tmp_path / "a.parquet", b"PAR1 this is not it PAR1")
    with pytest.raises(InputError, match=r"a.parquet: not a readable Parquet file"):
        scan(path, Reader(), 100)


def test_a_parquet_value_that_is_not_utf8_is_named_by_its_row(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.array([b"one", b"\xff", b"two"], pa.binary())}), path)
    with pytest.raises(InputError, match=r"a.parquet: row 1: byte 0xff is not UTF-8; --data.on-error skip"):
        texts(path)
    assert texts(path, Reader(on_error="skip")) == ["one", "two"]


@pytest.mark.parametrize("codec", [".gz", ".zst"])
@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[: len(b) // 2], lambda b: b"plain text\n" * 9])
def test_a_compressed_file_that_is_cut_short_or_not_compressed_is_named(tmp_path, codec, damage):
    whole = ENCODERS[codec]("".join(f"{i} {i * i}\n" for i in range(9999)).encode())
    path = write(tmp_path / f"a.txt{codec}", damage(whole))
    with pytest.raises(InputError, match=rf"a\.txt\{codec}: cannot be read .*cut short or not in this compression"):
        scan(path, Reader(), 1000)


def test_empty_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"a.txt: no such file; nearest in .*: 'ab.txt'"):
        write(tmp_path / "ab.txt", "x")
        scan(str(tmp_path / "a.txt"), Reader(), 100)
    for name, data in (("b.txt", b""), ("c.txt", b" \n\r\n\t\xe3\x80\x80"), ("d.txt.gz", b""), ("e.jsonl", b"\n")):
        with pytest.raises(InputError, match=f"{name}: holds no document"):
            scan(write(tmp_path / name, data), Reader(), 100)
    (tmp_path / "f.txt").mkdir()
    with pytest.raises(InputError, match=r"f.txt: cannot be read .Is a directory"):
        scan(str(tmp_path / "f.txt"), Reader(), 100)


def test_a_file_that_has_changed_since_the_scan_is_named(tmp_path):
    path = write(tmp_path / "a.txt", "one\n\ntwo\n\nthree")
    (segment,), _ = scan(path, Reader(), 100)
    write(tmp_path / "a.txt", "one\n\ntwo")
    with pytest.raises(InputError, match=r"a.txt: has changed since it was scanned: it ends before document 2"):
        list(read(segment, Reader(), ReadReport()))


def test_reader_refuses_unknown_choices():
    with pytest.raises(InputError, match=r"Reader: documents='lines' is a str; expected .*blank_line.*line.*file"):
        Reader(documents="lines")
    with pytest.raises(InputError, match=r"Reader: on_error='ignore'"):
        Reader(on_error="ignore")


@pytest.mark.parametrize(
    "name, install",
    [
        ("a.parquet", "pyarrow"),
        ("a.txt.zst", "pyarrow"),
        ("tfds:x", "tensorflow-datasets"),
        ("gs://b/a.txt", r"'bert_jax\[gcs\]'"),
    ],
)
def test_a_missing_library_is_named_with_the_line_that_installs_it(tmp_path, monkeypatch, name, install):
    path = write(tmp_path / name, "x") if name.startswith("a.") else name
    for module in ("pyarrow", "tensorflow_datasets", "fsspec"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"not installed: pip install {install}"):
        scan(path, Reader(), 100)


# ---- listing


def test_globs_folders_and_names_give_sorted_unique_files(tmp_path, monkeypatch):
    for name in ("b.txt", "a.txt", "sub/deep/c.jsonl.gz", "sub/d[1].txt", "sub/.hidden.txt"):
        write(tmp_path / name, "x")
    monkeypatch.chdir(tmp_path)
    assert list_files(["*.txt", "./a.txt"]) == ["a.txt", "b.txt"]
    assert list_files(["**/*.txt"]) == ["a.txt", "b.txt", "sub/d[1].txt"]
    assert list_files(["sub", "sub/d[1].txt"]) == ["sub/d[1].txt", "sub/deep/c.jsonl.gz"]
    assert list_files(["tfds:lm1b", "stdlib:", "tfds:glue/sst2:2.0.0:train[:9]"]) == [
        "stdlib:", "tfds:glue/sst2:2.0.0:train[:9]", "tfds:lm1b:train"]  # fmt: skip


def test_a_pattern_that_matches_nothing_names_what_is_near(tmp_path):
    for name in ("wiki.txt", "books.txt", "zzz.bin"):
        write(tmp_path / name, "x")
    with pytest.raises(InputError, match=r"wikis.txt: matches no file; nearest in .*: 'wiki.txt'"):
        list_files([str(tmp_path / "wikis.txt")])
    with pytest.raises(InputError, match=r"no/where/\*.txt: matches no file; nearest in .*'wiki.txt'"):
        list_files([str(tmp_path / "no/where/*.txt")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: matches no file: the folder holds none"):
        list_files([str(tmp_path / "empty")])
    with pytest.raises(InputError, match="names no file"):
        list_files([])


@pytest.mark.parametrize("name, said", [("a.text", "'.text' is not a known format.*did you mean '.txt'"),
                                        ("a.parquet.gz", "'.parquet.gz' is not"), ("a", "'no suffix' is not"),
                                        ("a.json", "did you mean '.jsonl'")])  # fmt: skip
def test_an_unknown_suffix_lists_the_known_ones(tmp_path, name, said):
    write(tmp_path / name, "x")
    with pytest.raises(InputError, match=said) as error:
        list_files([str(tmp_path)])
    assert "(.txt, .md, .jsonl, .csv, .tsv, these also with .gz, .bz2, .xz, .zst; .parquet)" in str(error.value)


def fsspec_of(path):
    import fsspec

    return fsspec.core.url_to_fs(path)


@pytest.fixture
def bucket():
    """A remote file system that fsspec carries."""
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket/a.txt", "\n\n".join(TEXTS).encode())
    fs.pipe("/bucket/sub/b.jsonl.gz", gzip.compress(jsonl(TEXTS).encode()))
    yield "memory://bucket"
    fs.rm("/bucket", recursive=True)


def test_urls_are_listed_scanned_and_read_like_files(bucket):
    assert list_files([f"{bucket}/*.txt"]) == ["memory:///bucket/a.txt"]
    assert list_files([bucket, f"{bucket}/a.txt"]) == ["memory:///bucket/a.txt", "memory:///bucket/sub/b.jsonl.gz"]
    for path in list_files([bucket]):
        assert texts(path, segment_bytes=1) == TEXTS
    with pytest.raises(InputError, match=r"bucket/\*.parquet: matches no file"):
        list_files([f"{bucket}/*.parquet"])
    with pytest.raises(InputError, match=r"bucket/c.txt: no such file"):
        scan(f"{bucket}/c.txt", Reader(), 100)


def test_a_file_that_is_written_anew_has_another_state(bucket, tmp_path):
    write(tmp_path / "a.txt", "one")
    for path, other in ((str(tmp_path / "a.txt"), b"two"), (f"{bucket}/a.txt", b"\n\n".join(t.encode() for t in TEXTS))):
        before = state(path)
        assert before is not None
        assert state(path) == before == json.loads(json.dumps(before))
        time.sleep(0.01)
        fs, name = fsspec_of(path)
        fs.pipe_file(name, other)
        assert state(path) != before
        assert state(path)[0] == before[0]  # the size alone would not tell
    for path in ("tfds:lm1b", "stdlib:", f"{bucket}/none.txt", "none.txt", "nosuch://x/a.txt"):
        assert state(path) is None


def test_a_url_that_cannot_be_opened_is_an_input_error(monkeypatch):
    with pytest.raises(InputError, match=r"nosuch://x/a.txt: Protocol not known"):
        list_files(["nosuch://x/a.txt"])
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"gs://x/a.txt: .*pip install 'bert_jax\[gcs\]'"):
        list_files(["gs://x/a.txt"])


# ---- TFDS


@pytest.fixture(scope="module")
def tfds_dirs(tmp_path_factory):
    """One folder a format, each with a dataset `tiny_text` whose code is forgotten afterwards."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain")]  # noqa: RUF012

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "n": tfds.features.Scalar(np.int64)}),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for i, text in enumerate(["", *TEXTS, " \n"]):
                yield i, {"text": text, "n": i}

    folders = {}
    for file_format in ("array_record", "parquet"):
        folders[file_format] = tmp_path_factory.mktemp(file_format)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            TinyText(data_dir=str(folders[file_format]), file_format=file_format).download_and_prepare()
    folders["tfrecord"] = tmp_path_factory.mktemp("tfrecord")
    for file in folders["array_record"].rglob("*"):
        target = folders["tfrecord"] / file.relative_to(folders["array_record"])
        if file.is_file() and file.suffix == ".json":
            write(target, file.read_text().replace("array_record", "tfrecord"))
    return folders


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
@pytest.mark.parametrize("segment_bytes", [1, 1 << 20])
def test_tfds_gives_its_text_feature_without_tensorflow(tfds_dirs, monkeypatch, file_format, segment_bytes):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dirs[file_format]))
    (path,) = list_files(["tfds:tiny_text/plain"])
    assert path == "tfds:tiny_text/plain:train"
    assert sorted(texts(path, segment_bytes=segment_bytes)) == sorted(TEXTS)
    assert scan(path, Reader(), 10)[1] == scan("tfds:tiny_text/plain:1.0.0:train", Reader(), 100)[1]
    assert len(texts("tfds:tiny_text/plain:train[:100%]+test")) == 2 * len(TEXTS)
    assert "tensorflow" not in sys.modules


def test_a_tfds_dataset_prepared_as_tfrecord_names_the_format_and_the_command(tfds_dirs, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dirs["tfrecord"]))
    with pytest.raises(InputError, match=r"is prepared as tfrecord.*python -c .*file_format='array_record'"):
        scan("tfds:tiny_text/plain:train", Reader(), 100)


def test_a_wrong_tfds_name_split_or_feature_is_named(tfds_dirs, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dirs["array_record"]))
    with pytest.raises(InputError, match=r"no split 'tain', it has test, train"):
        scan("tfds:tiny_text/plain:tain", Reader(), 100)
    with pytest.raises(InputError, match="no 'txt', it has n, text; did you mean 'text'"):
        scan("tfds:tiny_text/plain:train", Reader(text_column="txt"), 100)
    with pytest.raises(InputError, match=r"'n' is a int(64)?, not a string"):
        scan("tfds:tiny_text/plain:train", Reader(text_column="n"), 100)
    with pytest.raises(InputError, match=r"tfds:no_such_text:train: DatasetNotFoundError: .*; to prepare it: python -c"):
        scan("tfds:no_such_text:train", Reader(), 100)
    with pytest.raises(InputError, match="not of the form tfds:NAME"):
        list_files(["tfds::train"])


def test_the_code_of_a_builtin_tfds_dataset_is_found(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    def refuse(self, **kwargs):
        raise RuntimeError(f"would download {self.info.full_name}")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    with pytest.raises(InputError, match=r"RuntimeError: would download glue/sst2/2.0.0.*tensorflow_datasets.text.glue;"):
        scan("tfds:glue/sst2:train", Reader(text_column="sentence"), 100)


# ---- the standard library


def test_the_standard_library_gives_the_same_megabytes_of_english_in_every_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.apply_async(scan, ("stdlib:", Reader(), 1 << 19))
        modules = set(sys.modules)
        segments, content = scan("stdlib:", Reader(), 1 << 19)
        assert set(sys.modules) - modules <= {"pydoc_data", "pydoc_data.topics"}
        assert elsewhere.get() == (segments, content)
    assert sum(s.num_bytes for s in segments) > 1_500_000


def test_documents_of_the_standard_library_are_prose_and_distinct(tmp_path, monkeypatch):
    library = sysconfig.get_path("stdlib")
    for name in ("email", "json", "textwrap.py", "heapq.py"):
        source = os.path.join(library, name)
        (shutil.copytree if os.path.isdir(source) else shutil.copy)(source, tmp_path / name)
    shutil.copy(tmp_path / "heapq.py", tmp_path / "heapq_again.py")
    write(tmp_path / "short.py", '"""Too short."""')
    write(tmp_path / "broken.py", "not python (")
    write(tmp_path / "test/test_long.py", f'"""{"A test is not prose. " * 50}"""')
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    documents = texts("stdlib:", segment_bytes=1 << 17)
    assert documents == texts("stdlib:", segment_bytes=1 << 30)
    assert len(documents) == len(set(documents))
    assert sum("Heap queue algorithm" in d for d in documents) == 1
    assert not any("Too short" in d or "A test is not" in d or "\ufffd" in d for d in documents)
    assert all(len(d.encode()) >= 200 for d in documents)
    assert not [x for d in documents for x in d.split("\n") if re.match(r"\s*(>>>|\.\.\.|[-=*]+$)", x)]


def test_prose_of_a_module_is_its_docstrings_and_long_comments_in_order():
    source = b'"""Module."""\n# one\n# two\n\ndef f():\n    """Doc.\n\n    >>> f()\n    """\n    # single\n\n'
    source += b'class C:\n    "C."\n'
    assert datasets.module_prose(source) == ["Module.", "one\ntwo\n", "Doc.\n\n>>> f()", "C."]
    assert datasets.module_prose(b"not python (") == []


def test_segments_are_plain_data():
    assert Segment("a.txt", 0, 3, 0, 117) == Segment("a.txt", start=0, stop=3, offset=0, num_bytes=117)
