"""Published weights on real text against transformers and sentence-transformers: `pytest -m published`, run on purpose.

Where things are is said by environment variables: BERT_JAX_MINILM (all-MiniLM-L6-v2 with its sentence-transformers files),
BERT_JAX_BERT_TINY (an English BERT with its masked-LM head), BERT_JAX_TF1_TOY (a small checkpoint of google-research/bert),
BERT_JAX_STSB (dev.tsv of GLUE's STS-B) and BERT_JAX_CRANFIELD (the folder of cran.all.1400, cran.qry and cranqrel).
"""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from test_parity_predictions import run_theirs, tf1_name, token_of

import bert_jax
from bert_jax import Embedder, FillMask, nearest
from bert_jax.formats.tf1 import find_tf1, read_tf1

pytestmark = pytest.mark.published


def given(variable):
    """The path that an environment variable says."""
    path = os.environ.get(variable)
    if not path or not Path(path).exists():
        pytest.fail(f"{variable} is {path!r}: set it to an existing path; the top of {Path(__file__).name} says to which")
    return Path(path)


@pytest.fixture(scope="module")
def pairs():
    """(sentence, sentence, human score) of STS-B's development set."""
    with given("BERT_JAX_STSB").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 1500
    return [(row["sentence1"], row["sentence2"], float(row["score"])) for row in rows]


@pytest.fixture(scope="module")
def sentences(pairs):
    """200 of many lengths: every fifteenth of them."""
    return sorted({sentence for *both, _ in pairs for sentence in both})[::15][:200]


@pytest.fixture(scope="module")
def minilm():
    return bert_jax.load(given("BERT_JAX_MINILM"))


@pytest.fixture(scope="module")
def their_minilm():
    return sentence_transformer(given("BERT_JAX_MINILM"))


def sentence_transformer(directory):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(directory), device="cpu")


def tokenized(directory, texts):
    """int arrays [B, L] by transformers' tokenizer."""
    from transformers import AutoTokenizer

    return dict(AutoTokenizer.from_pretrained(directory)(texts, padding=True, return_tensors="np"))


def reloaded(model, directory):
    """The transformers model of what we write, which it must find complete."""
    import transformers

    bert_jax.save(model, directory)
    [name] = json.loads((directory / "config.json").read_text())["architectures"]
    theirs, report = getattr(transformers, name).from_pretrained(directory, output_loading_info=True)
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= set(report)
    assert {key: names for key, names in report.items() if names} == {}
    return theirs


def assert_close(ours, theirs, what):
    assert np.shape(ours) == np.shape(theirs)
    difference, spread = float(np.abs(np.asarray(ours) - theirs).max()), float(np.ptp(theirs))
    print(f"{what}: at most {difference:.1e} apart, of values {spread:.1e} apart")
    assert difference < 1e-4 * min(1, spread)


# --- MiniLM ---


def test_hidden_states_of_minilm_are_those_of_transformers(minilm, sentences, tmp_path):
    from transformers import AutoModel

    directory = given("BERT_JAX_MINILM")
    batch = tokenized(directory, sentences)
    real = batch["attention_mask"] > 0
    states = run_theirs(AutoModel.from_pretrained(directory), batch).last_hidden_state.numpy()
    assert_close(np.asarray(minilm.encode(minilm.params, **batch))[real], states[real], "hidden states of MiniLM")
    again = run_theirs(reloaded(minilm, tmp_path), tokenized(tmp_path, sentences)).last_hidden_state.numpy()
    np.testing.assert_array_equal(again, states)


def test_embeddings_of_minilm_are_those_of_sentence_transformers(minilm, their_minilm, sentences, tmp_path):
    expected = their_minilm.encode(sentences, show_progress_bar=False)
    assert_close(Embedder(minilm)(sentences), expected, "embeddings of MiniLM")
    bert_jax.save(minilm, tmp_path)
    again = sentence_transformer(tmp_path)
    assert again.max_seq_length == their_minilm.max_seq_length == 256
    np.testing.assert_array_equal(again.encode(sentences, show_progress_bar=False), expected)


def test_similarities_of_minilm_rank_sts_b_as_published(minilm, pairs):
    from scipy.stats import spearmanr

    embed = Embedder(minilm)
    first, second = (embed([pair[i] for pair in pairs]) for i in (0, 1))
    correlation = spearmanr(np.sum(first * second, axis=1), [score for *_, score in pairs]).statistic
    print(f"STS-B dev: Spearman {correlation:.5f}")
    assert correlation == pytest.approx(0.867, abs=0.001)


def records(path):
    """{field: text} of each record of a SMART file: `.I`, `.T`, `.W`, ... begin fields."""
    for record in re.split(r"^\.I ", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
        number, *fields = re.split(r"^\.([TABW])\n", record, flags=re.M)
        values = zip(fields[::2], fields[1::2], strict=True)
        yield {"I": number.strip(), **{name: " ".join(value.split()) for name, value in values}}


@pytest.fixture(scope="module")
def cranfield():
    """(documents, queries, {query: {document: gain}}); in the judgements queries are numbered by their order."""
    folder = given("BERT_JAX_CRANFIELD")
    documents = [f"{record['T']} {record['W']}" for record in records(folder / "cran.all.1400")]
    queries = [record["W"] for record in records(folder / "cran.qry")]
    assert (len(documents), len(queries)) == (1400, 225)
    gains = {query: {} for query in range(len(queries))}
    for line in (folder / "cranqrel").read_text().splitlines():
        query, document, code = map(int, line.split())
        if code > 0:  # 1: a complete answer, ... 4: of minimum interest (cranqrel.readme)
            gains[query - 1][document - 1] = 5 - code
    return documents, queries, gains


def ndcg(found, gains):
    """Mean nDCG at the width of `found` [Q, k], indices of documents."""
    discounts = 1 / np.log2(np.arange(2, found.shape[1] + 2))
    values = []
    for row, judged in zip(found, gains.values(), strict=True):
        ideal = np.zeros(len(discounts))
        best = sorted(judged.values(), reverse=True)[: len(discounts)]
        ideal[: len(best)] = best
        values.append(np.dot([judged.get(int(i), 0) for i in row], discounts) / np.dot(ideal, discounts))
    return float(np.mean(values))


def test_search_in_cranfield_finds_what_sentence_transformers_finds(minilm, their_minilm, cranfield):
    from sentence_transformers.util import semantic_search

    documents, queries, gains = cranfield
    embed = Embedder(minilm)
    with pytest.warns(UserWarning, match="texts have more than 256 tokens"):
        corpus = embed(documents)
    asked = embed(queries)
    their_corpus = their_minilm.encode(documents, show_progress_bar=False)
    their_asked = their_minilm.encode(queries, show_progress_bar=False)
    assert_close(corpus, their_corpus, "embeddings of Cranfield's documents")
    assert_close(asked, their_asked, "embeddings of Cranfield's queries")
    hits = semantic_search(their_asked, their_corpus, top_k=10)
    theirs = ndcg(np.array([[hit["corpus_id"] for hit in each] for each in hits]), gains)
    ours = ndcg(nearest(asked, corpus, 10)[1], gains)
    print(f"Cranfield: nDCG@10 {ours:.5f}, sentence-transformers {theirs:.5f}")
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert ours > 0.3


# --- a BERT with its masked-LM head ---


@pytest.fixture(scope="module")
def masked(sentences):
    """The sentences with a mask in the place of one word, every third with two."""
    texts = []
    for i, words in enumerate(sentence.split() for sentence in sentences):
        for place in {(i * 7) % len(words), (i * 3) % len(words) if i % 3 == 0 else (i * 7) % len(words)}:
            words[place] = "[MASK]"
        texts.append(" ".join(words))
    return texts


def test_masked_lm_logits_of_bert_tiny_are_those_of_transformers(masked, tmp_path, capsys):
    from transformers import AutoModelForMaskedLM

    directory = given("BERT_JAX_BERT_TINY")
    ours = bert_jax.load(directory)
    assert ours.head == "masked_lm"
    assert capsys.readouterr().err == ""
    batch = tokenized(directory, masked)
    real = batch["attention_mask"] > 0
    logits = run_theirs(AutoModelForMaskedLM.from_pretrained(directory), batch).logits.numpy()
    found = np.asarray(ours.apply(ours.params, batch)["masked_lm_logits"])
    assert_close(found[real], logits[real], "masked-LM logits of BERT-tiny")
    again = run_theirs(reloaded(ours, tmp_path), tokenized(tmp_path, masked)).logits.numpy()
    np.testing.assert_array_equal(again, logits)


def test_fillings_of_bert_tiny_are_those_of_the_pipeline(masked):
    import transformers

    directory = given("BERT_JAX_BERT_TINY")
    pipeline = transformers.pipeline("fill-mask", model=str(directory), device="cpu")
    found = FillMask(bert_jax.load(directory))(masked)
    for text, fillings, candidates in zip(masked, found, pipeline(masked), strict=True):
        flat = candidates if text.count("[MASK]") == 1 else [candidate for each in candidates for candidate in each]
        assert [filling.token for filling in fillings] == [token_of(candidate, pipeline.tokenizer) for candidate in flat], text
        scores = [candidate["score"] for candidate in flat]
        np.testing.assert_allclose([filling.score for filling in fillings], scores, atol=1e-4, rtol=0)


# --- a checkpoint of google-research/bert ---


def test_a_tf1_checkpoint_gives_what_transformers_gives_when_filled_by_hand(tmp_path):
    import torch
    from transformers import BertConfig, BertForPreTraining

    directory = given("BERT_JAX_TF1_TOY")
    theirs = BertForPreTraining(BertConfig(**json.loads((directory / "bert_config.json").read_text())))
    variables, used = read_tf1(find_tf1(directory)), set()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            value = torch.from_numpy(np.array(variables[tf1_name(name)]))
            parameter.copy_(value.T if tf1_name(name).endswith("/kernel") else value)
            used.add(tf1_name(name))
    left = [name for name in variables if name not in used]
    assert all(name.endswith(("/adam_m", "/adam_v", "global_step")) for name in left), left

    ours = bert_jax.load(directory)
    assert ours.head == "pretraining"
    texts = ["all work and no play makes jack a dull boy", "no work", "jack makes a boy", "work"]
    ids = [[2, *each.tolist(), 3] for each in ours.tokenizer.encode_batch(texts)]
    assert ids[0] == [2, *range(5, 15), 3]
    length = max(map(len, ids))
    batch = {
        "input_ids": np.array([each + [0] * (length - len(each)) for each in ids], np.int32),
        "attention_mask": np.array([[1] * len(each) + [0] * (length - len(each)) for each in ids], np.int32),
        "token_type_ids": np.broadcast_to(np.arange(length, dtype=np.int32) > 5, (len(ids), length)).astype(np.int32),
    }
    batch["input_ids"][0, 4] = ours.tokenizer.mask_id
    real = batch["attention_mask"] > 0
    outputs, expected = ours.apply(ours.params, batch), run_theirs(theirs, batch)
    states = run_theirs(theirs.bert, batch).last_hidden_state.numpy()
    assert_close(np.asarray(outputs["last_hidden_state"])[real], states[real], "hidden states of the TF1 checkpoint")
    logits = expected.prediction_logits.numpy()
    assert_close(np.asarray(outputs["masked_lm_logits"])[real], logits[real], "its masked-LM logits")
    assert_close(outputs["next_sentence_logits"], expected.seq_relationship_logits.numpy(), "its next-sentence logits")
    again = run_theirs(reloaded(ours, tmp_path), batch)
    np.testing.assert_array_equal(again.prediction_logits.numpy(), logits)
    np.testing.assert_array_equal(again.seq_relationship_logits.numpy(), expected.seq_relationship_logits.numpy())
