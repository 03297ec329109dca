"""Tokenizer files are read as transformers' AutoTokenizer reads them, or refused by name."""

import json
import re

import pytest
from vocabularies import ALL_ROLES, ROLE_TOKENS, TEXTS, VOCAB, byte_level, sentencepiece_model, vocab_file, write_config

from bert_jax.config import InputError
from bert_jax.data.tokenizer import Tokenizer


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
