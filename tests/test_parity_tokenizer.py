"""Tokenizers of each family against those of transformers: ids, pairs, types, offsets, words and masks, from every file."""

import io
import json
import random
from pydoc_data.topics import topics

import numpy as np
import pytest

from bert_jax.data.tokenizer import Tokenizer

pytestmark = pytest.mark.parity

LINES = [line.strip() for text in topics.values() for line in text.splitlines() if line.strip()][:400]
WORLD = [
    "Crème brûlée, Ångström, Straße: RÉSUMÉ",
    "Привет, Мир",
    "中文と日本語 テスト",
    "emoji 😀 ❤️ 👩‍👧",
    "In 1999, 9, 1,000",
] * 20
TEXTS = LINES + WORLD
NASTY = [
    "",
    " ",
    "\n",
    "Hello, world!  It's (really) 'fine' -- isn't it?...",
    "  two  spaces,   leading and trailing \t ",
    "line one\nline two\r\n\n\tline three",
    "emoji 😀 and 👨‍👩‍👧 family 🇩🇪, a❤️b",
    "中文和English混合，。日本語テスト",
    "한국어 텍스트, \u1112\u1161\u11ab",
    "Crème brûlée e\u0301 E\u0301\u0323 ÀÉÎ x\u0301\u0302y",
    "İstanbul ISTANBUL ıi ΣΑΣ ß ẞ",
    "ﬁ ﬂ ½ ² № ™ ① Ａｂｃ ﷺ ㌔ ´a",
    "##ing ## #a## ▁under ▁ a▁b Ġx Ċ",
    "a\u00a0b\u3000c\u200bd\u200de\ufefff\u00adg\u2028h",
    "tab\tnul\x00bell\x07del\x7f\ufffd end",
    "مُحَمَّد שָׁלוֹם हिन्दी ไทย",
    "𝒳 𝔘𝔫𝔦 \U0001f9ff \U000e0001x \ue000",
    "``quoted'' text ''' 9, 1,000 2000, 3,",
    "don't we'll I'm THEY'RE",
    "[a] <b> </c> {d} [ MASK ] < mask > <s",
    "e.g. http://example.com/a?b=c&d=e#f_g user@example.org $5.00 50%",
    "x" * 120 + " " + "ab" * 90,
    "ÅÄÖ" * 30,
    "q\u0300\u0301",
    "\u0301a",
    "🙂" * 5 + "é" * 5,
]
FAMILIES = ["bert", "electra", "distilbert", "roberta", "roberta-prefix", "xlm-roberta", "albert", "albert-cased"]
ROLE_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def random_texts(n):
    rng = random.Random(0)
    parts = [*" ".join(TEXTS).split(), *" ".join(NASTY).split(), *"  \t\n.,'\"-–中é😀ß\u0301", *NASTY]
    joined = ("".join(rng.choice([rng.choice(parts), " "]) for _ in range(rng.randrange(1, 12))) for _ in range(n))
    return [text for text in joined if not any(name in text for name in ("<s>", "</s>", "<pad>", "<unk>"))]


def sentencepiece_model(path, **options):
    import sentencepiece

    model = io.BytesIO()
    options = {"model_type": "unigram", "vocab_size": 500, "num_threads": 1, "minloglevel": 2} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=model, **options)
    path.write_bytes(model.getvalue())


def wordpieces(lowercase):
    engine = Tokenizer.train(TEXTS, 700, "wordpiece", lowercase)
    return [*engine.tokens(range(700)), "##", "a##"]


def byte_level(directory):
    import tokenizers

    engine = tokenizers.ByteLevelBPETokenizer()
    engine.train_from_iterator(TEXTS, vocab_size=600, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False)
    engine.save_model(str(directory))
    vocab = engine.get_vocab()
    (directory / "vocab.json").write_text(json.dumps(vocab | {"<mask>": len(vocab)}))


ALBERT = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "pad_piece": "<pad>"}
ALBERT |= {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"], "normalization_rule_name": "nfkc"}


def write_files(directory, family):
    """The files of `family` as they were published before tokenizer.json."""
    model_type, config = family.split("-prefix")[0].split("-cased")[0], {}
    if model_type in ("bert", "electra", "distilbert"):
        config = {"do_lower_case": family != "electra"}
        tokens = [token for token in wordpieces(family != "electra") if token]
        (directory / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    elif model_type == "roberta":
        byte_level(directory)
        config = {"add_prefix_space": family == "roberta-prefix"}
    elif model_type == "xlm-roberta":
        sentencepiece_model(directory / "sentencepiece.bpe.model", normalization_rule_name="nmt_nfkc")
    else:
        config = {"do_lower_case": True} if family == "albert" else {"do_lower_case": False, "keep_accents": True}
        sentencepiece_model(directory / "spiece.model", **ALBERT)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return model_type


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(model type, transformers' tokenizer of the old files, {route: our tokenizer}, the folder of each route)."""
    from transformers import AddedToken, AutoTokenizer

    old, theirs_saved, ours_saved = (tmp_path_factory.mktemp(name) for name in ("old", "theirs", "ours"))
    model_type = write_files(old, request.param)
    # transformers v5 forgets, without a tokenizer.json, that the mask of RoBERTa takes the space before it
    mask = {"mask_token": AddedToken("<mask>", lstrip=True, special=True)} if model_type == "roberta" else {}
    theirs = AutoTokenizer.from_pretrained(old, **mask)
    theirs.save_pretrained(theirs_saved)
    ours = Tokenizer.load(old, model_type=model_type)
    ours.save(ours_saved)
    for folder in (theirs_saved, ours_saved):
        (folder / "config.json").write_text((old / "config.json").read_text())
    tokenizers = {"old files": ours, "written by transformers": Tokenizer.load(theirs_saved, model_type=model_type)}
    return model_type, theirs, tokenizers | {"written by us": Tokenizer.load(ours_saved)}, ours_saved


ROUTES = ["old files", "written by transformers", "written by us"]


def tied(tokenizer, a, b):
    """True if `a` and `b` are two segmentations by a Unigram model whose scores are equal to within float32."""
    model = json.loads(tokenizer._engine.to_str())["model"]
    if model["type"] != "Unigram":
        return False
    a, b = (sum(model["vocab"][i][1] for i in ids) for ids in (a, b))
    return abs(a - b) < 1e-4


@pytest.mark.parametrize("route", ROUTES)
def test_ids_offsets_and_words_are_those_of_transformers(family, route):
    model_type, theirs, ours, _ = family
    texts = NASTY + TEXTS + random_texts(1000)
    expected = theirs(texts, add_special_tokens=False, return_offsets_mapping=True)
    encodings = ours[route].encode_with_offsets(texts)
    ties, prefixed = 0, theirs.init_kwargs.get("add_prefix_space") and model_type == "roberta"
    for i, (text, ids, encoding) in enumerate(zip(texts, ours[route].encode_batch(texts), encodings, strict=True)):
        assert ids.tolist() == encoding.ids.tolist()
        if ids.tolist() != expected["input_ids"][i] and tied(ours[route], ids.tolist(), expected["input_ids"][i]):
            ties += 1
            continue
        assert ids.tolist() == expected["input_ids"][i], text
        spans = list(map(tuple, encoding.offsets.tolist()))
        skip = prefixed and text.startswith(" ")  # transformers then leaves the space in the first token's span
        assert spans[skip:] == expected["offset_mapping"][i][skip:], text
        assert not skip or text[slice(*spans[0])].strip() == text[slice(*spans[0])]
        assert encoding.word_ids.tolist() == expected.word_ids(i), text
    assert ties < len(texts) / 200


@pytest.mark.parametrize("route", ROUTES)
def test_roles_and_special_ids_are_those_of_transformers(family, route):
    _, theirs, ours, _ = family
    for role in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(ours[route], f"{role}_id") == getattr(theirs, f"{role}_token_id")
    assert ours[route].mask_token == theirs.mask_token
    assert ours[route].vocab_size == len(theirs)


def laid_out(tokenizer, a, b):
    """Ids and token types of a pair, as a caller writes them."""
    first = np.concatenate([[tokenizer.cls_id], a, [tokenizer.sep_id] * tokenizer.pair_separators])
    second = np.append(b, tokenizer.sep_id)
    types = np.repeat([0, int(tokenizer.token_types)], [len(first), len(second)])
    return np.concatenate([first, second]).tolist(), types.tolist()


@pytest.mark.parametrize("route", ROUTES)
def test_pairs_are_laid_out_as_transformers_does(family, route):
    model_type, theirs, ours, _ = family
    tokenizer = ours[route]
    assert tokenizer.pair_separators == (2 if "roberta" in model_type else 1)
    assert tokenizer.token_types == (model_type in ("bert", "electra", "albert"))
    for text_a, text_b in zip(NASTY[1:], reversed(NASTY[1:]), strict=True):  # to transformers an empty second text is none
        ids, types = laid_out(tokenizer, *tokenizer.encode_batch([text_a, text_b]))
        expected = theirs(text_a, text_b, return_token_type_ids=True)
        assert ids == expected["input_ids"]
        if model_type != "distilbert":  # whose post-processor is BERT's; the model has no use for them
            assert types == expected["token_type_ids"]


def test_transformers_loads_what_we_save_with_equal_ids_pairs_and_inputs(family):
    from transformers import AutoTokenizer

    _, theirs, ours, folder = family
    loaded = AutoTokenizer.from_pretrained(folder)
    texts = NASTY + random_texts(300)
    expected = theirs(texts, return_offsets_mapping=True)
    encoded = loaded(texts, return_offsets_mapping=True)
    assert encoded["input_ids"] == expected["input_ids"]
    assert encoded["offset_mapping"] == expected["offset_mapping"]
    assert loaded(NASTY, NASTY[::-1])["input_ids"] == theirs(NASTY, NASTY[::-1])["input_ids"]
    assert set(loaded("a", "b")) == {"input_ids", "attention_mask"} | (
        {"token_type_ids"} if ours["old files"].token_types else set()
    )
    if ours["old files"].token_types:
        assert loaded("a", "b")["token_type_ids"] == theirs("a", "b", return_token_type_ids=True)["token_type_ids"]
    masked = [text.replace("@", theirs.mask_token) for text in MASKED]
    assert loaded(masked)["input_ids"] == theirs(masked)["input_ids"]


MASKED = ["The @ is red.", "@", "@ @", "@@", "a@b", "  @  ", "a  @  b", "first @, then @.", "@ start", "end @", "(@)", "x\n@\ty"]
MASKED += ["中@文", "é @ 😀@", "9@,", "## @ ##", "the  @the"]


@pytest.mark.parametrize("route", ROUTES)
def test_masks_in_text_are_those_of_transformers(family, route):
    _, theirs, ours, _ = family
    texts = [
        text.replace("@", theirs.mask_token) for text in [*MASKED, *(t.replace(" ", " @ ", 2) for t in NASTY if "@" not in t)]
    ]
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    for text, ids, theirs_ids in zip(texts, ours[route].encode_with_mask(texts), expected, strict=True):
        assert ids.tolist() == theirs_ids, text
    assert not any(ours[route].mask_id in ids for ids in ours[route].encode_batch(texts))


def test_user_defined_pieces_of_albert_are_pieces_as_in_the_published_tokenizer_json(tmp_path):
    """From a bare spiece.model transformers v5 makes added tokens of them; its own class over the same pieces does not."""
    from transformers import AlbertTokenizer

    from bert_jax.data.sentencepiece import _parse

    sentencepiece_model(tmp_path / "spiece.model", **ALBERT, user_defined_symbols=["(", ")", '"', "-", ".", "–"])
    model = _parse((tmp_path / "spiece.model").read_bytes(), "model")
    pieces = list(zip(model.names, model.scores, strict=True))
    theirs = AlbertTokenizer(vocab=pieces, _spm_precompiled_charsmap=model.norm[2])
    ours = Tokenizer.load(tmp_path, model_type="albert")
    texts = NASTY + TEXTS
    assert [ids.tolist() for ids in ours.encode_batch(texts)] == theirs(texts, add_special_tokens=False)["input_ids"]
