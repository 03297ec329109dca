"""FillMask: the tokens at masks."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
from inference_models import MEGABYTE, TEXTS, alone, close, model_of, run

from bert_jax.config import InputError
from bert_jax.data.batching import Example
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.inference import Embedder, FillMask


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


def test_bytes_that_are_no_character_are_shown_one_by_one_as_by_transformers(tmp_path):
    """Two copies of the last token would hold a character, an é."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "Ġ", "Ã", "©", "©Ã"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("© Ã\n")
    fill = FillMask(model_of(Tokenizer.load(tmp_path, model_type="roberta"), "masked_lm"), top_k=len(tokens))
    shown = [f.token for f in fill(["a <mask>"])[0]]
    assert sorted(token for token in shown if not token.isascii()) == ["Ġ", "\ufffd", "\ufffd", "\ufffd\ufffd"]


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
