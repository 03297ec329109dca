"""sentence-transformers' files in and out."""

import json

import pytest

from bert_jax.config import BertConfig, InputError
from bert_jax.pooling import Pooling, read_pooling, write_pooling

CONFIG = BertConfig(hidden_size=32, num_attention_heads=2, max_position_embeddings=64)


def write(folder, name, content):
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def modules(*kinds, package="sentence_transformers.models"):
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
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


@pytest.mark.parametrize("mode", ["cls", "mean", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_written_is_read(tmp_path, mode, normalize):
    pooling = Pooling(mode, normalize, max_length=48, lowercase=normalize)
    write_pooling(tmp_path, pooling, CONFIG)
    assert read_pooling(tmp_path) == pooling


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
    "config, named",
    [
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "pooling_mode_mean_sqrt_len_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "'cls', 'mean'"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["cls", "mean"]}, "'cls', 'mean'"),
        ({"pooling_mode": {"a": 1}}, "'a'"),
    ],
)
def test_modes_that_are_not_supported_are_refused_by_name(tmp_path, config, named):
    with pytest.raises(InputError, match=r"1_Pooling/config\.json.*known: cls, mean, max") as caught:
        pooled(tmp_path, pooling=config)
    assert named in str(caught.value)


@pytest.mark.parametrize("kind", ["Dense", "WordWeights", "CLIPModel"])
def test_modules_that_are_not_supported_are_refused_by_name(tmp_path, kind):
    with pytest.raises(InputError, match=f"modules.json: {kind} modules are not supported; known: Transformer"):
        pooled(tmp_path, ["Transformer", "Pooling", kind])


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


@pytest.mark.parametrize("length", [0, -1, 2])
def test_a_length_without_room_for_a_token_is_refused(length):
    with pytest.raises(InputError, match=f"max_length={length}"):
        Pooling(max_length=length)
