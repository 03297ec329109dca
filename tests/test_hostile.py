"""Model directories that were made to harm: each ends soon with our error, or with a model that says what it left out."""

import json
import os
import shutil
import tracemalloc
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bert_jax
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.disk import MOST_JSON, read_json
from bert_jax.errors import InputError, printable
from bert_jax.model.config import BertConfig
from bert_jax.model.heads import initialize
from bert_jax.pooling import Pooling
from bert_jax.pretrained import Model, save

DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    """A directory with everything that `load` reads, of a small model."""
    import jax

    cfg = BertConfig(vocab_size=280, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                     max_position_embeddings=16)  # fmt: skip
    small = Model(cfg, {}, tokenizer, "sequence_classification", ("no", "yes"), pooling=Pooling())
    params = jax.device_get(jax.jit(partial(initialize, small.module))(0))
    directory = tmp_path_factory.mktemp("hostile") / "model"
    pooling = Pooling(prompts={"query": "q: "})
    save(Model(cfg, params, tokenizer, "sequence_classification", ("no", "yes"), pooling=pooling), directory)
    return directory


@pytest.fixture
def changed(model, tmp_path):
    """(file, new text, or a function of what its JSON holds) -> a copy of the model with that file changed."""

    def change(name, content):
        directory = tmp_path / "model"
        shutil.copytree(model, directory, dirs_exist_ok=True)
        path = directory / name
        if callable(content):
            content = json.dumps(content(json.loads(path.read_text())))
        path.write_text(content)
        return directory

    return change


def outcome(directory):
    """The error's text, or why there is no tokenizer or no pooling; the empty string where nothing is wrong."""
    try:
        loaded = bert_jax.load(directory)
    except InputError as error:
        return str(error)
    return loaded.no_tokenizer or (loaded.pooling if isinstance(loaded.pooling, str) else "")


JSON_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json",
              "sentence_bert_config.json", "config_sentence_transformers.json"]  # fmt: skip


@pytest.mark.parametrize("name", [*JSON_FILES, "special_tokens_map.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", [DEEP, '"text"', "{", "9" * 5000])
def test_a_json_file_that_is_none_or_too_deep_is_named(changed, name, content):
    directory = changed(name, content)
    if name == "model.safetensors.index.json":
        (directory / "model.safetensors").unlink()
    assert name in outcome(directory)


@pytest.mark.parametrize("name", [*JSON_FILES, "model.safetensors"])
def test_a_pipe_is_not_waited_for(changed, name):
    directory = changed("config.json", lambda old: old)
    (directory / name).unlink()
    os.mkfifo(directory / name)
    if name == "tokenizer.json":
        assert bert_jax.load(directory).tokenizer is None
    else:
        assert outcome(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": {"a": 1}}, "architectures is .* not a list"),
        ({"architectures": "BertModel"}, "architectures is 'BertModel', not a list"),
        ({"hidden_size": 10**12}, "hidden_size=1000000000000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps=nan"),
        ({"vocab_size": 1e400}, "vocab_size=inf"),
        ({"id2label": {"a": "b"}}, "id2label"),
        ({"id2label": [1]}, "id2label"),
        ({"problem_type": ["x"]}, "problem_type"),
        ({"bert_jax": 3}, "bert_jax is a int"),
        ({"sentence_transformers": 3, "num_labels": 10**9, "id2label": None}, "classes|labels"),
    ],
)
def test_values_of_other_types_and_sizes_are_refused_by_name(changed, change, message):
    with pytest.raises(InputError, match=message):
        bert_jax.load(changed("config.json", lambda old: old | change))


TOKENIZER = [
    ({"normalizer": {"type": "Sequence", "normalizers": 40 * [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}]}},
     r"makes up to 1\.1e\+12 characters"),
    ({"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 1000}}, "makes up to 1e"),
    ({"decoder": {"type": "Sequence", "decoders": 3 * [{"type": "Replace", "pattern": {"String": "a"}, "content": 9 * "a"}]}},
     "its decoder makes up to 729"),
    ({"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}}, "not a tokenizer.json"),
    ({"model": {"type": "WordPiece", "vocab": {"[UNK]": -1}}}, "not a tokenizer.json"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), TOKENIZER)
def test_a_tokenizer_that_explodes_or_panics_leaves_the_weights(changed, change, message):
    import re

    said = outcome(changed("tokenizer.json", lambda old: old | change))
    assert re.search(message, said)


def test_padding_to_a_billion_tokens_is_not_made(changed):
    padding = dict(strategy={"Fixed": 10**9}, direction="Right", pad_to_multiple_of=None, pad_id=0, pad_type_id=0)
    padding["pad_token"] = "[PAD]"
    directory = changed("tokenizer.json", lambda old: old | {"padding": padding, "truncation": None})
    assert outcome(directory) == ""
    assert len(Tokenizer.load(directory).encode_batch(["bako"])[0]) < 10


def test_a_pattern_that_takes_exponential_time_is_an_error(changed):
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    directory = changed("tokenizer.json", lambda old: old | {"pre_tokenizer": split})
    loaded = bert_jax.load(directory)
    with pytest.raises(InputError, match="the tokenizer fails at these texts"):
        loaded.need_tokenizer().encode_batch(["a" * 60 + "b"])


@pytest.mark.parametrize("key", ["model_input_names", "mask_token", "added_tokens_decoder", "do_lower_case", "tokenizer_class"])
@pytest.mark.parametrize("value", [3, True, [[]], {"a": 1}, 1e308])
def test_settings_of_a_tokenizer_of_other_types_are_named(changed, key, value):
    said = outcome(changed("tokenizer_config.json", lambda old: old | {key: value}))
    assert said == "" or key in said or "tokenizer_config.json" in said


def test_shapes_that_no_array_has_are_refused(changed):
    directory = changed("config.json", lambda old: old)
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {"classifier.bias": np.zeros(1, np.float32)}, directory / "model.safetensors")
    file = (directory / "model.safetensors").read_bytes()
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    header["classifier.bias"]["shape"] = 70 * [1]
    new = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(len(new).to_bytes(8, "little") + new + file[8 + size :])
    assert "classifier.bias has the shape" in outcome(directory)


def test_names_of_tensors_are_shown_without_what_moves_a_terminal(changed, capsys):
    directory = changed("config.json", lambda old: old)
    tensors = load_file(directory / "model.safetensors")
    names = ["\x1b[2J\x1b[31mevil", "x" * 5000, "a\rb"]
    save_file(tensors | {name: np.zeros(1, np.float32) for name in names}, directory / "model.safetensors")
    assert outcome(directory) == ""
    said = capsys.readouterr().err
    assert "\\x1b[2J" in said
    assert "\x1b" not in said
    assert "\r" not in said
    assert max(map(len, said.splitlines())) <= 2000


def test_errors_and_notes_are_printable():
    assert printable("a\x1b[31m\r\n\tb\u202e\ud800") == "a\\x1b[31m\\r\n\tb\\u202e\\ud800"
    assert printable(printable("x" * 9999)) == printable("x" * 9999)
    assert len(str(InputError("x" * 9999))) < 2001


def test_a_json_file_is_read_within_bounds(tmp_path):
    path = tmp_path / "a.json"
    assert read_json(path, dict) is None
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path, dict) == {"a": 1}
    with pytest.raises(InputError, match=r"a\.json holds a dict, not a list"):
        read_json(path, list)
    with open(path, "wb") as file:
        file.truncate(MOST_JSON + 1)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.json has 16,777,217 bytes, more than"):
        read_json(path, dict)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with pytest.raises(InputError, match="is a folder"):
        read_json(tmp_path, dict)
