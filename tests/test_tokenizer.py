"""Ids, templates, offsets and special tokens of a loaded tokenizer."""

import json
import pathlib
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import (
    ALL_ROLES,
    ROLE_TOKENS,
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
from bert_jax.data.tokenizer import Tokenizer, has_tokenizer


@pytest.fixture(scope="module", params=["unigram", "bpe", "wordpiece"])
def trained(request):
    return Tokenizer.train(TEXTS, 600, request.param)


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
