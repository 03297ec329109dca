"""Predictions: the same packed as alone, in order, with exact offsets; long, empty and wrong input."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
import same_bits
from helpers import make_documents, with_template

from bert_jax import pretrained
from bert_jax.config import BertConfig, ComputeConfig, InputError
from bert_jax.data.batching import Example, batches
from bert_jax.data.layout import Window, cut_windows, most_context
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.inference import Answer, Answerer, Classifier, Embedder, FillMask, Tagger, nearest
from bert_jax.inference.tagger import _Word
from bert_jax.model.heads import Bert, initialize
from bert_jax.pooling import Dense, Pooling
from bert_jax.pretrained import Model

TINY = BertConfig(vocab_size=280, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                  max_position_embeddings=96)  # fmt: skip
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
ROOT = Path(__file__).parent.parent
CACHE = {"JAX_COMPILATION_CACHE_DIR": ROOT / ".jax_cache", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
         "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1}  # fmt: skip
TEXTS = [" ".join(doc[: 1 + i % 5]) for i, doc in enumerate(make_documents(60, seed=5))]
SHORT = [text for text in TEXTS if len(text) < 120]


def params_of(cfg, head, num_labels=1):
    """Random ones, large enough that every token counts."""
    shapes = jax.eval_shape(lambda: initialize(Bert(cfg, head, num_labels), 0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: (rng.standard_normal(x.shape) * 0.3).astype(np.float32), shapes)
    params["encoder"]["embeddings"]["norm"]["scale"] += 1
    return params


def model_of(tokenizer, head, labels=(), cfg=TINY, **more):
    return Model(cfg, params_of(cfg, head, max(1, len(labels))), tokenizer, head, labels, **more)


def alone(ids):
    """A batch of one sequence, padded so that all are of one shape."""
    pad = ((0, 0), (0, 96 - len(ids)))
    return {"input_ids": np.pad([ids], pad).astype(np.int32), "attention_mask": np.pad([np.ones_like(ids)], pad)}


def run(model, batch, **flags):
    """The outputs of the model itself, as NumPy arrays."""
    return jax.device_get(jax.jit(partial(model.apply, **flags))(model.params, batch))


@pytest.fixture(scope="module")
def fill(tokenizer):
    return FillMask(model_of(tokenizer, "masked_lm"), top_k=3)


@pytest.fixture(scope="module")
def classifier(tokenizer):
    return Classifier(model_of(tokenizer, "sequence_classification", ("no", "maybe", "yes")))


@pytest.fixture(scope="module")
def tagger(tokenizer):
    return Tagger(model_of(tokenizer, "token_classification", LABELS))


@pytest.fixture(scope="module")
def answerer(tokenizer):
    return Answerer(model_of(tokenizer, "question_answering"), max_question_length=24, stride=16, top_k=3)


@pytest.fixture(scope="module")
def embedder(tokenizer):
    return Embedder(model_of(tokenizer, "encoder"))


INPUTS = {
    "fill": [text.replace(" ", " [MASK] ", 1 + i % 3) for i, text in enumerate(SHORT)],
    "classifier": [(a, b) if i % 3 == 0 else a for i, (a, b) in enumerate(zip(SHORT, reversed(SHORT), strict=True))],
    "tagger": TEXTS,
    "answerer": list(zip((text.split(".")[0] + "?" for text in TEXTS), reversed(TEXTS), strict=True)),
    "embedder": SHORT,
}
NAMES = list(INPUTS)


def close(a, b):
    """Equal, and numbers to 1e-5."""
    if isinstance(a, float | np.floating | np.ndarray):
        np.testing.assert_allclose(a, b, atol=1e-5)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        close(list(a.values()), list(b.values()))
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            close(one, other)
    else:
        assert a == b


# ---- what all predictors promise


@pytest.fixture
def predictor(request):
    return request.getfixturevalue(request.param)


def with_inputs(function):
    return pytest.mark.parametrize("predictor, inputs", list(INPUTS.items()), indirect=["predictor"], ids=NAMES)(function)


@with_inputs
def test_packed_results_are_those_of_each_alone_and_in_order(predictor, inputs):
    order = np.random.default_rng(0).permutation(len(inputs))
    together = predictor([inputs[i] for i in order])
    for i in range(0, len(inputs), 7):
        (alone,) = predictor([inputs[order[i]]])
        close(together[i], alone)


@with_inputs
def test_no_shape_is_compiled_twice_and_shapes_are_few(predictor, inputs):
    for count in (1, 2, 5, len(inputs)):
        predictor(inputs[:count])
    compiled = predictor._run_batch._cache_size()
    assert compiled <= 16  # 16, 32, 64 and 96 tokens by at most 6 numbers of rows, of which few occur
    for count in (1, 2, 5, len(inputs)):
        predictor(inputs[:count])
    assert predictor._run_batch._cache_size() == compiled


# ---- same text, same bits


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


def test_an_exact_text_has_the_same_bits_in_any_company_place_list_and_number_of_threads_and_devices(folder):
    here = same_bits.digests(folder, 200, 2, [1, 6, 80])
    assert list(here) == ["Embedder", "Classifier", "FillMask", "Tagger", "Answerer"]
    for threads in (1, 2):
        assert in_process(folder, 200, 1, [40], threads, devices=1) == here


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


MEGABYTE = " ".join(TEXTS) * (2**20 // sum(map(len, TEXTS)) + 1)


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


# ---- masks


def test_a_mask_is_filled_by_the_likeliest_tokens(fill, tokenizer):
    text = "bako [MASK] tine"
    (found,) = fill([text])
    (ids,) = tokenizer.encode_batch([text])
    row = alone([tokenizer.cls_id, *ids, tokenizer.sep_id])
    logits = run(fill.model, row)["masked_lm_logits"]
    logits = logits[0, 1 + list(ids).index(tokenizer.mask_id)]
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-shares)[:3]
    np.testing.assert_allclose([f.score for f in found], shares[best], rtol=1e-4)
    assert [f.token for f in found] == [tokenizer.decode([i]).strip() or tokenizer.tokens([i])[0] for i in best]


def test_several_masks_are_filled_each_in_its_place(fill):
    text = "[MASK] bako [MASK] [MASK] tine [MASK] gale [MASK] bako [MASK]"
    (found,) = fill([text])
    assert [f.mask for f in found] == [mask for mask in range(6) for _ in range(3)]
    for f in found:
        assert f.text.count("[MASK]") == 5
        pieces = text.split("[MASK]")
        left = "[MASK]".join(pieces[: f.mask + 1])
        assert f.text.startswith((left + f.token, left.rstrip() + f.token))
        assert f.text.endswith(f.token + "[MASK]".join(pieces[f.mask + 1 :]))
        assert 0 < f.score <= 1


@pytest.mark.parametrize("text", ["[MASK]", "[MASK] bako", "bako [MASK]", "[MASK][MASK]", "[MASK]."])
def test_masks_may_stand_at_the_ends(fill, text):
    (found,) = fill([text])
    assert len(found) == 3 * text.count("[MASK]")


@pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
def test_a_text_longer_than_the_model_is_read_around_its_mask(fill, tokenizer, place):
    words = MEGABYTE.split()
    at = round(place * len(words))
    text = " ".join([*words[:at], "[MASK]", *words[at:]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = fill([text])
    (ids,) = tokenizer.encode_batch([text])
    (mask,) = np.flatnonzero(ids == tokenizer.mask_id)
    start = int(np.clip(mask - 47, 0, len(ids) - 94))
    row = alone([tokenizer.cls_id, *ids[start : start + 94], tokenizer.sep_id])
    logits = run(fill.model, row)["masked_lm_logits"][0, 1 + mask - start]
    assert found[0].token == (tokenizer.decode([logits.argmax()]).strip() or tokenizer.tokens([logits.argmax()])[0])
    assert len(found[0].text) >= 2**20


def test_masks_far_apart_are_each_read_in_their_own_part(fill):
    far = " ".join(MEGABYTE[:3000].split())
    (found,) = fill([f"[MASK] {far} [MASK] bako [MASK] {far} [MASK]"])
    assert [f.mask for f in found] == [mask for mask in range(4) for _ in range(3)]
    (first,) = fill([f"[MASK] {far}"])
    close([f.score for f in found[:3]], [f.score for f in first])
    (last,) = fill([f"{far} [MASK]"])
    close([f.score for f in found[-3:]], [f.score for f in last])


def test_a_text_without_mask_is_refused_with_its_index(fill):
    for text in ("bako tine", "", "[mask] bako"):
        with pytest.raises(InputError, match=r"texts\[1\] has no \[MASK\]: "):
            fill(["a [MASK]", text])


def test_other_special_tokens_in_a_text_are_read_too(fill, tokenizer):
    text = "bako [SEP] [MASK] tine"
    (found,) = fill([text])
    (bako,), (tine,) = (ids.tolist()[-1:] for ids in tokenizer.encode_batch(["bako", "tine"]))
    ids = tokenizer.encode_batch([text])[0].tolist()
    assert (ids.count(tokenizer.sep_id), ids.count(tokenizer.mask_id), bako in ids, tine in ids) == (1, 1, True, True)
    logits = run(fill.model, alone([tokenizer.cls_id, *ids, tokenizer.sep_id]))["masked_lm_logits"]
    logits = logits[0, 1 + ids.index(tokenizer.mask_id)]
    best = int(np.argmax(logits))
    assert found[0].token == (tokenizer.decode([best]).strip() or tokenizer.tokens([best])[0])


def test_a_mask_is_found_whatever_the_tokenizer_does_with_special_tokens(fill, tokenizer):
    as_text = dataclasses.replace(fill.model, tokenizer=tokenizer.replace(special_tokens="text"))
    assert FillMask(as_text, top_k=3)(["bako [MASK] tine"]) == fill(["bako [MASK] tine"])


def test_special_tokens_are_read_or_text_as_the_tokenizer_says(embedder, tokenizer):
    joined, spelt = embedder(["bako[SEP]tine", "bako [ SEP ] tine"])
    assert not np.allclose(joined, spelt, atol=1e-3)
    pair = np.concatenate([[tokenizer.cls_id], *tokenizer.encode_batch(["bako"]), [tokenizer.sep_id],
                           *tokenizer.encode_batch(["tine"]), [tokenizer.sep_id]])  # fmt: skip
    close(joined, embedder.run([Example(pair, np.zeros_like(pair), np.zeros(1, np.int32))])[0]["vectors"][0])
    as_text = Embedder(dataclasses.replace(embedder.model, tokenizer=tokenizer.replace(special_tokens="text")))
    assert not np.allclose(as_text(["bako[SEP]tine"])[0], joined, atol=1e-3)


@pytest.mark.parametrize("top_k", [0, 281, -1])
def test_more_candidates_than_tokens_are_refused(fill, top_k):
    with pytest.raises(InputError, match=rf"top_k={top_k} is not in \[1, 280\]"):
        FillMask(fill.model, top_k=top_k)


def test_pieces_that_continue_a_word_are_joined_to_it():
    tokenizer = Tokenizer.train([" ".join(TEXTS)], 280, "wordpiece")
    fill = FillMask(model_of(tokenizer, "masked_lm"), top_k=280)
    found = {f.token: f.text for f in fill(["bako [MASK] tine"])[0]}
    assert not any(token.startswith("##") for token in found)
    continuing = [t.removeprefix("##") for t in tokenizer.tokens(range(280)) if t.startswith("##")]
    assert any(found[token] == f"bako{token} tine" for token in continuing)
    assert any(text.startswith("bako ") for text in found.values())


def scores_of(fillings):
    return {f.token: f.score for f in fillings}


def test_candidates_may_be_given_and_have_their_shares_of_the_whole_vocabulary(fill, tokenizer):
    text = "bako [MASK] tine"
    whole = scores_of(FillMask(fill.model, top_k=280)([text])[0])
    one, other = [name[1:] for name in tokenizer.tokens(range(280)) if name.startswith("▁") and len(name) > 3][:2]
    found = scores_of(FillMask(fill.model, targets=[one, f"▁{other}", one])([text])[0])
    assert list(found) == sorted([one, other], key=lambda name: -whole[name])
    close(found, {name: whole[name] for name in found})
    assert [f.token for f in FillMask(fill.model, 1, [one, other])([text])[0]] == list(found)[:1]


@pytest.mark.parametrize("target", ["bako bako bako", "", "\u4e2d"])
def test_a_candidate_that_is_no_token_is_refused(fill, target):
    with pytest.raises(InputError, match=f"the target '{target}' is read as .*; give a target that is one token"):
        FillMask(fill.model, targets=["a", target])
    with pytest.raises(InputError, match="targets is a str; expected a list"):
        FillMask(fill.model, targets="bako")


# ---- classes


def test_classes_are_named_with_their_probabilities(classifier, tokenizer):
    found = classifier(SHORT[:4])
    for text, c in zip(SHORT, found, strict=False):
        (ids,) = tokenizer.encode_batch([text])
        row = alone([tokenizer.cls_id, *ids, tokenizer.sep_id])
        logits = run(classifier.model, row)["logits"][0]
        shares = np.exp(logits) / np.exp(logits).sum()
        assert list(c.scores) == ["no", "maybe", "yes"]
        np.testing.assert_allclose(list(c.scores.values()), shares, atol=1e-5)
        assert c.label == ["no", "maybe", "yes"][shares.argmax()]
        assert c.labels == (c.label,)
        assert c.score == c.scores[c.label]


@pytest.mark.parametrize(
    "labels, told", [(("a", "b", "a"), ("a (0)", "b", "a (2)")), (("a", "a", "a (0)"), ("a (0)", "a (1)", "a (0) (2)"))]
)
def test_classes_of_one_name_are_told_apart(tokenizer, labels, told):
    classify = Classifier(model_of(tokenizer, "sequence_classification", labels))
    assert classify.labels == told
    assert sum(classify(["one"])[0].scores.values()) == pytest.approx(1)


def test_pairs_and_texts_may_be_mixed_and_are_not_the_same(classifier):
    a, b = SHORT[:2]
    mixed = classifier([a, (a, b), [a, b], (b, a), b])
    close(mixed[1], mixed[2])
    close([mixed[0], mixed[4]], classifier([a, b]))
    assert abs(mixed[1].score - mixed[3].score) > 1e-4


@pytest.mark.parametrize("wrong", [("a",), ("a", "b", "c"), ()])
def test_what_is_no_pair_is_refused_with_its_index(classifier, wrong):
    with pytest.raises(InputError, match=r"texts\[1\].*two texts"):
        classifier(["a", wrong])


def test_a_pair_counts_once_where_an_index_is_said(classifier):
    with pytest.raises(InputError, match=r"texts\[3\]"):
        classifier([("a", "b"), ("a", "b"), "c", 5])
    with pytest.raises(InputError, match=r"texts\[1\]"):
        classifier([("a", "b"), ("a", 5)])


def test_several_labels_are_those_that_reach_the_threshold(classifier):
    model = dataclasses.replace(classifier.model, problem_type="multi_label_classification")
    middle = float(np.median([c.scores["maybe"] for c in Classifier(model)(SHORT)]))
    found = Classifier(model, threshold=middle)(SHORT)
    assert all(c.labels == tuple(name for name, score in c.scores.items() if score >= middle) for c in found)
    assert len({len(c.labels) for c in found}) > 1
    assert any(abs(sum(c.scores.values()) - 1) > 0.1 for c in found)  # each stands for itself
    assert all(c.labels == () for c in Classifier(model, threshold=1.1)(SHORT[:3]))


def test_a_regressor_gives_its_value(tokenizer):
    model = model_of(tokenizer, "sequence_classification", ("LABEL_0",), problem_type="regression")
    (found,) = Classifier(model)([SHORT[0]])
    (ids,) = tokenizer.encode_batch([SHORT[0]])
    row = alone([tokenizer.cls_id, *ids, tokenizer.sep_id])
    value = float(run(model, row)["logits"][0, 0])
    assert (found.label, found.labels) == ("LABEL_0", ("LABEL_0",))
    assert abs(found.score - value) < 1e-5
    assert found.score == found.scores["LABEL_0"]


@pytest.mark.parametrize("head", ["next_sentence", "pretraining"])
def test_next_sentences_are_classes_of_pairs(tokenizer, head):
    (found,) = Classifier(model_of(tokenizer, head))([(SHORT[0], SHORT[1])])
    assert list(found.scores) == ["is_next", "random"]
    assert abs(sum(found.scores.values()) - 1) < 1e-5


# ---- entities


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


ODD = [
    "👩‍👩‍👧 Bako café naïve 🙂🙂 tine\u0301 gale",
    "  ÀÉÎ  bako\t\tтине\n\n東京 tine  ",
    "e\u0301e\u0301 \u200b bako",
    "🙂",
    "\ufeffbako",
]


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


# ---- answers


def answer(answerer, question, context, scores, monkeypatch, null=(-9.0, -9.0), **options):
    """The answers where tokens that begin with `scores`' keys (their places in the context) have these (start, end) logits."""
    mine = Answerer(answerer.model, **{"max_question_length": 24, "stride": 16, "top_k": 5, **options})
    (encoding,) = mine.tokenizer.encode_with_offsets([context])
    (asked,) = mine.tokenizer.encode_batch([question])
    before = min(len(asked), mine.max_question_length) + 2
    table = np.full((len(encoding.ids), 2), -5.0, np.float32)
    for place, values in scores.items():
        token = np.flatnonzero((encoding.offsets[:, 0] <= place) & (encoding.offsets[:, 1] > place))[-1]
        table[token] = np.maximum(table[token], values)
    windows = cut_windows(0, len(encoding.ids), mine.max_length - before - 1, min(mine.stride, mine.max_length - before - 1))

    def run(examples, params=None):
        assert len(examples) == len(windows)
        results = []
        for window, e in zip(windows, examples, strict=True):
            np.testing.assert_array_equal(e.input_ids[before:-1], encoding.ids[window.start : window.stop])
            logits = np.full((len(e.input_ids), 2), 3.0, np.float32)  # of no answer to be taken from the question
            logits[0] = null
            logits[before:-1] = table[window.start : window.stop]
            results.append({"start": logits[:, 0], "end": logits[:, 1]})
        return results

    monkeypatch.setattr(mine, "run", run)
    ((found),) = mine([(question, context)])
    assert all(context[a.start : a.end] == a.text for a in found)
    return found


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


# ---- vectors


def pooled(model, text, mode, normalize, limit):
    """NumPy on the hidden states of `encode`."""
    t = model.tokenizer
    (ids,) = t.encode_batch([text])
    row = alone([t.cls_id, *ids[: limit - 2], t.sep_id])
    hidden = jax.device_get(jax.jit(model.encode)(model.params, **row))[0, : row["attention_mask"].sum()]
    vector = {"cls": hidden[0], "mean": hidden.mean(axis=0), "max": hidden.max(axis=0)}[mode]
    return vector / np.linalg.norm(vector) if normalize else vector


@pytest.mark.parametrize("mode", ["cls", "mean", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings_are_the_hidden_states_pooled(embedder, mode, normalize):
    texts = ["", "bako", SHORT[0], SHORT[1], "tine bako"]
    found = Embedder(embedder.model, Pooling(mode, normalize))(texts)
    assert found.dtype == np.float32
    expected = [pooled(embedder.model, text, mode, normalize, 96) for text in texts]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_texts_are_cut_where_the_pooling_says(embedder):
    pooling = Pooling("mean", False, max_length=16)
    with pytest.warns(UserWarning, match="1 of 2 texts have more than 16 tokens"):
        found = Embedder(embedder.model, pooling)([TEXTS[4], "bako"])
    np.testing.assert_allclose(found[0], pooled(embedder.model, TEXTS[4], "mean", False, 16), atol=1e-5)
    with pytest.warns(UserWarning, match="1 of 1 texts have more than 96 tokens"):
        Embedder(embedder.model, Pooling(max_length=10**30))([TEXTS[4] * 20])


def test_the_pooling_of_the_model_counts_unless_another_is_given(embedder):
    model = dataclasses.replace(embedder.model, pooling=Pooling("cls", False))
    assert Embedder(model).pooling == Pooling("cls", False)
    assert Embedder(model, Pooling("max")).pooling == Pooling("max")
    assert embedder.pooling == Pooling("mean", True)


def test_texts_are_lowercased_where_the_pooling_says(embedder):
    lower = Embedder(embedder.model, Pooling(lowercase=True))
    close(lower(["ÀBAKO 🙂 Tine"]), lower(["àbako 🙂 tine"]))
    with pytest.raises(InputError, match=r"texts\[1\]"):
        lower(["A", 5])


@pytest.mark.parametrize("top_k", [1, 3, 10, 50, 80])
def test_the_nearest_are_those_of_brute_force_and_ties_go_by_index(top_k):
    rng = np.random.default_rng(top_k)
    queries, corpus = rng.integers(-2, 3, (7, 4)).astype(np.float32), rng.integers(-2, 3, (50, 4)).astype(np.float32)
    scores, indices = nearest(queries, corpus, top_k)
    assert (scores.dtype, indices.dtype, scores.shape) == (np.float32, np.int64, (7, min(top_k, 50)))
    for query, some, best in zip(queries, scores, indices, strict=True):
        products = corpus @ query
        expected = sorted(range(50), key=lambda i: (-products[i], i))[:top_k]
        assert best.tolist() == expected
        np.testing.assert_array_equal(some, products[expected])


def test_all_equal_vectors_are_given_in_order():
    _, indices = nearest(np.ones((2, 3), np.float32), np.ones((1000, 3), np.float32), 4)
    assert indices.tolist() == [[0, 1, 2, 3]] * 2


def test_nearest_takes_one_query_none_and_an_empty_corpus():
    corpus = np.eye(3, dtype=np.float32)
    assert nearest(corpus[1], corpus, 1)[1].tolist() == [[1]]
    assert nearest(corpus[:0], corpus, 2)[1].shape == (0, 2)
    assert nearest(corpus, corpus[:0], 2)[1].shape == (3, 0)


def test_nearest_computes_in_floats_whatever_it_is_given():
    corpus = np.array([[100, 100], [1, 1]], np.int8)
    scores, indices = nearest(corpus, corpus, 1)
    assert indices.tolist() == [[0], [0]]
    assert scores.tolist() == [[20000], [200]]


def test_vectors_of_two_models_and_no_neighbours_are_refused():
    with pytest.raises(InputError, match="queries have 3 dimensions and the corpus 4"):
        nearest(np.ones((2, 3)), np.ones((5, 4)))
    with pytest.raises(InputError, match="top_k=0"):
        nearest(np.ones((2, 3)), np.ones((5, 3)), 0)


def test_vectors_that_are_no_numbers_come_last():
    corpus = np.array([[np.nan], [1], [3], [2], [np.nan]], np.float32)
    assert nearest(np.ones((1, 1)), corpus, 3)[1].tolist() == [[2, 3, 1]]
    assert nearest(np.ones((1, 1)), corpus, 4)[1].tolist()[0][:3] == [2, 3, 1]


# ---- features


def test_hidden_states_and_attentions_of_packed_rows_are_those_of_each_alone(embedder):
    model = embedder.model
    rng = np.random.default_rng(0)
    examples = [
        Example(rng.integers(5, 280, n).astype(np.int32), np.zeros(n, np.int32), np.zeros(1, np.int32)) for n in (70, 9, 10, 7)
    ]
    (batch,) = batches(examples, 96, 2048, lambda n: n // 4, 0)
    assert len({place.row for place in batch.places}) == 1
    flags = dict(output_hidden_states=True, output_attentions=True)
    packed = run(model, batch.arrays, **flags)
    assert len(packed["hidden_states"]) == 3
    assert len(packed["attentions"]) == 2
    for place in batch.places:
        size = len(examples[place.example].input_ids)
        single = run(model, alone(examples[place.example].input_ids), **flags)
        for mine, its in zip(packed["hidden_states"], single["hidden_states"], strict=True):
            np.testing.assert_allclose(mine[place.row, place.tokens], its[0, :size], atol=1e-5)
        for mine, its in zip(packed["attentions"], single["attentions"], strict=True):
            np.testing.assert_allclose(mine[place.row, :, place.tokens, place.tokens], its[0, :, :size, :size], atol=1e-5)
            np.testing.assert_allclose(mine[place.row, :, place.tokens].sum(), 2 * size, rtol=1e-5)  # nothing outside
            np.testing.assert_allclose(mine[place.row, :, place.tokens, place.tokens].sum(), 2 * size, rtol=1e-5)
    np.testing.assert_array_equal(packed["hidden_states"][-1], packed["last_hidden_state"])


def test_windows_hold_every_token_and_are_of_the_size():
    for size, room, stride in [(0, 5, 2), (5, 5, 2), (6, 5, 2), (100, 7, 7), (100, 7, 1), (3, 7, 3)]:
        windows = cut_windows(4, size, room, stride)
        seen = Counter(i for w in windows for i in range(w.start, w.stop))
        assert set(seen) == set(range(size))
        assert all(w.stop - w.start <= room and w.text == 4 for w in windows)


def every_answer(predictor, question, context):
    """What run_squad.py would rank, from the model itself: each span of each window whose start has most context there."""
    model, t = predictor.model, predictor.tokenizer
    (question_ids,) = t.encode_batch([question])
    (encoding,) = t.encode_with_offsets([context])
    room = predictor.max_length - len(question_ids) - 3
    starts = [0]
    while starts[-1] + room < len(encoding.ids):
        starts.append(starts[-1] + predictor.stride)
    windows = [(a, min(a + room, len(encoding.ids))) for a in starts]
    found = {}
    for number, (a, b) in enumerate(windows):
        ids = np.array([t.cls_id, *question_ids, t.sep_id, *encoding.ids[a:b], t.sep_id])
        behind = len(question_ids) + 2
        types = (np.arange(96) >= behind) & (np.arange(96) < len(ids))
        outputs = run(model, alone(ids) | {"token_type_ids": types[None].astype(np.int32)})
        start, end = (outputs[name][0, behind : behind + b - a] for name in ("start_logits", "end_logits"))
        for i in range(b - a):
            context_of = [min(a + i - c, d - 1 - a - i) if c <= a + i < d else -1 for c, d in windows]
            if int(np.argmax(context_of)) != number:
                continue
            for j in range(i, min(i + predictor.max_answer_length, b - a)):
                span = int(encoding.offsets[a + i, 0]), int(encoding.offsets[a + j, 1])
                if span[0] < span[1]:
                    found[span] = max(found.get(span, -np.inf), float(start[i] + end[j]))
    return sorted(found.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("length", [1, 3, 9], ids=["one window", "some", "many"])
def test_answers_are_those_that_a_search_through_all_spans_finds(answerer, length):
    question, context = "bako tine rodusi?", " ".join(TEXTS[4 : 4 + length])
    expected = every_answer(answerer, question, context)[:3]
    (got,) = answerer([(question, context)])
    assert [(answer.start, answer.end) for answer in got] == [span for span, _ in expected]
    np.testing.assert_allclose([answer.logit for answer in got], [logit for _, logit in expected], atol=1e-4)


# ---- what real models bring


def test_rows_of_a_vocabulary_that_stand_for_no_token_are_never_filled_in(tokenizer):
    cfg = TINY.replace(vocab_size=300)
    params = params_of(cfg, "masked_lm")
    params["masked_lm"]["bias"][tokenizer.vocab_size :] = 100
    predict = FillMask(Model(cfg, params, tokenizer), top_k=tokenizer.vocab_size)
    (fillings,) = predict(["bako [MASK] tine"])
    assert len(fillings) == tokenizer.vocab_size
    assert sum(filling.score for filling in fillings) < 1e-6  # nearly all of the probability lies with them


def test_rows_longer_than_the_position_table_are_refused(embedder):
    model = embedder.model
    with pytest.raises(InputError, match="input_ids has 97 tokens a row; this model takes 96"):
        model.encode(model.params, np.ones((1, 97), np.int32))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def value(tokenizer):
    """A model with one value, and that value of one text."""
    model = model_of(tokenizer, "sequence_classification", ("LABEL_0",))
    head = {"kernel": model.params["sequence_classifier"]["kernel"], "bias": np.ones(1, np.float32)}
    model = dataclasses.replace(model, params=model.params | {"sequence_classifier": head})
    (logit,) = Classifier(dataclasses.replace(model, problem_type="regression"))(["bako tine"])
    assert abs(logit.score) > 0.5
    return model, logit.score


@pytest.mark.parametrize(
    "activation, problem_type, expected",
    [
        ("torch.nn.Identity", None, lambda x: x),
        ("Sigmoid", None, sigmoid),
        ("torch.nn.modules.activation.Tanh", None, np.tanh),
        ("torch.nn.modules.activation.Tanh", "regression", np.tanh),
        (None, None, sigmoid),
        (None, "single_label_classification", sigmoid),
        (None, "multi_label_classification", sigmoid),
    ],
)
def test_one_value_is_put_through_its_activation_or_without_one_a_sigmoid(value, activation, problem_type, expected):
    model, logit = value
    classifier = Classifier(dataclasses.replace(model, activation=activation, problem_type=problem_type))
    (found,) = classifier(["bako tine"])
    assert found.score == pytest.approx(expected(logit), abs=1e-5)
    assert found.scores == {"LABEL_0": found.score}


def test_a_value_without_a_name_is_one_value(value):
    model, logit = value
    (found,) = Classifier(dataclasses.replace(model, labels=()))(["bako tine"])
    assert found.scores == {"LABEL_0": pytest.approx(sigmoid(logit), abs=1e-5)}


def test_an_activation_of_several_classes_says_what_they_are(classifier):
    def scores(activation, problem_type=None):
        return Classifier(dataclasses.replace(classifier.model, activation=activation, problem_type=problem_type))(SHORT[:2])

    assert scores("torch.nn.Identity") == classifier(SHORT[:2])  # probabilities, where CrossEncoder has logits
    assert scores("torch.nn.Sigmoid") == scores(None, "multi_label_classification")
    assert scores("torch.nn.Sigmoid", "single_label_classification") == classifier(SHORT[:2])
    with pytest.raises(InputError, match=r"the activation 'torch\.nn\.Tanh' of 3 labels is not supported"):
        scores("torch.nn.Tanh")


@pytest.mark.parametrize("activation", ["torch.nn.modules.activation.Softplus", "mine.Tanh", 3])
def test_an_activation_that_is_not_known_is_refused(value, activation):
    with pytest.raises(InputError, match=f"sentence-transformers files: the activation {activation!r} is not supported; known"):
        Classifier(dataclasses.replace(value[0], activation=activation))


def test_a_head_whose_files_could_not_be_followed_predicts_nothing(value):
    with pytest.raises(InputError, match="LogitScore modules are not supported; for scores of the head alone"):
        Classifier(dataclasses.replace(value[0], pooling="LogitScore modules are not supported"))


@pytest.fixture(scope="module")
def hidden_of(embedder):
    """text -> its hidden states [n, D], by the model alone."""
    model, layout = embedder.model, embedder._layout
    encode = jax.jit(model.encode)

    def states(text):
        (example,), _ = layout.examples([text])
        return jax.device_get(encode(model.params, **alone(example.input_ids)))[0, : len(example.input_ids)]

    return states


def by_mode(states, skipped=0):
    rest, places = states[skipped:], np.arange(1, len(states) + 1)[skipped:, None]
    return {
        "cls": rest[0], "max": rest.max(axis=0), "mean": rest.mean(axis=0), "lasttoken": rest[-1],
        "mean_sqrt_len_tokens": rest.sum(axis=0) / len(rest) ** 0.5, "weightedmean": (rest * places).sum(axis=0) / places.sum(),
    }  # fmt: skip


ALL = ("lasttoken", "cls", "max", "mean", "weightedmean", "mean_sqrt_len_tokens")


def test_several_modes_stand_side_by_side(embedder, hidden_of):
    found = Embedder(embedder.model, Pooling(ALL, normalize=False))(SHORT[:4])
    for text, vector in zip(SHORT, found, strict=False):
        states = by_mode(hidden_of(text))
        np.testing.assert_allclose(vector, np.concatenate([states[mode] for mode in ALL]), atol=1e-5)


def test_tokens_of_the_prompt_are_left_out_where_the_pooling_says(embedder, hidden_of):
    prompts = {"query": "bako tine: ", "none": ""}
    embed = Embedder(embedder.model, Pooling(ALL, normalize=False, prompts=prompts, include_prompt=False))
    (prompt,) = embedder.tokenizer.encode_batch(["bako tine: "])
    assert len(prompt) > 2
    found, plain = embed(SHORT[:4], prompt_name="query"), embed(SHORT[:4], prompt_name="none")
    for text, vector, whole in zip(SHORT, found, plain, strict=False):
        states = by_mode(hidden_of(f"bako tine: {text}"), skipped=1 + len(prompt))
        np.testing.assert_allclose(vector, np.concatenate([states[mode] for mode in ALL]), atol=1e-5)
        states = by_mode(hidden_of(text))
        np.testing.assert_allclose(whole, np.concatenate([states[mode] for mode in ALL]), atol=1e-5)


def test_dense_layers_then_the_length_then_the_cut(embedder, hidden_of):
    rng = np.random.default_rng(0)
    first = Dense(rng.standard_normal((64, 24), np.float32), rng.standard_normal(24, np.float32))
    second = Dense(rng.standard_normal((24, 12), np.float32), activation="Identity")
    pooling = Pooling(("mean", "cls"), True, dense=(first, second), truncate_dim=5)
    found = Embedder(embedder.model, pooling)(SHORT[:4])
    for text, vector in zip(SHORT, found, strict=False):
        states = by_mode(hidden_of(text))
        x = np.tanh(np.concatenate([states["mean"], states["cls"]]) @ first.kernel + first.bias) @ second.kernel
        np.testing.assert_allclose(vector, (x / np.linalg.norm(x))[:5], atol=1e-5)
    assert Embedder(embedder.model, pooling)([]).shape == (0, 5)
    with pytest.raises(InputError, match=r"dense\[0\] takes 64 values, and 32 come before it"):
        Embedder(embedder.model, dataclasses.replace(pooling, mode="mean"))


def test_a_prompt_by_name_stands_before_each_text(embedder):
    named = Embedder(embedder.model, Pooling(prompts={"query": "bako "}, prompt="tine "))
    np.testing.assert_allclose(named(["rodusi"], prompt_name="query"), embedder(["bako rodusi"]), atol=1e-5)
    np.testing.assert_allclose(named(["rodusi"]), embedder(["tine rodusi"]), atol=1e-5)
    with pytest.raises(InputError, match="no prompt 'document'; the model's prompts: 'query'"):
        named(["rodusi"], prompt_name="document")


def test_a_prompt_stands_before_each_text(embedder):
    prompted = Embedder(embedder.model, Pooling(prompt="bako "))
    np.testing.assert_allclose(prompted(["tine"]), embedder(["bako tine"]), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_gives_nearly_the_same(request, name):
    predictor = request.getfixturevalue(name)
    half = type(predictor)(dataclasses.replace(predictor.model, compute=ComputeConfig(dtype="bfloat16")))
    for key, values in half.run(half._encode(SHORT[:3]))[0].items():
        assert values.dtype in (np.float32, np.int32), key
    if name == "embedder":
        np.testing.assert_allclose(half(SHORT), predictor(SHORT), atol=0.05)
