"""Pretrained directories for tests."""

import json
from functools import cache
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_writer import dumps, state

from bert_jax.config import BertConfig, InputError
from bert_jax.finetuning.init_head import load_for_task
from bert_jax.model import convert
from bert_jax.model.families import FAMILIES
from bert_jax.model.heads import Bert, initialize
from bert_jax.pretrained import Model, load, save

ROOT = Path(__file__).parent.parent

TINY = BertConfig(vocab_size=280, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                  max_position_embeddings=64)  # fmt: skip

SIZES = {
    "distilbert": dict(classifier_dropout=0.2),
    "albert": dict(embedding_size=16, num_hidden_groups=1),
    "electra": dict(embedding_size=16),
    "rembert": dict(embedding_size=16, output_embedding_size=16),
    "modernbert": dict(num_hidden_layers=4, local_attention=6, classifier_dropout=0.0, embedding_dropout_prob=0.0),
    "deberta-v2": dict(type_vocab_size=0, position_table=False, position_buckets=16, share_att_key=True, norm_rel_ebd=True),
    "esm": dict(token_dropout=True, mask_token_id=4),
    "eurobert": dict(num_key_value_heads=1, classifier_dropout=0.0),
}

TABLE, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"


@cache
def params_of(cfg, head, num_labels=1):
    """Random ones, with biases and norms that are not 0 and 1 among them."""
    shapes = jax.eval_shape(lambda: initialize(Bert(cfg, head, num_labels), 0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: (rng.standard_normal(x.shape) * 0.1).astype(np.float32), shapes)


def family(model_type):
    return TINY.replace(model_type=model_type, **FAMILIES[model_type].fixed, **SIZES.get(model_type, {}))


def config_json(cfg=TINY, head="pretraining", **changes):
    config = convert.config_to_hugging_face(cfg, head, max(0, cfg.position_offset - 1)) | changes
    return {name: value for name, value in config.items() if value is not ...}


def tensors_of(cfg=TINY, head="pretraining", num_labels=1):
    return convert.to_hugging_face(params_of(cfg, head, num_labels), cfg, head)


def write(folder, tensors=None, config=None):
    """A pretrained directory; its folder."""
    folder.mkdir(exist_ok=True, parents=True)
    save_file(tensors_of() if tensors is None else tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_json() if config is None else config))
    return folder


def shards_of(tensors, count=3):
    names = list(tensors)
    return [{name: tensors[name] for name in names[i::count]} for i in range(count)]


def flax_file(arrays, path):
    path.write_bytes(flax.serialization.to_bytes(convert.unflatten(arrays)))


def write_shards(folder, tensors, kind):
    name, write_one = {
        "safetensors": ("model-{:05}-of-00003.safetensors", save_file),
        "bin": ("pytorch_model-{:05}-of-00003.bin", lambda part, path: path.write_bytes(dumps(state(part)))),
        "msgpack": ("flax_model-{:05}-of-00003.msgpack", flax_file),
    }[kind]
    index = {}
    for i, part in enumerate(shards_of(tensors), 1):
        write_one(part, folder / name.format(i))
        index |= dict.fromkeys(part, name.format(i))
    whole = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin", "msgpack": "flax_model.msgpack"}[kind]
    (folder / f"{whole}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))


def assert_params(got, expected):
    got, expected = convert.flatten(got), convert.flatten(expected)
    assert list(got) == list(expected)
    for path, array in expected.items():
        assert isinstance(got[path], jax.Array), path
        assert got[path].dtype == np.float32, path
        np.testing.assert_array_equal(got[path], array, err_msg=path)


def refused(folder, match, **options):
    """The message with which the directory is refused."""
    with pytest.raises(InputError, match=match) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert str(folder) in message
    assert len(message) < 2000
    return message


LABELLED = {"architectures": ["BertForSequenceClassification"]}


def saved(folder, tokenizer, head="pretraining", labels=(), cfg=TINY, **more):
    """The folder of a model, to start a task from."""
    save(Model(cfg, params_of(cfg, head, max(1, len(labels))), tokenizer, head, labels, **more), folder)
    return folder


def start(folder, labels=("no", "yes"), init_head="auto", head="sequence_classification", problem="single_label_classification"):
    return load_for_task(folder, head, labels, problem if head == "sequence_classification" else None, init_head)
