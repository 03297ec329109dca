"""Answerer: spans of contexts, read in windows."""

import warnings

import numpy as np
import pytest
from inference_models import MEGABYTE, ODD, SHORT, answer

from bert_jax.config import InputError
from bert_jax.data.layout import cut_windows, most_context
from bert_jax.inference import Answer, Answerer


def test_the_span_of_the_largest_logits_is_the_answer(answerer, monkeypatch):
    context = "Bako tine, gale lano. Dora bako?"
    scores = {context.index("gale"): (4, 0), context.index("lano") + 3: (0, 5), 0: (2, 1)}
    found = answer(answerer, "bako?", context, scores, monkeypatch)
    assert (found[0].text, found[0].start, found[0].end, found[0].logit) == ("gale lano", 11, 20, 9.0)
    assert [a.logit for a in found] == sorted((a.logit for a in found), reverse=True)
    assert [a.score for a in found] == sorted((a.score for a in found), reverse=True)
    assert len({(a.start, a.end) for a in found}) == len(found) == 5
    assert sum(a.score for a in found) <= 1 + 1e-6
    assert (found[1].text, found[1].logit) == ("Bako tine, gale lano", 7.0)


def test_an_end_before_its_start_is_no_answer(answerer, monkeypatch):
    context = "bako tine gale lano"
    scores = {context.index("gale"): (9, -5), context.index("bako"): (-5, 9)}
    found = answer(answerer, "tine?", context, scores, monkeypatch)
    assert all(a.text and a.start < a.end for a in found)
    assert found[0].logit < 9


def test_answers_have_no_more_tokens_than_asked(answerer, monkeypatch):
    context = " ".join(["lano"] * 20)
    found = answer(answerer, "tine?", context, {0: (5, 0), len(context) - 1: (0, 5)}, monkeypatch, max_answer_length=3)
    (encoding,) = answerer.tokenizer.encode_with_offsets([context])
    assert max(np.sum((encoding.offsets[:, 0] >= a.start) & (encoding.offsets[:, 1] <= a.end)) for a in found) == 3


@pytest.mark.parametrize("threshold, text", [(0.0, ""), (2.9, ""), (3.0, "gale"), (9.0, "gale")])
def test_no_answer_wins_by_its_threshold(answerer, monkeypatch, threshold, text):
    context = "bako gale tine"
    scores = {5: (2, -5), 8: (-5, 3)}
    options = {"null": (4.0, 4.0), "no_answer": True, "null_threshold": threshold}
    found = answer(answerer, "tine?", context, scores, monkeypatch, **options)
    assert found[0].text == text
    assert {a.text for a in found[:2]} == {"", "gale"}
    nothing = next(a for a in found if not a.text)
    assert (nothing.start, nothing.end, nothing.logit) == (0, 0, 8.0)
    assert len({a.score for a in found}) > 1
    without = answer(answerer, "tine?", context, scores, monkeypatch, null=(4.0, 4.0))
    assert all(a.text for a in without)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_an_answer_anywhere_in_a_long_context_is_found_once(answerer, monkeypatch, place):
    context = MEGABYTE[:5000].rsplit(" ", 1)[0]
    at = {"first": 0, "middle": context.index(" ", 2500) + 1, "last": context.rindex(" ") + 1}[place]
    word = context[at:].split()[0]
    found = answer(answerer, "bako tine?", context, {at: (6, -5), at + len(word) - 1: (-5, 6)}, monkeypatch)
    assert (found[0].text, found[0].start, found[0].logit) == (word, at, 12.0)
    assert found[1].logit < 12


def test_starts_that_belong_to_another_window_push_none_out(answerer, monkeypatch):
    context = " ".join(["lano"] * 100)
    (encoding,) = answerer.tokenizer.encode_with_offsets([context])
    ends, at = encoding.offsets[:, 1].tolist(), 230
    (asked,) = answerer.tokenizer.encode_batch(["tine?"])
    windows = cut_windows(0, len(ends), 96 - 3 - len(asked), 16)
    home = most_context(windows, len(ends))
    window = windows[home[at]]
    foreign = [i for i in range(window.start, window.stop) if home[i] != home[at]]
    assert len(foreign) > 20
    scores = {ends[i] - 1: (4, -5) for i in foreign} | {ends[at] - 1: (3, 9)}
    found = answer(answerer, "tine?", context, scores, monkeypatch, n_best=5, max_answer_length=1)
    assert (found[0].end, found[0].logit) == (ends[at], 12)


def test_an_empty_context_has_no_answer(answerer):
    found = answerer([("bako?", ""), ("", ""), ("bako?", "   "), ("", "bako tine")])
    for only in found[:3]:
        assert [(a.text, a.start, a.end, a.score) for a in only] == [("", 0, 0, 1.0)]
    assert found[3][0].text


def test_a_question_that_is_too_long_is_cut_with_a_warning(answerer):
    long = "bako tine gale " * 20
    with pytest.warns(UserWarning, match="1 of 2 questions have more than 24 tokens; the rest was not read") as caught:
        found = answerer([(long, SHORT[0]), ("tine?", SHORT[0])])
    assert [w.filename for w in caught] == [__file__]
    assert all(SHORT[0][a.start : a.end] == a.text for answers in found for a in answers)


def test_a_megabyte_of_context_is_read_in_windows(answerer, monkeypatch):
    mine = Answerer(answerer.model, max_question_length=24, stride=60)

    def run(examples, params=None):
        return [{"start": np.sin(e.input_ids + i), "end": np.cos(e.input_ids * 1.0)} for i, e in enumerate(examples)]

    monkeypatch.setattr(mine, "run", run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ((found,),) = mine([("bako?", MEGABYTE)])
    assert MEGABYTE[found.start : found.end] == found.text


def test_offsets_of_answers_are_exact_in_texts_with_emoji_and_accents(answerer):
    for context, answers in zip(ODD, answerer([("bako?", text) for text in ODD]), strict=True):
        assert all(context[a.start : a.end] == a.text for a in answers)
        assert all(isinstance(a, Answer) for a in answers)


@pytest.mark.parametrize("wrong", ["ab", ("a",), ("a", "b", "c"), None, ("a", 5), (None, "b")])
def test_what_is_no_question_with_context_is_refused_with_its_index(answerer, wrong):
    with pytest.raises(InputError, match=r"pairs\[1\] is .*; expected \(question, context\)"):
        answerer([("a", "b"), wrong])


@pytest.mark.parametrize(
    "options, match",
    [
        ({}, "max_length=96 leaves no room for a context after max_question_length=200"),
        ({"max_question_length": 24, "stride": 0}, "stride=0"),
        ({"max_question_length": 24, "top_k": 0}, "top_k=0"),
        ({"max_question_length": 24, "max_answer_length": 0}, "max_answer_length=0"),
    ],
)
def test_options_that_leave_no_answer_are_refused(answerer, options, match):
    with pytest.raises(InputError, match=match):
        Answerer(answerer.model, **{"max_question_length": 200, **options})
