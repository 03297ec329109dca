"""Pretrained models are read from every kind of file, and written again."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
from pretrained_files import (
    DECODER,
    LABELLED,
    ROOT,
    TABLE,
    TINY,
    assert_params,
    config_json,
    family,
    flax_file,
    params_of,
    refused,
    start,
    tensors_of,
    write,
    write_shards,
)
from safetensors.numpy import load_file, save_file
from tf1_writer import write_tf1
from torch_writer import dumps, state

import bert_jax
from bert_jax import pretrained
from bert_jax.config import BertConfig, DataConfig, InputError, OptimConfig, TrainConfig, to_dict
from bert_jax.directory import LABELLED_HEADS
from bert_jax.finetuning.init_head import load_for_task
from bert_jax.formats import tensors as formats_tensors
from bert_jax.model import convert
from bert_jax.model.families import FAMILIES
from bert_jax.model.heads import Bert, initialize
from bert_jax.pooling import Pooling
from bert_jax.pretrained import Model, load, save


def as_flax(tensors):
    """Arrays as transformers' Flax models call and lay them, by the path in their tree."""
    arrays = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        table, norm = module.endswith("_embeddings"), "LayerNorm" in module or module.endswith("layer_norm")
        kind = leaf if leaf == "bias" else "embedding" if table else "scale" if norm else "kernel"
        arrays[f"{module}.{kind}".replace(".", "/")] = tensor.T.copy() if kind == "kernel" else tensor
    return arrays


# ---- files


@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy bin"])
@pytest.mark.parametrize("whole", [True, False])
def test_weights_are_read_from_every_kind_of_file(tmp_path, capsys, kind, whole):
    write(tmp_path)
    if kind != "safetensors" or not whole:
        (tmp_path / "model.safetensors").unlink()
    if not whole:
        write_shards(tmp_path, tensors_of(), kind.split()[-1])
    elif kind != "safetensors":
        content = dumps(state(tensors_of()), "legacy" if kind == "legacy bin" else "zip")
        (tmp_path / "pytorch_model.bin").write_bytes(content)
    model = load(tmp_path)
    assert (model.config, model.head, model.tokenizer, model.labels) == (TINY, "pretraining", None, ())
    assert_params(model.params, params_of(TINY, "pretraining"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("kind", ["msgpack", "msgpack in shards", "safetensors"])
def test_what_flax_models_of_transformers_saved_is_read(tmp_path, capsys, model_type, kind):
    cfg = family(model_type)
    for head in ("masked_lm", "encoder", "sequence_classification"):
        folder = tmp_path / head
        tensors = tensors_of(cfg, head, 2)
        arrays = as_flax(tensors)
        write(folder, {name.replace("/", "."): x for name, x in arrays.items()}, config_json(cfg, head))
        if kind != "safetensors":
            (folder / "model.safetensors").unlink()
        if kind == "msgpack":
            flax_file(arrays, folder / "flax_model.msgpack")
        elif kind == "msgpack in shards":
            write_shards(folder, arrays, "msgpack")
        assert_params(load(folder).params, params_of(cfg, head, 2))
    assert capsys.readouterr().err == ""


def test_safetensors_are_read_where_both_kinds_are_there(tmp_path):
    write(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not this one")
    assert_params(load(tmp_path).params, params_of(TINY, "pretraining"))


def as_tf1(tensors):
    """Variables as google-research/bert calls them."""
    variables = {}
    for name, tensor in tensors.items():
        module, leaf = name.rsplit(".", 1)
        module = module.replace(".", "/").replace("layer/", "layer_")
        if module.endswith("LayerNorm"):
            variable = f"{module}/{'gamma' if leaf == 'weight' else 'beta'}"
        elif module.endswith("_embeddings"):
            variable = module
        elif module == "cls/seq_relationship" or module == "cls/predictions":
            variable = f"{module}/output_{'weights' if leaf == 'weight' else 'bias'}"
        else:
            variable = f"{module}/{'kernel' if leaf == 'weight' else 'bias'}"
        variables[variable] = tensor.T if variable.endswith("/kernel") else tensor
    return variables


GOOGLE = {"attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 32,
          "initializer_range": 0.02, "intermediate_size": 64, "max_position_embeddings": 64, "num_attention_heads": 2,
          "num_hidden_layers": 2, "type_vocab_size": 2, "vocab_size": 280, "directionality": "bidi"}  # fmt: skip


def write_google(folder, variables):
    folder.mkdir(exist_ok=True)
    write_tf1(folder / "bert_model.ckpt", variables)
    (folder / "bert_config.json").write_text(json.dumps(GOOGLE))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(97 + i % 26) + str(i) for i in range(275))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def test_a_tensorflow_checkpoint_of_google_is_read(tmp_path, capsys):
    variables = as_tf1(tensors_of())
    assert "bert/encoder/layer_1/attention/output/LayerNorm/gamma" in variables
    moments = {f"{name}/adam_{m}": np.zeros_like(v) for name, v in variables.items() for m in "mv"}
    model = load(write_google(tmp_path, variables | moments | {"global_step": np.array(5)}))
    assert (model.config, model.head) == (TINY, "pretraining")
    assert model.tokenizer.vocab_size == 280
    assert_params(model.params, params_of(TINY, "pretraining"))
    assert capsys.readouterr().err == ""


SLOTS = [  # what optimizers call theirs
    ("BERTAdam", "BERTAdam_1"), ("AdamWeightDecayOptimizer", "AdamWeightDecayOptimizer_1"), ("lamb_m", "lamb_v"),
    ("Adam", "Adam_1"), ("ExponentialMovingAverage",), ("adam_m", "adam_m/ExponentialMovingAverage"),
]  # fmt: skip


@pytest.mark.parametrize("slots", SLOTS, ids=lambda slots: slots[-1])
def test_what_an_optimizer_adds_to_a_checkpoint_is_left_out_whatever_it_is_called(tmp_path, capsys, slots):
    variables = as_tf1(tensors_of())
    added = {f"{name}/{slot}": np.zeros_like(v) for name, v in variables.items() for slot in slots}
    added |= {"beta1_power": np.float32(0.9), "current_loss_scale": np.float32(1), "good_steps": np.array(5)}
    assert_params(load(write_google(tmp_path, variables | added)).params, params_of(TINY, "pretraining"))
    assert capsys.readouterr().err == ""


def test_a_tensorflow_checkpoint_of_the_bare_encoder_is_read(tmp_path, capsys):
    encoder = {n.removeprefix("bert/"): v for n, v in as_tf1(tensors_of()).items() if not n.startswith("cls/")}
    model = load(write_google(tmp_path, encoder))
    assert model.head == "encoder"
    assert_params(model.params["encoder"], params_of(TINY, "pretraining")["encoder"])
    assert_params(model.params["pooler"], params_of(TINY, "pretraining")["pooler"])
    assert capsys.readouterr().err == ""


def test_fine_tuned_tensorflow_classifiers_are_read(tmp_path):
    tensors = tensors_of(head="sequence_classification", num_labels=3)
    variables = as_tf1({name: x for name, x in tensors.items() if name.startswith("bert.")})
    variables |= {"output_weights": tensors["classifier.weight"], "output_bias": tensors["classifier.bias"]}
    model = load(write_google(tmp_path, variables), head="sequence_classification", labels=["a", "b", "c"])
    assert_params(model.params, params_of(TINY, "sequence_classification", 3))
    assert model.labels == ("a", "b", "c")


def test_a_model_saved_over_a_tensorflow_checkpoint_is_what_is_read_from_there(tmp_path):
    model = load(write_google(tmp_path, as_tf1(tensors_of())))
    changed = jax.tree.map(lambda x: x + 1, model.params)
    save(dataclasses.replace(model, params=changed), tmp_path)
    assert_params(load(tmp_path).params, changed)


def test_an_index_of_something_else_is_no_tensorflow_checkpoint(tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(dumps(state(tensors_of())))
    (tmp_path / "passages.index").write_bytes(b"IxFI")
    assert_params(load(tmp_path).params, params_of(TINY, "pretraining"))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_names_with_and_without_prefix_and_of_old_are_read(tmp_path, capsys, model_type):
    cfg = family(model_type)
    prefix = FAMILIES[model_type].prefix
    tensors = tensors_of(cfg, "encoder")
    assert not any(name.startswith(prefix) for name in tensors)
    with_prefix = {prefix + name: x for name, x in tensors.items()}
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
           for n, x in with_prefix.items()}  # fmt: skip
    for i, names in enumerate([tensors, with_prefix, old]):
        folder = write(tmp_path / str(i), names, config_json(cfg, "encoder"))
        assert_params(load(folder).params, params_of(cfg, "encoder"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "_forward_module.module.", "0.auto_model."])
@pytest.mark.parametrize("head", ["pretraining", "encoder"])
def test_what_stands_before_every_name_is_left_out(tmp_path, capsys, wrapper, head):
    tensors = {f"{wrapper}{name}": x for name, x in tensors_of(head=head).items()}
    model = load(write(tmp_path, tensors, config_json(architectures=...)))
    assert model.head == head
    assert_params(model.params, params_of(TINY, head))
    assert capsys.readouterr().err == ""


def test_buffers_of_positions_are_no_weights(tmp_path, capsys):
    write(tmp_path, tensors_of() | {"bert.embeddings.position_ids": np.arange(64)[None]})
    assert_params(load(tmp_path).params, params_of(TINY, "pretraining"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_other_types_become_float32(tmp_path, dtype):
    tensors = {name: x.astype(dtype) for name, x in tensors_of().items()}
    if dtype == np.float64:
        write(tmp_path, tensors)
    else:
        write(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        (tmp_path / "pytorch_model.bin").write_bytes(dumps(state(tensors)))
    expected = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params_of(TINY, "pretraining"))
    assert_params(load(tmp_path).params, expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_safetensors_become_float32(tmp_path, dtype):
    write(tmp_path, {name: x.astype(dtype) for name, x in tensors_of().items()}, config_json(dtype="float16"))
    expected = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params_of(TINY, "pretraining"))
    model = load(tmp_path)
    assert model.config == TINY  # computes in float32, whatever the file holds
    assert_params(model.params, expected)


def test_a_decoder_stored_beside_its_table_must_equal_it(tmp_path, capsys):
    tensors = tensors_of()
    tensors[DECODER], tensors["cls.predictions.decoder.bias"] = tensors[TABLE], tensors["cls.predictions.bias"]
    assert_params(load(write(tmp_path / "same", tensors)).params, params_of(TINY, "pretraining"))
    assert capsys.readouterr().err == ""
    tensors[DECODER] = tensors[DECODER] + 1
    refused(write(tmp_path / "other", tensors), f"{DECODER} differs from {TABLE}")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_output_layer_of_its_own_is_read_kept_and_used(tmp_path, capsys, model_type):
    cfg = family(model_type).replace(tie_word_embeddings=False)
    row = FAMILIES[model_type]
    [decoder] = [name for name in row.tied if name.endswith("weight")]
    tensors = tensors_of(cfg, "masked_lm")
    assert tensors[decoder].shape == tensors[row.tied[decoder]].shape
    assert np.abs(tensors[decoder] - tensors[row.tied[decoder]]).max() > 0.1
    bias = next((name for name in row.tied if name.endswith("bias")), None)
    if bias:  # transformers 5 uses this one, and leaves the other as it was
        tensors[row.tied[bias]] = np.zeros_like(tensors[bias])
    model = load(write(tmp_path / "a", tensors, config_json(cfg, "masked_lm")))
    assert (model.config, json.loads((tmp_path / "a" / "config.json").read_text())["tie_word_embeddings"]) == (cfg, False)
    assert_params(model.params, params_of(cfg, "masked_lm"))
    save(model, tmp_path / "b")
    assert_params(load(tmp_path / "b").params, params_of(cfg, "masked_lm"))
    assert capsys.readouterr().err == ""
    assert load(tmp_path / "b", head="encoder").config == cfg
    changed = dataclasses.replace(model, params=jax.tree.map(np.array, model.params))
    changed.params["masked_lm"]["decoder"]["embedding"][7] = 0
    before, after = (m.apply(m.params, {"input_ids": np.array([[5, 6]])})["masked_lm_logits"][0] for m in (model, changed))
    bias = model.params["masked_lm"].get("bias", np.zeros(cfg.vocab_size))
    np.testing.assert_allclose(after[:, 7], bias[7], atol=1e-6)
    np.testing.assert_array_equal(before[:, 8:], after[:, 8:])


def test_an_output_layer_of_its_own_that_is_not_there_is_random_and_said(tmp_path, capsys):
    model = load(write(tmp_path, config=config_json(tie_word_embeddings=False)))
    assert "no weights for masked_lm/decoder/embedding: freshly initialised" in capsys.readouterr().err
    assert list(model.untrained.initial) == ["masked_lm/decoder/embedding"]


def test_a_bias_that_is_stored_with_the_decoder_alone_is_read(tmp_path, capsys):
    tensors = tensors_of()
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    assert_params(load(write(tmp_path, tensors)).params, params_of(TINY, "pretraining"))
    assert capsys.readouterr().err == ""


def test_parts_that_the_file_lacks_are_initialised_and_said(tmp_path, capsys):
    encoder = {n: x for n, x in tensors_of().items() if n.startswith("bert.") and "pooler" not in n}
    folder = write(tmp_path, encoder, config_json(architectures=["BertForSequenceClassification"], id2label={"0": "a", "1": "b"}))
    model = load(folder)
    said = capsys.readouterr().err
    assert "model.safetensors" in said
    assert "freshly initialised" in said
    for path in ("pooler/dense/kernel", "pooler/dense/bias", "sequence_classifier/kernel", "sequence_classifier/bias"):
        assert path in said
    assert "encoder/" not in said
    assert model.labels == ("a", "b")
    assert_params(model.params["encoder"], params_of(TINY, "pretraining")["encoder"])
    assert model.params["sequence_classifier"]["kernel"].shape == (32, 2)
    assert 0.01 < np.std(model.params["pooler"]["dense"]["kernel"]) < 0.03
    assert not np.any(model.params["pooler"]["dense"]["bias"])
    again = load(folder)
    assert_params(again.params, jax.device_get(model.params))


@pytest.mark.parametrize(
    "head, predictor, random",
    [
        ("sequence_classification", "Classifier", "pooler/dense, sequence_classifier"),
        ("token_classification", "Tagger", "token_classifier"),
        ("question_answering", "Answerer", "span_classifier"),
        ("masked_lm", "FillMask", "masked_lm, masked_lm/dense, masked_lm/norm"),
    ],
)
def test_a_head_that_is_not_trained_warns_when_it_is_to_predict(tmp_path, tokenizer, capsys, head, predictor, random):
    strange = {f"{name}.{leaf}": np.ones(3, np.float32) for name in ("classifier.0", "score") for leaf in ("weight", "bias")}
    encoder = {n: x for n, x in tensors_of().items() if n.startswith("bert.") and "pooler" not in n}
    tokenizer.save(write(tmp_path, encoder | strange))
    options = {"max_question_length": 24} if predictor == "Answerer" else {}
    model, predictor = load(tmp_path, head=head), partial(getattr(bert_jax, predictor), **options)
    for _ in range(2):
        with pytest.warns(UserWarning, match=rf"model\.safetensors has no weights for {random}: they are random") as caught:
            predictor(model)
        assert "(there, and not used: classifier.0.*, score.*)" in str(caught[0].message)
    bert_jax.Embedder(model)  # reads no head
    trained = jax.tree.map(lambda x: x + 1, model.params)
    predictor(dataclasses.replace(model, params=trained))
    capsys.readouterr()
    save(model, tmp_path / "again")
    assert f"{tmp_path / 'again'}: " in (said := capsys.readouterr().err)
    assert "they are random" in said


def test_strange_tensors_beside_the_model_are_said(tmp_path, capsys):
    write(tmp_path, tensors_of() | {"sundial.weight": np.ones(3, np.float32)})
    load(tmp_path)
    assert "sundial.weight" in capsys.readouterr().err


def test_a_head_that_is_asked_for_is_read_instead_of_the_files(tmp_path, capsys):
    folder = write(tmp_path)
    assert load(folder, head="encoder").head == "encoder"
    assert capsys.readouterr().err == ""
    assert load(folder, head="token_classification", labels=["O", "B-X", "I-X"]).labels == ("O", "B-X", "I-X")
    assert "token_classifier/kernel" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["pretraining", "masked_lm", "encoder"])
def test_without_architectures_the_tensors_say_the_head(tmp_path, head):
    write(tmp_path, tensors_of(head=head), config_json(architectures=...))
    assert load(tmp_path).head == head


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_said(tmp_path, capsys, value):
    tensors = {name: x.copy() for name, x in tensors_of().items()}
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    tensors[name][3, 5] = value
    model = load(write(tmp_path, tensors))
    said = capsys.readouterr().err
    assert f"NaN or infinite weights in: {name} (1 tensors)" in said
    assert not np.isfinite(np.asarray(model.params["encoder"]["layer_1"]["mlp"]["intermediate"]["kernel"])[5, 3])


def test_the_path_may_be_relative_or_a_string(tmp_path, monkeypatch):
    write(tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert load("models/tiny").config == load("./models/tiny").config == load(Path("models/tiny")).config == TINY


@pytest.mark.parametrize(
    "config, reason",
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, '"tokenizer_class": "BertJapaneseTokenizer" cuts text by rules'),
        ({"mask_token": "<m>"}, r"no mask token \(<m>\)"),
    ],
)
def test_a_tokenizer_that_is_not_read_leaves_the_weights_readable_and_its_reason_to_who_needs_it(
    tmp_path, capsys, config, reason
):
    write(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    model = load(tmp_path)
    assert model.tokenizer is None
    assert re.search(f"no tokenizer, and so no predictions.*{reason}", capsys.readouterr().err)
    assert_params(model.params, params_of(TINY, "pretraining"))
    for make in (bert_jax.Embedder, bert_jax.FillMask):
        with pytest.raises(InputError, match=reason):
            make(model)
    with pytest.raises(InputError, match=reason):
        load_for_task(tmp_path, "sequence_classification", ("a", "b"), None, "auto")
    save(model, tmp_path / "saved")
    with pytest.raises(InputError, match=r"no tokenizer: put its tokenizer\.json"):
        bert_jax.Embedder(load(tmp_path / "saved"))


def test_special_tokens_are_read_but_after_fine_tuning_as_it_was_trained(tmp_path, tokenizer):
    save(Model(TINY, params_of(TINY, "encoder"), tokenizer, "encoder"), tmp_path)
    assert load(tmp_path).tokenizer.special_tokens == "read"
    assert load(tmp_path, special_tokens="text").tokenizer.special_tokens == "text"
    for asked, expected in (((), "text"), (("read",), "read")):
        start = load_for_task(tmp_path, "sequence_classification", ("a", "b"), None, "auto", *asked)
        assert start.model.tokenizer.special_tokens == expected
        save(dataclasses.replace(start.model, params=start.params(0)), tmp_path / expected)
        assert load(tmp_path / expected).tokenizer.special_tokens == expected
        assert (tokenizer.sep_id in load(tmp_path / expected).tokenizer.encode_batch(["a[SEP]b"])[0]) == (expected == "read")


def test_json_files_may_begin_with_a_byte_order_mark(tmp_path, tokenizer):
    tensors = tensors_of()
    save(Model(TINY, params_of(TINY, "encoder"), tokenizer, "encoder", pooling=Pooling("cls", max_length=24)), tmp_path)
    before = load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write_shards(tmp_path, tensors, "safetensors")
    for file in [*tmp_path.glob("*.json"), *tmp_path.glob("*/*.json")]:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    model = load(tmp_path)
    assert model.tokenizer.fingerprint() == tokenizer.fingerprint()
    assert (model.pooling, model.tuned, model.config) == (before.pooling, before.tuned, before.config)


def test_both_lists_of_names_are_shown_where_none_fits(tmp_path):
    message = refused(
        write(tmp_path, {f"{i % 2}.{name}": x for i, (name, x) in enumerate(tensors_of().items())}), "no tensor bert"
    )
    assert "no place for the tensor 0." in message


def test_a_missing_table_of_token_types_is_zeros_and_said(tmp_path, capsys):
    tensors = tensors_of()
    del tensors["bert.embeddings.token_type_embeddings.weight"]
    model = load(write(tmp_path, tensors))
    assert not np.any(model.params["encoder"]["embeddings"]["token_type_embeddings"]["embedding"])
    assert "no table of token types" in capsys.readouterr().err


def test_an_output_bias_of_its_own_counts_and_is_said(tmp_path, capsys):
    tensors = tensors_of()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"] + 1
    model = load(write(tmp_path, tensors))
    np.testing.assert_array_equal(model.params["masked_lm"]["bias"], tensors["cls.predictions.decoder.bias"])
    assert "cls.predictions.decoder.bias differs from cls.predictions.bias" in capsys.readouterr().err


def test_an_untied_output_layer_does_not_matter_to_another_head(tmp_path):
    tensors = tensors_of()
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"] + 1
    refused(write(tmp_path, tensors), "to which this model ties it")
    assert load(tmp_path, head="encoder").head == "encoder"


def test_keys_that_mean_nothing_in_a_family_are_passed_over(tmp_path):
    config = config_json(embedding_size=7, num_hidden_groups=3, summary_type="last", sinusoidal_pos_embds=True)
    assert load(write(tmp_path, config=config)).config == load(write(tmp_path / "plain")).config


@pytest.mark.parametrize("head, prefix", [("question_answering", ""), ("sequence_classification", "has a classifier")])
def test_a_head_is_told_from_its_tensors_where_config_json_says_none(tmp_path, capsys, head, prefix):
    config = config_json()
    del config["architectures"]
    model = load(write(tmp_path, tensors_of(head=head, num_labels=2), config))
    assert model.head == ("encoder" if prefix else head)
    assert prefix in capsys.readouterr().err


@pytest.mark.parametrize("key", ["new", "old"])
def test_what_a_cross_encoder_puts_behind_its_value_is_kept(tmp_path, key):
    path = "torch.nn.modules.activation.Sigmoid"
    keys = {"new": {"sentence_transformers": {"activation_fn": path}}, "old": {"sbert_ce_default_activation_function": path}}
    tensors = tensors_of(head="sequence_classification", num_labels=1)
    model = load(write(tmp_path / "theirs", tensors, config_json(**LABELLED, num_labels=1, **keys[key])))
    bert_jax.save(model, tmp_path / "ours")
    assert load(tmp_path / "ours").activation == model.activation == path


def test_the_activation_that_the_installed_cross_encoder_writes_is_kept(tmp_path):
    path = "torch.nn.modules.activation.Tanh"
    write(tmp_path / "theirs", tensors_of(head="sequence_classification", num_labels=1), config_json(**LABELLED, num_labels=1))
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
        ],
        "config_sentence_transformers.json": {"model_type": "CrossEncoder", "activation_fn": path, "prompts": {}},
    }
    for name, content in files.items():
        (tmp_path / "theirs" / name).write_text(json.dumps(content))
    model = load(tmp_path / "theirs")
    assert (model.activation, model.pooling) == (path, None)
    bert_jax.save(model, tmp_path / "ours")
    assert load(tmp_path / "ours").activation == path


def test_an_encoder_in_a_folder_that_modules_json_names_is_read(tmp_path, tokenizer):
    tokenizer.save(write(tmp_path / "0_Transformer"))
    types = {"0_Transformer": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in types.items()]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "0_Transformer" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    assert load(tmp_path).pooling == Pooling("mean", False, 24)
    assert start(tmp_path, (), head="encoder").model.pooling == Pooling("mean", False, 24)


def test_modules_that_are_not_supported_do_not_keep_the_weights_but_are_not_lost_in_silence(tmp_path):
    write(tmp_path)
    module = {"path": "1_LSTM", "type": "sentence_transformers.models.LSTM"}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    model = load(tmp_path)
    assert model.pooling.endswith("LSTM modules are not supported; known: Transformer, Pooling, Dense, Normalize")
    with pytest.raises(InputError, match=r"LSTM modules are not supported.*to write the model without it"):
        bert_jax.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    bert_jax.save(dataclasses.replace(model, pooling=None), tmp_path / "out")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_weights_have_the_permissions_of_their_siblings(tmp_path, umask):
    model, before = load(write(tmp_path / "a")), os.umask(umask)
    try:
        bert_jax.save(model, tmp_path / "b")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "b").iterdir()}
    assert modes == {"config.json": 0o666 & ~umask, "model.safetensors": 0o666 & ~umask}


def test_dense_layers_and_the_modules_of_a_router_are_fetched_from_the_hub(tmp_path, monkeypatch):
    there = write(tmp_path / "there")
    fetched = []

    def snapshot(name, allow_patterns):
        fetched.extend(allow_patterns)
        return there

    for path, kind in {"": "Transformer", "1_Pooling": "Pooling", "2_Dense_1024": "Dense"}.items():
        fetched.append({"path": path, "type": f"sentence_transformers.models.{kind}"})
    (there / "modules.json").write_text(json.dumps(fetched))
    fetched.clear()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    load("maker/dense")
    assert {"2_Dense_1024/model*.safetensors", "2_Dense_1024/pytorch_model*.bin"} < set(fetched)
    assert not any(pattern.startswith(("1_Pooling/", "./")) for pattern in fetched)
    types = {f"{i}_{kind}": f"sentence_transformers.sparse_encoder.models.{kind}"
             for i, kind in enumerate(("SparseStaticEmbedding", "MLMTransformer", "SpladePooling"))}  # fmt: skip
    lookup, *encoder = types
    (there / "router_config.json").write_text(json.dumps({"types": types, "structure": {"query": [lookup], "document": encoder}}))
    (there / "modules.json").write_text(json.dumps([{"path": "", "type": "sentence_transformers.models.Router"}]))
    fetched.clear()
    load("maker/sparse")
    assert {f"{folder}/model*.safetensors" for folder in (lookup, encoder[0])} < set(fetched)
    assert not any(pattern.startswith((f"{encoder[1]}/", "./")) for pattern in fetched)


def test_a_save_without_pooling_leaves_none_of_the_model_that_was_there(tmp_path):
    model = load(write(tmp_path / "a"))
    bert_jax.save(dataclasses.replace(model, pooling=bert_jax.Pooling()), tmp_path / "b")
    assert load(tmp_path / "b").pooling
    bert_jax.save(model, tmp_path / "b")
    assert load(tmp_path / "b").pooling is None


def test_conversion_says_where_each_tensor_came_from_and_what_was_left_out(tmp_path):
    write(tmp_path / "in")
    lines = pretrained.convert_directory(tmp_path / "in", tmp_path / "out", "masked_lm", True)
    table = "bert.embeddings.word_embeddings.weight"
    assert f"  {table} -> {table} [280, 32]" in lines
    assert any(line.startswith("left out") and "cls.seq_relationship.weight" in line for line in lines)
    assert lines[-1] == f"wrote {tmp_path / 'out'}"


# ---- work directories


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tokenizer):
    """What train.py leaves of a run of three steps, and the parameters of its last checkpoint."""
    from bert_jax.training import checkpoint, optim, steps

    folder = tmp_path_factory.mktemp("run")
    cfg = TrainConfig(model=TINY, data=DataConfig(max_seq_length=64), optim=OptimConfig(warmup_steps=1), num_steps=3)
    (folder / "config.json").write_text(json.dumps(to_dict(cfg)))
    tokenizer.save(folder / "tokenizer")
    saver = checkpoint.Checkpointer(folder / "checkpoints")
    for step in (1, 3):
        params = jax.tree.map(lambda x, step=step: jax.numpy.asarray(x * step), params_of(TINY, "masked_lm"))
        saver.save(step, steps.init_state(params, optim.make_optimizer(cfg.optim)), {})
    saver.close()
    return folder


def test_a_work_directory_gives_the_model_of_its_newest_checkpoint(workdir, capsys):
    before = sorted(workdir.rglob("*"))
    model = load(workdir)
    assert (model.head, model.config) == ("masked_lm", TINY)
    assert_params(model.params, jax.tree.map(lambda x: x * 3, params_of(TINY, "masked_lm")))
    assert model.tokenizer.vocab_size == 280
    assert capsys.readouterr().err == f"step 3 of {workdir}\n"
    assert sorted(workdir.rglob("*")) == before


def test_a_work_directory_gives_another_head_where_asked(workdir, capsys):
    model = load(workdir, head="sequence_classification", labels=["no", "yes"])
    assert (model.head, model.labels) == ("sequence_classification", ("no", "yes"))
    assert_params(model.params["encoder"], jax.tree.map(lambda x: x * 3, params_of(TINY, "masked_lm")["encoder"]))
    assert model.params["sequence_classifier"]["kernel"].shape == (32, 2)
    assert "sequence_classifier/kernel" in capsys.readouterr().err
    with pytest.raises(InputError, match="no head 'masked-lm'; did you mean"):
        load(workdir, head="masked-lm")


@pytest.mark.parametrize(
    "content, match", [(None, r"no config\.json"), ("{", r"config\.json is not JSON"), ("[]", r"config\.json")]
)
def test_a_work_directory_with_a_broken_config_is_refused(tmp_path, content, match):
    (tmp_path / "checkpoints").mkdir()
    if content:
        (tmp_path / "config.json").write_text(content)
    refused(tmp_path, match)


def test_a_work_directory_without_checkpoint_is_refused(tmp_path, workdir):
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(workdir / "config.json", tmp_path)
    refused(tmp_path, "has no checkpoint yet")


# ---- writing


def labelled(head, tokenizer, **more):
    labels = ("O", "B-PER", "I-PER")
    return Model(TINY, params_of(TINY, head, 3), tokenizer, head, labels, **more)


def round_trips(tokenizer):
    yield labelled("token_classification", tokenizer)
    for problem in ("single_label_classification", "multi_label_classification", "regression", None):
        yield labelled("sequence_classification", tokenizer, problem_type=problem)
    yield Model(TINY, params_of(TINY, "encoder"), tokenizer, "encoder", pooling=Pooling("cls", False, 48, True))
    yield Model(TINY, params_of(TINY, "encoder"), tokenizer, "encoder", pooling=Pooling("max", True, 64, False))
    for model_type in FAMILIES:
        cfg = family(model_type)
        head = next(head for head in FAMILIES[model_type].heads if head not in ("encoder", *LABELLED_HEADS))
        yield Model(cfg, params_of(cfg, head), None, head)


def test_a_round_trip_keeps_every_bit_and_name(tmp_path, tokenizer, capsys):
    for i, model in enumerate(round_trips(tokenizer)):
        save(model, tmp_path / str(i) / "new")
        again = load(tmp_path / str(i) / "new")
        for name in ("config", "head", "labels", "problem_type", "pooling"):
            assert getattr(again, name) == getattr(model, name), (i, name)
        assert_params(again.params, model.params)
        assert (again.tokenizer is None) == (model.tokenizer is None)
        assert again.tokenizer is None or again.tokenizer.fingerprint() == tokenizer.fingerprint()
        save(again, tmp_path / "again")
        first, second = (tmp_path / str(i) / "new", tmp_path / "again")
        for file in ("model.safetensors", "config.json"):
            assert (first / file).read_bytes() == (second / file).read_bytes()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("model_type", "given"), [("bert", ["token_type_ids"]), ("modernbert", []), ("distilbert", [])])
def test_a_tokenizer_gives_token_types_to_models_that_take_them_alone(tmp_path, tokenizer, model_type, given):
    cfg = family(model_type)
    save(Model(cfg, params_of(cfg, "masked_lm"), tokenizer), tmp_path)
    names = json.loads((tmp_path / "tokenizer_config.json").read_text())["model_input_names"]
    assert names == ["input_ids", *given, "attention_mask"]


@pytest.mark.parametrize(
    ("model_type", "keys"), [("modernbert", ("cls_token_id", "sep_token_id")), ("eurobert", ("bos_token_id", "eos_token_id"))]
)
def test_a_config_names_the_special_tokens_of_its_tokenizer(tmp_path, tokenizer, model_type, keys):
    """The defaults of these families are ids of their own, large vocabularies."""
    cfg = family(model_type)
    save(Model(cfg, params_of(cfg, "masked_lm"), tokenizer), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert [config[key] for key in (*keys, "pad_token_id")] == [tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id]


def test_a_saved_directory_has_the_files_that_others_read_and_no_others(tmp_path, tokenizer):
    save(labelled("sequence_classification", tokenizer, problem_type="multi_label_classification"), tmp_path)
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in tmp_path.iterdir()} == files
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "O", "1": "B-PER", "2": "I-PER"}
    assert config["label2id"] == {"O": 0, "B-PER": 1, "I-PER": 2}
    assert config["problem_type"] == "multi_label_classification"
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["classifier.weight"].shape == (3, 32)
    assert {"bert.pooler.dense.weight", "bert.encoder.layer.0.attention.self.query.bias", TABLE} < set(tensors)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"cannot write the model to .*{place}"):
        save(Model(TINY, params_of(TINY, "encoder"), None, "encoder"), tmp_path / place)


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    model = Model(TINY, params_of(TINY, "encoder"), None, "encoder")
    save(model, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats_tensors, "save_file", full)
    with pytest.raises(InputError, match="No space left"):
        save(dataclasses.replace(model, params=jax.tree.map(lambda x: x + 1, model.params)), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# ---- what it costs


def run(code, *arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loading_and_predicting_import_neither_torch_nor_tensorflow_nor_transformers(tmp_path, tokenizer):
    save(Model(TINY, params_of(TINY, "masked_lm"), tokenizer), tmp_path)
    out = run(
        """if True:
        import sys
        import bert_jax
        assert len(bert_jax.FillMask(bert_jax.load(sys.argv[1]))(["a [MASK] b"])[0]) == 5
        print(*{name.split(".")[0] for name in sys.modules})
        """,
        tmp_path,
    )
    assert {"jax", "flax", "tokenizers"} <= set(out.split())
    assert not {"torch", "tensorflow", "transformers", "optax", "orbax", "huggingface_hub"} & set(out.split())


MEASURE = """if True:
    import sys, resource
    import bert_jax, jax, safetensors, flax
    from bert_jax import pretrained, load
    jax.devices()
    jax.block_until_ready(jax.numpy.ones(3) + 1)

    def kilobytes(what):
        return int(open("/proc/self/status").read().split(what + ":")[1].split()[0])

    before = kilobytes("VmRSS")
    model = load(sys.argv[1])
    jax.block_until_ready(model.params)
    print(kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("kind", ["safetensors", pytest.param("bin", marks=pytest.mark.slow)])
def test_a_load_takes_less_than_twice_and_a_bit_the_file(tmp_path, kind):
    cfg = BertConfig(vocab_size=60_000, hidden_size=1024, num_hidden_layers=4, num_attention_heads=16, intermediate_size=4096)
    shapes = jax.eval_shape(lambda: initialize(Bert(cfg, "encoder"), 0))
    noise = np.random.default_rng(0).standard_normal(cfg.vocab_size * cfg.hidden_size, np.float32)
    tensors = {
        name: noise[: x.size].reshape(x.shape)
        for name, x in convert.to_hugging_face(
            jax.tree.map(lambda x: np.broadcast_to(0, x.shape), shapes), cfg, "encoder"
        ).items()
    }
    (tmp_path / "config.json").write_text(json.dumps(config_json(cfg, "encoder")))
    if kind == "safetensors":
        path = tmp_path / "model.safetensors"
        save_file(tensors, path)
    else:
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(dumps(state(tensors)))
    size = path.stat().st_size
    assert size > 400e6
    peak = int(run(MEASURE, tmp_path)) * 1024
    print(f"{kind}: {peak / size:.2f} times the file of {size / 1e6:.0f} MB")
    path.unlink()
    assert peak < 2.2 * size


def test_everything_public_is_there():
    assert all(getattr(bert_jax, name) for name in bert_jax.__all__)


def test_parameters_of_another_model_are_not_written(tmp_path):
    model = Model(TINY, params_of(TINY, "masked_lm"), None)
    wrong = {
        "encoder/layer_1/.*: .*, expected no such parameter": dict(config=TINY.replace(num_hidden_layers=1)),
        r"masked_lm/bias: \(280,\), expected no such parameter": dict(head="encoder"),
        r"word_embeddings/embedding: \(280, 32\), expected \(281, 32\)": dict(config=TINY.replace(vocab_size=281)),
        "missing, expected": dict(params={"encoder": {}}),
    }
    for match, change in wrong.items():
        with pytest.raises(InputError, match=match):
            save(dataclasses.replace(model, **change), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "model_type, fix", [("roberta", ", or give a new model pad_token_id=0$"), ("mpnet", "the family's own tokenizer$")]
)
def test_a_padding_id_that_positions_do_not_count_from_is_refused_with_what_helps_this_family(model_type, fix):
    cfg = BertConfig.of_family(model_type)
    with pytest.raises(InputError, match=rf"model_type='{model_type}' needs .* has id 1; this one's has 0: give .*{fix}"):
        pretrained.check_padding(cfg, SimpleNamespace(pad_id=0))
    pretrained.check_padding(BertConfig.of_family("modernbert"), SimpleNamespace(pad_id=0))
