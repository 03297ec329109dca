"""SentencePiece models give the ids of SentencePiece, or of the families that use them."""

import json

import numpy as np
import pytest
import sentencepiece
from vocabularies import (
    ALL_ROLES,
    LINES,
    TEXTS,
    VOCAB,
    byte_level,
    sentencepiece_model,
    varied_strings,
    vocab_file,
    write_config,
    write_family,
)

from bert_jax.config import InputError
from bert_jax.data.sentencepiece import convert
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.data.tokenizer_training import train_sentencepiece

POINTS = "\u0645\u0651\u064e\u0645\u064e\u0651 1～2"  # shadda and fatha as typed and in canonical order


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
        tokenizer.save(tmp_path / "saved")
        added = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["added_tokens"]
        assert [token["content"] for token in added if token["lstrip"]] == ["<mask>"]
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
    write_config(directory / "saved", bos_token="</s>", eos_token="<s>", pad_token="<pad>", mask_token="<mask>", **config)
    return directory / "saved"


def test_bos_and_eos_are_the_first_and_last_token_where_no_other_is_stated_and_bytes_need_no_unknown_one(tmp_path):
    tokenizer = Tokenizer.load(without_roles(tmp_path), model_type="eurobert")
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.unk_id) == (2, 0, 1, 1)  # not as they are named
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


def test_rembert_keeps_case_accents_and_word_boundaries_unless_the_config_says_otherwise(tmp_path):
    write_family(tmp_path, "rembert")

    def load(**options):
        return Tokenizer.load(tmp_path, model_type="rembert", **options)

    def text(string, **options):
        return "".join(load(**options).tokens(load(**options).encode_batch([string])[0]))

    tokenizer = load()
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (0, 2, 3, 4, 5)
    assert not tokenizer.token_types
    assert text("``The''  Crème ") == '▁"The"▁Crème▁'
    assert text("The Crème", lowercase=True) == "▁the▁crème"
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "keep_accents": false}')
    assert text("The  Crème") == "▁the▁creme"
    load(lowercase=False).save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "rembert"}')
    assert Tokenizer.load(tmp_path / "saved").encode_batch(["``The''  Crème "])[0].tolist() == (
        load(lowercase=False).encode_batch(["``The''  Crème "])[0].tolist()
    )


def test_roformer_needs_a_class_that_no_file_holds(tmp_path):
    path = vocab_file(tmp_path, VOCAB)
    with pytest.raises(InputError, match=r"vocab.txt: the tokenizer of a roformer cuts text by rules in Python.*: give ids"):
        Tokenizer.load(path, model_type="roformer")
    write_config(tmp_path, tokenizer_class="BertTokenizer")  # as roformer_chinese_char states
    assert Tokenizer.load(path, model_type="roformer").encode_batch(["hello"])[0].tolist() == [VOCAB.index("hello")]


def test_albert_has_roles_of_both_kinds(tmp_path):
    tokenizer = Tokenizer.load(write_family(tmp_path, "albert"), model_type="albert")
    assert tokenizer.tokens(range(5)) == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (0, 1, 2, 3, 4)
