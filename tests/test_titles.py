"""Retrieval data from texts with headings: what is a heading, the folder that the command writes, and what is refused."""

import json

import pytest

from bert_jax.__main__ import main
from bert_jax.errors import InputError
from bert_jax.tasks.splits import load_splits
from bert_jax.tasks.table import find_task
from bert_jax.tasks.task import TaskData
from bert_jax.tasks.titles import sections, split

WINGS = "Wings\n\nA wing lifts\nthe plane.\n\nDrag\n\nA wing drags.\n\nIt is slow.\n"


@pytest.mark.parametrize(
    ("text", "title", "expected"),
    [
        (WINGS, "", [("Wings", "A wing lifts\nthe plane."), ("Wings: Drag", "A wing drags.\n\nIt is slow.")]),
        (WINGS, "Planes", [("Planes: Wings", "A wing lifts\nthe plane."), ("Planes: Drag", "A wing drags.\n\nIt is slow.")]),
        (WINGS, "Wings", [("Wings", "A wing lifts\nthe plane."), ("Wings: Drag", "A wing drags.\n\nIt is slow.")]),
        ("Wings\r\n\r\nA wing lifts.\r\n", "", [("Wings", "A wing lifts.")]),
        ("# Wings #\nA wing lifts.\n## Drag\nIt drags.", "", [("Wings", "A wing lifts."), ("Wings: Drag", "It drags.")]),
        ("# Run\n\n```sh\n# no heading\n\nmake\n```\n", "", [("Run", "```sh\n# no heading\n\nmake\n```")]),
        ("Some text.\n\nDrag\n\nIt drags.", "", [("", "Some text."), ("Drag", "It drags.")]),
        ("Part One\n\nChapter 1\n\nIt began.", "", [("Part One: Chapter 1", "It began.")]),
        ("Two lines\n\nWithout a full stop", "", [("Two lines", "Without a full stop")]),
        ("# Nothing below", "", []),
        ("Wings\n\nThey lift.\n\n~~~~\n\nDrag\n\nThey drag.", "",
         [("Wings", "They lift.\n\n~~~~"), ("Wings: Drag", "They drag.")]),
        ("A title\n\nIt ends.\n\nC\n\n- a list\n\nlower case\n\nAsk:\n\n| a | b |", "",
         [("A title", "It ends.\n\nC\n\n- a list\n\nlower case\n\nAsk:\n\n| a | b |")]),
        ("Wings\n\n'It lifts.'\n\nHe said--\n\nLift (or not)\n\n(It drags.)", "",
         [("Wings", "'It lifts.'\n\nHe said--"), ("Wings: Lift (or not)", "(It drags.)")]),
        ("翼\n\n一", "", [("", "翼\n\n一")]),
        ("飛行機の翼\n\n翼は飛行機を持ち上げる。", "", [("飛行機の翼", "翼は飛行機を持ち上げる。")]),
        ("one two three " * 5 + "Four", "", [("", ("one two three " * 5 + "Four"))]),
    ],
)  # fmt: skip
def test_a_section_is_the_text_below_a_heading(text, title, expected):
    assert [(section.query, section.text) for section in sections(text, title)] == expected


def write(folder, **texts):
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return str(folder / "*.txt")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def qrels(folder, name):
    return [tuple(line.split("\t")) for line in (folder / "qrels" / f"{name}.tsv").read_text().splitlines()[1:]]


def test_a_folder_that_retrieval_reads_is_made_of_text(tmp_path, capsys):
    texts = {
        f"t{i}": f"Title {i}\n\nThe first text of {i}.\n\nPart\n\nThe second text of {i}.\n\nShort\n\nNo.\n" for i in range(8)
    }
    texts["copy"] = "Another title\n\nThe first text of 3.\n"
    texts["bare"] = "There is no heading in this text.\n"
    source, out = write(tmp_path / "text", **texts), tmp_path / "out"
    main(["titles", source, "--out", str(out), "--min-words", "3"])
    documents = {row["_id"]: row["text"] for row in rows(out / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in rows(out / "queries.jsonl")}
    judged = {name: qrels(out, name) for name in ("train", "dev", "test")}
    pairs = {(queries[query], documents[document]) for each in judged.values() for query, document, _ in each}
    expected = {(f"Title {i}", f"The first text of {i}.") for i in range(8)}
    expected |= {(f"Title {i}: Part", f"The second text of {i}.") for i in range(8)}
    assert pairs == expected | {("Another title", "The first text of 3.")}
    assert documents[f"{tmp_path}/text/bare.txt#1"] == texts["bare"].strip()
    titles = [{queries[query].split(":")[0] for query, _, _ in each} for each in judged.values()]
    assert [len(each) for each in titles] == [7, 1, 1]
    assert len(set.union(*titles)) == 9
    printed = capsys.readouterr().out
    assert "8 documents left out with fewer than 3 words" in printed
    assert "1 copies of documents left out" in printed
    assert "1 documents without a heading" in printed
    splits = load_splits(find_task("retrieval"), TaskData(data=str(out)))
    assert len(splits.train) == len(judged["train"])


def test_a_table_has_titles_in_a_column(tmp_path, capsys):
    table, out = tmp_path / "pages.jsonl", tmp_path / "out"
    lines = [{"name": f"Page {i}", "text": f"All the text of {i}.\n\nPart\n\nMore text of {i}"} for i in range(6)]
    table.write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in [*lines, {"name": None, "text": "Own\n\nThe text of its own"}, {"name": "x", "text": None}]
        )
    )
    main(
        [
            "titles",
            str(table),
            "--out",
            str(out),
            "--min-words",
            "2",
            "--title-column",
            "name",
            "--dev-size",
            "2",
            "--test-size",
            "0.3",
        ]
    )
    found = [row["text"] for row in rows(out / "queries.jsonl")]
    assert found == [*(f"Page {i}{part}" for i in range(6) for part in ("", ": Part")), "Own"]
    assert capsys.readouterr().out.endswith("13 queries of 7 titles\n")


def test_texts_of_one_file_have_ids_of_their_own(tmp_path):
    main(["titles", "stdlib:", "--out", str(tmp_path / "out")])
    ids = [row["_id"] for row in rows(tmp_path / "out" / "corpus.jsonl")]
    assert len(set(ids)) == len(ids) > 1000


def test_splits_do_not_move_when_titles_are_added():
    before, after = (split((f"title {i}" for i in range(count)), 0.1, 0.1) for count in (200, 210))
    assert sum(before[title] != after[title] for title in before) <= 8
    assert sorted(before.values()).count("dev") == sorted(before.values()).count("test") == 20


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("No heading here.", [], "no headings with 3 words below them"),
        ("A\n\nb\n\nTitle\n\nThe text below.", [], "1 titles are too few for 1 in dev and 1 in test"),
        (WINGS, ["--dev-size", "1.5"], "--dev-size 1.5 is neither"),
        (WINGS, ["--min-words", "0"], "--min-words 0 is below 1"),
        (b"\xff\xfe", [], r"t\.txt.*UTF-8.*--on-error skip"),
    ],
)
def test_what_gives_no_data_set_is_refused(text, words, message, tmp_path):
    (tmp_path / "t.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        main(["titles", str(tmp_path / "t.txt"), "--out", str(tmp_path / "out"), "--min-words", "3", *words])
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_rows_that_are_no_text_are_named_or_skipped_and_missing_titles_are_none(tmp_path, capsys):
    table = tmp_path / "t.jsonl"
    bad = [
        '{"title": "T", "text": "half \\ud800 pair"}',
        '{"title": "\\udc00", "text": "a text"}',
        '{"title": "T", "text": 3}',
        "{",
    ]
    good = [json.dumps({"title": f"Title {i}", "text": f"A text of {i} words."}) for i in range(4)]
    nan = '{"title": NaN, "text": "Own heading\\n\\nThe text below it."}'
    for line in bad:
        table.write_text("\n".join([*good, line]) + "\n")
        with pytest.raises(InputError, match=r"t.jsonl:5: .*--on-error skip"):
            main(["titles", str(table), "--out", str(tmp_path / "none")])
    table.write_text("\n".join([*good, *bad, nan]) + "\n")
    main(["titles", str(table), "--out", str(tmp_path / "out"), "--min-words", "2", "--on-error", "skip"])
    assert [row["text"] for row in rows(tmp_path / "out" / "queries.jsonl")] == [*(f"Title {i}" for i in range(4)), "Own heading"]
    assert "4 texts left out that cannot be read" in capsys.readouterr().out


def test_nothing_is_written_over_and_unreadable_texts_may_be_skipped(tmp_path, capsys):
    source = write(tmp_path / "text", **{f"t{i}": f"Title {i}\n\nA text of {i} words" for i in range(4)})
    (tmp_path / "text" / "bad.txt").write_bytes(b"\xff")
    words = ["titles", source, "--out", str(tmp_path / "out"), "--min-words", "2"]
    main([*words, "--on-error", "skip"])
    assert "1 texts left out that cannot be read: " in capsys.readouterr().out
    with pytest.raises(InputError, match="out is there already: give a new folder"):
        main(words)


def test_a_table_without_the_text_names_its_columns(tmp_path):
    (tmp_path / "t.csv").write_text("title,body\na,b\n")
    with pytest.raises(InputError, match=r"t.csv:2: no 'text', it has title, body"):
        main(["titles", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out")])
