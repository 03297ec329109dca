"""Pretraining models and Hugging Face's: what one saves the other loads, and both compute the same."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from bert_jax.config import BertConfig, InputError
from bert_jax.model import convert
from bert_jax.model.heads import Bert

CFG = BertConfig(
    vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80, max_position_embeddings=24,
    type_vocab_size=3, hidden_act="gelu_new", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2, layer_norm_eps=1e-7,
)  # fmt: skip
B, L, LENGTHS = 3, 16, [16, 9, 4]
ARCHITECTURES = ["BertForMaskedLM", "BertForPreTraining"]

pytestmark = pytest.mark.parity


def model_of(architecture: str, cfg: BertConfig = CFG) -> BertForPreTraining:
    return BertForPreTraining(cfg, next_sentence=architecture == "BertForPreTraining")


def make_inputs(seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A padded batch with every position a prediction slot, and its attention mask."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(L) < np.array(LENGTHS)[:, None]).astype(np.int32)
    batch = {
        "input_ids": rng.integers(1, CFG.vocab_size, (B, L)) * mask,
        "token_type_ids": rng.integers(0, CFG.type_vocab_size, (B, L)) * mask,
        "position_ids": np.tile(np.arange(L), (B, 1)),
        "sequence_ids": mask,
        "masked_positions": np.tile(np.arange(L), (B, 1)),
    }
    return {name: values.astype(np.int32) for name, values in batch.items()}, mask


def like(architecture: str, cfg: BertConfig = CFG) -> dict:
    return jax.eval_shape(model_of(architecture, cfg).init, jax.random.key(0), make_inputs()[0])["params"]


def random_params(architecture: str) -> dict:
    """Far from initial values, biases and scales too, so that a missed or swapped tensor shows."""
    rng = np.random.default_rng(3)
    flat = convert.flatten(like(architecture))
    return convert.unflatten(
        {p: (rng.normal(0, 0.2, leaf.shape) + p.endswith("/scale")).astype(np.float32) for p, leaf in flat.items()}
    )


def our_logits(params: dict, architecture: str, cfg: BertConfig = CFG) -> dict[str, np.ndarray]:
    batch, _ = make_inputs()
    return jax.device_get(jax.jit(model_of(architecture, cfg).apply)({"params": params}, batch))


def their_logits(model) -> dict[str, np.ndarray]:
    import torch

    batch, mask = make_inputs()
    tensors = {name: torch.from_numpy(batch[name]).long() for name in ("input_ids", "token_type_ids")}
    with torch.no_grad():
        outputs = model.eval()(**tensors, attention_mask=torch.from_numpy(mask).long())
    if "seq_relationship_logits" not in outputs:
        return {"masked_lm_logits": outputs.logits.numpy()}
    return {
        "masked_lm_logits": outputs.prediction_logits.numpy(),
        "next_sentence_logits": outputs.seq_relationship_logits.numpy(),
    }


def assert_same_logits(ours: dict, theirs: dict) -> None:
    assert set(ours) == set(theirs)
    real = make_inputs()[1] > 0
    np.testing.assert_allclose(ours["masked_lm_logits"][real], theirs["masked_lm_logits"][real], atol=1e-4, rtol=0)
    assert np.abs(ours["masked_lm_logits"]).max() > 1  # or the tolerance would say little
    if "next_sentence_logits" in ours:
        np.testing.assert_allclose(ours["next_sentence_logits"], theirs["next_sentence_logits"], atol=1e-4, rtol=0)


def save_ours(directory: Path, architecture: str, cfg: BertConfig = CFG) -> dict:
    params = random_params(architecture)
    convert.save_pretrained(directory, cfg, params, architecture, pad_id=0)
    return params


def load_ours(directory: Path) -> tuple[BertConfig, str, dict, list[str]]:
    cfg, architecture = convert.load_config(directory)
    tensors = convert.load_tensors(directory)
    return cfg, architecture, *convert.from_hugging_face(tensors, like(architecture, cfg), cfg, str(directory))


def save_theirs(directory: Path, architecture: str, **changes):
    """A randomly initialised transformers model, with biases and norms that are not 0 and 1; returns it."""
    import torch
    import transformers

    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
             "max_position_embeddings", "type_vocab_size", "layer_norm_eps")  # fmt: skip
    config = transformers.BertConfig(**{name: getattr(CFG, name) for name in names} | changes)
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return model


def load_theirs(directory: Path):
    """The model in the class that config.json names, and what transformers says of the keys."""
    import transformers

    [name] = json.loads((directory / "config.json").read_text())["architectures"]
    return getattr(transformers, name).from_pretrained(directory, output_loading_info=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("how", [{}, dict(dtype="bfloat16", scan_layers=True, remat=True)], ids=["plain", "as trained on TPUs"])
def test_transformers_loads_what_we_save_key_by_key(architecture: str, how: dict, tmp_path: Path) -> None:
    params = save_ours(tmp_path, architecture, CFG.replace(**how))
    model, report = load_theirs(tmp_path)
    assert type(model).__name__ == architecture
    assert {name: keys for name, keys in report.items() if keys} == {}
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= set(report)
    assert str(model.dtype) == "torch.float32"
    assert_same_logits(our_logits(params, architecture), their_logits(model))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_reads_our_config_as_it_is_meant(architecture: str, tmp_path: Path) -> None:
    import transformers

    convert.save_pretrained(tmp_path, CFG, random_params(architecture), architecture, pad_id=5)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(config) is transformers.BertConfig
    assert config.pad_token_id == 5
    assert config.architectures == [architecture]
    for name, value in vars(CFG).items():
        if name not in ("dtype", "remat", "scan_layers"):
            assert getattr(config, name) == value, name


def test_an_auto_model_misses_the_pooler_at_most(tmp_path: Path) -> None:
    import transformers

    save_ours(tmp_path, "BertForMaskedLM")
    model, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert all(key.startswith("cls.") for key in report["unexpected_keys"])
    assert not report["mismatched_keys"]
    assert type(model).__name__ == "BertModel"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_are_those_of_transformers(architecture: str, tmp_path: Path) -> None:
    import torch

    from bert_jax.model.encoder import Encoder

    params = save_ours(tmp_path, architecture)
    model, _ = load_theirs(tmp_path)
    batch, mask = make_inputs()
    tensors = {name: torch.from_numpy(batch[name]).long() for name in ("input_ids", "token_type_ids")}
    with torch.no_grad():
        theirs = model.eval()(**tensors, attention_mask=torch.from_numpy(mask).long(), output_hidden_states=True).hidden_states
    inputs = [batch[name] for name in ("input_ids", "token_type_ids", "position_ids", "sequence_ids")]
    apply = jax.jit(partial(Encoder(CFG).apply, output_hidden_states=True))
    ours = apply({"params": params["encoder"]}, *inputs)["hidden_states"]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a[mask > 0], b.numpy()[mask > 0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_we_load_what_transformers_saves(architecture: str, act: str, tmp_path: Path) -> None:
    model = save_theirs(tmp_path, architecture, hidden_act=act)
    cfg, named, params, missing = load_ours(tmp_path)
    assert (named, missing) == (architecture, [])
    assert cfg == CFG.replace(hidden_act=act, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    assert_same_logits(our_logits(params, architecture, cfg), their_logits(model))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_and_loaded_parameters_are_bit_equal(architecture: str, tmp_path: Path) -> None:
    params = save_ours(tmp_path, architecture)
    cfg, named, again, missing = load_ours(tmp_path)
    assert (cfg, named, missing) == (CFG, architecture, [])
    assert jax.tree.structure(params) == jax.tree.structure(again)
    for path, leaf in convert.flatten(params).items():
        assert convert.flatten(again)[path].dtype == np.float32
        np.testing.assert_array_equal(convert.flatten(again)[path], leaf, err_msg=path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_their_tensors_are_bit_equal_after_a_round_trip_through_us(architecture: str, tmp_path: Path) -> None:
    save_theirs(tmp_path / "theirs", architecture)
    cfg, _, params, _ = load_ours(tmp_path / "theirs")
    convert.save_pretrained(tmp_path / "ours", cfg, params, architecture, pad_id=0)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert set(before) == set(after)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_our_parameters_are_bit_equal_after_a_round_trip_through_transformers(architecture: str, tmp_path: Path) -> None:
    params = save_ours(tmp_path / "ours", architecture)
    load_theirs(tmp_path / "ours")[0].save_pretrained(tmp_path / "theirs")
    cfg, _, again, missing = load_ours(tmp_path / "theirs")
    assert (cfg, missing) == (CFG, [])
    for path, leaf in convert.flatten(params).items():
        np.testing.assert_array_equal(convert.flatten(again)[path], leaf, err_msg=path)


def rewrite_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_output_layer_of_its_own_is_refused(tmp_path: Path) -> None:
    save_theirs(tmp_path, "BertForMaskedLM", tie_word_embeddings=False)
    with pytest.raises(
        InputError, match=r"cls\.predictions\.decoder\.weight differs from bert\.embeddings\.word_embeddings\.weight"
    ):
        load_ours(tmp_path)


def test_more_layers_than_the_config_has_are_refused(tmp_path: Path) -> None:
    save_theirs(tmp_path, "BertForMaskedLM", num_hidden_layers=3)
    rewrite_config(tmp_path, num_hidden_layers=2)
    with pytest.raises(InputError, match="tensors of 3 layers, but num_hidden_layers=2"):
        load_ours(tmp_path)


@pytest.mark.parametrize("other", [dict(position_embedding_type="relative_key"), dict(is_decoder=True)], ids=str)
def test_a_config_that_describes_another_model_is_refused(other: dict, tmp_path: Path) -> None:
    save_theirs(tmp_path, "BertForMaskedLM")
    load_ours(tmp_path)
    rewrite_config(tmp_path, **other)
    [name] = other
    with pytest.raises(InputError, match=f"config.json: {name}={other[name]!r} is not supported"):
        load_ours(tmp_path)
