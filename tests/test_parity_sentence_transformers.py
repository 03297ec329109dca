"""Each pooling, module, prompt and activation of sentence-transformers: our numbers, and its own of the files that we save."""

import dataclasses
import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
from test_parity_predictions import TEXTS, Served

import bert_jax
from bert_jax import Classifier, Embedder, Pooling, Reranker
from bert_jax.data.plain_tokenizer import PlainTokenizer
from bert_jax.tuned import Tuned

pytestmark = pytest.mark.parity
OLD_TYPES = "sentence_transformers.models."
PROMPTS = {"query": "Find what says: ", "passage": "Passage: "}
PAIRS = list(pairwise(TEXTS[:7]))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(family, head, labels) -> Served, made once."""
    made = {}

    def make(family, head, num_labels=None):
        key = family, head, num_labels
        if key not in made:
            changes = {} if num_labels is None else {"num_labels": num_labels}
            made[key] = Served(tmp_path_factory.mktemp("served"), family, head, **changes)
        return made[key]

    return make


def write_old_layout(directory, served, mode, normalize, length):
    """The files of sentence-transformers 2, as all-MiniLM-L6-v2 has them."""
    served.theirs.save_pretrained(directory)
    served.tokenizer.save_pretrained(directory)
    names = ["", "1_Pooling", "2_Normalize"][: 2 + normalize]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": OLD_TYPES + (path[2:] or "Transformer")} for i, path in enumerate(names)
    ]
    modes = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "mean_sqrt_len_tokens": "sqrt"}
    pooling = {"word_embedding_dimension": 32} | {f"pooling_mode_{name}": key == mode for name, key in modes.items()}
    versions = {"sentence_transformers": "2.0.0", "transformers": "4.6.1", "pytorch": "1.8.1"}
    for path in names[1:]:
        (directory / path).mkdir()
    for file, content in {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False},
        "config_sentence_transformers.json": {"__version__": versions},
    }.items():
        (directory / file).write_text(json.dumps(content))


def write_new_layout(directory, served, mode, normalize, length):
    """As the installed sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    modules = [Transformer(served.directories["theirs"], max_seq_length=length), Pooling(32, mode)]
    SentenceTransformer(modules=modules + [Normalize()] * normalize, device="cpu").save(str(directory))


def encode(directory, texts):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(directory), device="cpu")
    return model, model.encode(texts, batch_size=5, show_progress_bar=False)


@pytest.mark.parametrize("write", [write_old_layout, write_new_layout])
@pytest.mark.parametrize(
    "family, mode, normalize",
    [
        ("bert", "mean", True),
        ("bert", "cls", True),
        ("bert", "max", False),
        ("xlm-roberta", "mean", True),
        ("distilbert", "cls", False),
    ],
)
def test_embeddings_are_those_of_sentence_transformers_and_it_reads_what_we_save(
    write, family, mode, normalize, served, tmp_path
):
    write(tmp_path / "theirs", served(family, "encoder"), mode, normalize, 24)
    ours = bert_jax.load(tmp_path / "theirs")
    pooling = ours.pooling
    assert (pooling.mode, pooling.normalize, pooling.max_length) == (mode, normalize, 24)
    theirs, expected = encode(tmp_path / "theirs", TEXTS)
    assert theirs.max_seq_length == 24
    cut = sum(len(ids) > 22 for ids in ours.tokenizer.encode_batch(TEXTS))
    assert 0 < cut < len(TEXTS)
    with pytest.warns(UserWarning, match=f"{cut} of {len(TEXTS)} texts have more than 24 tokens"):
        vectors = Embedder(ours)(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0)
    assert np.ptp(expected, axis=0).max() > 0.1
    bert_jax.save(ours, tmp_path / "ours")
    again, found = encode(tmp_path / "ours", TEXTS)
    np.testing.assert_array_equal(found, expected)
    assert [type(module) for module in again] == [type(module) for module in theirs]
    assert again.max_seq_length == 24
    assert bert_jax.load(tmp_path / "ours").pooling == ours.pooling


def test_a_model_given_a_pooling_is_a_sentence_transformer_when_saved(served, tmp_path):
    for number, pooling in enumerate([Pooling(), Pooling("cls", False), Pooling("max", True, 16), Pooling(lowercase=True)]):
        model = dataclasses.replace(served("roberta", "encoder").ours, pooling=pooling)
        bert_jax.save(model, tmp_path / str(number))
        texts = TEXTS[:7]
        theirs, expected = encode(tmp_path / str(number), texts)
        assert theirs.max_seq_length == (pooling.max_length or 128)
        longest = max(len(ids) + 2 for ids in model.tokenizer.encode_batch(texts))
        if longest > theirs.max_seq_length:
            with pytest.warns(UserWarning, match="texts have more than 16 tokens"):
                vectors = Embedder(model)(texts)
        else:
            vectors = Embedder(model)(texts)
        np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0)


def saved(directory, modules, **options):
    """As the installed sentence-transformers saves these modules."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(modules=modules, device="cpu", **options).save(str(directory))
    return directory


def transformer(served, **options):
    from sentence_transformers.sentence_transformer.modules import Transformer

    return Transformer(served.directories["theirs"], **options)


def same_embeddings(directory, tmp_path, texts=TEXTS):
    """Ours and theirs, plain and with each prompt; and the same again of what we save. Ours of `directory`."""
    ours = bert_jax.load(directory)
    embedder = Embedder(ours)
    bert_jax.save(ours, tmp_path / "ours")
    theirs, expected = encode(directory, texts)
    again, found = encode(tmp_path / "ours", texts)
    np.testing.assert_allclose(embedder(texts), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    assert np.ptp(expected, axis=0).max() > 0.1
    for name in ours.pooling.prompts:
        expected = theirs.encode(texts, prompt_name=name, show_progress_bar=False)
        np.testing.assert_allclose(embedder(texts, prompt_name=name), expected, atol=1e-5, rtol=0)
        np.testing.assert_allclose(again.encode(texts, prompt_name=name), expected, atol=1e-6, rtol=0)
    for name in ("prompts", "default_prompt_name", "truncate_dim", "similarity_fn_name", "max_seq_length"):
        assert getattr(again, name) == getattr(theirs, name), name
    assert [type(module) for module in again] == [type(module) for module in theirs]
    assert bert_jax.load(tmp_path / "ours").pooling == ours.pooling
    return ours


MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@pytest.mark.parametrize(
    "family, include_prompt, mode",
    [("bert", include, mode) for mode in [*MODES, ("cls", "mean")] for include in (True, False)]
    + [("roberta", False, ("mean", "lasttoken", "cls", "weightedmean", "max")), ("xlm-roberta", False, "mean")],
    ids=str,
)
def test_each_pooling_with_and_without_the_prompts_tokens(family, include_prompt, mode, served, tmp_path):
    from sentence_transformers.sentence_transformer.modules import Pooling as Theirs

    modules = [transformer(served(family, "encoder")), Theirs(32, mode, include_prompt=include_prompt)]
    directory = saved(tmp_path / "theirs", modules, prompts=PROMPTS, default_prompt_name="query")
    ours = same_embeddings(directory, tmp_path)
    without = dataclasses.replace(ours.pooling, include_prompt=not include_prompt)
    changed = np.abs(Embedder(ours)(TEXTS) - Embedder(ours, without)(TEXTS)).max()
    assert changed > 0.01 if mode != "lasttoken" else changed == 0


def test_the_names_of_modes_that_older_versions_wrote(served, tmp_path):
    """In their order, which is not that of the file."""
    write_old_layout(tmp_path / "theirs", served("bert", "encoder"), "mean", False, 128)
    on = ["weightedmean_tokens", "lasttoken", "max_tokens", "mean_sqrt_len_tokens"]
    config = {"word_embedding_dimension": 32} | {f"pooling_mode_{name}": True for name in on}
    (tmp_path / "theirs" / "1_Pooling" / "config.json").write_text(json.dumps(config))
    ours = same_embeddings(tmp_path / "theirs", tmp_path)
    assert ours.pooling.mode == ("max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def dense(*sizes, activation="Tanh", bias=True):
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense

    torch.manual_seed(len(activation))
    return Dense(*sizes, bias=bias, activation_function=getattr(torch.nn, activation)())


@pytest.mark.parametrize(
    "case, file",
    [(case, "model.safetensors") for case in ["distiluse", "clip", "two", "matryoshka", "Sigmoid", "ReLU", "GELU", "SiLU"]]
    + [("labse", "pytorch_model.bin")],
)
def test_dense_layers_as_published_models_have_them(case, file, served, tmp_path):
    from sentence_transformers.sentence_transformer.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling as Theirs

    options = {}
    if case == "labse":
        rest = [Theirs(32, "cls"), dense(32, 32), Normalize()]
    elif case == "clip":
        rest = [Theirs(32, "mean"), dense(32, 16, activation="Identity", bias=False)]
    elif case == "two":
        rest = [Theirs(32, ("mean", "cls")), dense(64, 48, activation="Identity"), dense(48, 16, bias=False), Normalize()]
    elif case == "matryoshka":
        rest, options = [Theirs(32, "mean"), dense(32, 24), Normalize()], {"truncate_dim": 8, "similarity_fn_name": "dot"}
    else:
        rest = [Theirs(32, "mean"), dense(32, 16, activation="Tanh" if case == "distiluse" else case)]
    directory = saved(tmp_path / "theirs", [transformer(served("distilbert", "encoder")), *rest], **options)
    if file == "pytorch_model.bin":
        import torch
        from safetensors.torch import load_file

        for path in directory.glob("*_Dense/model.safetensors"):
            torch.save(load_file(path), path.with_name(file))
            path.unlink()
    same_embeddings(directory, tmp_path)


@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings_are_cut_and_not_scaled_again(normalize, served, tmp_path):
    write_old_layout(tmp_path / "theirs", served("bert", "encoder"), "mean", normalize, 128)
    (tmp_path / "theirs" / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": 8, "prompts": PROMPTS}))
    ours = same_embeddings(tmp_path / "theirs", tmp_path)
    assert Embedder(ours)(TEXTS).shape == (len(TEXTS), 8)


def test_an_encoder_in_a_folder_of_its_own(served, tmp_path):
    write_old_layout(tmp_path / "theirs", served("bert", "encoder"), "mean", True, 24)
    folder = tmp_path / "theirs" / "0_Transformer"
    folder.mkdir()
    for path in (tmp_path / "theirs").iterdir():
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            shutil.move(path, folder / path.name)
    modules = json.loads((tmp_path / "theirs" / "modules.json").read_text())
    modules[0]["path"] = folder.name
    (tmp_path / "theirs" / "modules.json").write_text(json.dumps(modules))
    with pytest.warns(UserWarning, match="texts have more than 24 tokens"):
        same_embeddings(tmp_path / "theirs", tmp_path)


# --- cross-encoders ---


def cross_encoder(directory, num_labels):
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(directory), device="cpu")
    return model, model.predict(PAIRS, batch_size=3).reshape(len(PAIRS), num_labels)


def scores(model):
    return np.array([list(found.scores.values()) for found in Classifier(model)(PAIRS)])


# logits of several classes become probabilities, or are refused: tests/inference/test_classifier.py
@pytest.mark.parametrize(
    "num_labels, activation",
    [*((1, name) for name in ("Identity", "Sigmoid", "Tanh", "GELU", "SiLU", None)), (3, "Sigmoid"), (3, None)],
)
def test_cross_encoders_as_the_installed_version_saves_them(activation, num_labels, served, tmp_path):
    import torch
    from sentence_transformers import CrossEncoder

    function = None if activation is None else getattr(torch.nn, activation)()
    directory = served("bert", "sequence_classification", num_labels).directories["theirs"]
    CrossEncoder(directory, activation_fn=function, device="cpu").save_pretrained(str(tmp_path / "theirs"))
    ours = bert_jax.load(tmp_path / "theirs")
    theirs, expected = cross_encoder(tmp_path / "theirs", num_labels)
    assert np.ptp(expected) > 0.05
    found = scores(ours)
    if num_labels == 3 and activation is None:
        expected_of_ours = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    else:
        expected_of_ours = expected
    np.testing.assert_allclose(found, expected_of_ours, atol=1e-5, rtol=0)
    if num_labels == 1 and activation in ("Identity", None):
        reranker, documents = Reranker(ours), TEXTS[1:7]
        np.testing.assert_allclose(reranker(PAIRS), expected[:, 0], atol=1e-5, rtol=0)
        order = [each["corpus_id"] for each in theirs.rank(TEXTS[0], documents)]
        assert [each.document for each in reranker.rank(TEXTS[0], documents)] == order
    bert_jax.save(ours, tmp_path / "ours")
    again, kept = cross_encoder(tmp_path / "ours", num_labels)
    np.testing.assert_allclose(kept, expected, atol=1e-6, rtol=0)
    assert type(again.activation_fn) is type(theirs.activation_fn)
    np.testing.assert_allclose(scores(bert_jax.load(tmp_path / "ours")), found, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:.* texts have more than 9 tokens")
def test_cross_encoders_cut_texts_where_fine_tuning_did(served, tmp_path):
    """Of an odd number of tokens left to two texts, Google's script gives the first one more, `tokenizers` the longer."""
    directory = served("bert", "sequence_classification", 1).directories["theirs"]
    ours = dataclasses.replace(bert_jax.load(directory), tuned=Tuned(max_length=9))
    bert_jax.save(ours, tmp_path)
    whole = scores(dataclasses.replace(ours, tuned=Tuned()))
    assert np.abs(scores(ours) - whole).max() > 1e-3
    _, expected = cross_encoder(tmp_path, 1)
    np.testing.assert_allclose(scores(bert_jax.load(tmp_path)), expected, atol=1e-5, rtol=0)


def test_a_cross_encoder_reads_no_more_than_it_was_saved_with(served, tmp_path):
    from sentence_transformers import CrossEncoder

    directory = served("bert", "sequence_classification", 1).directories["theirs"]
    CrossEncoder(directory, max_length=24, device="cpu").save_pretrained(str(tmp_path / "theirs"))
    ours = bert_jax.load(tmp_path / "theirs")
    _, expected = cross_encoder(tmp_path / "theirs", 1)
    with pytest.warns(UserWarning, match="texts have more than 24 tokens"):
        np.testing.assert_allclose(scores(ours), expected, atol=1e-5, rtol=0)
    bert_jax.save(ours, tmp_path / "ours")
    again, kept = cross_encoder(tmp_path / "ours", 1)
    assert again.max_seq_length == 24
    np.testing.assert_allclose(kept, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("problem_type", [None, "regression", "multi_label_classification"])
def test_one_label_without_an_activation_is_what_the_pipeline_says(problem_type, served, tmp_path):
    import transformers

    model = served("bert", "sequence_classification", 1)
    shutil.copytree(model.directories["theirs"], tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config | {"problem_type": problem_type}))
    pipeline = transformers.pipeline("text-classification", str(tmp_path / "theirs"), device="cpu")
    expected = [found["score"] for found in pipeline(TEXTS[:6])]
    found = [found.score for found in Classifier(bert_jax.load(tmp_path / "theirs"))(TEXTS[:6])]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    if problem_type is None:
        _, of_cross_encoder = cross_encoder(tmp_path / "theirs", 1)
        np.testing.assert_allclose(scores(bert_jax.load(tmp_path / "theirs")), of_cross_encoder, atol=1e-5, rtol=0)


def test_quantized_vectors_and_their_scores_are_those_of_sentence_transformers():
    from sentence_transformers.util import quantization

    rng = np.random.default_rng(0)
    queries, corpus = (rng.standard_normal((count, 20)).astype(np.float32) for count in (5, 200))
    corpus[:, 3] = 0.25  # a dimension without a range
    ranges = np.stack([corpus[:150].min(axis=0), corpus[:150].max(axis=0)])  # the other vectors are clipped
    int8, bits = bert_jax.quantize(corpus, "int8", ranges), bert_jax.quantize(corpus, "binary")
    np.testing.assert_array_equal(int8.array, quantization.quantize_embeddings(corpus, "int8", ranges=ranges))
    np.testing.assert_array_equal(bits.array, quantization.quantize_embeddings(corpus, "ubinary"))
    theirs = quantization._dequantize_embeddings(int8.array, "int8", ranges), np.unpackbits(bits.array, axis=-1)[:, :20]
    for vectors, values in zip((int8, bits), theirs, strict=True):
        expected = queries @ values.T.astype(np.float64)
        scores, found = bert_jax.nearest(queries, vectors, 10, factor=20)  # all of them are scored again
        np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :10], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.take_along_axis(expected, found, axis=1), scores, rtol=1e-5, atol=1e-6)


def test_a_table_of_token_vectors_is_read_by_sentence_transformers_and_theirs_here(tokenizer, tmp_path):
    from safetensors.numpy import save_file
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    texts, rng = ["bako tine", "rodusi", "", "[SEP] bako [MASK]", "tine \u2603"], np.random.default_rng(0)
    table, plain = rng.standard_normal((280, 12)).astype(np.float32), PlainTokenizer.of(tokenizer)
    for number, (normalize, prompts) in enumerate([(True, PROMPTS), (False, {})]):
        ours = bert_jax.StaticEmbedder(table, plain, normalize, prompts=prompts, truncate_dim=8 if normalize else None)
        ours.save(tmp_path / f"ours{number}")
        theirs, expected = encode(tmp_path / f"ours{number}", texts)
        assert [type(module) for module in theirs] == [StaticEmbedding, Normalize][: 1 + normalize]
        np.testing.assert_allclose(ours(texts), expected, atol=1e-5, rtol=0)
        for name in prompts:
            np.testing.assert_allclose(ours(texts, name), theirs.encode(texts, prompt_name=name), atol=1e-5, rtol=0)
        theirs.save(str(tmp_path / f"theirs{number}"))
        again = bert_jax.StaticEmbedder.load(tmp_path / f"theirs{number}")
        np.testing.assert_allclose(again(texts), expected, atol=1e-5, rtol=0)
        assert (again.prompts, again.normalize, again.truncate_dim) == (theirs.prompts, normalize, theirs.truncate_dim)
    # as model2vec writes a table with fewer vectors than tokens, and as earlier versions of sentence-transformers wrote one
    few = {"embeddings": table[:40], "mapping": rng.integers(0, 40, 280), "weights": rng.random(280).astype(np.float32)}
    save_file(few, tmp_path / "ours0" / "model.safetensors")
    folder = tmp_path / "theirs1" / "0_StaticEmbedding"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.move(tmp_path / "theirs1" / name, folder / name)
    modules = [{"idx": 0, "name": "0", "path": folder.name, "type": f"{OLD_TYPES}StaticEmbedding"}]
    (tmp_path / "theirs1" / "modules.json").write_text(json.dumps(modules))
    for directory in (tmp_path / "ours0", tmp_path / "theirs1"):
        _, expected = encode(directory, texts)
        np.testing.assert_allclose(bert_jax.StaticEmbedder.load(directory)(texts), expected, atol=1e-5, rtol=0)
