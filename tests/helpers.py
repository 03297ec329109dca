"""A made-up language for the data tests, and small things they share."""

import numpy as np
import tokenizers

from bert_jax.data.tokenizer import Tokenizer


def make_words(count=250):
    """Words of two to four syllables, all different, the same ones each time."""
    rng, words = np.random.default_rng(0), {}
    while len(words) < count:
        syllables = rng.choice(list("bdfgklmnprst"), 4), rng.choice(list("aeiou"), 4)
        words["".join(a + b for a, b in list(zip(*syllables, strict=True))[: rng.integers(2, 5)])] = None
    return list(words)


def make_documents(count, seed=0, sentences=(3, 12)):
    """`count` documents, each a list of sentences such as `Bako tine rodusi.`, that split_sentences gives back."""
    rng, words = np.random.default_rng(seed), make_words()
    weights = 1 / np.arange(1, len(words) + 1)
    weights /= weights.sum()
    return [
        [
            " ".join(words[i] for i in rng.choice(len(words), rng.integers(4, 13), p=weights)).capitalize() + "."
            for _ in range(rng.integers(*sentences))
        ]
        for _ in range(count)
    ]


def write_documents(path, documents):
    """A .txt file of documents, blank lines between them; its path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join("\n".join(doc) for doc in documents) + "\n")
    return str(path)


def with_template(tokenizer, single, pair):
    """`tokenizer`, whose roles have BERT's names, with other things around texts, as `[CLS] $A`."""
    engine = tokenizers.Tokenizer.from_str(tokenizer._engine.to_str())
    special = [(name, engine.token_to_id(name)) for name in ("[CLS]", "[SEP]", "[MASK]")]
    engine.post_processor = tokenizers.processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    return Tokenizer(engine)


def quiet(items, count, what):
    """Progress that shows nothing."""
    return items
