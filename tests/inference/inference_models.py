"""Tiny models with random weights, for the tests of predictors."""

from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import make_documents

from bert_jax.config import BertConfig
from bert_jax.data.layout import cut_windows
from bert_jax.inference import Answerer
from bert_jax.model.heads import Bert, parameter_shapes
from bert_jax.pretrained import Model

TINY = BertConfig(vocab_size=280, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                  max_position_embeddings=96)  # fmt: skip
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
ROOT = Path(__file__).parents[2]
CACHE = {"JAX_COMPILATION_CACHE_DIR": ROOT / ".jax_cache", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
         "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1}  # fmt: skip
TEXTS = [" ".join(doc[: 1 + i % 5]) for i, doc in enumerate(make_documents(60, seed=5))]
SHORT = [text for text in TEXTS if len(text) < 120]


def params_of(cfg, head, num_labels=1):
    """Random ones, large enough that every token counts."""
    shapes = parameter_shapes(Bert(cfg, head, num_labels))
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


@cache
def applied(model, **flags):
    return jax.jit(partial(model.apply, **flags))


@cache
def encoded(model):
    return jax.jit(model.encode)


def run(model, batch, **flags):
    """The outputs of the model itself, as NumPy arrays."""
    return jax.device_get(applied(model, **flags)(model.params, batch))


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


def with_inputs(function):
    return pytest.mark.parametrize("predictor, inputs", list(INPUTS.items()), indirect=["predictor"], ids=NAMES)(function)


MEGABYTE = " ".join(TEXTS) * (2**20 // sum(map(len, TEXTS)) + 1)
ODD = [
    "👩‍👩‍👧 Bako café naïve 🙂🙂 tine\u0301 gale",
    "  ÀÉÎ  bako\t\tтине\n\n東京 tine  ",
    "e\u0301e\u0301 \u200b bako",
    "🙂",
    "\ufeffbako",
]


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
