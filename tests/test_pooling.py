"""sentence-transformers' files in and out."""

import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert_jax.config import BertConfig, InputError
from bert_jax.model.heads import TORCH_ACTIVATIONS, pool, pool_words
from bert_jax.pooling import (
    ACTIVATIONS,
    Dense,
    Pooling,
    SparsePooling,
    TokenVectors,
    TokenWeights,
    encoder_folder,
    read_activation,
    read_pooling,
    write_pooling,
)
from bert_jax.token_vectors import read_projection

CONFIG = BertConfig(hidden_size=32, num_attention_heads=2, max_position_embeddings=64)


def write(folder, name, content):
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def modules(*kinds, package="sentence_transformers.models"):
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    return [{"idx": i, "name": str(i), "path": paths.get(k, k), "type": f"{package}.{k}"} for i, k in enumerate(kinds)]


def pooled(folder, kinds=("Transformer", "Pooling", "Normalize"), pooling=None, **files):
    write(folder, "modules.json", modules(*kinds))
    write(folder, "1_Pooling/config.json", {"pooling_mode_mean_tokens": True} if pooling is None else pooling)
    for name, content in files.items():
        write(folder, f"{name}.json", content)
    return read_pooling(folder)


def test_a_directory_without_modules_has_no_pooling(tmp_path):
    assert read_pooling(tmp_path) is None


def test_modules_without_pooling_are_none(tmp_path):
    assert pooled(tmp_path, ["Transformer"]) is None


MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@pytest.mark.parametrize("mode", [*MODES, ("cls", "max", "lasttoken"), ("mean", "cls"), ("max", "max")], ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_written_is_read(tmp_path, mode, normalize):
    pooling = Pooling(mode, normalize, max_length=48, lowercase=normalize, include_prompt=normalize)
    write_pooling(tmp_path, pooling, CONFIG)
    assert read_pooling(tmp_path) == pooling


def test_weights_of_words_and_their_gradients_are_those_of_the_largest_logit_of_a_sequence():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 9, 5)).astype(np.float32)
    ids = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 2, 3, 3, 3, 3, 3, 3]], np.int32)
    of_weights = rng.standard_normal((2, 4, 5)).astype(np.float32)
    found, back = jax.vjp(lambda x: pool_words(x, ids, 4), logits)
    expected, gradient = np.zeros((2, 4, 5)), np.zeros_like(logits)
    for row, sequence, word in np.ndindex(2, 4, 5):
        own = np.flatnonzero(ids[row] == sequence + 1)
        if len(own) and (high := logits[row, own, word].max()) > 0:
            expected[row, sequence, word] = np.log1p(high)
            gradient[row, own[logits[row, own, word].argmax()], word] = of_weights[row, sequence, word] / (1 + high)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(back(jnp.asarray(of_weights))[0], gradient, rtol=1e-6)


def test_a_sparse_encoder_is_written_and_read_and_what_would_change_its_numbers_is_refused_by_name(tmp_path):
    pooling = SparsePooling(48, True, "find: ", {"query": "find: ", "document": ""})
    write_pooling(tmp_path, pooling, CONFIG)
    assert read_pooling(tmp_path) == pooling
    folder, library = tmp_path / "1_SpladePooling", tmp_path / "config_sentence_transformers.json"
    for path, changes in (
        (folder / "config.json", {"pooling_strategy": "sum"}),
        (folder / "config.json", {"activation_function": "gelu"}),
        (library, {"similarity_fn_name": "cosine"}),
        (library, {"model_type": "SentenceTransformer"}),
    ):
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | changes))
        with pytest.raises(InputError, match=f"{path.name}: .*{next(iter(changes.values()))}"):
            read_pooling(tmp_path)
        path.write_text(before)
    (tmp_path / "modules.json").write_text(json.dumps(modules("Router", "SpladePooling")))
    with pytest.raises(InputError, match="Router, SpladePooling are not supported together"):
        read_pooling(tmp_path)


def test_weights_of_queries_stand_behind_a_router_with_the_encoder_in_the_directory_or_in_a_folder(tmp_path):
    weights = TokenWeights(np.linspace(-1, 2, CONFIG.vocab_size, dtype=np.float32))
    pooling = SparsePooling(48, prompts={"query": "find: "}, query_weights=weights, activation="log1p_relu")
    write_pooling(tmp_path, pooling, CONFIG)
    write(tmp_path, "config.json", {})
    assert read_pooling(tmp_path) == pooling != pooling.replace(query_weights=TokenWeights(weights.values + 1))
    assert encoder_folder(tmp_path) == tmp_path
    router, folder = tmp_path / "router_config.json", tmp_path / "query_0_SparseStaticEmbedding"
    said = json.loads(router.read_text())
    assert said["structure"] == {"query": [folder.name], "document": ["", "document_1_SpladePooling"]}
    theirs = tmp_path / "document_0_Transformer"
    write(theirs, "config.json", {})
    write(theirs, "sentence_bert_config.json", {"max_seq_length": 30, "transformer_task": "fill-mask"})
    types = said["types"] | {theirs.name: "sentence_transformers.base.modules.transformer.Transformer"}
    structure = said["structure"] | {"document": [theirs.name, "document_1_SpladePooling"]}
    write(tmp_path, router.name, said | {"types": types, "structure": structure})
    assert read_pooling(tmp_path) == pooling.replace(max_length=30)
    assert encoder_folder(tmp_path) == theirs
    for path, changes, message in (
        (router, {"structure": structure | {"query": []}}, "the routes query: ; document: Transformer, SpladePooling are not"),
        (router, {"structure": structure | {"query": ["lost"]}}, "does not name the class of each module"),
        (router, {"structure": structure | {"other": []}}, "other: "),
        (router, {"types": types | {theirs.name: "mine.Transformer"}}, "mine.Transformer modules are not supported"),
        (router, {"parameters": {"default_route": "query"}}, "default_route='query'"),
        (router, {"parameters": {"route_mappings": {"(None, 'text')": "query"}}}, "route_mappings="),
        (folder / "config.json", {"path": "idf.json"}, "path='idf.json' is not supported"),
    ):
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | changes))
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            read_pooling(tmp_path)
        assert path.name in str(caught.value)
        path.write_text(before)
    with pytest.raises(InputError, match="query_weights and lowercase=True exclude each other"):
        pooling.replace(lowercase=True)
    with pytest.raises(InputError, match="activation='gelu' is not supported"):
        pooling.replace(activation="gelu")
    save_file({"weight": np.ones((2, 3), np.float32)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors holds \{'weight': \(2, 3\)\}; expected weight"):
        read_pooling(tmp_path)


def test_vectors_of_tokens_are_written_in_pylates_layout_and_read(tmp_path):
    pooling = TokenVectors(8, "[q]", "", 12, False, True, (".", ","), 48, True, "find: ", {"query": "find: "})
    kernel = np.arange(32 * 8, dtype=np.float32).reshape(32, 8)
    write_pooling(tmp_path, pooling, CONFIG, {"token_projection": {"kernel": kernel}})
    assert read_pooling(tmp_path) == pooling
    np.testing.assert_array_equal(read_projection(tmp_path)["linear.weight"], kernel.T)
    library, dense = (tmp_path / name for name in ("config_sentence_transformers.json", "1_Dense/config.json"))
    said = json.loads(library.read_text())
    names = ("query_prefix", "document_prefix", "query_length", "document_length", "attend_to_expansion_tokens")
    assert [said[name] for name in names] == ["[q]", "", 12, 48, True]
    assert json.loads((tmp_path / "modules.json").read_text())[1]["type"] == "pylate.models.Dense.Dense"
    for path, changes in (
        (dense, {"activation_function": TANH}),
        (dense, {"use_residual": True}),
        (library, {"query_length": "9"}),
    ):
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | changes))
        with pytest.raises(InputError, match=f"{path.name}: "):
            read_pooling(tmp_path)
        path.write_text(before)


@pytest.mark.parametrize("mode", [*MODES, ("cls", "max")], ids=str)
def test_files_that_older_versions_can_read_have_no_names_that_they_lack(tmp_path, mode):
    write_pooling(tmp_path, Pooling(mode), CONFIG)
    config = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    on = {mode} if isinstance(mode, str) else set(mode)
    keys = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean", "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
            "weightedmean_tokens": "weightedmean", "lasttoken": "lasttoken"}  # fmt: skip
    expected = {f"pooling_mode_{key}": name in on for key, name in keys.items() if name in on or name in ("cls", "max", "mean")}
    assert config == {"word_embedding_dimension": 32} | expected


def layer(*sizes, bias=True, activation="Tanh", seed=0):
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal(sizes, np.float32)
    return Dense(kernel, rng.standard_normal(sizes[1], np.float32) if bias else None, activation)


def test_all_that_a_pooling_says_is_kept(tmp_path):
    prompts = {"query": "find: ", "passage": "text: ", "none": ""}
    dense = (layer(64, 24), layer(24, 16, bias=False, activation="Identity", seed=1))
    pooling = Pooling(("mean", "cls"), True, 48, False, "text: ", prompts, False, dense, 8, "dot")
    write_pooling(tmp_path, pooling, CONFIG)
    assert read_pooling(tmp_path) == pooling
    assert read_pooling(tmp_path) != Pooling(("mean", "cls"), True, 48, False, "text: ", prompts, False, dense[:1], 8, "dot")
    library = json.loads((tmp_path / "config_sentence_transformers.json").read_text())
    assert library == {"prompts": prompts, "default_prompt_name": "passage", "similarity_fn_name": "dot", "truncate_dim": 8}
    kinds = [module["type"].rpartition(".")[2] for module in json.loads((tmp_path / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    weights = load_file(tmp_path / "2_Dense" / "model.safetensors")
    np.testing.assert_array_equal(weights["linear.weight"], dense[0].kernel.T)
    assert list(load_file(tmp_path / "3_Dense" / "model.safetensors")) == ["linear.weight"]
    assert os.stat(tmp_path / "2_Dense" / "model.safetensors").st_mode == os.stat(tmp_path / "modules.json").st_mode
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_prompt_without_a_name_gets_one_that_is_free(tmp_path):
    write_pooling(tmp_path, Pooling(prompt="b ", prompts={"default": "a "}), CONFIG)
    again = read_pooling(tmp_path)
    assert (again.prompt, len(again.prompts), again.prompts["default"]) == ("b ", 2, "a ")


@pytest.mark.parametrize(
    "mode, values",
    [
        ("cls", [[1.0, 8], [4, 4]]),
        ("max", [[3.0, 8], [4, 5]]),
        ("mean", [[2.0, 4], [4, 4]]),
        ("mean_sqrt_len_tokens", [[6 / 3**0.5, 12 / 3**0.5], [12 / 3**0.5, 12 / 3**0.5]]),
        ("weightedmean", [[14 / 6, 16 / 6], [4, 23 / 6]]),
        ("lasttoken", [[3.0, 0], [4, 3]]),
    ],
)
def test_poolings_are_their_formulas(mode, values):
    """Two texts of three tokens in one row, padding behind them."""
    hidden = jnp.array([[[1.0, 8], [2, 4], [3, 0], [4, 4], [4, 5], [4, 3], [9, 9]]])
    sequence_ids = np.array([[1, 1, 1, 2, 2, 2, 0]])
    found = np.asarray(pool(hidden, sequence_ids, np.array([[0, 3, 0]]), (mode,)))
    np.testing.assert_allclose(found[0, :2], values, rtol=1e-6)
    assert np.isfinite(found).all()
    both = np.asarray(pool(hidden, sequence_ids, np.array([[0, 3]]), (mode, "cls")))
    np.testing.assert_allclose(both[0], np.hstack([values, [[1, 8], [4, 4]]]), rtol=1e-6)


@pytest.mark.parametrize(
    "mode, values",
    [
        ("cls", [2.0, 4]), ("max", [3.0, 4]), ("mean", [2.5, 2]), ("mean_sqrt_len_tokens", [5 / 2**0.5, 4 / 2**0.5]),
        ("weightedmean", [13 / 5, 8 / 5]), ("lasttoken", [3.0, 0]),
    ],
)  # fmt: skip
def test_tokens_before_the_first_one_are_not_pooled_but_counted_as_places(mode, values):
    hidden = jnp.array([[[1.0, 8], [2, 4], [3, 0], [7, 7]]])
    found = np.asarray(pool(hidden, np.array([[1, 1, 1, 2]]), np.array([[1]]), (mode,)))
    np.testing.assert_allclose(found[0, 0], values, rtol=1e-6)


def test_activations_are_those_of_torch_by_their_formulas():
    assert list(TORCH_ACTIVATIONS) == list(ACTIVATIONS)
    x = np.array([-2, -0.5, 0, 0.5, 2], np.float32)
    sigmoid = 1 / (1 + np.exp(-x))
    expected = {"Identity": x, "Tanh": np.tanh(x), "Sigmoid": sigmoid, "ReLU": np.maximum(x, 0), "SiLU": x * sigmoid,
                "GELU": [-0.04550026, -0.15426877, 0, 0.34573123, 1.9544997]}  # fmt: skip
    for name, function in TORCH_ACTIVATIONS.items():
        np.testing.assert_allclose(function(x), expected[name], atol=1e-6, err_msg=name)


def test_without_a_length_the_models_is_written(tmp_path):
    write_pooling(tmp_path, Pooling(), CONFIG)
    assert json.loads((tmp_path / "sentence_bert_config.json").read_text())["max_seq_length"] == 64
    write_pooling(tmp_path, Pooling(max_length=10**30), CONFIG)
    assert json.loads((tmp_path / "sentence_bert_config.json").read_text())["max_seq_length"] == 64


def test_a_normalisation_left_out_is_not_read_again(tmp_path):
    write_pooling(tmp_path, Pooling(normalize=True), CONFIG)
    write_pooling(tmp_path, Pooling(normalize=False), CONFIG)
    assert read_pooling(tmp_path).normalize is False


@pytest.mark.parametrize(
    "config, mode",
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "word_embedding_dimension": 32}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "max"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["max"]}, "max"),
        ({"word_embedding_dimension": 32}, "mean"),
    ],
)
def test_modes_are_read_in_every_spelling(tmp_path, config, mode):
    assert pooled(tmp_path, pooling=config).mode == mode


@pytest.mark.parametrize(
    "config, mode",
    [
        ({f"pooling_mode_{key}": True}, mode)
        for key, mode in [("mean_sqrt_len_tokens",) * 2, ("weightedmean_tokens", "weightedmean"), ("lasttoken",) * 2]
    ]
    + [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"pooling_mode": ["mean", "cls"], "pooling_mode_max_tokens": True}, ("mean", "cls")),
    ],
)
def test_several_modes_stand_in_the_order_of_the_library_or_of_the_list(tmp_path, config, mode):
    assert pooled(tmp_path, pooling=config).mode == mode


@pytest.mark.parametrize(
    "config, named",
    [
        ({"pooling_mode_first_last_avg": True}, "pooling_mode_first_last_avg"),
        ({"pooling_mode": ["cls", "median"]}, "'median'"),
        ({"pooling_mode": []}, "none"),
        ({"pooling_mode": {"a": 1}}, "'a'"),
        ({"pooling_mode": "cls", "include_prompt": "no"}, "include_prompt='no'"),
    ],
)
def test_modes_that_are_not_supported_are_refused_by_name(tmp_path, config, named):
    with pytest.raises(InputError, match=r"1_Pooling/config\.json") as caught:
        pooled(tmp_path, pooling=config)
    assert named in str(caught.value)
    with pytest.raises(InputError, match="'median' is not supported; known: cls, max, mean"):
        Pooling("median")


@pytest.mark.parametrize("kind", ["LSTM", "WordWeights", "CLIPModel"])
def test_modules_that_are_not_supported_are_refused_by_name(tmp_path, kind):
    with pytest.raises(InputError, match=f"modules.json: {kind} modules are not supported; known: Transformer, Pooling, Dense"):
        pooled(tmp_path, ["Transformer", "Pooling", kind])


@pytest.mark.parametrize(
    "kinds",
    ["Transformer Normalize Pooling", "Transformer Pooling Normalize Dense", "Transformer Dense", "Pooling",
     "Pooling Transformer", "Transformer Pooling Pooling", "Transformer Transformer Pooling"],
)  # fmt: skip
def test_modules_in_an_order_that_is_not_followed_are_refused(tmp_path, kinds):
    with pytest.raises(InputError, match=f"modules.json: {', '.join(kinds.split())} are not supported together"):
        pooled(tmp_path, kinds.split())


def test_modules_with_code_of_their_own_and_folders_elsewhere_are_refused(tmp_path):
    write(tmp_path, "modules.json", modules("Transformer", "Pooling", package="custom_st"))
    with pytest.raises(InputError, match=r"custom_st\.Transformer modules are not supported"):
        read_pooling(tmp_path)
    for path in ("../elsewhere", "/etc"):
        write(tmp_path, "modules.json", [{"idx": 0, "name": "0", "path": path, "type": "sentence_transformers.models.Dense"}])
        with pytest.raises(InputError, match=f"the folder '{path}' is not inside"):
            read_pooling(tmp_path)


def write_dense(folder, weights=None, **config):
    sizes = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
    write(folder, "2_Dense/config.json", sizes | config)
    ones = {"linear.weight": np.ones((8, 32), np.float16), "linear.bias": np.ones(8, np.float16)}
    save_file(ones if weights is None else weights, folder / "2_Dense" / "model.safetensors")


def test_a_dense_layer_is_read_in_float32(tmp_path):
    write_dense(tmp_path)
    (dense,) = pooled(tmp_path, ["Transformer", "Pooling", "Dense"]).dense
    assert dense == Dense(np.ones((32, 8), np.float32), np.ones(8, np.float32), "Tanh")
    assert (dense.kernel.dtype, dense.bias.dtype) == (np.float32, np.float32)
    assert str(dense) == "Dense(32 -> 8, Tanh)"


@pytest.mark.parametrize(
    "config, named",
    [
        ({"activation_function": "torch.nn.modules.activation.Softmax"}, "activation 'torch.nn.modules.activation.Softmax'"),
        ({"activation_function": "mine.Tanh"}, "activation 'mine.Tanh'"),
        ({"module_input_name": "token_embeddings"}, "module_input_name='token_embeddings'"),
        ({"module_output_name": "scores"}, "module_output_name='scores'"),
        ({"use_residual": True}, "use_residual"),
        ({"out_features": 9}, "model.safetensors holds"),
        ({"bias": False}, "model.safetensors holds"),
        ({"weights": {"weight": np.ones((8, 32), np.float32)}}, "model.safetensors holds"),
    ],
)
def test_dense_layers_that_are_not_supported_are_refused_by_name(tmp_path, config, named):
    write_dense(tmp_path, **config)
    with pytest.raises(InputError, match="2_Dense") as caught:
        pooled(tmp_path, ["Transformer", "Pooling", "Dense"])
    assert named in str(caught.value)


def test_a_dense_layer_without_weights_or_of_another_width_is_refused(tmp_path):
    write_dense(tmp_path)
    assert pooled(tmp_path, ["Transformer", "Pooling", "Dense"]).width(32) == 8
    with pytest.raises(InputError, match=r"dense\[0\] takes 32 values, and 64 come before it"):
        read_pooling(tmp_path).width(64)
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="2_Dense has no weights"):
        read_pooling(tmp_path)
    with pytest.raises(InputError, match=r"Dense: a kernel \(3, 2\) and a bias \(3,\)"):
        Dense(np.ones((3, 2)), np.ones(3))


def test_a_normalize_of_tokens_is_refused(tmp_path):
    write(tmp_path, "2_Normalize/config.json", {"module_input_name": "token_embeddings"})
    with pytest.raises(InputError, match=r"2_Normalize/config\.json: module_input_name='token_embeddings'"):
        pooled(tmp_path)


@pytest.mark.parametrize(
    "file, content, named",
    [
        ("sentence_bert_config", {"processing_kwargs": {"text": {"max_length": 5}}}, "processing_kwargs="),
        ("sentence_bert_config", {"tokenizer_args": {"do_lower_case": True}}, "do_lower_case=True"),
        ("sentence_bert_config", {"query_length": 32}, "query_length=32"),
        ("sentence_bert_config", {"transformer_task": "fill-mask"}, "transformer_task='fill-mask'"),
        ("sentence_bert_config", {"modality_config": {"text": {"method": "get_text_features"}}}, "get_text_features"),
        ("sentence_bert_config", {"max_seq_length": "256"}, "max_seq_length='256'"),
        ("config_sentence_transformers", {"truncate_dim": "8"}, "truncate_dim='8'"),
        ("config_sentence_transformers", {"truncate_dim": True}, "truncate_dim=True"),
        ("config_sentence_transformers", {"prompts": ["query"]}, "prompts="),
        ("config_sentence_transformers", {"prompts": {"query": 3}}, "query=3"),
        (
            "config_sentence_transformers",
            {"model_type": "SparseEncoder"},
            "SparseEncoder models are not supported with these modules",
        ),
        ("config_sentence_transformers", {"similarity_fn_name": 3}, "similarity_fn_name=3"),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_name(tmp_path, file, content, named):
    with pytest.raises(InputError, match=f"{file}.json: ") as caught:
        pooled(tmp_path, **{file: content})
    assert named in str(caught.value)


def test_what_the_installed_version_writes_beside_is_read(tmp_path):
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    transformer = {"transformer_task": "feature-extraction", "modality_config": {"text": text}, "unpad_inputs": False,
                   "module_output_name": "token_embeddings", "model_args": {"torch_dtype": "float16"},
                   "processor_kwargs": {"model_max_length": 40}}  # fmt: skip
    library = {"model_type": "SentenceTransformer", "__version__": {}, "prompts": {"query": None, "document": ""},
               "default_prompt_name": None, "similarity_fn_name": "cosine", "truncate_dim": 8}  # fmt: skip
    found = pooled(tmp_path, sentence_bert_config=transformer, config_sentence_transformers=library)
    expected = Pooling("mean", True, 40, prompts={"query": "", "document": ""}, truncate_dim=8, similarity_fn_name="cosine")
    assert found == expected


def test_an_encoder_in_a_folder_is_found_with_its_length(tmp_path):
    assert encoder_folder(tmp_path) == tmp_path
    write(
        tmp_path, "modules.json", [modules("Transformer", "Pooling")[0] | {"path": "0_Transformer"}, modules("a", "Pooling")[1]]
    )
    write(tmp_path, "1_Pooling/config.json", {"pooling_mode_cls_token": True})
    write(tmp_path, "0_Transformer/config.json", {})
    write(tmp_path, "0_Transformer/sentence_bert_config.json", {"max_seq_length": 30, "do_lower_case": True})
    assert encoder_folder(tmp_path) == tmp_path / "0_Transformer"
    assert read_pooling(tmp_path) == Pooling("cls", False, 30, True)
    write(tmp_path, "modules.json", "[")
    assert encoder_folder(tmp_path) == tmp_path


SIGMOID, TANH = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.activation.Tanh"


@pytest.mark.parametrize(
    "library, config, expected",
    [
        ({"model_type": "CrossEncoder", "activation_fn": SIGMOID}, {"sentence_transformers": {"activation_fn": TANH}}, SIGMOID),
        ({"model_type": "CrossEncoder"}, {"sentence_transformers": {"activation_fn": TANH}}, TANH),
        ({"activation_fn": SIGMOID}, {"sbert_ce_default_activation_function": TANH}, TANH),
        ({}, {"sentence_transformers": ["?"]}, None),
        ({}, {}, None),
    ],
)
def test_the_activation_of_a_cross_encoder_is_read_where_the_library_looks_for_it(tmp_path, library, config, expected):
    write(tmp_path, "config_sentence_transformers.json", library)
    write(tmp_path, "modules.json", modules("Transformer"))
    assert read_activation(tmp_path, config) == expected
    (tmp_path / "modules.json").unlink()  # then it does not read the first file
    assert read_activation(tmp_path, config) == (None if expected == SIGMOID and not config else expected and TANH)


def test_a_cross_encoders_default_prompt_is_refused_and_its_names_are_not(tmp_path):
    write(tmp_path, "modules.json", modules("Transformer"))
    library = {"model_type": "CrossEncoder", "prompts": {"query": "", "rank": "Rank: "}, "default_prompt_name": None}
    write(tmp_path, "config_sentence_transformers.json", library)
    assert read_pooling(tmp_path) is None
    write(tmp_path, "config_sentence_transformers.json", library | {"default_prompt_name": "rank"})
    with pytest.raises(InputError, match="default prompt 'Rank: ' of a CrossEncoder is not supported"):
        read_pooling(tmp_path)


def test_the_settings_of_a_cross_encoder_that_change_its_numbers_are_refused(tmp_path):
    write(tmp_path, "modules.json", modules("Transformer"))
    write(tmp_path, "config_sentence_transformers.json", {"model_type": "CrossEncoder"})
    text = {"method": "forward", "method_output_name": "logits"}
    usual = {"transformer_task": "sequence-classification", "modality_config": {"text": text}, "module_output_name": "scores"}
    write(tmp_path, "sentence_bert_config.json", usual)
    assert read_pooling(tmp_path) is None
    for name, value in {"do_lower_case": True, "processing_kwargs": {"text": {}}, "transformer_task": "text-generation"}.items():
        write(tmp_path, "sentence_bert_config.json", usual | {name: value})
        with pytest.raises(InputError, match=name):
            read_pooling(tmp_path)


def test_a_named_prompt_is_chosen_or_refused_with_the_names(tmp_path):
    pooling = Pooling(prompts={"query": "find: ", "passage": ""})
    assert pooling.with_prompt("query").read("x") == "find: x"
    assert pooling.read("x") == "x"
    with pytest.raises(InputError, match=r"no prompt 'qery'; did you mean 'query'\?; the model's prompts: 'query', 'passage'"):
        pooling.with_prompt("qery")
    with pytest.raises(InputError, match="the model's prompts: none"):
        Pooling().with_prompt("query")


def test_a_prompt_by_default_is_read_and_written(tmp_path):
    library = {"default_prompt_name": "query", "prompts": {"query": "find: ", "document": ""}}
    assert pooled(tmp_path, config_sentence_transformers=library).prompt == "find: "
    write_pooling(tmp_path, Pooling(prompt="seek: "), BertConfig())
    assert read_pooling(tmp_path).prompt == "seek: "
    with pytest.raises(InputError, match="default_prompt_name='query' is not among its prompts"):
        pooled(tmp_path, config_sentence_transformers={"default_prompt_name": "query"})


@pytest.mark.parametrize("name", ["roberta", "distilbert", "xlm-roberta"])
def test_the_length_is_read_under_each_name_that_the_library_has_for_the_file(tmp_path, name):
    assert pooled(tmp_path, **{f"sentence_{name}_config": {"max_seq_length": 30}}).max_length == 30


def test_the_length_is_that_of_sentence_transformers_or_of_the_tokenizer(tmp_path):
    assert pooled(tmp_path, tokenizer_config={"model_max_length": 40}).max_length == 40
    assert pooled(tmp_path, sentence_bert_config={"max_seq_length": 30, "do_lower_case": True}) == Pooling("mean", True, 30, True)
    assert pooled(tmp_path, sentence_bert_config={"max_seq_length": None}, tokenizer_config={}).max_length is None


@pytest.mark.parametrize(
    "name", ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"]
)
@pytest.mark.parametrize("content", ["{", '"text"', "[1]", '[{"idx": 0}]', '[{"type": 3, "path": ""}]', "3"])
def test_a_file_of_another_form_is_refused_by_name(tmp_path, name, content):
    pooled(tmp_path)
    write(tmp_path, name, content)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        read_pooling(tmp_path)


@pytest.mark.parametrize("width", [0, -8])
def test_a_cut_that_leaves_nothing_is_refused(width):
    with pytest.raises(InputError, match=f"truncate_dim={width} is below 1"):
        Pooling(truncate_dim=width)


@pytest.mark.parametrize("length", [0, -1, 2])
def test_a_length_without_room_for_a_token_is_refused(length):
    with pytest.raises(InputError, match=f"max_length={length}"):
        Pooling(max_length=length)
