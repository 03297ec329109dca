import pytest

from bert_jax.config import InputError
from bert_jax.data.records import Record
from bert_jax.tasks import holdout
from bert_jax.tasks.holdout import digest
from bert_jax.tasks.table import KINDS


def hold_out(kind, records, dev_size):
    return holdout.hold_out(KINDS[kind], records, dev_size)


def leaks(kind, train, others):
    return holdout.leaks(KINDS[kind], train, others)


def only_label(kind, records):
    return holdout.only_label(KINDS[kind], records)


def record(texts, label=None, group=None):
    return Record((texts,) if isinstance(texts, str) else tuple(texts), label, "0", "f:1", group)


def texts(records):
    return [" ".join(record.texts) for record in records]


def test_classes_are_held_out_by_their_shares_and_none_is_lost_to_training():
    labels = ["a"] * 70 + ["b"] * 25 + ["c"] * 4 + ["d"]
    records = [record(f"t{i}", label) for i, label in enumerate(labels)]
    for dev_size, expected in ((10, "aaaaaaabbb"), (0.2, "a" * 14 + "b" * 5 + "c"), (0.95, "a" * 66 + "b" * 24 + "c" * 3)):
        train, dev, note = hold_out("classification", records, dev_size)
        assert "".join(r.label for r in dev) == expected
        assert {r.label for r in train} == set("abcd")
        assert len(train) + len(dev) == 100
        assert note.startswith(f"dev: {len(dev)} of 100 training rows are held out (--dev-size {dev_size:g}), drawn with seed 0")
        assert note.endswith(", each class by its share")


def test_questions_are_held_out_by_context():
    records = [record((f"q{i}", f"context {i // 5}"), ()) for i in range(50)]
    train, dev, note = hold_out("question_answering", records, 0.3)
    contexts = [{r.texts[1] for r in side} for side in (train, dev)]
    assert [len(own) for own in contexts] == [7, 3]
    assert not contexts[0] & contexts[1]
    assert note == "dev: 15 of 50 training rows are held out (--dev-size 0.3), drawn with seed 0, whole contexts"
    assert len(hold_out("question_answering", records, 1)[1]) == 5  # no context has fewer


def test_rows_are_held_out_where_no_group_can_be_and_that_is_a_leak_that_is_said():
    questions = [record((f"q{i}", "context"), ()) for i in range(5)]
    copies = [record(f"t{i % 2}", "ab"[i % 2]) for i in range(8)]  # without either text there would be no class to learn
    for kind, records, number in (("question_answering", questions, 1), ("classification", copies, 2)):
        train, dev, note = hold_out(kind, records, number)
        assert (len(train), len(dev)) == (len(records) - number, number)
        assert "whole" not in note
        assert len(leaks(kind, train, {"dev": dev})) == 1
    with pytest.raises(InputError, match=r"no group of the 4 training rows can be held out \(--group-column\): give --dev FILE"):
        hold_out("regression", [record(f"t{i}", 0.5, "g") for i in range(4)], 1)


@pytest.mark.parametrize("kind", ["classification", "similarity", "tagging", "multiple_choice"])
def test_copies_of_a_row_stay_on_one_side(kind):
    pairs = [(f"t{i % 20}", f"u{i % 20}") for i in range(60)]
    pairs = [pair[::-1] if i >= 40 and kind in ("classification", "similarity") else pair for i, pair in enumerate(pairs)]
    records = [record(pair, "ab"[i % 2]) for i, pair in enumerate(pairs)]
    train, dev, _ = hold_out(kind, records, 0.25)
    assert len(dev) == (12 if kind == "classification" else 15)  # whole sixes of two classes of 30 rows fit in 7 and 8
    assert not {tuple(sorted(r.texts)) for r in train} & {tuple(sorted(r.texts)) for r in dev}
    assert not leaks(kind, train, {"dev": dev})


def test_rows_without_group_are_each_their_own():
    records = [record(f"t{i}", 0.5, "g" if i < 5 else None) for i in range(10)]
    for dev_size in (1, 3, 5, 8):
        _, dev, _ = hold_out("regression", records, dev_size)
        assert sum(r.group == "g" for r in dev) in (0, 5)
        assert len(dev) in (dev_size, 5)


def test_the_same_records_are_held_out_the_same_way():
    records = [record(f"t{i}", str(i % 3)) for i in range(40)]
    _, dev, _ = hold_out("classification", records, 0.2)
    assert texts(dev) == ["t1", "t3", "t4", "t11", "t23", "t24", "t27", "t34"]


SAME = "also in the training rows"


@pytest.mark.parametrize("kind, train, dev, expected", [
    ("classification", ["a", "b"], ["b", "c", "B"], [f"warning: 1 of 3 dev rows are {SAME}"]),
    ("classification", [("a", "b")], [("b", "a"), ("a", "c"), ("d", "e")],
     [f"warning: 1 of 3 dev rows are {SAME}", "dev: 1 of 3 rows share one of their texts with the training rows"]),
    ("similarity", [("a", "p", "n")], [("a", "p", "m"), ("p", "a", "n"), ("x", "y", "n"), ("x", "p", "n")],
     [f"warning: 2 of 4 dev rows are {SAME}", "dev: 1 of 4 rows share one of their texts with the training rows"]),
    ("question_answering", [("q", "context")], [("other", "context"), ("q", "other")],
     [f"warning: 1 of 2 dev questions have a context that is {SAME}"]),
    ("tagging", [("a", "b")], [("a", "b"), ("b", "a")], [f"warning: 1 of 2 dev rows are {SAME}"]),
    ("multiple_choice", [("q", "yes", "no")], [("q", "no", "yes"), ("r", "yes", "no"), ("q", "yes", "no")],
     [f"warning: 1 of 3 dev rows are {SAME}", "dev: 1 of 3 rows share one of their texts with the training rows"]),
    ("regression", ["a"], ["b"], []),
])  # fmt: skip
def test_what_stands_on_both_sides_is_counted(kind, train, dev, expected):
    assert leaks(kind, [record(t) for t in train], {"dev": [record(t) for t in dev]}) == expected


@pytest.mark.parametrize("kind, labels, expected", [
    ("classification", ["x", "x"], "'x'"), ("classification", ["x", "y"], None), ("regression", [2.0, 2.0], "2.0"),
    ("multi_label", [("a",), ("a",)], "('a',)"), ("multi_label", [(), ("a",)], None), ("similarity", [None, None], None),
    ("tagging", [("O", "O"), ("O",)], "'O'"), ("tagging", [("O", "B-X"), ("O",)], None),
    ("question_answering", [(), ()], None), ("multiple_choice", [0, 0], None),
])  # fmt: skip
def test_a_split_of_one_label_is_found(kind, labels, expected):
    assert only_label(kind, [record("t", label) for label in labels]) == expected


def test_the_digest_changes_with_any_text_label_place_and_side():
    train, dev = [record("a", "x"), record("b", "y")], {"dev": [record("c", "x")]}
    others = [
        ([*train, *dev["dev"]], {"dev": []}), (train[::-1], dev), (train, {"dev": [record("c", "y")]}),
        (train, {"dev": [record("d", "x")]}), (train, {"dev_matched": dev["dev"]}), ([record("a", "x")], dev),
        ([record(("a", "b"), "x"), record("b", "y")], dev),
    ]  # fmt: skip
    assert len({digest(*both) for both in [(train, dev), *others]}) == 1 + len(others)
    assert digest(list(train), {"dev": [record("c", "x", "a group")]}) == digest(train, dev)
    digest([record("\ud800", "x")], {})
