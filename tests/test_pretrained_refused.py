"""Directories, configs and weights that are refused, with what to do."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from pretrained_files import LABELLED, ROOT, TABLE, config_json, refused, tensors_of, write, write_shards
from torch_writer import Call, dumps, state

import bert_jax
from bert_jax.config import InputError
from bert_jax.pretrained import load

# ---- what is refused


def test_a_directory_that_is_not_there_is_refused_with_the_nearest(tmp_path):
    write(tmp_path / "bert-tiny")
    message = refused(tmp_path / "bert-tinny", "no directory")
    assert f"did you mean '{tmp_path / 'bert-tiny'}'?" in message
    refused(tmp_path / "absent" / "x", "no directory")


def test_a_file_is_no_directory(tmp_path):
    write(tmp_path)
    refused(tmp_path / "model.safetensors", f"is a file; give its directory, {tmp_path}$")


@pytest.mark.parametrize("name", ["bert-tinny", "models/bert-tinny"])
def test_a_name_that_the_hub_does_not_give_is_refused(tmp_path, monkeypatch, name):
    def offline(*args, **kwargs):
        raise ConnectionError("no route to huggingface.co\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    write((tmp_path / name).with_name("bert-tiny"))
    with pytest.raises(InputError) as caught:
        load(name)
    message = str(caught.value)
    assert message.startswith(f"no directory {name}")
    assert "ConnectionError: no route to huggingface.co)" in message
    assert f"did you mean '{name.replace('tinny', 'tiny')}'?" in message


def cached(cache_folder, write_files, name="maker/bert-tiny"):
    """A snapshot as huggingface_hub keeps it."""
    repo = cache_folder / f"models--{name.replace('/', '--')}"
    write_files(repo / "snapshots" / "a1b2")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a1b2")


def test_a_name_on_the_hub_is_read_from_its_cache_without_network(tmp_path):
    def files(folder):
        write(folder)
        (folder / "model.safetensors").unlink()  # so that it is asked for the other kind too
        (folder / "pytorch_model.bin").write_bytes(dumps(state(tensors_of())))

    cached(tmp_path, files)
    code = """if True:
        import bert_jax
        print(bert_jax.load("maker/bert-tiny").config.hidden_size)
        try:
            bert_jax.load("maker/absent")
        except bert_jax.InputError as error:
            print(error)
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "32"
    assert lines[1].startswith("no directory maker/absent, and the hub did not give it (")
    assert len(lines) == 2


def test_a_directory_without_config_is_refused(tmp_path):
    refused(tmp_path, r"has no config\.json \(or bert_config\.json\)")


@pytest.mark.parametrize(
    "content, match",
    [("{", r"config\.json is not JSON"), ("[1]", r"config\.json holds a list"), ("\udce9", r"config\.json is not JSON")],
)
def test_a_config_that_is_no_object_is_refused(tmp_path, content, match):
    write(tmp_path)
    (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    refused(tmp_path, match)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"model_type": "robert"}, "model_type 'robert' is not known; did you mean 'roberta'.; known: bert, roberta, xlm-rob"),
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not known; known: bert, "),
        ({"model_type": None}, "model_type None is not known"),
        ({"model_type": ["bert"]}, r"model_type \['bert'\] is not known"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size=30 is not divisible by num_attention_heads=4"),
        ({"hidden_size": "32"}, "hidden_size='32' is a str"),
        ({"hidden_act": "mish"}, "hidden_act='mish'.*gelu_new"),
        ({"hidden_size": 10**12}, "hidden_size=1000000000000 is more than"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is more than 1024"),
        ({"num_hidden_layers": 1000}, r"holds 46 tensors, too few for num_hidden_layers=1000"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps=nan is not in"),
        ({"vocab_size": None}, "vocab_size=None"),
        ({"is_decoder": True}, "is_decoder=True is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not supported"),
        ({"architectures": ["BertLMHeadModel"]}, "architectures 'BertLMHeadModel' is not known; known: BertModel, .*head='enc"),
        ({"architectures": "BertModel"}, "architectures"),
        ({"architectures": ["RobertaForMaskedLM"]}, "'RobertaForMaskedLM' is not known"),
    ],
)
def test_a_config_of_no_known_model_is_refused(tmp_path, changes, match):
    refused(write(tmp_path, config=config_json(**changes)), match)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"num_labels": 3, "id2label": {"0": "no", "1": "yes"}}, "num_labels=3, but id2label names 2: no, yes; correct one"),
        ({"id2label": {"0": "no", "2": "yes"}}, r"id2label has the ids \[0, 2\]; expected 0 to 1"),
        ({"id2label": {"1": "no", "2": "yes"}}, r"id2label has the ids \[1, 2\]"),
        ({"id2label": {"zero": "no"}}, "id2label is .'zero': 'no'.; expected an object of ids and names"),
        ({"id2label": ["no", "yes"]}, "id2label is"),
        ({"id2label": {}}, "id2label"),
        ({"id2label": ..., "num_labels": "2"}, "num_labels='2'"),
        ({"id2label": ..., "num_labels": 0}, "num_labels=0"),
        ({"id2label": ..., "num_labels": 10**10}, "num_labels=10000000000; expected a number of classes, at most 100000"),
        ({"id2label": {"0": "a", "1": "b"}, "problem_type": "ranking"}, "problem_type='ranking'.*known: single_label"),
    ],
)
def test_labels_that_contradict_each_other_are_refused(tmp_path, changes, match):
    tensors = tensors_of(head="sequence_classification", num_labels=2)
    refused(write(tmp_path, tensors, config_json(**LABELLED | changes)), match)


def test_labels_without_names_are_numbered(tmp_path):
    tensors = tensors_of(head="sequence_classification", num_labels=3)
    assert load(write(tmp_path, tensors, config_json(**LABELLED, num_labels=3))).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert load(write(tmp_path, tensors, config_json(**LABELLED))).labels == ("LABEL_0", "LABEL_1", "LABEL_2")  # by the tensor
    two = config_json(**LABELLED, num_labels=2)
    refused(write(tmp_path, tensors, two), r"classifier\.weight is \[3, 32\], which does not fit")


@pytest.mark.parametrize(
    "options, match",
    [
        ({"head": "masked-lm"}, "no head 'masked-lm'; did you mean 'masked_lm'.; known: encoder, masked_lm, "),
        ({"head": "replaced_token"}, "Bert has no head 'replaced_token'.*it has encoder, "),
        ({"labels": ["a", "b"]}, "labels.*'pretraining'"),
        ({"head": "token_classification", "labels": "abc"}, "labels='abc'"),
        ({"head": "token_classification", "labels": []}, r"labels=\[\]"),
        ({"head": "token_classification", "labels": ["a", "b", "a"]}, "name 'a' twice"),
    ],
)
def test_options_that_the_model_does_not_have_are_refused(tmp_path, options, match):
    with pytest.raises(InputError, match=match):
        load(write(tmp_path), **options)


@pytest.mark.parametrize(
    "changes, lines",
    [
        ({"vocab_size": 281}, [rf"{TABLE} is \[280, 32\], which does not fit encoder/embeddings/\S+ \[281, 32\]"]),
        ({"intermediate_size": 65}, [r"layer\.0\.intermediate\.dense\.weight is \[64, 32\].*\[32, 65\]"]),
        ({"max_position_embeddings": 32}, [r"position_embeddings\.weight is \[64, 32\]"]),
        ({"num_hidden_layers": 1}, ["tensors of 2 layers, but num_hidden_layers=1", r"no place for the tensor bert\."]),
        ({"num_hidden_layers": 3}, [r"no tensor bert\.encoder\.layer\.2\.\S+ for encoder/layer_2/"]),
        ({"type_vocab_size": 1}, [r"token_type_embeddings\.weight is \[2, 32\]"]),
    ],
)  # fmt: skip
def test_shapes_against_the_config_are_refused_with_both_sides(tmp_path, changes, lines):
    message = refused(write(tmp_path, config=config_json(**changes)), r"model\.safetensors does not hold this model:")
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    for line in lines:
        assert caught.match(line), message


def test_a_missing_tensor_of_the_encoder_is_refused(tmp_path):
    tensors = tensors_of()
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    refused(
        write(tmp_path, tensors), r"no tensor bert\.encoder\.layer\.1\.output\.dense\.bias for encoder/layer_1/mlp/output/bias"
    )


def test_a_strange_tensor_in_the_encoder_is_refused(tmp_path):
    refused(write(tmp_path, tensors_of() | {"bert.encoder.gate.weight": np.ones(3, np.float32)}), r"bert\.encoder\.gate\.weight")


def test_a_directory_without_weights_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, r"has no weights: none of model\.safetensors .*pytorch_model\.bin.*TensorFlow checkpoint$")


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize(
    "file, what",
    [
        ("tf_model.h5", "Keras weights.*from_tf=True"), ("onnx/model.onnx", "a graph to be run"), ("rust_model.ot", "rust-bert"),
        ("epoch=3.ckpt", "Lightning"), ("best.pt", r"rename it pytorch_model\.bin"),
        ("adapter_model.safetensors", "adapter of PEFT"), ("bert.safetensors", r"rename it model\.safetensors"),
    ],
)  # fmt: skip
def test_weights_that_are_not_read_are_named_where_there_are_no_others(tmp_path, file, what, config):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    for name in (file, "training_args.bin", "optimizer.pt"):
        (tmp_path / name).touch()
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config_json()))
    refused(tmp_path, rf"{'has no weights' if config else 'has no config.json'}.*; it has {file}, which is not read \(.*{what}")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_])
def test_tensors_of_integers_are_refused(tmp_path, dtype):
    name = "bert.encoder.layer.1.output.dense.weight"
    tensors = tensors_of() | {name: np.ones((32, 64), dtype)}
    refused(write(tmp_path, tensors), rf"{name} is of {np.dtype(dtype)}, as quantized files have it")


@pytest.mark.parametrize(
    "kind, file",
    [("safetensors", "model-00002-of-00003.safetensors"), ("bin", "pytorch_model-00002-of-00003.bin")],
)
def test_a_missing_shard_is_named(tmp_path, kind, file):
    write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write_shards(tmp_path, tensors_of(), kind)
    (tmp_path / file).unlink()
    refused(tmp_path, rf"index\.json names {file}, which is missing")


@pytest.mark.parametrize(
    "index, match",
    [
        ("{", "index.json is not JSON"),
        ("[]", "index.json holds a list"),
        ("{}", "is not an index of shards"),
        ('{"weight_map": ["a"]}', "is not an index of shards"),
        ('{"weight_map": {"a": 3}}', "is not an index of shards"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', r"names \.\./secret\.safetensors, which is not a file beside it"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "names /etc/passwd, which is not a file beside it"),
        ('{"weight_map": {"a": ".."}}', r"names \.\., which is"),
        ('{"weight_map": {"a": ""}}', "names , which is"),
        (
            '{"weight_map": {"absent.weight": "one.safetensors"}}',
            "says that absent.weight is in one.safetensors, which lacks it: fetch both again",
        ),
    ],
)
def test_an_index_of_no_shards_is_refused(tmp_path, index, match):
    folder = write(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    shutil.copy(folder / "one.safetensors", tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    refused(folder, match)


@pytest.mark.parametrize("size", [0, 4, 8, 100, 5000, -1])
def test_safetensors_cut_short_are_refused(tmp_path, size):
    write(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:size])
    refused(tmp_path, r"model\.safetensors is damaged")


def test_weights_of_a_type_that_is_not_known_are_refused(tmp_path):
    write(tmp_path)
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    refused(tmp_path, "w is of type F8_E4M3; known: F32")


def test_a_bin_with_code_is_refused_and_not_run(tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    code = Call("os system", f"touch {tmp_path / 'was_here'}")
    (tmp_path / "pytorch_model.bin").write_bytes(dumps({"w": code}))
    message = refused(tmp_path, "pytorch_model.bin")
    assert "os.system" in message
    assert not (tmp_path / "was_here").exists()


def test_modules_of_sentence_transformers_that_are_not_known_are_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.CNN", "path": "2_CNN"}]')
    model = load(tmp_path)  # for all else the model is as good
    assert model.encode(model.params, np.ones((1, 3), np.int32)).shape == (1, 3, 32)
    model = dataclasses.replace(model, tokenizer=SimpleNamespace(pair=()))
    with pytest.raises(InputError, match=r"CNN modules are not supported.*Embedder"):
        bert_jax.Embedder(model)
