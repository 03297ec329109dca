"""Texts and vocabularies for tests of tokenizers."""

import functools
import io
import itertools
import json
import random
import unicodedata
from pydoc_data.topics import topics

import sentencepiece

LINES = [line.strip() for text in topics.values() for line in text.splitlines() if line.strip()][:300]

WORLD = [
    "Crème brûlée, Ångström, Straße: RÉSUMÉ",
    "Привет, Мир",
    "中文と日本語 テスト",
    "한국어 مُحَمَّد שָׁלוֹם, 1～2",
    "emoji 😀 ❤️ 👩‍👧",
] * 20

TEXTS = LINES + WORLD

ROLE_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

VOCAB = [*ROLE_TOKENS, "the", "play", "##ing", "##s", "cafe", "!", "[", "]", "中", "mask", "hello"]


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


def byte_level(directory):
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "Ġ", "Ġa", "ab", "Ċ"]
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\nĠ a\na b\n")
    return directory / "vocab.json"


def write_config(directory, name="tokenizer_config.json", **config):
    (directory / name).write_text(json.dumps(config))


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
    elif model_type == "rembert":
        roles = {"pad_piece": "<pad>", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
        sentencepiece_model(directory / "sentencepiece.model", control_symbols=["[CLS]", "[SEP]", "[MASK]"], **roles)
    elif model_type == "albert":
        roles = {"pad_piece": "<pad>", "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}
        sentencepiece_model(directory / "spiece.model", control_symbols=["[CLS]", "[SEP]", "[MASK]"], **roles)
    else:
        vocab_file(directory, VOCAB)
    return directory
