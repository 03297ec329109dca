"""Every input is made here, in tmp_path."""

import gzip
import hashlib
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from bert_jax.config import InputError
from bert_jax.data.files import Row, read_conll, read_squad, read_table, sentences_of_words, suffix_of

CODECS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def rows(table):
    """[(what stands behind the last slash of the place, values)]"""
    return [(row.place.rsplit("/", 1)[-1], dict(row.values)) for row in table.rows]


def fails(message, read, *args, **options):
    """`read` raises InputError, at once or while its rows are gone through, and says `message`."""
    with pytest.raises(InputError, match=re.escape(message)):
        list(read(*args, **options).rows)


# ---- delimited text


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name, delimiter", [("a.tsv", "\t"), ("a.csv", ","), ("a.txt", "\t")])
def test_delimited_rows_come_with_their_line_whatever_the_line_ends_and_the_mark_in_front(tmp_path, codec, end, name, delimiter):
    text = end.join(["\ufefftext,label", "ein Füßchen,1", "", "two,0", ""]).replace(",", delimiter)
    table = read_table(write(tmp_path / f"{name}{codec}", CODECS[codec](text.encode())))
    assert table.columns == ("text", "label")
    assert rows(table) == [
        (f"{name}{codec}:2", {"text": "ein Füßchen", "label": "1"}),
        (f"{name}{codec}:4", {"text": "two", "label": "0"}),
    ]


def test_double_quotes_are_plain_characters_in_tsv_and_enclose_fields_in_csv_unless_said_otherwise(tmp_path):
    for name, quotes, expected in [
        ("a.tsv", "auto", '"a'), ("a.tsv", "csv", "a"), ("a.csv", "auto", "a"), ("a.csv", "none", '"a'),
    ]:  # fmt: skip
        field = '"a' if expected == '"a' else '"a"'
        path = write(tmp_path / name, f"x,y\n{field},b\n".replace(",", "\t" if name == "a.tsv" else ","))
        assert rows(read_table(path, quotes)) == [(f"{name}:2", {"x": expected, "y": "b"})]


def test_a_quoted_field_may_hold_line_ends_delimiters_and_doubled_quotes_and_rows_are_named_by_their_first_line(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\r\n"one,\r\n\r\ntwo ""three""",1\r\n\r\nfour,0\r\n')
    assert rows(read_table(path)) == [
        ("a.csv:2", {"text": 'one,\n\ntwo "three"', "label": "1"}),
        ("a.csv:6", {"text": "four", "label": "0"}),
    ]


@pytest.mark.parametrize("text, expected", [
    ('text\tlabel\n"She said ""no""."\t1\nyes\t0\n', 'She said "no".'),  # as csv.writer and pandas write a quote
    ('text\tlabel\n"a\ttab"\t1\nyes\t0\n', "a\ttab"),
    ('text\tlabel\n"two\nlines"\t1\nyes\t0\n', "two\nlines"),
    ('"text"\t"label"\n"all"\t"1"\n"yes"\t"0"\n', "all"),
    ('text\tlabel\n"strings"\t1\n"yes"\t0\n', "strings"),  # as QUOTE_NONNUMERIC encloses texts alone
    ('text\tlabel\n"Yes."\t1\nno\t0\n', None),  # speech in one row, as in GLUE's files
    ('text\tlabel\n"Yes," he said.\t1\n"She said ""no""."\t0\n', None),  # no writer leaves the first so
    ('text\tlabel\n"It began\t1\nand ended"\t0\n', None),
    ('text\tlabel\n5" nails\t1\nno\t0\n', None),
    ('text\tlabel\n""\t1\nno\t0\n', None),
    ('"text"\tlabel\nyes\t1\nno\t0\n', None),
    ("text\tlabel\n", None),
])  # fmt: skip
@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.tsv.gz"])
def test_quotes_that_enclose_fields_of_a_tsv_are_found_and_told_of(tmp_path, name, text, expected):
    path = write(tmp_path / name, CODECS[".gz"](text.encode()) if name.endswith(".gz") else text)
    hasher = hashlib.sha256()
    table = read_table(path, "auto", hasher)
    found = [list(values.values()) for _, values in rows(table)]
    if expected is None:
        assert found == [line.split("\t") for line in text.splitlines()[1:]]
        assert table.remarks == ()
    else:
        assert (found[0][0], table.columns) == (expected, ("text", "label"))
        assert table.remarks == (f"double quotes enclose fields of {path}, and are taken off",)
    assert hasher.hexdigest() == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()  # it is read twice, and seen once


def test_a_field_may_be_longer_than_the_csv_modules_default_limit(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\n" + "x" * 200_000 + ",1\n")
    assert len(next(read_table(path).rows).values["text"]) == 200_000


def test_a_row_with_another_number_of_fields_than_the_header_is_named_or_counted(tmp_path):
    path = write(tmp_path / "a.tsv", "a\tb\n1\t2\n3\n4\t5\t6\n7\t8\n")
    fails("a.tsv:3: 1 fields where 2 (a, b) are expected; if double quotes enclose fields, say --quotes csv", read_table, path)
    table = read_table(path, skip_bad=True)
    assert rows(table) == [("a.tsv:2", {"a": "1", "b": "2"}), ("a.tsv:5", {"a": "7", "b": "8"})]
    assert table.skipped == [f"{path}:3", f"{path}:4"]
    path = write(tmp_path / "a.csv", "a,b\n1,2,3\n")
    fails("a.csv:2: 3 fields where 2 (a, b) are expected; quote a field that holds ','", read_table, path)


@pytest.mark.parametrize("text", ['a,b\n1,2\n"open,2\n3,4\n', 'a,b\n1,2\n"x"y,2\n'])
def test_a_quote_that_is_not_closed_or_closed_too_early_is_named_by_the_line_where_its_row_starts(tmp_path, text):
    path = write(tmp_path / "a.csv", text)
    with pytest.raises(InputError, match=r"a.csv:3: .*; if double quotes are plain characters here, say --quotes none"):
        list(read_table(path).rows)


def test_files_without_a_header_line_have_the_given_columns(tmp_path):
    header = ("source", "label", "star", "sentence")
    path = write(tmp_path / "a.tsv", "gj04\t1\t\tIt is.\nx\t0\t*\tIs.\n")
    assert rows(read_table(path, header=header)) == [
        ("a.tsv:1", {"source": "gj04", "label": "1", "star": "", "sentence": "It is."}),
        ("a.tsv:2", {"source": "x", "label": "0", "star": "*", "sentence": "Is."}),
    ]
    path = write(tmp_path / "a.tsv", "index\tsentence\n0\tIt is.\n")
    assert rows(read_table(path, header=header)) == [("a.tsv:2", {"index": "0", "sentence": "It is."})]


def test_a_headerless_file_may_have_more_fields_only_where_the_header_says_so(tmp_path):
    path = write(tmp_path / "a.tsv", "1\t2\n3\t4\tmore\n")
    assert [values for _, values in rows(read_table(path, header=("a", "b", "...")))] == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
    ]
    fails("a.tsv:2: 3 fields where 2 (a, b) are expected", read_table, path, header=("a", "b"))
    fails("a.tsv:1: 2 fields where 3 or more (a, b, c)", read_table, path, header=("a", "b", "c", "..."))


def test_an_empty_file_a_doubled_column_a_missing_file_and_an_unknown_format_are_named(tmp_path):
    fails("a.tsv: is empty", read_table, write(tmp_path / "a.tsv", "\n"))
    fails("a.csv: is empty", read_table, write(tmp_path / "a.csv", ""))
    fails("a.tsv:1: the header has 'x' twice", read_table, write(tmp_path / "a.tsv", "x\ty\tx\n1\t2\t3\n"))
    fails("b.tsv: no such file; nearest in", read_table, str(tmp_path / "b.tsv"))
    fails("a.xlsx: '.xlsx' is not a known format (.csv, .tsv, .txt, .jsonl", read_table, write(tmp_path / "a.xlsx", "x"))
    fails("a.jsonl: holds no rows", read_table, write(tmp_path / "a.jsonl", "\n\n"))
    fails("a.json: holds no rows", read_table, write(tmp_path / "a.json", "[]"))


def test_a_header_alone_gives_columns_and_no_rows(tmp_path):
    table = read_table(write(tmp_path / "a.tsv", "x\ty\n"))
    assert (table.columns, rows(table)) == (("x", "y"), [])


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.json"])
def test_bytes_that_are_not_utf8_are_named_by_their_line(tmp_path, name):
    path = write(tmp_path / name, b'{"a": 1}\n{"a": "caf\xe9"}\n')
    fails(f"{name}:2: byte 0xe9 is not UTF-8; save the file as UTF-8", read_table, path)
    path = write(tmp_path / name, '{"a": 1}\n'.encode("utf-16"))
    fails(f"{name}:1: a NUL byte: a binary file, or UTF-16", read_table, path)


def test_the_hasher_sees_the_bytes_of_the_file(tmp_path):
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "a.parquet")
    paths = [str(tmp_path / "a.parquet"), write(tmp_path / "a.csv.gz", gzip.compress(b"a\nx\n"))]
    paths += [write(tmp_path / "a.tsv", "\ufeffa\r\nx\r\n"), write(tmp_path / "a.json", '[{"a": 1}]')]
    for path in paths:
        hasher = hashlib.sha256()
        list(read_table(path, hasher=hasher).rows)
        with open(path, "rb") as file:
            assert hasher.hexdigest() == hashlib.sha256(file.read()).hexdigest()


# ---- JSON and Parquet


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_lines_give_values_as_json_has_them(tmp_path, name):
    values = {"text": "é", "labels": ["a", "b"], "n": 3, "x": None}
    path = write(tmp_path / name, "\ufeff" + json.dumps(values) + "\n\n" + json.dumps({"text": "two"}) + "\n")
    table = read_table(path)
    assert table.columns == ("text", "labels", "n", "x")
    assert rows(table) == [(f"{name}:1", values), (f"{name}:3", {"text": "two"})]


def test_a_json_file_may_be_a_list_of_objects(tmp_path):
    path = write(tmp_path / "a.json", '\n [\n{"a": 1},\n{"a": "x"}\n]\n')
    assert rows(read_table(path)) == [("a.json: item 0", {"a": 1}), ("a.json: item 1", {"a": "x"})]
    fails("a.json: item 1: a JSON int, not an object", read_table, write(tmp_path / "a.json", '[{"a": 1}, 2]'))
    fails("a.json:3: not JSON (Expecting", read_table, write(tmp_path / "a.json", '[{"a": 1},\n{"a": 2},\n{"a": }]'))


@pytest.mark.parametrize("line, reason", [('["x"]', "a JSON list, not an object"), ('{"a": ', "not a JSON object (Expecting"),
                                          ("[" * 100_000, "not a JSON object (")])  # fmt: skip
def test_a_malformed_json_line_is_named(tmp_path, line, reason):
    fails(f"a.jsonl:2: {reason}", read_table, write(tmp_path / "a.jsonl", '{"a": 1}\n' + line + "\n"))


def test_parquet_gives_rows_counted_from_0(tmp_path):
    values = [{"words": ["a", "b"], "label": 1}, {"words": [], "label": None}]
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet")
    assert rows(read_table(str(tmp_path / "a.parquet"))) == [("a.parquet: row 0", values[0]), ("a.parquet: row 1", values[1])]
    fails("b.parquet: not a readable Parquet file", read_table, write(tmp_path / "b.parquet", "no"))


def test_class_numbers_in_a_parquet_file_of_hugging_face_are_given_by_name(tmp_path):
    classes = {"_type": "ClassLabel", "names": ["neg", "pos"]}
    features = {
        "text": {"_type": "Value", "dtype": "string"},
        "label": classes,
        "tags": {"_type": "Sequence", "feature": classes},
    }
    table = pa.table({"text": ["x", "y"], "label": [1, -1], "tags": [[0, 1], []]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [values for _, values in rows(read_table(str(tmp_path / "a.parquet")))] == [
        {"text": "x", "label": "pos", "tags": ["neg", "pos"]},
        {"text": "y", "label": None, "tags": []},
    ]
    pq.write_table(table.replace_schema_metadata({"huggingface": "[]"}), tmp_path / "a.parquet")
    assert [values["label"] for _, values in rows(read_table(str(tmp_path / "a.parquet")))] == [1, -1]


def test_a_parquet_text_that_is_not_utf8_is_named(tmp_path):
    bad = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"a": bad}), tmp_path / "a.parquet")
    fails("a.parquet: row 0: byte 0xff is not UTF-8", read_table, str(tmp_path / "a.parquet"))


def test_suffixes_are_without_codec_and_case():
    assert [suffix_of(p) for p in ("a/b.TSV.gz", "b.c.json", "b")] == [".tsv", ".json", ""]


# ---- sentences


CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O


# NN B-NP O
\t
Peter NNP B-NP B-PER"""


@pytest.mark.parametrize("text", [CONLL, CONLL.replace("\n", "\r\n"), "\ufeff" + CONLL + " \n\n", CONLL.replace(" ", "\t")])
def test_sentences_end_at_blank_lines_and_a_hash_may_be_a_word(tmp_path, text):
    table = read_conll(write(tmp_path / "a.conll", text))
    assert table.columns == ("words", "tags")
    assert rows(table) == [
        ("a.conll:3", {"words": ["EU", "rejects"], "tags": ["B-ORG", "O"]}),
        ("a.conll:7", {"words": ["#"], "tags": ["O"]}),
        ("a.conll:9", {"words": ["Peter"], "tags": ["B-PER"]}),
    ]


def test_word_and_tag_may_stand_in_any_column(tmp_path):
    path = write(tmp_path / "a.conll", CONLL)
    assert rows(read_conll(path, 1))[0][1] == {"words": ["EU", "rejects"], "tags": ["NNP", "VBZ"]}
    assert rows(read_conll(path, -2, 3))[0][1] == {"words": ["B-ORG", "O"], "tags": ["B-NP", "B-VP"]}
    fails("a.conll: has 4 columns, and none of them is --label-column 4", read_conll, path, 4)
    fails("a.conll: has 4 columns, and none of them is --text-column -5", read_conll, path, -1, -5)


def test_comments_of_conll_u_are_left_out_and_words_in_tab_separated_lines_may_have_blanks_in_them(tmp_path):
    path = write(
        tmp_path / "a.conll", "# sent_id = 1\n# text = New York\n#\nNew\u00a0York\tB-LOC\n1 000\tO\n#\tO\n\n# only a comment\n\n"
    )
    assert rows(read_conll(path)) == [("a.conll:4", {"words": ["New\u00a0York", "1 000", "#"], "tags": ["B-LOC", "O", "O"]})]


def test_lines_of_docstart_and_blanks_that_are_no_ascii_do_not_count_as_columns(tmp_path):
    path = write(tmp_path / "a.conll", "-DOCSTART-\n\nNew\u00a0York  B-LOC \n-DOCSTART- O\n\n")
    assert rows(read_conll(path)) == [("a.conll:3", {"words": ["New\u00a0York"], "tags": ["B-LOC"]})]


def test_a_line_of_docstart_is_a_boundary_wherever_it_stands(tmp_path):
    for text in (
        "EU O\n-DOCSTART- O\nPeter O\n", "EU O\n\n-DOCSTART- O\nPeter O\n", "EU O\n-DOCSTART- (12 testb)\nPeter O\n",
        "-DOCSTART-\nEU O\n-DOCSTART-\tO\n\n\nPeter O", "EU O\n-DOCSTART-\nPeter O\n-DOCSTART-\n",
    ):  # fmt: skip
        table = read_conll(write(tmp_path / "a.conll", text))
        assert [values["words"] for _, values in rows(table)] == [["EU"], ["Peter"]], text


def test_bad_lines_are_left_out_and_counted_if_asked(tmp_path):
    path = write(tmp_path / "a.conll", b"EU O\nbad\nPeter B-PER\n\ncaf\xe9 O\nx O O\n\ny O\n")
    table = read_conll(path, skip_bad=True)
    found = [{"words": ["EU", "Peter"], "tags": ["O", "B-PER"]}, {"words": ["y"], "tags": ["O"]}]
    assert [values for _, values in rows(table)] == found
    assert sorted(table.skipped) == [f"{path}:2", f"{path}:5", f"{path}:6"]
    path = write(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": \n[2]\n{"a": "\xe9"}\n{"a": 3}\n')
    table = read_table(path, skip_bad=True)
    assert [values for _, values in rows(table)] == [{"a": 1}, {"a": 3}]
    assert table.skipped == [f"{path}:2", f"{path}:3", f"{path}:4"]
    path = write(tmp_path / "a.tsv", b"a\tb\n1\t2\n\xe9\t2\n3\n4\t5\n")
    table = read_table(path, skip_bad=True)
    assert len(rows(table)) == 2
    assert table.skipped == [f"{path}:3", f"{path}:4"]


def test_words_a_row_are_put_together_to_sentences(tmp_path):
    text = 'Sentence #,Word,POS,Tag\nS1,EU,N,B-ORG\n,"[",X,O\n,rejects,V,O\nS2,one,N,O\nS3,a,X,O\nS3,b,Y,O\n'
    table = read_table(write(tmp_path / "a.csv", text))
    assert rows(table._replace(rows=sentences_of_words(table.rows, "Sentence #", ("Word", "Tag")))) == [
        ("a.csv:2", {"Sentence #": "S1", "POS": "N", "Word": ["EU", "[", "rejects"], "Tag": ["B-ORG", "O", "O"]}),
        ("a.csv:5", {"Sentence #": "S2", "POS": "N", "Word": ["one"], "Tag": ["O"]}),
        ("a.csv:6", {"Sentence #": "S3", "POS": "X", "Word": ["a", "b"], "Tag": ["O", "O"]}),
    ]
    path = write(tmp_path / "a.csv", "s,w,t\n1,a,O\n1,,O\n")
    with pytest.raises(InputError, match=r"a.csv:3: 'w' is empty, but each row must be a word"):
        list(sentences_of_words(read_table(path).rows, "s", ("w", "t")))


@pytest.mark.parametrize("label_column", [-1, 3])
def test_a_file_of_one_column_has_words_without_tags_whatever_they_start_with(tmp_path, label_column):
    table = read_conll(write(tmp_path / "a.conll", "#wow\nit\n#\n\nis\n"), label_column)
    assert table.columns == ("words",)
    assert rows(table) == [("a.conll:1", {"words": ["#wow", "it", "#"]}), ("a.conll:5", {"words": ["is"]})]


def test_lines_that_do_not_fit_the_first_and_empty_words_or_tags_are_named(tmp_path):
    fails("a.conll:3: 3 columns, where the first line has 2", read_conll, write(tmp_path / "a.conll", "a O\n\nb X O\n"))
    fails("a.conll:2: 1 columns, where the first line has 2", read_conll, write(tmp_path / "a.conll", "a\tO\nb O\n"))
    fails("a.conll:2: an empty word or tag", read_conll, write(tmp_path / "a.conll", "a\tO\n\tO\n"))
    fails("a.conll:2: an empty word or tag", read_conll, write(tmp_path / "a.conll", "a\tO\nb\t\n"))
    fails("a.conll:2: byte 0xe9 is not UTF-8", read_conll, write(tmp_path / "a.conll", b"a O\ncaf\xe9 O\n"))


# ---- SQuAD


def squad(*questions, context="The cat sat."):
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def test_squad_questions_come_with_context_and_answers(tmp_path):
    answers = [{"text": "cat", "answer_start": 4}]
    asked = {"question": "Who?", "id": "a"}
    data = squad(
        asked | {"answers": answers},
        asked | {"id": 7, "answers": [], "is_impossible": True},
        asked | {"id": "c"},
        asked | {"id": "d", "is_impossible": True},
        asked | {"id": "e", "answers": answers, "is_impossible": False},
    )
    table = read_squad(write(tmp_path / "a.json", "\ufeff" + json.dumps(data, indent=1)))
    assert table.columns == ("id", "question", "context", "answers")
    expected = {"question": "Who?", "context": "The cat sat."}
    assert rows(table) == [
        (f"a.json: {id}", {"id": id} | expected | {"answers": found})
        for id, found in [("a", answers), ("7", []), ("c", None), ("d", []), ("e", answers)]
    ]


@pytest.mark.parametrize("data, message", [
    ('{"data": [\n{"paragraphs": }]}', "a.json:2: not JSON (Expecting value, column 16)"),
    ("[]", "a.json: has no 'data'; SQuAD's layout is"),
    ('{"data": {}}', "a.json: 'data' is a dict, not a list"),
    ('{"data": [{}]}', "a.json: data[0]: has no 'paragraphs'"),
    ('{"data": [{"paragraphs": [{"qas": []}]}]}', "a.json: data[0].paragraphs[0]: has no 'context'"),
    (json.dumps(squad({"id": "a"})), "a.json: data[0].paragraphs[0].qas[0]: has no 'question'"),
    (json.dumps(squad({"question": "?"})), "a.json: data[0].paragraphs[0].qas[0]: has no 'id'"),
    (json.dumps(squad({"id": "a", "question": "?", "answers": "x"})), "qas[0]: 'answers' is a str, not a list"),
    (json.dumps(squad("x")), "qas[0]: has no 'id'"),
])  # fmt: skip
def test_what_is_not_in_squads_layout_is_named_by_where_it_stands(tmp_path, data, message):
    fails(message, read_squad, write(tmp_path / "a.json", data))


def test_rows_are_plain_data():
    assert Row("a.tsv:2", {"a": "1"}) == ("a.tsv:2", {"a": "1"})
