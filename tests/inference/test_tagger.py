"""Tagger: entities with exact offsets."""

import dataclasses
import warnings
from itertools import pairwise

import numpy as np
import pytest
from inference_models import LABELS, MEGABYTE, ODD

from bert_jax.config import InputError
from bert_jax.data.layout import cut_windows
from bert_jax.inference import Tagger
from bert_jax.inference.tagger import _Word


def entities(tagger, text, labels, monkeypatch, aggregation="first", split=None):
    """The entities of a text whose tokens (or, with `split`, `split` tokens of each word) get these (label, score)."""
    tagger = Tagger(tagger.model, aggregation)
    (encoding,) = tagger.tokenizer.encode_with_offsets([text])
    rows = []
    for token, word in enumerate(encoding.word_ids.tolist()):
        first = token == 0 or encoding.word_ids[token - 1] != word
        label, score = labels(word, first)
        row = np.full(len(LABELS), (1 - score) / (len(LABELS) - 1))
        row[LABELS.index(label)] = score
        rows.append(row)
    scores = np.array([np.full(len(LABELS), 0.2), *rows, np.full(len(LABELS), 0.2)], np.float32)
    monkeypatch.setattr(tagger, "run", lambda examples, params=None: [{"scores": scores}])
    (found,) = tagger([text])
    assert all(text[e.start : e.end] == e.text for e in found)
    return [(e.label, e.text, round(e.score, 3)) for e in found]


def by_word(*labels):
    return lambda word, first: (labels[word], 0.8) if first else ("O", 0.6)


@pytest.mark.parametrize(
    "labels, expected",
    [
        (("B-PER", "I-PER", "O", "B-LOC", "O"), [("PER", "bako tine"), ("LOC", "lano")]),
        (("B-PER", "B-PER", "O", "O", "O"), [("PER", "bako"), ("PER", "tine")]),
        (("I-PER", "I-PER", "I-LOC", "I-LOC", "O"), [("PER", "bako tine"), ("LOC", "gale lano")]),
        (("O", "I-PER", "O", "I-PER", "O"), [("PER", "tine"), ("PER", "lano")]),
        (("B-PER", "I-LOC", "I-PER", "O", "B-LOC"), [("PER", "bako"), ("LOC", "tine"), ("PER", "gale"), ("LOC", "dora")]),
        (("B-PER",) + ("I-PER",) * 4, [("PER", "bako tine gale lano dora")]),
        (("O",) * 5, []),
    ],
)
def test_words_are_grouped_to_entities_by_their_prefixes(tagger, monkeypatch, labels, expected):
    found = entities(tagger, "bako tine gale lano dora", by_word(*labels), monkeypatch)
    assert [(label, text) for label, text, _ in found] == expected
    assert all(score == 0.8 for *_, score in found)


@pytest.mark.parametrize(
    "words, expected",
    [
        ("S E O B E S", ["0", "1", "34", "5"]),
        ("B I E I E", ["012", "34"]),
        ("B L U U L", ["01", "2", "3", "4"]),
        ("- - O - -", ["01", "34"]),
        ("B I B I", ["01", "23"]),
    ],
)
def test_other_schemes_of_prefixes_are_understood(tagger, words, expected):
    def label(prefix):
        return {"-": "PER", "O": "O"}.get(prefix, f"{prefix}-PER")

    model = dataclasses.replace(tagger.model, labels=("O", "PER", *(f"{p}-PER" for p in "BIESLU")))
    tagger = Tagger.__new__(Tagger)
    tagger.model, tagger.outside, tagger.aggregation = model, "O", "first"
    text = " ".join("abcdef"[: len(words.split())])
    rows = [_Word(2 * i, 2 * i + 1, label(p), 0.9) for i, p in enumerate(words.split())]
    tagger._words = lambda encoding, scores: rows
    size = len(rows)
    encoding = type("E", (), {"ids": np.zeros(size), "word_ids": np.arange(size)})
    (window,) = cut_windows(0, size, size, 1)
    found = tagger._entities(text, encoding, [(window, np.zeros((size, 1)))])
    assert ["".join(str("abcdef".index(c)) for c in e.text if c != " ") for e in found] == expected
    assert {e.label for e in found} == {"PER"}


def tagged_by(tagger, labels, *found, outside="O"):
    """What a tagger with these labels makes of words a, b, c ... that have the labels `found`."""
    own = Tagger.__new__(Tagger)
    own.model, own.outside, own.aggregation = dataclasses.replace(tagger.model, labels=labels), outside, "first"
    text = " ".join("abcdef"[: len(found)])
    own._words = lambda encoding, scores: [_Word(2 * i, 2 * i + 1, label, 0.9) for i, label in enumerate(found)]
    encoding = type("E", (), {"ids": np.zeros(len(found)), "word_ids": np.arange(len(found))})
    (window,) = cut_windows(0, len(found), len(found), 1)
    return [(e.label, e.text) for e in own._entities(text, encoding, [(window, np.zeros((len(found), 1)))])]


def test_each_word_has_its_own_label_where_labels_are_no_entities(tagger):
    words = [("NN", "a"), ("NN", "b"), ("VB-X", "c")]
    assert tagged_by(tagger, ("NN", "VB-X", "."), "NN", "NN", "VB-X") == words
    assert tagged_by(tagger, ("NN", "VB-X", "."), "NN", ".", "VB-X", outside=".") == [words[0], ("VB-X", "c")]
    assert tagged_by(tagger, ("LABEL_0", "LABEL_1"), "LABEL_1", "LABEL_1") == [("LABEL_1", "a"), ("LABEL_1", "b")]


@pytest.mark.parametrize(
    "labels, found, expected",
    [
        (("O", "PER-B", "PER-I"), ("PER-B", "PER-I", "PER-B", "O"), [("PER", "a b"), ("PER", "c")]),
        (("O", "B_PER", "I_PER"), ("B_PER", "I_PER", "O"), [("PER", "a b")]),
        (("O", "PER", "LOC"), ("PER", "PER", "LOC", "O", "LOC"), [("PER", "a b"), ("LOC", "c"), ("LOC", "e")]),
        (("X", "PER", "LOC"), ("PER", "X", "PER"), [("PER", "a"), ("PER", "c")]),
        (("B", "M", "E", "S"), ("B", "M", "E", "S"), [("_", "a b c"), ("_", "d")]),
    ],
)
def test_entities_of_any_scheme_are_put_together(tagger, labels, found, expected):
    assert tagged_by(tagger, labels, *found, outside=labels[0] if labels[0] == "X" else "O") == expected


def test_words_of_several_tokens_are_labelled_as_the_table_says(tagger, tokenizer, monkeypatch):
    text = "gale"
    (encoding,) = tokenizer.encode_with_offsets([text])
    assert len(encoding.ids) >= 3
    assert len(set(encoding.word_ids.tolist())) == 1
    scores = np.full((len(encoding.ids), 5), 0.05, np.float32)
    scores[0, 1:3] = 0.5, 0.35  # B-PER
    scores[1, [1, 4]] = 0.05, 0.9  # I-LOC, the surest
    scores[2:, 3] = 0.6  # B-LOC
    expected = {
        "first": ("PER", 0.5),
        "max": ("LOC", 0.9),
        "average": (LABELS[scores.mean(axis=0).argmax()][2:], float(scores.mean(axis=0).max())),
    }
    for aggregation, (label, score) in expected.items():
        mine = Tagger(tagger.model, aggregation)
        monkeypatch.setattr(mine, "run", lambda *_: [{"scores": np.concatenate([scores[:1], scores, scores[:1]])}])
        (found,) = mine([text])
        assert [(e.label, e.text) for e in found] == [(label, text)]
        assert abs(found[0].score - score) < 1e-6
    simple = Tagger(tagger.model, "simple")
    monkeypatch.setattr(simple, "run", lambda *_: [{"scores": np.concatenate([scores[:1], scores, scores[:1]])}])
    (found,) = simple([text])
    assert [e.label for e in found] == ["PER", "LOC", *["LOC"] * (len(encoding.ids) - 2)]
    assert "".join(e.text for e in found) == text


def test_an_unknown_aggregation_is_refused(tagger):
    with pytest.raises(InputError, match="aggregation='last' is not known; known: simple, first, average, max"):
        Tagger(tagger.model, "last")


@pytest.mark.parametrize("aggregation", ["simple", "first", "average", "max"])
def test_offsets_are_exact_in_texts_with_emoji_and_accents(tagger, aggregation):
    mine = Tagger(tagger.model, aggregation, outside="none of them")
    for text, found in zip(ODD, mine(ODD), strict=True):
        assert all(text[e.start : e.end] == e.text for e in found)
        assert all(e.text.strip() == e.text != "" for e in found)
        assert all(a.end <= b.start or aggregation == "simple" for a, b in pairwise(found))
        assert [e.start for e in found] == sorted(e.start for e in found)
    named = [w for w in ("Bako", "gale") if any(w in e.text for e in mine(ODD)[0])]
    assert named == ["Bako", "gale"]


def test_entities_across_windows_are_one_and_long_texts_are_read_whole(tagger, tokenizer, monkeypatch):
    text = " ".join(MEGABYTE[:6000].split())
    words = text.split()
    mine = Tagger(tagger.model)
    (encoding,) = tokenizer.encode_with_offsets([text])
    ids = encoding.ids

    def run(examples, params=None):
        """Every token is I-PER, but each window's outermost eighth, which knows too little, says O."""
        results = []
        for e in examples:
            scores = np.full((len(e.input_ids), 5), 0.1, np.float32)
            scores[:, 2] = 0.6
            edge = len(e.input_ids) // 8
            if not np.array_equal(e.input_ids[1:9], ids[:8]):
                scores[:edge] = [0.8, 0.05, 0.05, 0.05, 0.05]
            if not np.array_equal(e.input_ids[-9:-1], ids[-8:]):
                scores[-edge:] = [0.8, 0.05, 0.05, 0.05, 0.05]
            results.append({"scores": scores})
        assert len(results) > 10
        assert all(len(e.input_ids) <= 96 for e in examples)
        return results

    monkeypatch.setattr(mine, "run", run)
    (found,) = mine([text])
    assert [(e.label, e.start, e.end) for e in found] == [("PER", 0, len(text))]
    assert len(words) > 500


def test_a_megabyte_is_tagged_in_windows(tagger, monkeypatch):
    mine = Tagger(tagger.model, outside="none")
    monkeypatch.setattr(
        mine, "run", lambda examples, params=None: [{"scores": np.eye(5, dtype=np.float32)[e.input_ids % 5]} for e in examples]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = mine([MEGABYTE])
    assert found[-1].end >= len(MEGABYTE) - 1
    assert all(MEGABYTE[e.start : e.end] == e.text for e in found[:1000])
