"""Splits of tagging and question answering; rows that are held out, capped or copies. Every input is made here, in tmp_path."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from task_files import fails, folder, jsonl, load, only, plain, tsv, write

# ---- tagging


def test_tags_come_with_o_first_and_those_unknown_to_training_are_counted(tmp_path):
    data = folder(tmp_path, train_conll="EU B-ORG\nx O\n\ny O\n", dev_conll="z B-LOC\nz B-LOC\n", test_conll="a\n\n#\n")
    splits = load("ner", data)
    assert plain(splits.train) == [(("EU", "x"), ("B-ORG", "O"), "0"), (("y",), ("O",), "1")]
    assert splits.train[1].place == f"{data}/train.conll:4"
    assert plain(splits.test["test"]) == [(("a",), None, "0"), (("#",), None, "1")]
    assert splits.labels == ("O", "B-LOC", "B-ORG")
    assert "warning: tag 'B-LOC' occurs 2 times in dev or test, but not in training" in splits.notes
    assert load("ner", data, label_column="0", test=str(data / "dev.conll")).labels == ("EU", "x", "y", "z")
    fails("--label-column is 'tags', not a whole number", "ner", data, label_column="tags")
    fails("test.conll: which column is the label? It has words", "ner", data, dev=str(data / "test.conll"))


@pytest.mark.parametrize("columns", [("words", "tags"), ("tokens", "ner_tags"), ("w", "t")])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_words_and_tags_may_be_lists(tmp_path, columns, name):
    rows = [dict(zip(columns, row, strict=True)) for row in ((["EU", "x"], ["B-ORG", "O"]), (["y"], ["O"]))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "made.parquet")
    options = dict(text_column=("w",), label_column="t") if columns == ("w", "t") else {}
    data = jsonl(*rows) if name == "a.jsonl" else (tmp_path / "made.parquet").read_bytes()
    splits = only(tmp_path, "tagging", name, data, **options)
    assert plain(splits.train) == [(("EU", "x"), ("B-ORG", "O"), "0"), (("y",), ("O",), "1")]


@pytest.mark.parametrize("row, message", [
    ({"words": ["a", "b"], "tags": ["O"]}, "a.jsonl:1: 2 words, but 1 tags"),
    ({"words": "a b", "tags": ["O"]}, "a.jsonl:1: 2 words, but 1 tags"),
    ({"words": [], "tags": []}, "a.jsonl: holds no rows; warning: train: 1 rows without words left out: "),
    ({"words": 3, "tags": []}, "a.jsonl:1: 'words' is 3, not a list with an entry for each word"),
    ({"words": ["a", 1], "tags": ["O", "O"]}, "a.jsonl:1: 'words' is 1, not a text"),
    ({"words": ["a", "b"], "tags": ["O", None]}, "a.jsonl:1: the label is ['O', None], not a list of tags: word 1 has none"),
    ({"words": ["a"], "tags": [None]}, "a.jsonl: none of its 1 rows has a label"),
])  # fmt: skip
def test_what_is_no_sentence_with_a_tag_a_word_is_named(tmp_path, row, message):
    fails(message, "tagging", write(tmp_path / "a.jsonl", jsonl(row)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_sentences_without_words_are_left_out_and_counted(tmp_path, name):
    rows = [{"words": words, "tags": words and ["O"] * len(words)} for words in (["a", "b"], None, [], ["c"])]
    rows[3]["tags"] = ["B-X"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "made.parquet")
    splits = only(tmp_path, "tagging", name, jsonl(*rows) if name == "a.jsonl" else (tmp_path / "made.parquet").read_bytes())
    assert plain(splits.train) == [(("a", "b"), ("O", "O"), "0"), (("c",), ("B-X",), "3")]
    places = "a.jsonl:2" if name == "a.jsonl" else "a.parquet: row 1"
    (note,) = [note for note in splits.notes if note.startswith("warning: train: 2 rows without words left out: ")]
    assert places in note
    assert not [note for note in splits.notes if "no label" in note]


JOHN = "john lives in Paris."
SPANS = [[0, 4, "PER"], [14, 19, "LOC"]]


@pytest.mark.parametrize("column", ["label", "labels", "entities", "spans"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_entities_by_characters_become_tags_of_words(tmp_path, column, name):
    rows = [{"text": JOHN, column: SPANS}, {"text": "no one", column: []}, {"text": "x", column: None}]
    text = f"text,{column}\n" + "".join(f'"{r["text"]}","{r[column] or (r[column] == [] and "[]") or ""}"\n' for r in rows)
    splits = only(tmp_path, "tagging", name, {"a.csv": text, "a.json": json.dumps(rows)}.get(name, jsonl(*rows)))
    assert plain(splits.train) == [
        (("john", "lives", "in", "Paris", "."), ("B-PER", "O", "O", "B-LOC", "O"), "0"),
        (("no", "one"), ("O", "O"), "1"),
    ]
    assert "warning: train: 1 of 3 rows have no label (empty 1): left out: " in "".join(splits.notes)
    test = write(tmp_path / "test.jsonl", jsonl({"text": JOHN}))
    assert load("tagging", tmp_path / name, dev=str(tmp_path / name), test=test).test["test"][0].texts[-2:] == ("Paris", ".")


@pytest.mark.parametrize("row, message", [
    ({"text": JOHN, "label": [[0, 21, "PER"]]}, "a.jsonl:1: no text at 0 to 21 (PER); the text has 20 characters"),
    ({"text": JOHN, "label": [[4, 5, "PER"]]}, "a.jsonl:1: no text at 4 to 5 (PER)"),
    ({"text": JOHN, "label": [[4, 4, "PER"]]}, "a.jsonl:1: no text at 4 to 4 (PER)"),
    ({"text": "\U0001f600 " + JOHN, "label": [{"start": 3, "end": 7, "label": "PER", "text": "john"}]},
     "a.jsonl:1: PER at 3 to 7 is 'john', but the text there is 'ohn'; start and end count characters"),
    ({"text": ["john"], "label": SPANS}, "a.jsonl:1: the label has entities by characters, but 'text' is a list of words"),
])  # fmt: skip
def test_entities_that_do_not_stand_in_the_text_are_named(tmp_path, row, message):
    fails(message, "tagging", write(tmp_path / "a.jsonl", jsonl(row)))


def test_of_entities_that_overlap_the_longer_is_kept_and_the_others_are_counted(tmp_path):
    row = {"text": "New York City", "label": [[0, 8, "A"], [0, 13, "B"], [9, 13, "C"]]}
    splits = only(tmp_path, "tagging", "a.jsonl", jsonl(row, {"text": "x", "label": []}))
    assert splits.train[0].label == ("B-B", "I-B", "I-B")
    assert "warning: train: 2 entities that overlap longer ones left out" in splits.notes


def test_a_table_with_a_word_a_row_is_read_by_the_column_of_its_sentences(tmp_path):
    text = "Sentence #,Word,POS,Tag\nSentence: 1,EU,N,B-ORG\n,rejects,V,O\nSentence: 2,x,N,O\n"
    splits = only(tmp_path, "tagging", "a.csv", text)
    expected = [(("EU", "rejects"), ("B-ORG", "O"), "Sentence: 1"), (("x",), ("O",), "Sentence: 2")]
    assert plain(splits.train) == expected
    named = dict(text_column=("w",), label_column="t", id_column="s")
    text = text.replace("Sentence #,Word,POS,Tag", "s,w,p,t")
    assert plain(only(tmp_path, "tagging", "b.csv", text, **named).train) == expected
    message = "a.csv: 'w' has one word in every row, but a row must be a sentence; name the column that numbers the sentences"
    fails(message, "tagging", write(tmp_path / "a.csv", "w,tag\nEU,O\nx,O\n"), text_column=("w",))
    again = write(tmp_path / "a.csv", text + "Sentence: 1,y,N,O\n")
    message = f"a.csv:5: 's' is 'Sentence: 1', as at {again}:2, but not in the rows between; the words of a sentence must follow"
    fails(message, "tagging", again, **named)


@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.jsonl", "a.parquet"])
def test_a_word_a_row_is_read_in_all_formats(tmp_path, name):
    rows = [{"sentence_id": s, "word": w, "tag": t} for s, w, t in ((1, "EU", "B-ORG"), (1, "[", "O"), (2, "x", "O"))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "made.parquet")
    delimited = tsv(("sentence_id", "word", "tag"), *(row.values() for row in rows))
    data = {"a.jsonl": jsonl(*rows), "a.parquet": (tmp_path / "made.parquet").read_bytes()}.get(name, delimited)
    splits = only(tmp_path, "tagging", name, data)
    assert plain(splits.train) == [(("EU", "["), ("B-ORG", "O"), "1"), (("x",), ("O",), "2")]
    bare = jsonl(*({"word": row["word"], "tag": row["tag"]} for row in rows[::2]))
    fails("a.jsonl: 'word' has one word in every row", "tagging", write(tmp_path / "a.jsonl", bare))


def test_rows_that_are_sentences_are_not_put_together_by_their_number(tmp_path):
    rows = [{"sentence_id": 1, "tokens": ["EU"], "tags": ["O"]}, {"sentence_id": 1, "tokens": ["x"], "tags": ["B-X"]}]
    assert [r.texts for r in only(tmp_path, "tagging", "a.jsonl", jsonl(*rows)).train] == [("EU",), ("x",)]
    rows = [{"text": "Paris", "label": [[0, 5, "LOC"]]}, {"text": "no", "label": []}]
    assert len(only(tmp_path, "tagging", "a.jsonl", jsonl(*rows)).train) == 2


def test_sentences_of_a_table_may_be_lists_as_text_or_have_blanks_between_words(tmp_path):
    text = "sentence_id,tokens,ner_tags\n1,\"['EU', 'rejects']\",\"['B-ORG', 'O']\"\n2,a b,O O\n"
    text += "3,\"['x' 'y'\n 'z']\",\"['O' 'O' 'O']\"\n"
    splits = only(tmp_path, "tagging", "a.csv", text)
    assert [(r.texts, r.label) for r in splits.train] == [
        (("EU", "rejects"), ("B-ORG", "O")), (("a", "b"), ("O", "O")), (("x", "y", "z"), ("O", "O", "O")),
    ]  # fmt: skip


def test_what_tags_are_taken_for_is_said(tmp_path):
    def notes(*tags):
        data = "".join(f"w{i} {tag}\n" for i, tag in enumerate(tags)) + "\n"
        return [note for note in only(tmp_path, "tagging", "a.conll", data).notes if note.startswith("tags are ")]

    assert notes("NNP", "VBZ", ".") == ["tags are classes of words, not entities (no B-, I- or O): scored by accuracy"]
    assert notes("0", "1")[0].endswith("They are numbers; to find entities, give the tags by name")
    assert notes("PER", "O") == ["tags are types of entities, some without B- or I-: adjacent words of a type are one entity"]
    assert notes("B-PER", "O") == notes("I-PER", "O") == notes("PER-B", "O") == []


def test_bad_lines_are_left_out_and_counted_where_the_user_says_so(tmp_path):
    path = write(tmp_path / "a.conll", "EU B-ORG\nbad\nx O\n")
    fails("a.conll:2: 1 columns, where the first line has 2; --on-error skip leaves such lines out", "ner", path)
    splits = load("ner", path, dev=path, on_error="skip")
    assert plain(splits.train) == [(("EU", "x"), ("B-ORG", "O"), "0")]
    assert f"train: 1 lines left out, that cannot be read: {path}:2" in splits.notes


# ---- question answering


def squad(*questions, context="The cat sat."):
    questions = [{"question": "Who?"} | question for question in questions]
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]})


def test_answers_that_do_not_stand_where_they_say_are_left_out_and_counted(tmp_path):
    answers = (("cat", 4), ("sat", 8), ("dog", 4))
    cat, sat, bad = ({"text": text, "answer_start": start} for text, start in answers)
    data = squad(
        {"id": "a", "answers": [cat, bad, sat]},
        {"id": "b", "answers": [bad]},
        {"id": "c", "answers": [], "is_impossible": True},
        {"id": "d", "answers": [{"text": "", "answer_start": 0}, {"text": "t", "answer_start": -4}]},
    )
    write(tmp_path / "train-v2.0.json", data)
    write(tmp_path / "dev-v2.0.json", squad({"id": "e", "answers": [cat]}))
    write(tmp_path / "test-v2.0.json", squad({"id": "f"}))
    splits = load("squad2", tmp_path)
    texts = ("Who?", "The cat sat.")
    assert plain(splits.train) == [(texts, (("cat", 4), ("sat", 8)), "a"), (texts, (), "c")]
    assert splits.train[0].place == f"{tmp_path}/train-v2.0.json: a"
    assert plain(splits.test["test"]) == [(texts, None, "f")]
    assert "warning: train: 4 answers left out that are not at their answer_start: a, b, d, ..." in splits.notes
    assert "warning: train: 2 questions left out that have no other answer: b, d" in splits.notes
    path = write(tmp_path / "bad.json", squad({"id": "b", "answers": [bad]}))
    fails("bad.json: holds no rows; warning: train: 1 answers left out that are not at their", "squad", path)


def test_a_question_without_answers_is_not_trained_on_and_ids_must_differ(tmp_path):
    cat = [{"text": "cat", "answer_start": 4}]
    path = write(tmp_path / "a.json", squad({"id": "a", "answers": cat}, {"id": "b"}))
    splits = load("squad", path, dev=path)
    assert [record.id for record in splits.train] == ["a"]
    assert f"warning: train: 1 of 2 rows have no label (empty 1): left out: {tmp_path}/a.json: b" in splits.notes
    path = write(tmp_path / "a.json", squad({"id": "a", "answers": cat}, {"id": "a", "answers": cat}))
    fails("also has the id 'a'; give each row", "squad", path)
    path = write(tmp_path / "a.json", squad({"id": "a", "answers": [{"text": "cat"}]}))
    fails("a.json: a: answers are [{'text': 'cat'}], not a list of {text, answer_start}", "squad", path)


@pytest.mark.parametrize("answers", [[{"text": "cat", "answer_start": 4}], {"text": ["cat"], "answer_start": [4]}])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_questions_may_be_rows_as_hugging_face_has_them(tmp_path, answers, name):
    rows = [{"id": i, "title": "t", "context": "The cat sat.", "question": "Who?", "answers": answers} for i in "ab"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "made.parquet")
    data = jsonl(*rows) if name == "a.jsonl" else (tmp_path / "made.parquet").read_bytes()
    assert plain(only(tmp_path, "squad", name, data).train)[1] == (("Who?", "The cat sat."), (("cat", 4),), "b")


# ---- held out, capped, duplicates


def numbered(n):
    return "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(n))


@pytest.mark.parametrize("dev_size, k", [(0.1, 5), (0.25, 13), (7, 7), (7.0, 7)])
def test_dev_rows_are_drawn_by_the_contracts_permutation_and_stay_in_order(tmp_path, dev_size, k):
    n = 51
    splits = load("regression", write(tmp_path / "a.csv", numbered(n)), dev_size=dev_size)
    chosen = np.random.default_rng(0).permutation(n)[:k]
    assert [record.texts[0] for record in splits.dev["dev"]] == [f"t{i}" for i in sorted(chosen)]
    assert [record.texts[0] for record in splits.train] == [f"t{i}" for i in range(n) if i not in chosen]
    assert f"dev: {k} of 51 training rows are held out (--dev-size {dev_size:g}), drawn with seed 0" in splits.notes


def test_the_group_column_keeps_rows_together_and_is_looked_for_in_other_files(tmp_path):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "who": ["ann", "bob", "cat", None, ""][i % 5]} for i in range(30)]
    path = write(tmp_path / "a.jsonl", jsonl(*rows))
    splits = load("classification", path, group_column="who", dev_size=8)
    groups = [{record.group for record in records} - {None} for records in (splits.train, splits.dev["dev"])]
    assert groups[0] | groups[1] == {"ann", "bob", "cat"}
    assert not groups[0] & groups[1]
    assert len({record.texts for record in splits.dev["dev"]}) == 8
    assert "(--dev-size 8), drawn with seed 0, whole groups, each class by its share" in " ".join(splits.notes)
    test = write(tmp_path / "test.csv", "text,who\nx,ann\ny,dan\nz,\n")
    assert load("classification", path, dev=path, test=test, group_column="who").notes[-1] == (
        "warning: 1 of 3 test rows belong to a group that is also in the training rows"
    )
    fails("no column 'wo', it has text, label, who; did you mean 'who'? (--group-column)", "classification", path,
          group_column="wo")  # fmt: skip


def test_training_rows_are_capped_after_the_dev_rows_are_held_out(tmp_path):
    path = write(tmp_path / "a.csv", numbered(50))
    splits = load("regression", path, max_train_rows=20)
    held = np.random.default_rng(0).permutation(50)[:5]
    left = [i for i in range(50) if i not in held]
    kept = np.random.default_rng(0).permutation(45)[:20]
    assert [record.texts[0] for record in splits.train] == [f"t{left[i]}" for i in sorted(kept)]
    assert [record.id for record in splits.train] == [str(left[i]) for i in sorted(kept)]
    assert "train: 20 of 45 rows are kept (--max-train-rows), drawn with seed 0" in splits.notes
    assert len(load("classification", path, dev=path, max_train_rows=20).dev["dev"]) == 50
    splits = load("classification", path, dev=path, max_train_rows=50)
    assert len(splits.train) == 50
    assert not [note for note in splits.notes if "--max-train-rows" in note]


@pytest.mark.parametrize("dev_size", [0.01, 5, 6, 0.95])
def test_a_share_that_leaves_no_rows_is_an_error(tmp_path, dev_size):
    path = write(tmp_path / "a.csv", numbered(5))
    fails(f"--dev-size {dev_size:g} of 5 training rows leaves none to train", "classification", path, dev_size=dev_size)


def test_dev_and_test_rows_that_are_in_training_too_are_counted(tmp_path):
    path, dev = write(tmp_path / "a.csv", numbered(4)), write(tmp_path / "b.csv", "text,label\nt1,0\nT1,1\nt3,1\n")
    test = write(tmp_path / "c.csv", "text\nt0\nT1\nu\n")
    assert load("classification", path, dev=dev, test=test).notes[-3:] == [
        "warning: 2 of 3 dev rows are also in the training rows",
        "warning: 1 of 3 test rows are also in the training rows",
        "warning: 1 of 3 test rows are also in the dev rows",
    ]


def test_a_dev_set_of_one_label_is_told_of(tmp_path):
    path, dev = write(tmp_path / "a.csv", numbered(4)), write(tmp_path / "b.csv", "text,label\nx,0\ny,0\n")
    warning = "warning: dev: all 2 rows have the label '0', so its scores do not show what was learnt"
    assert warning in load("classification", path, dev=dev).notes
    assert not [note for note in load("classification", path, dev=path).notes if "warning" in note and "label" in note]
