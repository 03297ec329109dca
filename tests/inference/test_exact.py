"""Exact predictors: the same text gives the same bits in any list."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import same_bits
from helpers import with_template
from inference_models import (
    CACHE,
    INPUTS,
    LABELS,
    MEGABYTE,
    NAMES,
    ROOT,
    SHORT,
    TEXTS,
    TINY,
    alone,
    close,
    model_of,
    run,
    with_inputs,
)

from bert_jax import pretrained
from bert_jax.config import InputError
from bert_jax.data.layout import Window
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.inference import Answerer, Classifier, Embedder, FillMask, Tagger


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """Models of a size that XLA computes as it does large ones, for same_bits.py."""
    place = tmp_path_factory.mktemp("exact")
    cfg = TINY.replace(hidden_size=96, num_attention_heads=4, intermediate_size=384)
    labels = {"sequence_classification": ("no", "maybe", "yes"), "token_classification": LABELS}
    for head in same_bits.NAMES.values():
        pretrained.save(model_of(tokenizer, head, labels.get(head, ()), cfg), place / head)
    return place


def in_process(folder, count, shuffles, sizes, threads, devices):
    """`same_bits.digests` by a process of that many threads and simulated devices."""
    command = [sys.executable, same_bits.__file__, folder, count, shuffles, threads, devices, *sizes]
    environment = os.environ | {name: str(value) for name, value in CACHE.items()} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.bits
@pytest.mark.slow
def test_an_exact_text_has_the_same_bits_in_any_company_place_list_and_number_of_threads_and_devices(folder):
    here = same_bits.digests(folder, 200, 2, [1, 6, 80])
    assert list(here) == ["Embedder", "Classifier", "FillMask", "Tagger", "Answerer"]
    for threads in (1, 2):
        assert in_process(folder, 200, 1, [40], threads, devices=1) == here


@pytest.mark.bits
@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("devices", [1, 8])
def test_two_thousand_exact_texts_have_the_same_bits_in_twenty_orders(folder, threads, devices):
    found = in_process(folder, 2000, 20, [1, 5, 40, 300, 2000], threads, devices)
    assert found == same_bits.digests(folder, 2000, 1, [2000])


def test_exact_outputs_are_those_of_packed_rows_to_rounding(folder):
    for (name, exact), (_, packed) in zip(same_bits.predictors(folder), same_bits.predictors(folder, exact=False), strict=True):
        inputs = same_bits.texts_of(name, 6)
        with warnings.catch_warnings(action="ignore"):
            close(list(exact(inputs)), list(packed(inputs)))


@pytest.mark.bits
def test_an_exact_texts_shape_does_not_depend_on_what_the_predictor_takes_at_most(tokenizer, answerer):
    shorter = Answerer(answerer.model, max_question_length=24, stride=16, top_k=3, max_length=64, exact=True)
    longer = Answerer(answerer.model, max_question_length=24, stride=16, top_k=3, exact=True)
    pair = ("bako?", "Tine rodusi bako.")
    assert shorter([pair]) == longer([pair])


@with_inputs
def test_an_empty_list_gives_an_empty_one(predictor, inputs):
    found = predictor([])
    assert len(found) == 0
    assert not isinstance(predictor, Embedder) or (found.shape == (0, 32) and found.dtype == np.float32)


@with_inputs
def test_tuples_are_lists_too(predictor, inputs):
    close(predictor(tuple(inputs[:2])), predictor(inputs[:2]))


@with_inputs
def test_a_lone_string_is_refused(predictor, inputs):
    for wrong in ("text", b"text", None, 5, iter(["text"]), {"text"}):
        with pytest.raises(InputError, match=r"is a (str|bytes|NoneType|int|list_iterator|set); expected a list"):
            predictor(wrong)


@pytest.mark.parametrize("wrong", [5, None, b"bytes", 1.5, ["a"]])
@with_inputs
def test_what_is_no_string_is_refused_with_its_index(predictor, inputs, wrong):
    what = "pairs" if isinstance(predictor, Answerer) else "texts"
    with pytest.raises(InputError, match=rf"{what}\[2\]"):
        predictor([inputs[0], inputs[3], wrong, inputs[1]])


@with_inputs
def test_half_a_surrogate_pair_is_refused_with_its_index(predictor, inputs):
    broken = ("a", "b\ud800") if isinstance(predictor, Answerer) else "[MASK] b\ud800"
    with pytest.raises(InputError, match=r"texts\[2\].*surrogate"):
        predictor([inputs[0], inputs[3], broken])


@pytest.mark.parametrize("name", ["classifier", "tagger", "embedder"])
def test_empty_texts_are_texts(request, name):
    predictor = request.getfixturevalue(name)
    found = predictor(["", "   ", "\n", SHORT[0], ""])
    assert len(found) == 5
    close(found[0], found[4])
    close(found[0], found[1])
    close(found[3], predictor([SHORT[0]])[0])
    if name == "tagger":
        assert found[0] == []
    if name == "embedder":
        assert np.isfinite(found).all()


def test_a_tokenizer_of_another_model_is_refused_at_the_first_strange_id(tokenizer):
    cfg = TINY.replace(vocab_size=100)
    for make, head in ((Classifier, "next_sentence"), (FillMask, "masked_lm"), (Embedder, "encoder")):
        predict = make(model_of(tokenizer, head, cfg=cfg))
        with pytest.raises(InputError, match=r"the tokenizer gives id \d+ \('.+'\), past the model's vocabulary of 100"):
            predict([INPUTS["fill"][0]])


def test_padding_past_the_vocabulary_harms_nothing(tokenizer, embedder):
    strange = Tokenizer.__new__(Tokenizer)
    strange.__dict__ |= tokenizer.__dict__ | {"pad_id": 280}
    predict = Embedder(dataclasses.replace(embedder.model, tokenizer=strange))
    close(predict(SHORT[:3]), embedder(SHORT[:3]))


def test_a_model_of_one_token_type_takes_pairs(tokenizer):
    found = Classifier(model_of(tokenizer, "next_sentence", cfg=TINY.replace(type_vocab_size=1)))([("bako", "tine")])
    assert np.isfinite(list(found[0].scores.values())).all()


def test_a_model_without_tokenizer_or_with_another_head_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"no tokenizer: put its tokenizer\.json or vocab\.txt"):
        Embedder(model_of(None, "encoder"))
    for make, head in ((FillMask, "encoder"), (Classifier, "masked_lm"), (Tagger, "pretraining"), (Answerer, "next_sentence")):
        with pytest.raises(InputError, match=f"{make.__name__} needs a model with the head .*; this one has '{head}'"):
            make(model_of(tokenizer, head))


@pytest.mark.parametrize("predictor, inputs", [(name, name) for name in NAMES], indirect=["predictor"])
def test_a_predictor_can_be_pickled(predictor, inputs):
    again = pickle.loads(pickle.dumps(predictor))
    close(again(INPUTS[inputs][:3]), predictor(INPUTS[inputs][:3]))


def test_a_model_equals_itself_and_has_a_hash(classifier):
    model = classifier.model
    other = dataclasses.replace(model)
    assert (model == model, model == other, len({model, other})) == (True, False, 2)


def test_a_model_too_short_for_any_text_is_refused(tokenizer):
    with pytest.raises(InputError, match="max_position_embeddings"):
        Embedder(model_of(tokenizer, "encoder", cfg=TINY.replace(max_position_embeddings=2)))


def test_what_the_tokenizer_puts_around_texts_is_followed(tokenizer, fill, tagger, answerer, embedder):
    marked = with_template(tokenizer, "[CLS] [SEP] $A", "[CLS] [SEP] $A [SEP] [SEP] $B:1")
    cls, sep, mask = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
    text, context = "bako tine", "rodusi gale bako"
    ids, more = (each.tolist() for each in tokenizer.encode_batch([text, context]))

    def of(predictor):
        return dataclasses.replace(predictor.model, tokenizer=marked)

    hidden = run(embedder.model, alone([cls, sep, *ids]))["last_hidden_state"][0, : 2 + len(ids)].mean(0)
    close(Embedder(of(embedder))([text])[0], hidden / np.linalg.norm(hidden))
    (found,) = FillMask(of(fill), top_k=1)(["bako tine [MASK]"])
    best = run(fill.model, alone([cls, sep, *ids, mask]))["masked_lm_logits"][0, 2 + len(ids)].argmax()
    assert found[0].token == (tokenizer.decode([best]).strip() or tokenizer.tokens([best])[0])
    logits = run(tagger.model, alone([cls, sep, *ids]))["logits"][0, 2 : 2 + len(ids)]
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    simple, (encoding,) = Tagger(of(tagger), aggregation="simple"), tokenizer.encode_with_offsets([text])
    expected = simple._entities(text, encoding, [(Window(0, 0, len(ids)), shares)])
    assert expected
    close(simple([text])[0], expected)
    outputs = run(answerer.model, alone([cls, sep, *ids, sep, sep, *more]) | {
        "token_type_ids": np.repeat([[0, 1, 0]], [4 + len(ids), len(more), 92 - len(ids) - len(more)], axis=1).astype(np.int32)
    })  # fmt: skip
    start, end = (outputs[f"{name}_logits"][0, 4 + len(ids) :][: len(more)] for name in ("start", "end"))
    (answer,) = Answerer(of(answerer), max_question_length=24)([(text, context)])[0]
    pairs = [(start[i] + end[j], i, j) for i in range(len(more)) for j in range(i, len(more))]
    score, i, j = max(pairs)
    offsets = tokenizer.encode_with_offsets([context])[0].offsets
    close(answer.logit, float(score))
    assert (answer.start, answer.end) == (offsets[i, 0], offsets[j, 1])


@pytest.mark.parametrize("name", ["classifier", "embedder"])
def test_texts_that_are_too_long_are_cut_with_a_warning_that_says_how_many(request, name):
    predictor = request.getfixturevalue(name)
    assert len(MEGABYTE) >= 2**20
    with pytest.warns(UserWarning, match="2 of 4 texts have more than 96 tokens; the rest was not read") as caught:
        found = predictor([MEGABYTE, SHORT[0], TEXTS[1] * 20, SHORT[1]])
    assert [w.filename for w in caught] == [__file__]
    close(found[1], predictor([SHORT[0]])[0])
    with pytest.warns(UserWarning, match="1 of 1"):
        close(found[0], predictor([MEGABYTE[:2000]])[0])


def test_of_pairs_that_are_too_long_the_longer_part_loses_its_end(classifier):
    with pytest.warns(UserWarning, match="3 of 3"):
        classifier([(TEXTS[0] * 20, "bako"), ("bako", TEXTS[0] * 20), (TEXTS[0] * 20, TEXTS[1] * 20)])
    ids = classifier.tokenizer.encode_batch(["bako", TEXTS[0] * 20, TEXTS[1] * 20])
    short, a, b = ids
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        examples = classifier._encode([(TEXTS[0] * 20, "bako"), ("bako", TEXTS[0] * 20), (TEXTS[0] * 20, TEXTS[1] * 20)])
    t = classifier.tokenizer
    for example, (left, right) in zip(
        examples, [(a[: 93 - len(short)], short), (short, a[: 93 - len(short)]), (a[:47], b[:46])], strict=True
    ):
        np.testing.assert_array_equal(example.input_ids, [t.cls_id, *left, t.sep_id, *right, t.sep_id])
        np.testing.assert_array_equal(example.token_type_ids, [0] * (2 + len(left)) + [1] * (1 + len(right)))


def test_results_hold_no_more_memory_than_they_have(embedder):
    for result in embedder.run(embedder._encode(SHORT)):
        base = result["vectors"].base
        assert base is None or base.nbytes == result["vectors"].nbytes
