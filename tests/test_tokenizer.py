"""Tokenizers: one engine for every file, the same ids as SentencePiece's and as the exported tokenizer.json's."""

import functools
import io
import itertools
import json
import pathlib
import pickle
import random
import re
import time
import unicodedata
from pydoc_data.topics import topics

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import InputError
from bert_jax.data.sentencepiece import convert
from bert_jax.data.tokenizer import Tokenizer, has_tokenizer
from bert_jax.data.tokenizer_training import train_sentencepiece, training_lines

LINES = [line.strip() for text in topics.values() for line in text.splitlines() if line.strip()][:300]
WORLD = [
    "Crème brûlée, Ångström, Straße: RÉSUMÉ",
    "Привет, Мир",
    "中文と日本語 テスト",
    "한국어 مُحَمَّد שָׁלוֹם, 1～2",
    "emoji 😀 ❤️ 👩‍👧",
] * 20
TEXTS = LINES + WORLD
POINTS = "\u0645\u0651\u064e\u0645\u064e\u0651 1～2"  # shadda and fatha as typed and in canonical order
ROLE_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB = [*ROLE_TOKENS, "the", "play", "##ing", "##s", "cafe", "!", "[", "]", "中", "mask", "hello"]


@pytest.fixture(scope="module", params=["unigram", "bpe", "wordpiece"])
def trained(request):
    return Tokenizer.train(TEXTS, 600, request.param)


def vocab_file(directory, tokens, name="vocab.txt"):
    path = directory / name
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return path


def sentencepiece_model(path, **options):
    model = io.BytesIO()
    options = {"model_type": "unigram", "vocab_size": 400, "num_threads": 1, "minloglevel": 2, "pad_id": 3} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=model, **options)
    path.write_bytes(model.getvalue())
    return path


ALL_ROLES = {
    "pad_piece": "[PAD]",
    "unk_piece": "[UNK]",
    "bos_piece": "[CLS]",
    "eos_piece": "[SEP]",
    "control_symbols": ["[MASK]"],
}


@functools.cache
def varied_strings(n):
    """Texts of every kind, NFKC-composed as far as combining marks go."""
    rng = random.Random(0)
    words = " ".join(TEXTS).split()
    odd = [
        *"\t\n\r\x00\x01\x7f\u00a0\u00ad\u3000\u200b\u200c\u200d\ufe0f▁…ﬁ½²№™ßİıſΣς～〜ﾞｶガÀéŹ😀👨❤🇩🇪[]<>/ ",
        "  ",
        "     ",
        "👨‍👩‍👧",
    ]
    odd += ["E\u0301", "X\u0301", "А\u0301", "가", "\u1100\u1161", "مُحَمَّد", "हिन्दी", "[MASK]", "[CLS]", "<s>", "[UNK]", "[PAD]"]
    blocks = [(32, 127), (0xA0, 0x300), (0x370, 0x600), (0x900, 0x1100), (0x1200, 0x3000), (0x3000, 0xD7FF), (0x1F300, 0x1FA00)]

    def one():
        kind = rng.random()
        if kind < 0.3:
            return "".join(chr(rng.randrange(*rng.choice(blocks))) for _ in range(rng.randrange(12)))
        if kind < 0.7:
            return "".join(rng.choice([rng.choice(words), rng.choice(odd), " "]) for _ in range(rng.randrange(14)))
        return "".join(rng.choice([*odd, *"abcABC 1"]) for _ in range(rng.randrange(10)))

    def stacked(text):  # marks on marks, and marks on what decomposes: where the conversion says that it differs
        marks = [bool(unicodedata.combining(c)) for c in unicodedata.normalize("NFKD", text)]
        loose = any(unicodedata.combining(c) and unicodedata.normalize("NFKD", b) != b for b, c in itertools.pairwise(text))
        return loose or any(a and b for a, b in itertools.pairwise(marks))

    texts = (one() for _ in range(10 * n))
    kept = ["", " ", "\n", "▁", " ▁ ", *(text for text in texts if not stacked(text))]
    return kept[:n]


def assert_same_ids(theirs, ours, texts):
    """Equal ids, or in fewer than one text of a hundred other pieces of the same total score: a tie that rounding decides."""
    ours = ours.replace(special_tokens="text")  # as SentencePiece reads its control pieces
    pairs = zip(texts, theirs.encode(texts), ours.encode_batch(texts), strict=True)
    differing = [(text, a, b.tolist()) for text, a, b in pairs if a != b.tolist()]
    ties = [(t, a, b) for t, a, b in differing if abs(sum(map(theirs.get_score, a)) - sum(map(theirs.get_score, b))) < 1e-4]
    assert [case for case in differing if case not in ties] == []
    assert len(ties) < len(texts) / 100


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_converted_model_gives_the_ids_of_sentencepiece(kind, lowercase):
    model = train_sentencepiece(TEXTS, 600, kind, lowercase)
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=model), Tokenizer(convert(model, "model"))
    texts = TEXTS + varied_strings(4000)
    assert_same_ids(theirs, ours, texts)


@pytest.mark.parametrize(
    "options",
    [
        {"byte_fallback": True, "character_coverage": 0.98, "vocab_size": 700},
        {"model_type": "bpe", "byte_fallback": True, "character_coverage": 0.98, "vocab_size": 700},
        {"character_coverage": 1.0},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"normalization_rule_name": "nfkc", "add_dummy_prefix": False},
        {"split_by_whitespace": False},
        {"user_defined_symbols": ["(", ")", "the"]},
    ],
    ids=lambda options: " ".join(options),
)
def test_models_of_other_options_convert_exactly_too(tmp_path, options):
    path = sentencepiece_model(tmp_path / "spm.model", **ALL_ROLES, **options)
    theirs, ours = sentencepiece.SentencePieceProcessor(model_file=str(path)), Tokenizer.load(path)
    assert_same_ids(theirs, ours, [*TEXTS, "[MASK] <0x41> two  spaces", " (the) other ", "é中😀", "ﬁx", POINTS])
    text = "one line, (the) other" + " ❄" * options.get("byte_fallback", False)
    assert ours.decode(ours.encode_batch([text])[0]) == theirs.decode(theirs.encode(text))


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece"])
def test_case_is_folded_only_if_asked(kind):
    lower, cased = (Tokenizer.train(TEXTS, 600, kind, lowercase=lowercase) for lowercase in (True, False))
    a, b = lower.encode_batch(["The RÉSUMÉ", "the résumé"])
    assert a.tolist() == b.tolist()
    a, b = cased.encode_batch(["The RÉSUMÉ", "the résumé"])
    assert a.tolist() != b.tolist()


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_twice_gives_the_same_tokenizer(kind):
    assert Tokenizer.train(TEXTS, 500, kind).fingerprint() == Tokenizer.train(iter(TEXTS), 500, kind).fingerprint()


def test_training_gives_the_roles_the_first_ids_and_the_size_asked_for(trained):
    assert (trained.pad_id, trained.unk_id, trained.cls_id, trained.sep_id, trained.mask_id) == (0, 1, 2, 3, 4)
    assert trained.vocab_size == 600
    assert trained.special_ids == (0, 1, 2, 3, 4)
    assert trained.tokens(range(5)) == list(ROLE_TOKENS)


def test_encoding_gives_int32_ids_without_special_tokens_or_padding(trained):
    encoded = trained.encode_batch(["the class", "", "the statement " * 1000])
    assert all(ids.dtype == np.int32 and ids.ndim == 1 for ids in encoded)
    assert len(encoded[1]) == 0
    assert len(encoded[2]) >= 2000
    assert not np.isin(np.concatenate(encoded), trained.special_ids).any()
    assert trained.encode_batch([]) == []
    assert trained.decode(encoded[0]) == "the class"
    with pytest.raises(TypeError, match="not one string"):
        trained.encode_batch("the class")


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece"])
def test_special_tokens_in_text_are_text_if_asked(kind):
    tokenizer = Tokenizer.train([*TEXTS, "[ MASK ] [ CLS ]"] * 2, 600, kind, lowercase=False).replace(special_tokens="text")
    specials = [i for i in tokenizer.special_ids if i != tokenizer.unk_id]
    for again in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        assert again.special_tokens == "text"
        for ids in again.encode_batch(["[MASK]", "a [MASK] b", "a[SEP]b", "[CLS][PAD]", "[CLS] [MASK] [SEP]"]):
            assert len(ids) > 0
            assert not np.isin(ids, specials).any()


def test_special_tokens_in_text_are_text_in_a_foreign_unigram_tokenizer_json(tmp_path):
    import tokenizers

    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("a", -3.0)]
    pieces += [(c, -4.0) for c in "<>/smaskpdun"[:3]] + [("s", -4.0), ("<mask>", 0.0)]
    engine = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 3, False))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    engine.enable_truncation(2)
    engine.enable_padding(length=50)
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path, special_tokens="text")
    assert tokenizer.mask_id == len(pieces) - 1
    ids = tokenizer.encode_batch(["<s>a</s>"])[0]
    assert tokenizer.tokens(ids) == ["▁", "<", "s", ">", "a", "<", "/", "s", ">"]


def test_every_control_piece_of_a_sentencepiece_model_is_special(tmp_path):
    path = sentencepiece_model(tmp_path / "spm.model", **ALL_ROLES | {"control_symbols": ["[MASK]", "[EXTRA]"]})
    tokenizer = Tokenizer.load(path, special_tokens="text")
    assert tokenizer.tokens(tokenizer.special_ids) == ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[EXTRA]"]
    assert not np.isin(tokenizer.encode_batch(["[EXTRA]"])[0], tokenizer.special_ids[1:]).any()
    tokenizer = Tokenizer.load(path)
    assert tokenizer.tokens(tokenizer.encode_batch(["[EXTRA]"])[0]) == ["[EXTRA]"]


def test_user_defined_mask_is_text_if_asked(tmp_path):
    path = sentencepiece_model(tmp_path / "spm.model", **ALL_ROLES | {"control_symbols": [], "user_defined_symbols": ["[MASK]"]})
    assert Tokenizer.load(path).mask_id in Tokenizer.load(path).encode_batch(["say [MASK] now"])[0]
    tokenizer = Tokenizer.load(path, special_tokens="text")
    assert tokenizer.mask_id == sentencepiece.SentencePieceProcessor(model_file=str(path)).piece_to_id("[MASK]")
    assert tokenizer.mask_id in tokenizer.special_ids
    assert tokenizer.mask_id not in tokenizer.encode_batch(["say [MASK] now"])[0]


def test_saved_tokenizer_loads_with_the_same_fingerprint_and_ids(trained, tmp_path):
    trained.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint() == trained.fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", loaded.fingerprint())
    texts = varied_strings(200)
    for a, b in zip(trained.encode_batch(texts), loaded.encode_batch(texts), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(trained.starts_word, loaded.starts_word)
    assert pickle.loads(pickle.dumps(trained)).fingerprint() == trained.fingerprint()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parity
def test_transformers_gives_the_same_ids_and_pairs(trained, tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    trained.save(tmp_path, model_max_length=128)
    texts = [text for text in TEXTS[:100] + varied_strings(300) if not any(token in text for token in ROLE_TOKENS)]
    ids = [i.tolist() for i in trained.encode_batch(texts)]
    (a, b), cls, sep = ids[:2], trained.cls_id, trained.sep_id
    plain = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": trained.vocab_size}))
    beside_a_bert = AutoTokenizer.from_pretrained(tmp_path)
    for theirs in (plain, auto, beside_a_bert):
        assert theirs(texts, add_special_tokens=False)["input_ids"] == ids
        pair = theirs(texts[0], texts[1])
        assert pair["input_ids"] == [cls, *a, sep, *b, sep]
        assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert theirs(texts[0])["input_ids"] == [cls, *a, sep]
        assert (theirs.mask_token_id, theirs.pad_token_id, theirs.unk_token_id) == (4, 0, 1)
        assert theirs.model_max_length == 128


def test_vocab_txt_is_bert(tmp_path):
    tokenizer = Tokenizer.load(vocab_file(tmp_path, VOCAB), special_tokens="text")
    ids = tokenizer.encode_batch(["  Playing THE café!", "hello中[MASK]", "thee", "the\x00s \ufffd plays" + "a" * 101])
    assert [tokenizer.tokens(i) for i in ids] == [
        ["play", "##ing", "the", "cafe", "!"],
        ["hello", "中", "[", "mask", "]"],
        ["[UNK]"],
        ["the", "##s", "[UNK]"],
    ]
    assert tokenizer.decode([2, *ids[0].tolist(), 3]) == "playing the cafe !"
    assert tokenizer.vocab_size == len(VOCAB)
    assert Tokenizer.load(tmp_path, special_tokens="text").fingerprint() == tokenizer.fingerprint()


def test_a_word_of_more_than_100_characters_is_unknown_beside_bert_config_json_one_of_more_than_200(tmp_path):
    path, texts = vocab_file(tmp_path, [*VOCAB, "a", "##a"]), ["a" * n for n in (100, 101, 200, 201)]

    def lengths(tokenizer):
        return [len(ids) for ids in tokenizer.encode_batch(texts)]

    assert lengths(Tokenizer.load(path)) == [100, 1, 1, 1]
    write_config(tmp_path, "bert_config.json", vocab_size=18)  # as Google published its files
    assert lengths(Tokenizer.load(path)) == [100, 101, 200, 1]
    Tokenizer.load(path).save(tmp_path / "saved")
    assert lengths(Tokenizer.load(tmp_path / "saved")) == [100, 101, 200, 1]
    write_config(tmp_path, "config.json", model_type="bert")  # as Hugging Face has them
    assert lengths(Tokenizer.load(path)) == [100, 1, 1, 1]


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\x0c", "\xa0"])
def test_only_line_feeds_divide_the_lines_of_vocab_txt(tmp_path, odd):
    path = vocab_file(tmp_path, [*VOCAB, odd, "cat"])
    assert Tokenizer.load(path).encode_batch(["the cat"])[0].tolist() == [5, len(VOCAB) + 1]
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Tokenizer.load(path).encode_batch(["the cat"])[0].tolist() == [5, len(VOCAB) + 1]


def test_files_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "byte").mkdir()
    write_config(tmp_path, added_tokens_decoder={str(len(VOCAB)): added("<new>")})
    write_config(tmp_path, "special_tokens_map.json", mask_token="[MASK]")
    Tokenizer.load(vocab_file(tmp_path, VOCAB)).save(tmp_path / "saved")
    for path in (tmp_path / "vocab.txt", byte_level(tmp_path / "byte"), tmp_path / "saved" / "tokenizer.json"):
        before = Tokenizer.load(path).fingerprint()
        for file in [*path.parent.glob("*.json"), *path.parent.glob("*.txt")]:
            file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
        assert Tokenizer.load(path).fingerprint() == before


def test_dropout_of_merges_is_off(tmp_path):
    Tokenizer.load(byte_level(tmp_path)).save(tmp_path / "saved")
    file = tmp_path / "saved" / "tokenizer.json"
    spec = json.loads(file.read_text())
    spec["model"]["dropout"] = 0.9
    file.write_text(json.dumps(spec))
    tokenizer = Tokenizer.load(file)
    assert {tuple(ids) for ids in tokenizer.encode_batch(["ab a ab"] * 50)} == {(9, 8, 8, 6)}
    tokenizer.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer.json").read_text())["model"]["dropout"] is None


@pytest.mark.parametrize("name", ["RobertaTokenizer", "RobertaTokenizerFast", None, "PreTrainedTokenizerFast"])
def test_the_prefix_of_a_tokenizer_json_is_that_of_the_config_where_its_class_is_robertas(tmp_path, name):
    Tokenizer.load(byte_level(tmp_path)).save(tmp_path / "saved")
    write_config(tmp_path / "saved", "config.json", model_type="roberta")
    for prefix in (True, False):
        write_config(tmp_path / "saved", add_prefix_space=prefix, **({"tokenizer_class": name} if name else {}))
        tokenizer = Tokenizer.load(tmp_path / "saved")
        followed = prefix and name != "PreTrainedTokenizerFast"
        assert tokenizer.tokens(tokenizer.encode_batch(["a"])[0]) == (["Ġa"] if followed else ["a"])


def test_a_token_of_the_config_that_is_no_role_is_one_of_the_models_own(tmp_path):
    path = vocab_file(tmp_path, VOCAB)
    write_config(tmp_path, image_token="<img>", add_bos_token=True)
    tokenizer = Tokenizer.load(path)
    assert tokenizer.encode_batch(["the <img>"])[0].tolist() == [5, len(VOCAB)]
    assert tokenizer.special_ids[-1] == len(VOCAB)


def test_tokens_beside_a_tokenizer_json_are_added_behind_its_own_whatever_id_is_stated(tmp_path):
    Tokenizer.load(vocab_file(tmp_path, VOCAB)).save(tmp_path / "saved")
    write_config(tmp_path / "saved", added_tokens_decoder={"40": added("<new>"), "3": added("[MASK]", True)})
    tokenizer = Tokenizer.load(tmp_path / "saved")
    assert tokenizer.encode_batch(["the <new> [MASK]"])[0].tolist() == [5, len(VOCAB), 4]


def test_a_role_keeps_its_flags_where_the_file_does_not_call_it_special(tmp_path):
    Tokenizer.load(byte_level(tmp_path)).save(tmp_path / "saved")
    file = tmp_path / "saved" / "tokenizer.json"
    spec = json.loads(file.read_text())
    for token in spec["added_tokens"]:
        token["special"] = False
    file.write_text(json.dumps(spec))
    tokenizer = Tokenizer.load(file)
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert tokenizer.tokens(tokenizer.encode_batch(["a <mask> a"])[0]) == ["a", "<mask>", "Ġa"]


def test_vocab_txt_is_cased_if_the_config_or_an_entry_says_so(tmp_path):
    (tmp_path / "uncased").mkdir()
    (tmp_path / "config").mkdir()
    cased = vocab_file(tmp_path, [*VOCAB, "The"])
    uncased = vocab_file(tmp_path / "uncased", VOCAB)
    by_config = vocab_file(tmp_path / "config", [*VOCAB, "The"])
    (tmp_path / "config" / "tokenizer_config.json").write_text('{"do_lower_case": true}')

    def tokens(path, lowercase=None):
        tokenizer = Tokenizer.load(path, lowercase)
        return tokenizer.tokens(tokenizer.encode_batch(["The"])[0])

    assert tokens(cased) == ["The"]
    assert tokens(cased, lowercase=True) == ["the"]
    assert tokens(uncased) == ["the"]
    assert tokens(uncased, lowercase=False) == ["[UNK]"]
    assert tokens(by_config) == ["the"]


def test_lowercase_overrides_the_rule_of_a_bert_tokenizer_json_and_of_no_other(tmp_path):
    Tokenizer.load(vocab_file(tmp_path, VOCAB)).save(tmp_path / "saved")
    tokenizer = Tokenizer.load(tmp_path / "saved", lowercase=False)
    assert tokenizer.tokens(tokenizer.encode_batch(["THE"])[0]) == ["[UNK]"]
    path = sentencepiece_model(tmp_path / "spm.model", **ALL_ROLES)
    with pytest.raises(InputError, match="lowercase=True does not apply"):
        Tokenizer.load(path, lowercase=True)


def test_vocab_txt_lines_are_stripped_and_an_empty_line_takes_an_id(tmp_path):
    tokenizer = Tokenizer.load(vocab_file(tmp_path, [*ROLE_TOKENS, " the \r", "", "cat"]))
    assert tokenizer.tokens(tokenizer.encode_batch(["the cat"])[0]) == ["the", "cat"]
    assert tokenizer.encode_batch(["the cat"])[0].tolist() == [5, 7]
    assert tokenizer.vocab_size == 8
    assert tokenizer.tokens([6]) == [""]


def test_starts_word_is_false_where_a_token_continues_a_word(tmp_path):
    wordpiece = Tokenizer.load(vocab_file(tmp_path, VOCAB))
    assert [t for t, starts in zip(VOCAB, wordpiece.starts_word, strict=True) if not starts] == ["##ing", "##s"]
    unigram = Tokenizer.train(TEXTS, 500, "unigram")
    tokens = unigram.tokens(range(500))
    expected = [t.startswith("▁") or t in ("[PAD]", "[CLS]", "[SEP]", "[MASK]") for t in tokens]
    assert unigram.starts_word.tolist() == expected


def byte_level(directory):
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "Ġ", "Ġa", "ab", "Ċ"]
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\nĠ a\na b\n")
    return directory / "vocab.json"


def test_vocab_json_with_merges_is_byte_level_bpe_with_the_roles_of_roberta(tmp_path):
    tokenizer = Tokenizer.load(byte_level(tmp_path))
    assert (tokenizer.cls_id, tokenizer.pad_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id) == (0, 1, 2, 3, 4)
    ids = tokenizer.encode_batch(["ab a ab"])[0]
    assert tokenizer.tokens(ids) == ["ab", "Ġa", "Ġa", "b"]
    assert tokenizer.decode(ids) == "ab a ab"
    assert tokenizer.starts_word[ids].tolist() == [False, True, True, False]
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize("beside", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_config_beside_the_file_names_the_roles(tmp_path, beside):
    path = vocab_file(tmp_path, ["<p>", "<u>", "<c>", "<e>", "<m>", "word"])
    names = {"pad_token": "<p>", "unk_token": {"content": "<u>"}, "cls_token": "<c>", "sep_token": "<e>", "mask_token": "<m>"}
    (tmp_path / beside).write_text(json.dumps(names))
    tokenizer = Tokenizer.load(path)
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert tokenizer.encode_batch(["word other"])[0].tolist() == [5, 1]


def write_config(directory, name="tokenizer_config.json", **config):
    (directory / name).write_text(json.dumps(config))


@pytest.mark.parametrize(
    "key, value",
    [
        ("word_tokenizer_type", "mecab"),
        ("subword_tokenizer_type", "character"),
        ("do_basic_tokenize", False),
        ("tokenizer_class", "BertJapaneseTokenizer"),
        ("tokenizer_class", "FunnelTokenizerFast"),
    ],
)
def test_a_directory_whose_config_says_other_rules_is_refused_by_key(tmp_path, key, value):
    (tmp_path / "byte").mkdir()
    paths = [vocab_file(tmp_path, VOCAB), sentencepiece_model(tmp_path / "spm.model", **ALL_ROLES), byte_level(tmp_path / "byte")]
    for path in paths:
        write_config(path.parent, **{key: value})
        with pytest.raises(
            InputError, match=rf'/tokenizer_config.json: "{key}": {json.dumps(value)} cuts .*{path.name} is read by'
        ):
            Tokenizer.load(path)
        write_config(path.parent, word_tokenizer_type="basic", subword_tokenizer_type="wordpiece", do_basic_tokenize=True)
        Tokenizer.load(path)


def test_a_config_json_too_may_name_a_class_of_other_rules(tmp_path):
    path = vocab_file(tmp_path, VOCAB)
    write_config(tmp_path, "config.json", tokenizer_class="PhobertTokenizer")
    with pytest.raises(InputError, match=r'/config.json: "tokenizer_class": "PhobertTokenizer"'):
        Tokenizer.load(path)
    write_config(tmp_path, tokenizer_class="BertTokenizer")
    Tokenizer.load(path)


@pytest.mark.parametrize("name", ["Bert", "Electra", "DistilBert", "Roberta", "XLMRoberta", "Albert", "PreTrained", "Backend"])
def test_the_classes_whose_files_are_read_are_not_refused(tmp_path, name):
    path = vocab_file(tmp_path, VOCAB)
    for named in ("TokenizersBackend",) if name == "Backend" else (f"{name}Tokenizer", f"{name}TokenizerFast"):
        write_config(tmp_path, tokenizer_class=named)
        Tokenizer.load(path)


def test_a_tokenizer_json_is_refused_only_for_classes_that_work_in_python(tmp_path):
    Tokenizer.load(vocab_file(tmp_path, VOCAB)).save(tmp_path / "saved")
    file = tmp_path / "saved" / "tokenizer.json"
    for name in ("BertJapaneseTokenizer", "BertweetTokenizer", "PhobertTokenizerFast", "RoFormerTokenizer"):
        write_config(file.parent, tokenizer_class=name)
        with pytest.raises(InputError, match=rf'/tokenizer_config.json: "tokenizer_class": "{name}" .*than those tokenizer.json'):
            Tokenizer.load(file)
    for name in ("HerbertTokenizerFast", "MPNetTokenizer", "MyOwnTokenizer", None):
        write_config(file.parent, tokenizer_class=name)
        Tokenizer.load(file)


def added(content, special=False, **flags):
    return {"content": content, "special": special, "normalized": not special, "lstrip": False, "rstrip": False} | flags


def test_tokens_added_beside_a_vocabulary_are_read_from_text_unless_special(tmp_path):
    path = vocab_file(tmp_path, VOCAB)
    size = len(VOCAB)
    write_config(
        tmp_path, added_tokens_decoder={str(size + 1): added("<New>"), str(size): added("[X]", True), "4": added("[MASK]", True)}
    )
    tokenizer = Tokenizer.load(path)
    assert tokenizer.vocab_size == size + 2
    assert tokenizer.special_ids == (0, 1, 2, 3, 4, size)
    assert tokenizer.encode_batch(["the<new>play <NEW>[X]"])[0].tolist() == [5, size + 1, 6, size + 1, size]
    as_text = Tokenizer.load(path, special_tokens="text")
    assert as_text.encode_batch(["the<new>play <NEW>"])[0].tolist() == [5, size + 1, 6, size + 1]
    assert size not in as_text.encode_batch(["[X]"])[0]
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").fingerprint() == tokenizer.fingerprint()


def test_added_tokens_json_and_special_tokens_without_ids_are_added_in_this_order(tmp_path):
    path = vocab_file(tmp_path, VOCAB)
    size = len(VOCAB)
    write_config(tmp_path, "added_tokens.json", **{"<two>": size + 1, "<one>": size})
    write_config(tmp_path, bos_token="[BOS]", additional_special_tokens=["<two>", "<three>", added("<four>"), "play"])
    tokenizer = Tokenizer.load(path)
    assert tokenizer.tokens(range(size, size + 5)) == ["<one>", "<two>", "[BOS]", "<three>", "<four>"]
    assert tokenizer.special_ids == (0, 1, 2, 3, 4, VOCAB.index("play"), *range(size + 1, size + 5))
    assert size in tokenizer.encode_batch(["the <one>"])[0]
    write_config(tmp_path, extra_special_tokens={"image": "<img>"}, additional_special_tokens=["<three>"])
    assert Tokenizer.load(path).tokens(range(size, size + 5)) == ["<one>", "<two>", "<img>", "<three>", ""]
    write_config(tmp_path, extra_special_tokens=["<img>"], additional_special_tokens=["<three>"])
    assert Tokenizer.load(path).tokens(range(size, size + 4)) == ["<one>", "<two>", "<img>", ""]


def test_a_role_may_be_an_added_token(tmp_path):
    path = vocab_file(tmp_path, VOCAB[:4] + VOCAB[5:])
    write_config(tmp_path, "added_tokens.json", **{"[MASK]": len(VOCAB) - 1})
    assert Tokenizer.load(path).mask_id == len(VOCAB) - 1
    path = byte_level(tmp_path)
    tokens = json.loads(path.read_text())
    del tokens["<mask>"]
    path.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    write_config(tmp_path, "added_tokens.json", **{"<mask>": len(tokens)})
    tokenizer = Tokenizer.load(path)
    assert tokenizer.mask_id == len(tokens)
    assert tokenizer.tokens(tokenizer.encode_batch(["a <mask> a"])[0]) == ["a", "<mask>", "Ġa"]


def test_the_flags_of_added_tokens_decoder_go_before_those_of_the_family(tmp_path):
    path = byte_level(tmp_path)
    write_config(tmp_path, added_tokens_decoder={"4": added("<mask>", True, lstrip=False), "11": added("<n>", rstrip=True)})
    tokenizer = Tokenizer.load(path)
    assert tokenizer.tokens(tokenizer.encode_batch(["a <mask> a"])[0]) == ["a", "Ġ", "<mask>", "Ġa"]
    assert tokenizer.tokens(tokenizer.encode_batch(["a<n>  ab"])[0]) == ["a", "<n>", "ab"]


def test_tokens_added_beside_a_sentencepiece_model_come_after_its_pieces(tmp_path):
    path = sentencepiece_model(tmp_path / "spm.model", **ALL_ROLES)
    write_config(tmp_path, added_tokens_decoder={"400": added("<new>"), "401": added("[X]", True)})
    tokenizer = Tokenizer.load(path, special_tokens="text")
    assert tokenizer.vocab_size == 402
    assert 400 in tokenizer.encode_batch(["the<new>class"])[0]
    assert not {400, 401} & set(tokenizer.encode_batch(["[X]"])[0].tolist())
    assert 401 in Tokenizer.load(path).encode_batch(["[X]"])[0]


@pytest.mark.parametrize(
    "name, config, message",
    [
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"20": added("<new>")}},
            "'<new>' has id 20, but beside vocab.txt it gets 16",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"16": added("the")}}, "'the' has id 16, but .* it gets 5"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": added("the")}}, "added tokens without ids"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"16": {"special": True}}}, "is no added token"),
        ("tokenizer_config.json", {"extra_special_tokens": [3]}, "3 is no added token"),
        ("added_tokens.json", {"<a>": 16, "<b>": 16}, "'<b>' has id 16, but .* it gets 17"),
        ("added_tokens.json", {"<a>": None}, "added tokens without ids"),
    ],
)
def test_added_tokens_whose_ids_do_not_fit_are_refused_by_name(tmp_path, name, config, message):
    path = vocab_file(tmp_path, VOCAB)
    assert len(VOCAB) == 16
    write_config(tmp_path, name, **config)
    with pytest.raises(InputError, match=rf"/{name}: .*{message}"):
        Tokenizer.load(path)


def test_no_token_can_be_added_after_unused_ids(tmp_path):
    path = vocab_file(tmp_path, [*VOCAB, "", "cat"])
    write_config(tmp_path, "added_tokens.json", **{"<new>": 18})
    assert Tokenizer.load(path).encode_batch(["cat <new>"])[0].tolist() == [17, 18]
    path = vocab_file(tmp_path, [*VOCAB, "", "", "cat"])
    write_config(tmp_path, "added_tokens.json", **{"<new>": 19})
    with pytest.raises(InputError, match=r"vocab.txt: leaves ids unused, so that '<new>' of added_tokens.json cannot be added"):
        Tokenizer.load(path)


REBUILT = ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizerFast", "ElectraTokenizer")


@pytest.mark.parametrize("name", [*REBUILT, "PreTrainedTokenizerFast", "TokenizersBackend", "MyOwnTokenizer", None])
def test_the_class_beside_a_tokenizer_json_decides_whose_normalisation_counts(tmp_path, name):
    cased = [*VOCAB, "The", "Café", "中中"]
    Tokenizer.load(vocab_file(tmp_path, cased), lowercase=False).save(tmp_path / "saved")
    file = tmp_path / "saved" / "tokenizer.json"

    def tokens(model_type=None, lowercase=None, **config):
        write_config(file.parent, **config | ({"tokenizer_class": name} if name else {}))
        tokenizer = Tokenizer.load(file, lowercase, model_type)
        return tokenizer.tokens(tokenizer.encode_batch(["The Café 中中"])[0])

    kept = ["The", "Café", "中", "中"]
    for model_type in (None, "bert"):
        rebuilt = name in REBUILT or (name is None and model_type == "bert")
        assert tokens(model_type) == (["the", "cafe", "中", "中"] if rebuilt else kept)
        assert tokens(model_type, do_lower_case=True, strip_accents=False) == (["the", "[UNK]", "中", "中"] if rebuilt else kept)
        assert tokens(model_type, do_lower_case=False) == kept
        one = tokens(model_type, do_lower_case=False, tokenize_chinese_chars=False)
        assert one == (["The", "Café", "中中"] if rebuilt else kept)
        assert tokens(model_type, lowercase=False) == kept
    assert tokens("roberta") == (["the", "cafe", "中", "中"] if name in REBUILT else kept)
    write_config(file.parent, "config.json", model_type="bert")
    assert tokens() == tokens("bert")


def test_added_tokens_count_in_the_vocabulary_size(tmp_path):
    Tokenizer.load(vocab_file(tmp_path, VOCAB)).save(tmp_path / "saved")
    file = tmp_path / "saved" / "tokenizer.json"
    spec = json.loads(file.read_text())
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": len(VOCAB), "content": "[NEW]"})
    file.write_text(json.dumps(spec))
    tokenizer = Tokenizer.load(file)
    assert tokenizer.vocab_size == len(tokenizer.starts_word) == len(VOCAB) + 1
    assert tokenizer.special_ids[-1] == len(VOCAB)


@pytest.mark.parametrize("missing", ROLE_TOKENS)
def test_a_vocabulary_without_a_role_is_refused_by_name(tmp_path, missing):
    path = vocab_file(tmp_path, [token for token in VOCAB if token != missing])
    role = missing.strip("[]").lower()
    with pytest.raises(InputError, match=rf'vocab.txt: no {role} token \({re.escape(missing)} or .*"{role}_token"'):
        Tokenizer.load(path)


def test_a_role_that_the_config_names_and_the_vocabulary_lacks_is_refused(tmp_path):
    path = vocab_file(tmp_path, VOCAB)
    (tmp_path / "tokenizer_config.json").write_text('{"mask_token": "<m>"}')
    with pytest.raises(InputError, match=r"no mask token \(<m>\)"):
        Tokenizer.load(path)


def test_a_sentencepiece_model_without_a_mask_is_refused_by_name(tmp_path):
    path = sentencepiece_model(tmp_path / "spm.model")
    with pytest.raises(InputError, match=r"spm.model: no mask token \(\[MASK\] or <mask>\) among its 400 tokens"):
        Tokenizer.load(path)


def test_of_equal_lines_of_vocab_txt_the_last_counts_as_in_bert(tmp_path):
    tokenizer = Tokenizer.load(vocab_file(tmp_path, [*VOCAB, "the ", "cat"]))
    assert tokenizer.encode_batch(["the cat"])[0].tolist() == [16, 17]
    assert tokenizer.vocab_size == 18


@pytest.mark.parametrize(
    "options, named",
    [
        ({"model_type": "char", "vocab_size": 200, "hard_vocab_limit": False}, "word and character models"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
        ({"model_type": "bpe", "user_defined_symbols": ["<sym>"]}, r"user-defined pieces in a bpe model \(<sym>\)"),
    ],
)
def test_a_sentencepiece_model_that_cannot_be_converted_exactly_is_refused(tmp_path, options, named):
    path = sentencepiece_model(tmp_path / "spm.model", **ALL_ROLES | options)
    with pytest.raises(InputError, match=rf"spm.model: {named}"):
        Tokenizer.load(path)


WITHOUT_ITS_UNK = json.dumps({"model": {"type": "WordPiece", "vocab": {"[PAD]": 0, "a": 1}, "unk_token": "[UNK]",
    "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}, "added_tokens": []}).encode()  # fmt: skip


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("spm.model", b"not a model", "not a SentencePiece model"),
        ("spm.model", b"", "not a SentencePiece model"),
        ("tokenizer.json", b"{}", "not a tokenizer.json"),
        ("tokenizer.json", WITHOUT_ITS_UNK, "Missing .UNK. token from the vocabulary"),
        ("vocab.json", b"{}", r"needs merges.txt beside it"),
        ("vocab.txt", b"\xff\xfe", "not UTF-8"),
        ("vocab.bin", b"", r"expected a directory, tokenizer.json, vocab.txt"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: .*{message}"):
        Tokenizer.load(tmp_path / name)


def test_a_sentencepiece_model_with_unused_pieces_is_refused(tmp_path):
    path = sentencepiece_model(tmp_path / "spm.model", **ALL_ROLES)
    path.write_bytes(path.read_bytes() + b"\x0a\x05" + b"\x0a\x01Z" + b"\x18\x05")  # one more piece, of type UNUSED
    with pytest.raises(InputError, match=r"spm.model: unused pieces"):
        Tokenizer.load(path)


@pytest.mark.parametrize("charsmap", [b"abcd", bytes(4)])  # one that does not parse, one that makes the library panic
def test_a_sentencepiece_model_whose_normalisation_is_damaged_is_refused(tmp_path, charsmap):
    path = sentencepiece_model(tmp_path / "spm.model", **ALL_ROLES)
    path.write_bytes(path.read_bytes() + b"\x1a\x06\x12\x04" + charsmap)  # another normalizer_spec
    for model_type in (None, "albert", "xlm-roberta"):
        with pytest.raises(InputError, match=r"spm.model: not a SentencePiece model \(.*precompiled_charsmap"):
            Tokenizer.load(path, model_type=model_type)


def test_a_truncated_sentencepiece_model_is_refused(tmp_path):
    path = sentencepiece_model(tmp_path / "spm.model", **ALL_ROLES)
    whole = path.read_bytes()
    for size in (1, 100, len(whole) // 8, len(whole) // 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"spm.model: "):
            Tokenizer.load(path)


def test_damaged_merges_and_configs_are_refused(tmp_path):
    path = byte_level(tmp_path)
    (tmp_path / "merges.txt").write_text("x y z\n")
    with pytest.raises(InputError, match="not a byte-level BPE vocabulary"):
        Tokenizer.load(path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"tokenizer_config.json holds a list, not an object"):
        Tokenizer.load(path)


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path):
    vocab_file(tmp_path, VOCAB)
    with pytest.raises(InputError, match=r"vocab.tx: no such file; did you mean 'vocab.txt'"):
        Tokenizer.load(tmp_path / "vocab.tx")


def test_a_directory_without_a_tokenizer_or_with_several_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer.json, vocab.txt"):
        Tokenizer.load(tmp_path)
    for name in ("a.model", "b.model"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"several tokenizers, a.model, b.model; give the file"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece"])
def test_a_vocabulary_larger_or_smaller_than_the_texts_allow_is_refused_with_the_number(kind):
    with pytest.raises(InputError, match=r"vocab_size=50000: these texts give at most \d+ tokens") as error:
        Tokenizer.train(LINES[:100], 50_000, kind)
    most = int(re.search(r"at most (\d+)", str(error.value))[1]) - 10 * (kind == "wordpiece")  # ties move it a little
    assert Tokenizer.train(LINES[:100], most, kind).vocab_size == most
    with pytest.raises(InputError, match=r"vocab_size=20: these texts need at least \d+ tokens") as error:
        Tokenizer.train(LINES[:100], 20, kind)
    least = int(re.search(r"at least (\d+)", str(error.value))[1])
    assert Tokenizer.train(LINES[:100], least, kind).vocab_size == least


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece"])
def test_training_on_no_text_is_refused(kind):
    with pytest.raises(InputError, match=r"^no text to train"):
        Tokenizer.train([" ", "\n"], 100, kind)


def test_an_unknown_kind_of_vocabulary_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"kind='unigrams': expected one of .*; did you mean 'unigram'"):
        Tokenizer.train(TEXTS, 100, "unigrams")


def test_errors_of_the_reader_pass_through_training():
    def broken():
        yield "some text"
        raise InputError("file x is damaged")

    for kind in ("unigram", "bpe", "wordpiece"):
        with pytest.raises(InputError, match=r"^file x is damaged$"):
            Tokenizer.train(broken(), 100, kind)


def test_training_lines_are_cut_at_white_space_and_nothing_is_lost():
    words = [f"word{i}" for i in range(3000)]
    lines = list(training_lines(["\n" + " ".join(words) + "\r\n\r\n", "中" * 2500, "a▅b\x00c"]))
    assert max(len(line.encode()) for line in lines) <= 4192
    assert " ".join(lines[:-4]).split() == words
    assert "".join(lines[-4:-1]) == "中" * 2500
    assert lines[-1] == "a b c"


def test_a_very_long_line_is_cut_in_linear_time():
    begun = time.process_time()
    assert sum(map(len, training_lines(["word " * 4_000_000]))) > 15_000_000
    assert time.process_time() - begun < 5  # 40 s where each cut copies what is left


def test_a_long_line_counts_in_training():
    long = " ".join(["zebra"] * 2000)
    tokenizer = Tokenizer.train([*LINES, long], 500, "bpe")
    assert tokenizer.tokens(tokenizer.encode_batch(["zebra"])[0]) == ["▁zebra"]


NASTY = [
    "",
    " ",
    "\n",
    "  two  spaces ",
    "a\nb\t c",
    "😀 👨‍👩‍👧 x",
    "中文, 日本語",
    "e\u0301 É",
    "İstanbul İİ",
    "ﬁ½ ´a ﷺ",
    "##a ▁b Ġc",
    "❤️❤️",
]


def write_family(directory, model_type):
    """Small files of a family, as they were published before tokenizer.json."""
    if model_type == "roberta":
        byte_level(directory)
    elif model_type in ("xlm-roberta", "camembert"):
        sentencepiece_model(directory / "sentencepiece.bpe.model", pad_id=-1)
    elif model_type == "mpnet":
        vocab_file(directory, ["<s>", "<pad>", "</s>", "<unk>", *VOCAB, "<mask>"])
    elif model_type == "deberta-v2":
        sentencepiece_model(directory / "spm.model", **ALL_ROLES | {"control_symbols": []})
    elif model_type == "albert":
        roles = {"pad_piece": "<pad>", "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}
        sentencepiece_model(directory / "spiece.model", control_symbols=["[CLS]", "[SEP]", "[MASK]"], **roles)
    else:
        vocab_file(directory, VOCAB)
    return directory


FAMILIES = ["bert", "electra", "distilbert", "roberta", "xlm-roberta", "albert", "mpnet", "camembert", "deberta-v2"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    directory = write_family(tmp_path_factory.mktemp("family"), request.param)
    return request.param, directory, Tokenizer.load(directory, model_type=request.param)


def test_each_family_has_its_template_and_keeps_it(family, tmp_path):
    import tokenizers

    model_type, _, tokenizer = family
    cls, sep, t = tokenizer.cls_id, tokenizer.sep_id, int(model_type in ("bert", "electra", "albert", "deberta-v2"))
    between = (sep, sep) if model_type in ("roberta", "xlm-roberta", "mpnet", "camembert") else (sep,)
    tokenizer.save(tmp_path)
    for again in (tokenizer, pickle.loads(pickle.dumps(tokenizer)), Tokenizer.load(tmp_path)):
        assert again.single == (((cls,), (sep,)), ((0,), (0,)), (0,))
        assert again.pair == (((cls,), between, (sep,)), ((0,), (0,) * len(between), (t,)), (0, t))
        assert (len(again.single), len(again.pair), again.token_types) == (2, 2 + len(between), bool(t))
        assert again.fingerprint() == tokenizer.fingerprint()
    parts = tokenizer.encode_batch(["a", "b"])
    ids, types = tokenizer.pair.lay_out(parts)
    assert ids.dtype == types.dtype == np.int32
    a, b = (part.tolist() for part in parts)
    assert ids.tolist() == [cls, *a, *between, *b, sep]
    assert types.tolist() == [0] * (len(a) + 1 + len(between)) + [t] * (len(b) + 1)
    pair = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a", "b")
    assert pair.ids == ids.tolist()
    assert model_type == "distilbert" or pair.type_ids == types.tolist()  # whose file has BERT's
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["model_input_names"] == ["input_ids", *["token_type_ids"] * t, "attention_mask"]


def test_a_directory_has_a_tokenizer_if_one_of_its_files_is_one(family, tmp_path):
    assert has_tokenizer(family[1])
    (tmp_path / "config.json").touch()
    assert not has_tokenizer(tmp_path)


def test_each_family_has_its_mask(family):
    model_type, _, tokenizer = family
    angled = "roberta" in model_type or model_type in ("mpnet", "camembert")
    assert tokenizer.mask_token == ("<mask>" if angled else "[MASK]")
    assert tokenizer.tokens([tokenizer.mask_id]) == [tokenizer.mask_token]


CLS, SEP = ["<s>", 0], ["</s>", 2]
DOUBLED = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
DOUBLED += [{"SpecialToken": {"id": "</s>", "type_id": 0}}] * 2
DOUBLED += [{"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": DOUBLED[:3],
    "pair": DOUBLED,
    "special_tokens": {
        "<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
        "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
    },
}
TYPED = TEMPLATE | {"pair": [*DOUBLED[:2], DOUBLED[3], {"Sequence": {"id": "B", "type_id": 1}}, DOUBLED[5]]}
ROBERTA = {"type": "RobertaProcessing", "sep": SEP, "cls": CLS, "trim_offsets": True, "add_prefix_space": False}
BERT = {"type": "BertProcessing", "sep": SEP, "cls": CLS}
OPEN = TEMPLATE | {"single": DOUBLED[:2], "pair": [*DOUBLED[:3], DOUBLED[4]]}
MARKED = TEMPLATE | {"single": [DOUBLED[0], DOUBLED[2], *DOUBLED[1:3]], "pair": [DOUBLED[0], DOUBLED[2], *DOUBLED[1:]]}
NAKED = TEMPLATE | {"single": [DOUBLED[1]], "pair": [DOUBLED[1], {"Sequence": {"id": "B", "type_id": 1}}]}
AS_ROBERTA = "0 a 2", "0 a 2 2 b 2", "0 0 0 0 0 0"
AS_BERT = "0 a 2", "0 a 2 b 2", "0 0 0 1 1"


def file_with_template(directory, processor):
    """A tokenizer.json of byte-level BPE, without anything beside it."""
    Tokenizer.load(byte_level(directory)).save(directory / "saved")
    file = directory / "saved" / "tokenizer.json"
    (directory / "saved" / "tokenizer_config.json").unlink()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": processor}))
    return file


@pytest.mark.parametrize(
    "processor, model_type, expected",
    [
        (ROBERTA, None, AS_ROBERTA),
        (BERT, None, AS_BERT),
        (BERT, "roberta", AS_ROBERTA),  # whose class in transformers does so, whatever the file says
        (TEMPLATE, None, AS_ROBERTA),
        (TEMPLATE | {"pair": [*DOUBLED[:3], *DOUBLED[4:]]}, None, ("0 a 2", "0 a 2 b 2", "0 0 0 0 0")),
        (TYPED, None, ("0 a 2", "0 a 2 b 2", "0 0 0 1 0")),
        ({"type": "Sequence", "processors": [ROBERTA, TEMPLATE]}, None, ("0 0 a 2 2", "0 0 a 2 2 2 2 b 2 2", "0 " * 10)),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                                              "use_regex": True}, ROBERTA]}, None, AS_ROBERTA),
        (None, None, ("a", "a b", "0 1")),
        (None, "roberta", AS_ROBERTA),
        (TYPED, "distilbert", ("0 a 2", "0 a 2 b 2", "0 0 0 0 0")),
        (OPEN, None, ("0 a", "0 a 2 b", "0 0 0 0")),
        (MARKED, None, ("0 2 a 2", "0 2 a 2 2 b 2", "0 0 0 0 0 0 0")),
        (NAKED, None, ("a", "a b", "0 1")),
    ],
)  # fmt: skip
def test_texts_are_laid_out_as_the_post_processor_of_a_tokenizer_json_says(tmp_path, processor, model_type, expected):
    file = file_with_template(tmp_path, processor)
    tokenizer = Tokenizer.load(file, model_type=model_type)
    single, pair, types = expected
    a, b = np.array([5]), np.array([6])

    def ids(spelt):
        return [{"a": 5, "b": 6}.get(each) or int(each) for each in spelt.split()]

    tokenizer.save(tmp_path / "again")
    for again in (tokenizer, Tokenizer.load(tmp_path / "again", model_type=model_type)):
        assert again.single.lay_out([a])[0].tolist() == ids(single)
        found = again.pair.lay_out([a, b])
        assert (found[0].tolist(), found[1].tolist()) == (ids(pair), [int(each) for each in types.split()])
        assert again.token_types == ("1" in types)


@pytest.mark.parametrize("pieces", [[1, 1], [4, 2, 1], [0, 2]])
def test_a_template_that_repeats_swaps_or_drops_texts_is_refused(tmp_path, pieces):
    file = file_with_template(tmp_path, TEMPLATE | {"pair": [DOUBLED[i] for i in pieces]})
    with pytest.raises(InputError, match="template for a pair repeats, drops or swaps texts"):
        Tokenizer.load(file)


def test_a_config_without_token_type_ids_says_that_there_are_no_types(tmp_path):
    vocab_file(tmp_path, VOCAB)
    (tmp_path / "tokenizer_config.json").write_text('{"model_input_names": ["input_ids", "attention_mask"]}')
    assert not Tokenizer.load(tmp_path).token_types


def test_xlm_roberta_has_the_ids_of_fairseq(tmp_path):
    write_family(tmp_path, "xlm-roberta")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sentencepiece.bpe.model"))
    tokenizer = Tokenizer.load(tmp_path, model_type="xlm-roberta")
    assert tokenizer.tokens(range(5)) == ["<s>", "<pad>", "</s>", "<unk>", theirs.id_to_piece(3)]
    assert tokenizer.mask_id == tokenizer.vocab_size - 1 == theirs.vocab_size() + 1
    texts = [" ".join(line.split()) for line in LINES if "==" not in line]
    expected = [[3 if id == 0 else id + 1 for id in ids] for ids in theirs.encode(texts)]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected


def test_mpnet_has_its_own_special_tokens_though_those_of_bert_are_in_its_vocabulary(tmp_path):
    write_family(tmp_path, "mpnet")
    for beside in ({"tokenizer_class": "MPNetTokenizerFast"}, {}):
        write_config(tmp_path, **beside)
        write_config(tmp_path, "config.json", model_type="mpnet")
        tokenizer = Tokenizer.load(tmp_path)
        assert (tokenizer.cls_id, tokenizer.pad_id, tokenizer.sep_id, tokenizer.unk_id) == (0, 1, 2, 5)
        assert tokenizer.special_ids == (0, 1, 2, 5, tokenizer.mask_id)
        ids = tokenizer.encode_batch(["The  <mask> plays zz"])[0].tolist()  # the mask takes the spaces before it
        assert tokenizer.tokens(ids) == ["the", "<mask>", "play", "##s", "[UNK]"]
        assert not tokenizer.token_types
    write_config(tmp_path, do_lower_case=False)
    assert Tokenizer.load(tmp_path).encode_batch(["The"])[0].tolist() == [5]


def test_camembert_has_the_ids_of_fairseq(tmp_path):
    write_family(tmp_path, "camembert")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sentencepiece.bpe.model"))
    tokenizer = Tokenizer.load(tmp_path, model_type="camembert")
    names = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", theirs.id_to_piece(3)]
    assert tokenizer.tokens(range(8)) == names
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.unk_id) == (5, 6, 1, 3)
    assert tokenizer.mask_id == tokenizer.vocab_size - 1 == theirs.vocab_size() + 4
    texts = [" ".join(line.split()) for line in LINES if "==" not in line]
    expected = [[3 if id == 0 else id + 4 for id in ids] for ids in theirs.encode(texts)]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected


def test_deberta_has_the_ids_of_sentencepiece_and_a_mask_behind_them(tmp_path):
    path = sentencepiece_model(tmp_path / "spm.model", **ALL_ROLES | {"control_symbols": [], "user_defined_symbols": ["<u>"]})
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = Tokenizer.load(tmp_path, model_type="deberta-v2")
    assert tokenizer.mask_id == tokenizer.vocab_size - 1 == theirs.vocab_size()
    texts = [" ".join(line.split()) for line in LINES if "==" not in line and line.isascii()]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == theirs.encode(texts)

    def tokens(text, lowercase=None, **config):
        write_config(tmp_path, tokenizer_class="DebertaV2Tokenizer", **config)
        tokenizer = Tokenizer.load(tmp_path, lowercase)
        return tokenizer.tokens(tokenizer.encode_batch([text])[0])

    assert "".join(tokens("The  x\n\uff21 ")) == "▁The▁x▁[UNK]"  # only white space is changed and composed, not \uff21
    assert "".join(tokens("The", do_lower_case=True)) == "".join(tokens("The", lowercase=True)) == "▁the"
    assert tokens("a <u>b") == [*tokens("a"), "<u>", *tokens("b")]
    assert tokens("to.the", split_by_punct=True) == [*tokens("to"), *tokens(".", add_prefix_space=True), *tokens("the")]


LETTERS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]


def test_esm_is_cut_at_its_letters(tmp_path):
    tokenizer = Tokenizer.load(vocab_file(tmp_path, LETTERS), model_type="esm")
    assert (tokenizer.cls_id, tokenizer.pad_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id) == (0, 1, 2, 3, 32)
    tokenizer.save(tmp_path / "saved")
    for each in (tokenizer, Tokenizer.load(tmp_path / "saved")):
        ids = [ids.tolist() for ids in each.encode_batch(["MKT", "M K\tT ", "mk M.T", "M<mask>-<null_1>", ""])]
        assert ids == [[20, 15, 11], [20, 15, 11], [3, 20, 29, 11], [20, 32, 30, 31], []]
        assert each.pair == (((0,), (2,), (2,)), ((0,), (0,), (0,)), (0, 0))
    as_text = tokenizer.replace(special_tokens="text")
    assert not {0, 32} & set(as_text.encode_batch(["<cls>M<mask>"])[0].tolist())


def without_roles(directory, **config):
    """A tokenizer.json of byte-level BPE whose config names a first, a last, a padding and a mask token, as EuroBERT's does."""
    Tokenizer.load(byte_level(directory)).save(directory / "saved")
    spec = json.loads((directory / "saved" / "tokenizer.json").read_text())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] != "<unk>"]
    (directory / "saved" / "tokenizer.json").write_text(json.dumps(spec))
    write_config(directory / "saved", bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>", **config)
    return directory / "saved"


def test_bos_and_eos_are_the_first_and_last_token_where_no_other_is_stated_and_bytes_need_no_unknown_one(tmp_path):
    tokenizer = Tokenizer.load(without_roles(tmp_path), model_type="eurobert")
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.unk_id) == (0, 2, 1, 1)
    assert 3 not in tokenizer.special_ids  # `<unk>` is a piece of the vocabulary like others
    tokenizer.save(tmp_path / "again")
    assert "unk_token" not in json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    again = Tokenizer.load(tmp_path / "again", model_type="eurobert")
    assert (again.unk_id, again.fingerprint()) == (1, tokenizer.fingerprint())


@pytest.mark.parametrize("model_type", ["modernbert", "eurobert"])
def test_a_vocab_json_of_a_family_whose_rules_only_a_tokenizer_json_holds_is_refused(tmp_path, model_type):
    byte_level(tmp_path)
    with pytest.raises(InputError, match=rf"/vocab.json: a {model_type} is read from its tokenizer.json, .*; add it"):
        Tokenizer.load(tmp_path, model_type=model_type)
    write_config(tmp_path, tokenizer_class="RobertaTokenizer")
    Tokenizer.load(tmp_path, model_type=model_type)


@pytest.mark.parametrize(
    "model_type, follows", [("modernbert", False), ("xlm-roberta-xl", False), ("nomic_bert", True), (None, True)]
)
def test_the_tokenizer_json_of_some_families_counts_whatever_class_is_stated(tmp_path, model_type, follows):
    Tokenizer.load(vocab_file(tmp_path, [*VOCAB, "The"]), lowercase=False).save(tmp_path / "saved")
    write_config(tmp_path / "saved", tokenizer_class="BertTokenizer", do_lower_case=True)
    tokenizer = Tokenizer.load(tmp_path / "saved", model_type=model_type)
    assert tokenizer.tokens(tokenizer.encode_batch(["The"])[0]) == ["the" if follows else "The"]


def test_a_family_is_read_from_the_tokenizer_class_beside_the_file(tmp_path):
    path = sentencepiece_model(write_family(tmp_path, "xlm-roberta") / "sentencepiece.bpe.model", pad_id=-1)
    with pytest.raises(InputError, match=r"no pad token .* or say model_type"):
        Tokenizer.load(path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizerFast"}')
    assert Tokenizer.load(path).pad_id == 1


def test_a_model_that_is_not_of_its_family_is_refused(tmp_path):
    path = sentencepiece_model(tmp_path / "spm.model", **ALL_ROLES)
    with pytest.raises(InputError, match=r"spm.model: fairseq's models begin with <unk> <s> </s>, this one with \[UNK\]"):
        Tokenizer.load(path, model_type="xlm-roberta")
    path = sentencepiece_model(tmp_path / "spm.model", model_type="bpe", pad_id=-1)
    with pytest.raises(InputError, match=r"spm.model: a model of this family is of type unigram"):
        Tokenizer.load(path, model_type="xlm-roberta")
    with pytest.raises(InputError, match=r"model_type='robertta': expected one of .*; did you mean 'roberta'"):
        Tokenizer.load(path, model_type="robertta")


def test_albert_is_lower_cased_and_loses_accents_unless_the_config_says_otherwise(tmp_path):
    write_family(tmp_path, "albert")

    def text(string, **options):
        tokenizer = Tokenizer.load(tmp_path, model_type="albert", **options)
        return "".join(tokenizer.tokens(tokenizer.encode_batch([string])[0]))

    assert text("``The'' Résumé") == '▁"the"▁resume'
    assert text("The Résumé", lowercase=False) == "▁The▁Resume"
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "keep_accents": true}')
    assert text("The  Crème") == "▁The▁Crème"
    assert text("The Crème", lowercase=True) == "▁the▁crème"


def test_albert_has_roles_of_both_kinds(tmp_path):
    tokenizer = Tokenizer.load(write_family(tmp_path, "albert"), model_type="albert")
    assert tokenizer.tokens(range(5)) == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (0, 1, 2, 3, 4)


def spans(tokenizer, text):
    encoding = tokenizer.encode_with_offsets([text])[0]
    assert encoding.ids.dtype == encoding.offsets.dtype == encoding.word_ids.dtype == np.int32
    surfaces = [text[start:end] for start, end in encoding.offsets]
    return list(zip(tokenizer.tokens(encoding.ids), surfaces, encoding.word_ids.tolist(), strict=True))


def test_offsets_and_words_of_wordpiece(tmp_path):
    tokenizer = Tokenizer.load(vocab_file(tmp_path, [*VOCAB, "i", "##st"]))
    assert spans(tokenizer, "  Playing, THE 中hello") == [
        ("play", "Play", 0),
        ("##ing", "ing", 0),
        ("[UNK]", ",", 1),
        ("the", "THE", 2),
        ("中", "中", 3),
        ("hello", "hello", 4),
    ]
    assert spans(tokenizer, "İst café! 😀") == [
        ("i", "İ", 0),
        ("##st", "st", 0),
        ("cafe", "café", 1),
        ("!", "!", 2),
        ("[UNK]", "😀", 3),
    ]


def test_offsets_and_words_of_byte_level_bpe_have_no_leading_space(tmp_path):
    byte_level(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert spans(tokenizer, "ab a  ab\n") == [
        ("ab", "ab", 0),
        ("Ġa", "a", 1),
        ("Ġ", "", 2),
        ("Ġa", "a", 3),
        ("b", "b", 3),
        ("Ċ", "\n", 4),
    ]
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    assert spans(Tokenizer.load(tmp_path), "a a") == spans(Tokenizer.load(tmp_path), " a a") == [("Ġa", "a", 0), ("Ġa", "a", 1)]


def test_offsets_and_words_of_sentencepiece_have_no_leading_space():
    tokenizer = Tokenizer.train([*TEXTS, "zebra fish " * 20], 600, "bpe")
    assert spans(tokenizer, " Zebra  Ｚebra\n") == [("▁zebra", "Zebra", 0), ("▁zebra", "Ｚebra", 1)]
    assert [s for _, s, _ in spans(tokenizer, "a \U000f0000")] == ["a", "", "\U000f0000"]


@pytest.mark.parametrize("model_type", ["xlm-roberta", "albert", None])
def test_a_lone_prefix_of_sentencepiece_is_an_empty_span_also_where_the_text_has_no_space(tmp_path, model_type):
    if model_type:
        tokenizer = Tokenizer.load(write_family(tmp_path, model_type), model_type=model_type)
    else:
        tokenizer = Tokenizer.load(sentencepiece_model(tmp_path / "spm.model", **ALL_ROLES))
    for text, places in (("qako", [0]), ("  qako", [2]), ("a qako qi", [2, 7])):
        (encoding,) = tokenizer.encode_with_offsets([text])
        tokens = tokenizer.tokens(encoding.ids)
        empty = [(token, start) for token, (start, end) in zip(tokens, encoding.offsets.tolist(), strict=True) if start == end]
        assert empty == [("▁", place) for place in places]
        covered = np.concatenate([np.arange(*span) for span in encoding.offsets.tolist()])
        assert covered.tolist() == [i for i, c in enumerate(text) if c != " "]


def assert_sound(text, encoding):
    starts, ends = encoding.offsets.T
    assert ((starts >= 0) & (starts <= ends) & (ends <= len(text))).all()
    assert (np.diff(starts) >= 0).all()
    assert (np.diff(ends) >= 0).all()
    assert (ends[:-1] - starts[1:] <= 1).all()  # at most a character shared
    assert (np.diff(encoding.word_ids) >= 0).all()
    for surface in (text[start:end] for start, end in encoding.offsets):
        assert not surface.strip() or surface == surface.strip()


def test_spans_stay_inside_any_text_and_never_go_back(family, trained):
    for tokenizer in (family[2], trained):
        texts = NASTY + varied_strings(1000)
        for text, ids, encoding in zip(texts, tokenizer.encode_batch(texts), tokenizer.encode_with_offsets(texts), strict=True):
            np.testing.assert_array_equal(ids, encoding.ids)
            assert encoding.offsets.shape == (len(ids), 2)
            assert_sound(text, encoding)


@settings(deadline=None, max_examples=300)
@given(text=st.text(max_size=40))
def test_whatever_the_text_its_spans_stay_inside_it_and_never_go_back(trained, text):
    (encoding,) = trained.encode_with_offsets([text])
    np.testing.assert_array_equal(trained.encode_batch([text])[0], encoding.ids)
    assert_sound(text, encoding)


def test_special_tokens_in_a_text_are_read_unless_asked_otherwise(family, tmp_path):
    _, directory, tokenizer = family
    mask, sep, cls = (tokenizer.tokens([id])[0] for id in (tokenizer.mask_id, tokenizer.sep_id, tokenizer.cls_id))
    counts = {f"a {mask} b": (1, 0), f"a{mask}b": (1, 0), f"{mask}{mask}": (2, 0)}
    counts |= {f" {mask}  {sep}a": (1, 1), f"a{sep}b{cls}": (0, 1)}
    special = set(tokenizer.special_ids) - {tokenizer.unk_id}
    tokenizer.save(tmp_path / "read")
    as_text = tokenizer.replace(special_tokens="text")
    as_text.save(tmp_path / "text")
    assert Tokenizer.load(directory, model_type=family[0], special_tokens="text").special_tokens == "text"
    for again in (tokenizer, pickle.loads(pickle.dumps(tokenizer)), Tokenizer.load(tmp_path / "read"),
                  Tokenizer.load(tmp_path / "text", special_tokens="read"), as_text.replace(special_tokens="read")):  # fmt: skip
        assert again.special_tokens == "read"
        for ids, numbers in zip(again.encode_batch(list(counts)), counts.values(), strict=True):
            assert ((ids == tokenizer.mask_id).sum(), (ids == tokenizer.sep_id).sum()) == numbers
    assert Tokenizer.load(tmp_path / "read").fingerprint() == tokenizer.fingerprint()
    for again in (as_text, pickle.loads(pickle.dumps(as_text)), Tokenizer.load(tmp_path / "text")):
        assert again.special_tokens == "text"
        assert again.fingerprint() == as_text.fingerprint() != tokenizer.fingerprint()
        for ids in again.encode_batch(list(counts)):
            assert not special & set(ids.tolist())
    without = ["a b", *NASTY]
    for read, plain in zip(tokenizer.encode_batch(without), as_text.encode_batch(without), strict=True):
        np.testing.assert_array_equal(read, plain)
    assert [json.loads((tmp_path / name / "tokenizer_config.json").read_text())["split_special_tokens"]
            for name in ("read", "text")] == [False, True]  # fmt: skip


def test_special_tokens_have_the_ids_and_places_that_bert_gives_them(tmp_path):
    tokenizer = Tokenizer.load(vocab_file(tmp_path, VOCAB))
    (encoding,) = tokenizer.encode_with_offsets(["The[SEP] hello [MASK]!"])
    assert encoding.ids.tolist() == [5, 3, 15, 4, 10]
    assert encoding.offsets.tolist() == [[0, 3], [3, 8], [9, 14], [15, 21], [21, 22]]
    assert encoding.word_ids.tolist() == [0, 1, 2, 3, 4]
    assert tokenizer.encode_batch(["[sep] [ SEP ]"])[0].tolist() == [11, 1, 12, 11, 1, 12]
    write_config(tmp_path, split_special_tokens=True)
    assert Tokenizer.load(tmp_path).encode_batch(["[SEP]"])[0].tolist() == [11, 1, 12]
    assert Tokenizer.load(tmp_path, special_tokens="read").encode_batch(["[SEP]"])[0].tolist() == [3]
    with pytest.raises(InputError, match="special_tokens='reed': expected one of read, text; did you mean 'read'"):
        Tokenizer.load(tmp_path, special_tokens="reed")


def test_the_mask_of_roberta_takes_the_space_before_it_unless_the_config_says_otherwise(tmp_path):
    byte_level(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.tokens(tokenizer.encode_batch(["a <mask> a"])[0]) == ["a", "<mask>", "Ġa"]
    (tmp_path / "tokenizer_config.json").write_text('{"mask_token": {"content": "<mask>", "lstrip": false}}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.tokens(tokenizer.encode_batch(["a <mask> a"])[0]) == ["a", "Ġ", "<mask>", "Ġa"]


METHODS = ["encode_batch", "encode_with_offsets"]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_text_is_refused_with_its_index(family, method):
    encode = getattr(family[2], method)
    for bad, what in ((None, "NoneType"), (b"x", "bytes"), (("a", "b"), "tuple"), (3, "int")):
        with pytest.raises(InputError, match=rf"^texts\[3\] is an? {what}, not a str$"):
            encode(["a", "b", "c", bad])
    with pytest.raises(InputError, match=r"^texts\[1\]: character 2 is '\\udc80', half of a surrogate pair"):
        encode(["fine 😀", "ab\udc80", "\ud800"])
    with pytest.raises(TypeError, match="not one string"):
        encode("text")


@pytest.mark.parametrize("method", METHODS)
def test_a_text_of_a_megabyte_and_an_empty_one_are_texts(family, method):
    encode = getattr(family[2], method)
    text = "the play ing! " * 75_000
    long, empty = encode([text, ""])
    if method == "encode_with_offsets":
        assert len(empty.ids) == len(empty.offsets) == len(empty.word_ids) == 0
        assert len(text) - 5 < long.offsets[-1, 1] <= len(text)
        long, empty = long.ids, empty.ids
    assert len(empty) == 0
    assert len(long) > 75_000


def test_a_full_disk_is_named_and_leaves_no_half_file(tokenizer, tmp_path, monkeypatch):
    tokenizer.save(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()

    def full(self, text, encoding):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(InputError, match=rf"cannot write {tmp_path}/tokenizer\.json: No space left on device"):
        tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
