"""Tables of token vectors: made of a model by their definition, saved, and read without JAX."""

import json
import subprocess
import sys

import huggingface_hub
import jax
import numpy as np
import pytest
import tokenizers
from inference_models import ROOT, SHORT, model_of
from safetensors.numpy import load_file
from sklearn.decomposition import PCA

import bert_jax
from bert_jax import InputError, Pooling, StaticEmbedder
from bert_jax.__main__ import main
from bert_jax.data.plain_tokenizer import PlainTokenizer
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.inference.distil import rarity_weights, text_tokens


@pytest.fixture(scope="module")
def model(tokenizer):
    return model_of(tokenizer, "encoder", pooling=Pooling(prompts={"query": "bako "}))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A folder with the model and with the table that the command makes of it."""
    folder = tmp_path_factory.mktemp("static")
    bert_jax.save(model, folder / "model")
    assert not main(["static", str(folder / "model"), str(folder / "table"), "--dimensions", "8", "--sif", "1e-3"])
    return folder


def test_a_table_has_the_main_directions_of_each_token_alone_and_zeros_for_special_tokens(model, folder, tokenizer):
    table, kept = StaticEmbedder.load(folder / "table").table, text_tokens(tokenizer)
    assert kept.tolist() == list(range(5, 280))
    ids = np.stack([np.full(275, tokenizer.cls_id), kept, np.full(275, tokenizer.sep_id)], axis=1).astype(np.int32)
    hidden = np.asarray(jax.jit(model.encode)(model.params, ids))
    expected = PCA(8, svd_solver="full").fit_transform(hidden.mean(axis=1)) * rarity_weights(275, 1e-3)[:, None]
    np.testing.assert_allclose(table[kept], expected, atol=1e-4 * abs(expected).max())
    assert not table[:5].any()
    np.testing.assert_allclose(rarity_weights(3, 0.2), [0.2 / (0.2 + p / 13) for p in (6, 4, 3)], rtol=1e-6)


def test_a_text_is_the_mean_of_its_tokens_and_needs_no_jax(folder, tokenizer, tmp_path):
    table, texts = load_file(folder / "table" / "model.safetensors")["embeddings"], [*SHORT[:4], "", "[SEP]"]
    means = np.array([table[ids].mean(axis=0) if len(ids) else np.zeros(8) for ids in tokenizer.encode_batch(texts)])
    lengths = np.linalg.norm(means, axis=1)
    assert (lengths[:4] > 0).all()
    assert not lengths[4:].any()
    program = (
        "import sys, numpy as np\nfrom bert_jax import StaticEmbedder\n"
        f"vectors = StaticEmbedder.load({str(folder / 'table')!r})({texts!r})\n"
        f"np.save({str(tmp_path / 'vectors.npy')!r}, vectors)\nassert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    found = np.load(tmp_path / "vectors.npy")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, means / np.maximum(lengths, 1e-12)[:, None], atol=1e-6)
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in SHORT[:4]))
    out = str(tmp_path / "free.npy")
    assert not main(["embed", str(folder / "table"), str(tmp_path / "texts.txt"), "--out", out, "--no-normalize"])
    np.testing.assert_allclose(np.load(out), means[:4], atol=1e-6 * abs(means).max())


def test_mappings_weights_prompts_and_lengths_are_followed_and_kept(tokenizer, tmp_path):
    rng, plain, texts = np.random.default_rng(0), PlainTokenizer.of(tokenizer), SHORT[:3]
    rows, mapping = rng.standard_normal((50, 6)).astype(np.float16), rng.integers(0, 50, 280)
    weights = rng.random(280).astype(np.float32)
    made = StaticEmbedder(rows, plain, False, mapping, weights, 4, "bako ", {"query": "tine "}, "dot")
    made.save(tmp_path)
    again = StaticEmbedder.load(tmp_path)
    whole = StaticEmbedder(rows[mapping].astype(np.float32) * weights[:, None], plain, False)
    for each in (made, again):
        np.testing.assert_allclose(each(texts), whole([f"bako {text}" for text in texts])[:, :4], atol=1e-6)
        np.testing.assert_allclose(each(texts, "query"), whole([f"tine {text}" for text in texts])[:, :4], atol=1e-6)
    assert (again.table.dtype, again.normalize, again.similarity_fn_name) == (np.float16, False, "dot")
    assert again.prompts == {"query": "tine ", "default": "bako "}


def test_a_table_in_a_folder_of_its_own_is_fetched_from_the_hub(tokenizer, tmp_path, monkeypatch):
    made, seen = StaticEmbedder(np.random.default_rng(1).standard_normal((280, 4)), PlainTokenizer.of(tokenizer), False), []
    made.save(tmp_path / "0_StaticEmbedding")
    module = {"path": "0_StaticEmbedding", "type": "sentence_transformers.models.StaticEmbedding"}
    (tmp_path / "modules.json").write_text(json.dumps([module]))

    def fetch(name, allow_patterns):
        seen.extend(allow_patterns)
        return tmp_path

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    np.testing.assert_array_equal(StaticEmbedder.load("maker/table")(SHORT[:3]), made(SHORT[:3]))
    assert "0_StaticEmbedding/model*.safetensors" in seen


def test_texts_are_read_in_lower_case_where_the_model_reads_them_so(tokenizer):
    engine = tokenizer.engine()
    engine.normalizer = tokenizers.normalizers.Strip()
    cased = Tokenizer(engine)
    upper, lower = cased.encode_batch(["BAKO tine", "bako tine"])
    assert upper.tolist() != lower.tolist()
    assert next(PlainTokenizer.of(cased, lowercase=True).encode(["BAKO tine"])).tolist() == lower.tolist()


def test_what_a_table_cannot_do_is_refused_by_name(model, folder, tokenizer, tmp_path):
    table, encoder = str(folder / "table"), str(folder / "model")
    (tmp_path / "texts.txt").write_text("bako\n")
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in ("StaticEmbedding", "Dense")])
    )
    for act, message in (
        (lambda: bert_jax.load(table), "has a table of token vectors and no encoder: bert_jax.StaticEmbedder.load"),
        (lambda: StaticEmbedder.load(encoder), "has no table of token vectors: `bert_jax static` makes one"),
        (lambda: StaticEmbedder.load(tmp_path), "StaticEmbedding, Dense are not supported together"),
        (lambda: StaticEmbedder.load(table)(["bako"], "query"), "no prompt 'query'; the model's prompts: none"),
        (lambda: StaticEmbedder.load(table)("bako"), "texts is a str; expected a list"),
        (lambda: StaticEmbedder(np.zeros((9, 2)), PlainTokenizer.of(tokenizer)), "9 rows for 280 tokens of the tokenizer"),
        (lambda: bert_jax.to_static(model, 33), "dimensions=33: a vector has 1 to 32 values"),
        (lambda: bert_jax.to_static(model, sif=1.0), "sif=1.0 is not between 0 and 1"),
        (lambda: main(["static", encoder, encoder]), "has the config.json of another model"),
        (lambda: main(["embed", table, str(tmp_path / "texts.txt"), "--pooling", "cls"]), "which has no --pooling"),
        (lambda: main(["evaluate", table, "--data", "x", "--max-seq-length", "9"]), "which has no --max-seq-length"),
        (lambda: main(["evaluate", table, "--data", "x", "--task", "sst2"]), "sst2 needs an encoder"),
    ):
        with pytest.raises(InputError, match=message):
            act()
