"""Checkpoints of every format, predictions and embeddings against transformers' pipelines and sentence-transformers."""

import copy
import dataclasses
import json
import re
from collections import Counter
from functools import cache
from itertools import pairwise

import jax
import numpy as np
import pytest
from test_parity_families import their_model
from test_parity_tokenizer import LETTERS, LINES, write_files
from tf1_writer import write_tf1

import bert_jax
from bert_jax import Classifier, Embedder, FillMask, Pooling, Tagger
from bert_jax.model.families import FAMILIES

pytestmark = pytest.mark.parity
LONG = " ".join(" ".join(LINES).split()[:32])
TEXTS = [LINES[0], "A", "It's (really) fine, isn't it? In 1999!", *LINES[1:9], LONG, "Crème brûlée, Ångström", LINES[9]]
WORDS = [" ".join(re.findall("[a-z]+", text.lower())) for text in (*LINES[:8], LONG)]
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
ROUTES = ["theirs", "ours"]  # the directory that transformers reads: as it wrote it, or as we exported it


# --- files ---


@cache
def bert_for_pretraining():
    return their_model("bert", "pretraining", vocab_size=99, max_position_embeddings=32)


def pretraining_batch():
    rng = np.random.default_rng(1)
    mask = (np.arange(20) < [[20], [7], [13]]).astype(np.int32)
    ids = rng.integers(5, 99, (3, 20)) * mask
    return {"input_ids": ids.astype(np.int32), "attention_mask": mask, "token_type_ids": rng.integers(0, 2, (3, 20)) * mask}


def run_theirs(model, batch):
    import torch

    with torch.no_grad():
        return model.eval().float()(**{name: torch.from_numpy(np.asarray(value)).long() for name, value in batch.items()})


def assert_close(ours, theirs):
    """Equal to within 1e-5 of the largest value."""
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)


def assert_same_logits(ours, theirs):
    """MLM and next-sentence logits of a BertForPreTraining."""
    batch = pretraining_batch()
    outputs, expected = jax.jit(ours.apply)(ours.params, batch), run_theirs(theirs, batch)
    real = batch["attention_mask"] > 0
    logits = expected.prediction_logits.numpy()
    assert_close(np.asarray(outputs["masked_lm_logits"])[real], logits[real])
    next_sentence = expected.seq_relationship_logits.numpy()
    assert_close(outputs["next_sentence_logits"], next_sentence)
    assert np.ptp(logits) > 1
    assert np.ptp(next_sentence) > 0.1


def tf1_name(name):
    """The variable of google-research/bert that is this weight of transformers' BertForPreTraining."""
    *modules, leaf = re.sub(r"layer\.(\d+)", r"layer_\1", name).split(".")
    if modules[-1] == "LayerNorm":
        leaf = {"weight": "gamma", "bias": "beta"}[leaf]
    elif modules[-1] in ("predictions", "seq_relationship"):
        leaf = {"weight": "output_weights", "bias": "output_bias"}[leaf]
    elif modules[-1].endswith("_embeddings"):
        return "/".join(modules)
    else:
        leaf = {"weight": "kernel", "bias": "bias"}[leaf]
    return "/".join([*modules, leaf])


def tf1_variables(model):
    """Variable -> array, for each weight of a BertForPreTraining; what is tied is there once."""
    weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    named = {tf1_name(name): weight for name, weight in weights.items()}
    return {name: np.ascontiguousarray(weight.T) if name.endswith("kernel") else weight for name, weight in named.items()}


def write_google_checkpoint(directory, model, **options):
    """bert_config.json, bert_model.ckpt.* with the optimizer's variables, and vocab.txt."""
    names = ["attention_probs_dropout_prob", "hidden_act", "hidden_dropout_prob", "hidden_size", "initializer_range"]
    names += ["intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "type_vocab_size"]
    config = {name: getattr(model.config, name) for name in [*names, "vocab_size"]}
    (directory / "bert_config.json").write_text(json.dumps(config))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(model.config.vocab_size - 5))]
    (directory / "vocab.txt").write_text("\n".join(tokens) + "\n")
    variables = tf1_variables(model)
    state = {f"{name}/adam_{kind}": np.ones_like(array) for name, array in variables.items() for kind in "mv"}
    write_tf1(directory / "bert_model.ckpt", variables | state | {"global_step": np.int64(1000)}, **options)


def test_a_tf1_checkpoint_gives_the_logits_of_the_transformers_model_that_it_was_written_from(tmp_path, capsys):
    theirs = their_model("bert", "pretraining", vocab_size=99, max_position_embeddings=32, layer_norm_eps=1e-12)
    write_google_checkpoint(tmp_path, theirs, num_shards=2)
    ours = bert_jax.load(tmp_path)
    assert ours.head == "pretraining"
    assert capsys.readouterr().err == ""
    assert_same_logits(ours, theirs)
    assert ours.tokenizer.encode_batch(["Word3 word0"])[0].tolist() == [8, 5]


def test_the_names_of_the_tf1_checkpoint_are_those_of_google_research():
    names = set(tf1_variables(bert_for_pretraining()))
    assert {"bert/embeddings/LayerNorm/gamma", "bert/embeddings/word_embeddings", "bert/pooler/dense/kernel"} < names
    assert {"bert/encoder/layer_1/attention/self/query/kernel", "bert/encoder/layer_0/attention/output/LayerNorm/beta"} < names
    assert {"bert/encoder/layer_0/intermediate/dense/bias", "bert/encoder/layer_1/output/dense/kernel"} < names
    heads = {"cls/predictions/output_bias", "cls/predictions/transform/dense/kernel", "cls/seq_relationship/output_weights"}
    heads |= {"cls/predictions/transform/dense/bias", "cls/seq_relationship/output_bias"}
    heads |= {f"cls/predictions/transform/LayerNorm/{leaf}" for leaf in ("gamma", "beta")}
    assert {name for name in names if name.startswith("cls")} == heads


def old_names(state):
    """As files of 2018 call them: gamma and beta, and with the position_ids buffer of 2020."""
    import torch

    renamed = {re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name): weight for name, weight in state.items()}
    renamed = {re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name): weight for name, weight in renamed.items()}
    return renamed | {"bert.embeddings.position_ids": torch.arange(32)[None]}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("rename", [dict, old_names])
def test_pytorch_model_bin_is_read_in_both_formats_of_torch_save(zipped, shards, rename, tmp_path):
    import torch

    theirs = bert_for_pretraining()
    theirs.config.save_pretrained(tmp_path)
    state = rename(theirs.state_dict())
    files = ["pytorch_model.bin"] if shards == 1 else [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
    for i, file in enumerate(files):
        part = dict(list(state.items())[i::shards])
        torch.save(part, tmp_path / file, _use_new_zipfile_serialization=zipped)
    if shards > 1:
        where = {name: files[i % shards] for i, name in enumerate(state)}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["BertForPreTraining"]}))
    assert_same_logits(bert_jax.load(tmp_path), theirs)


def test_sharded_safetensors_are_read(tmp_path):
    theirs = bert_for_pretraining()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3
    assert_same_logits(bert_jax.load(tmp_path), theirs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_half_precision_files_give_what_transformers_gives_of_them_in_float32(dtype, file, tmp_path):
    import torch

    theirs = their_model("bert", "pretraining", vocab_size=99, max_position_embeddings=32).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path)
    if file == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / file)
    assert_same_logits(bert_jax.load(tmp_path), theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_model_without_prefix_is_read_with_a_head_and_the_new_weights_are_said(family, tmp_path, capsys):
    theirs = their_model(family, "encoder")
    theirs.save_pretrained(tmp_path)
    capsys.readouterr()
    ours = bert_jax.load(tmp_path, head="token_classification", labels=["a", "b", "c"])
    said = capsys.readouterr().err
    assert re.search(r"no weights for token_classifier/bias, token_classifier/kernel.*: freshly initialised", said)
    ids = np.random.default_rng(0).integers(5, 61, (2, 9), dtype=np.int32)
    hidden = run_theirs(theirs, {"input_ids": ids}).last_hidden_state.numpy()
    outputs = jax.jit(ours.apply)(ours.params, {"input_ids": ids})
    assert_close(outputs["last_hidden_state"], hidden)
    assert outputs["logits"].shape == (2, 9, 3)


# --- predictions ---


SENTENCEPIECE = ("xlm-roberta", "xlm-roberta-xl", "gte", "albert", "camembert", "deberta-v2", "rembert")
OF_TEXTS = [family for family in FAMILIES if family not in ("esm", "roformer")]  # proteins; a tokenizer in Python
BYTES = ("roberta", "data2vec-text", "modernbert", "eurobert")


def write_tokenizer(directory, family):
    """The published files of a tiny tokenizer of `family`, the same ones each time: `tokenizers` breaks ties by chance."""
    from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel

    if family in ("xlm-roberta-xl", "gte"):
        write_files(directory, "xlm-roberta")
        return
    if family == "esm":
        (directory / "vocab.txt").write_text("\n".join(LETTERS))
        (directory / "config.json").write_text(json.dumps({"model_type": family}))
        return
    if family in SENTENCEPIECE or family in ("modernbert", "eurobert"):
        write_files(directory, family, LINES)
        return
    if family in BYTES:
        merges, alphabet = [("#", "#")], sorted(ByteLevel.alphabet())
        counts = Counter(piece for line in LINES for piece, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str(line))
        words = {tuple(word): count for word, count in counts.items()}
        for _ in range(150):
            seen = Counter()
            for word, count in words.items():
                for pair in pairwise(word):
                    seen[pair] += count
            merges.append(max(seen, key=lambda pair: (seen[pair], pair)))
            words = {joined(word, merges[-1]): count for word, count in words.items()}
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, *map("".join, merges), "<mask>"]
        (directory / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}))
        (directory / "config.json").write_text(json.dumps({"model_type": family}))
        (directory / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        return
    lines = [line.lower() if family != "electra" else line for line in LINES]
    words = Counter(word for line in lines for word, _ in BertPreTokenizer().pre_tokenize_str(line))
    letters = sorted({letter for word in words for letter in word})
    ends = Counter(word[i:] for word in words for i in range(1, len(word)) if len(word) - i in (2, 3))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokens += [word for word, _ in words.most_common(300) if len(word) > 1] + [f"##{end}" for end, _ in ends.most_common(150)]
    if family == "mpnet":
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *tokens, "<mask>"]
    (directory / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": family != "electra"}))
    (directory / "config.json").write_text(json.dumps({"model_type": family}))


def joined(word, pair):
    """The tokens of a word after one merge of byte-pair encoding."""
    out = []
    for token in word:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return tuple(out)


class Served:
    """A tiny random model with a tokenizer: as transformers wrote it, as we read it, and as we wrote it again."""

    def __init__(self, directory, family, head, **changes):
        from transformers import AddedToken, AutoTokenizer

        self.family, old = family, directory / "old"
        self.directories = {route: str(directory / route) for route in ROUTES}
        old.mkdir()
        write_tokenizer(old, family)
        # transformers v5 forgets, without a tokenizer.json, that the mask of RoBERTa takes the space before it
        mask = {"mask_token": AddedToken("<mask>", lstrip=True, special=True)} if family in ("roberta", "data2vec-text") else {}
        self.tokenizer = AutoTokenizer.from_pretrained(old, model_max_length=128, **mask)
        roles = {f"{role}_token_id": getattr(self.tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")}
        sizes = dict(
            vocab_size=len(self.tokenizer), max_position_embeddings=128 + 2 * FAMILIES[family].form.positions_from_padding
        )
        self.theirs = their_model(family, head, **sizes, **roles, **changes)
        for name, parameter in self.theirs.named_parameters():
            if name.endswith("word_embeddings.weight") or name.startswith("classifier"):
                parameter.data *= 3  # so that predictions differ between tokens
        if head == "token_classification":  # and none is of the same class everywhere
            logits = run_theirs(self.theirs, self.tokenizer([LONG], return_tensors="np")).logits
            self.theirs.classifier.bias.data -= logits.mean(dim=(0, 1))
        self.theirs.save_pretrained(self.directories["theirs"])
        self.tokenizer.save_pretrained(self.directories["theirs"])
        self.ours = bert_jax.load(self.directories["theirs"])
        assert self.ours.head == head
        bert_jax.save(self.ours, self.directories["ours"])

    def whole_words(self, text):
        """Words without those whose first token is the mark of a space alone, or that have an unknown one."""
        ids = [(word, self.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) for word in text.split()]
        words = [(word, self.tokenizer.convert_ids_to_tokens(each)) for word, each in ids]
        return [word for word, tokens in words if tokens[0] not in ("Ġ", "▁") and self.tokenizer.unk_token not in tokens]

    @cache  # noqa: B019
    def pipeline(self, task, route, **options):
        import transformers

        return transformers.pipeline(task, model=self.directories[route], device="cpu", **options)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(family, head, changes of its config as JSON) -> Served."""

    @cache
    def make(family, head, changes="{}"):
        return Served(tmp_path_factory.mktemp("served"), family, head, **json.loads(changes))

    return make


@pytest.fixture(scope="module")
def predictions():
    """(predictor's class, Served, its options) -> the predictor, compiled once."""
    return cache(lambda kind, served, **options: kind(served.ours, **options))


def masked_texts(mask):
    """Texts with a mask in the place of a word, others with two, three and six."""
    texts = [text.split() for text in TEXTS if len(text.split()) > 3]
    single = [" ".join([*words[:i], mask, *words[i + 1 :]]) for i, words in enumerate(texts)]
    return [*single, f"{mask} is the {mask}.", f"a {mask}, {mask} and {mask}", " of ".join([mask] * 6), mask]


def token_of(candidate, tokenizer):
    """How we show a token: without the mark that it continues a word, and never as nothing."""
    token = candidate["token_str"].strip() or tokenizer.convert_ids_to_tokens(candidate["token"])
    return token.removeprefix("##") if type(tokenizer._tokenizer.model).__name__ == "WordPiece" else token


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("family", OF_TEXTS)
def test_fillings_are_those_of_the_fill_mask_pipeline(family, route, served, predictions):
    model = served(family, "masked_lm")
    texts = masked_texts(model.tokenizer.mask_token)
    expected = model.pipeline("fill-mask", route)(texts, top_k=7)
    found = predictions(FillMask, model, top_k=7)(texts)
    for text, fillings, candidates in zip(texts, found, expected, strict=True):
        if text.count(model.tokenizer.mask_token) == 1:
            candidates = [candidates]
        assert [filling.mask for filling in fillings] == [mask for mask, each in enumerate(candidates) for _ in each]
        flat = [candidate for each in candidates for candidate in each]
        assert [filling.token for filling in fillings] == [token_of(candidate, model.tokenizer) for candidate in flat]
        scores = [candidate["score"] for candidate in flat]
        np.testing.assert_allclose([filling.score for filling in fillings], scores, atol=1e-5, rtol=0)
        assert max(scores) > 0.004  # or the tolerance would say little


def test_letters_of_proteins_are_filled_as_by_transformers(served, predictions):
    model = served("esm", "masked_lm")
    proteins = ["MKTAYIAKQR<mask>ISFVK", "<mask>K", "M K T <mask> xx", "ACDEFGHIKLMNPQRSTVWY<mask>" * 3]
    for route in ROUTES:
        expected = model.pipeline("fill-mask", route)(proteins, top_k=5)
        found = predictions(FillMask, model, top_k=5)(proteins)
        for protein, fillings, candidates in zip(proteins, found, expected, strict=True):
            flat = [each for some in ([candidates] if protein.count("<mask>") == 1 else candidates) for each in some]
            assert [filling.token for filling in fillings] == [each["token_str"] for each in flat]
            np.testing.assert_allclose([f.score for f in fillings], [each["score"] for each in flat], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", OF_TEXTS)
def test_every_token_of_the_vocabulary_is_shown_as_the_pipeline_shows_it(family, served):
    model = served(family, "masked_lm")
    text, count = f"the {model.tokenizer.mask_token}", len(model.tokenizer)
    candidates = model.pipeline("fill-mask", "theirs")(text, top_k=count)
    found = [filling.token for filling in FillMask(model.ours, top_k=count)([text])[0]]
    assert sorted(found) == sorted(token_of(candidate, model.tokenizer) for candidate in candidates)
    assert all(found)


@pytest.mark.parametrize("family", OF_TEXTS)
def test_the_filled_text_is_the_sequence_of_the_fill_mask_pipeline(family, served, predictions):
    """Where decoding gives a text back: ours keeps the capitals, spaces and accents of the caller's text."""
    model = served(family, "masked_lm")
    text = f"the value of {model.tokenizer.mask_token} is a string"
    compared = 0
    for filling, candidate in zip(
        predictions(FillMask, model, top_k=7)([text])[0], model.pipeline("fill-mask", "theirs")(text, top_k=7), strict=True
    ):
        if candidate["token"] not in model.tokenizer.all_special_ids:  # which theirs leaves out
            assert "".join(filling.text.split()) == "".join(candidate["sequence"].split())
            compared += 1
    assert compared > 3


def assert_same_classes(found, expected, atol=1e-4):
    """Classifications against what a pipeline with top_k=None says, the likeliest first."""
    for classification, scores in zip(found, expected, strict=True):
        assert classification.label == scores[0]["label"]
        assert classification.scores == pytest.approx({s["label"]: s["score"] for s in scores}, abs=atol, rel=0)
        assert classification.score == pytest.approx(scores[0]["score"], abs=atol, rel=0)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("family", OF_TEXTS)
def test_classes_of_texts_and_pairs_are_those_of_the_text_classification_pipeline(family, route, served, predictions):
    model = served(family, "sequence_classification")
    pairs = list(zip(TEXTS, TEXTS[3:] + TEXTS[:3], strict=True))
    pipeline = model.pipeline("text-classification", route, top_k=None)
    # transformers v5 forgets ALBERT's token types, unless the tokenizer_config.json says that the model takes them, as ours does
    options = {"return_token_type_ids": True} if (family, route) == ("albert", "theirs") else {}
    expected = pipeline(TEXTS) + pipeline([{"text": a, "text_pair": b} for a, b in pairs], **options)
    found = predictions(Classifier, model)([*TEXTS, *pairs])
    assert_same_classes(found, expected)
    assert len({classification.label for classification in found}) > 1 or np.ptp([c.score for c in found]) > 0.01


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression", "single_label_classification"])
def test_the_problem_type_decides_what_scores_are(problem_type, route, served, predictions):
    count = 1 if problem_type == "regression" else 4
    changes = {"problem_type": problem_type, "num_labels": count, "id2label": {i: f"class {i}" for i in range(count)}}
    model = served("bert", "sequence_classification", json.dumps(changes))
    expected = model.pipeline("text-classification", route, top_k=None)(TEXTS)
    found = predictions(Classifier, model)(TEXTS)
    assert_same_classes(found, expected)
    if problem_type == "multi_label_classification":
        for classification, scores in zip(found, expected, strict=True):
            assert set(classification.labels) == {s["label"] for s in scores if s["score"] >= 0.5}


@pytest.mark.parametrize("problem_type", [None, "regression"])
def test_a_single_label_is_a_probability_but_of_a_regression_a_value(problem_type, served, predictions):
    """As transformers' pipeline and sentence-transformers' CrossEncoder have it where config.json says no more."""
    model = served("bert", "sequence_classification", json.dumps({"num_labels": 1, "problem_type": problem_type}))
    pipeline = model.pipeline("text-classification", "theirs", top_k=None)
    assert_same_classes(predictions(Classifier, model)(TEXTS), pipeline(TEXTS))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_long_texts_and_pairs_are_cut_where_the_pipeline_cuts_them(family, served, predictions):
    """Where both parts are cut and an odd number of tokens is left, theirs gives the odd one to the longer part (to the second
    of equals), ours to the first, as google-research/bert does: the second here is the longer, or alone is cut."""
    model = served(family, "sequence_classification")
    short, long, longer = TEXTS[2], " ".join([LONG] * 3), " ".join([*LONG.split()[::-1]] * 4)
    texts = [long, (short, long), (long, short), short]
    if family == "bert":  # whose layout leaves an odd number
        texts.append((longer, long))
    expected = [
        model.pipeline("text-classification", "theirs", top_k=None)(
            [text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}], truncation=True, max_length=128
        )[0]
        for text in texts
    ]
    with pytest.warns(UserWarning, match=f"{len(texts) - 1} of {len(texts)} texts have more than 128 tokens"):
        found = predictions(Classifier, model)(texts)
    assert_same_classes(found, expected)


TAGGED = json.dumps({"num_labels": 5, "id2label": dict(enumerate(TAGS)), "label2id": {t: i for i, t in enumerate(TAGS)}})


def aggregating(tagger, aggregation):
    """The tagger with another aggregation, without compiling again."""
    tagger = copy.copy(tagger)
    tagger.aggregation = aggregation
    return tagger


def assert_same_entities(found, expected, texts):
    for text, entities, groups in zip(texts, found, expected, strict=True):
        groups = [group for group in groups if text[group["start"] : group["end"]].strip()]  # a lone `▁` is no entity to us
        for group in groups:  # ModernBERT's tokens begin with the space before them
            group["start"] = group["end"] - len(text[group["start"] : group["end"]].lstrip())
        assert [(e.label, e.start, e.end) for e in entities] == [(g["entity_group"], g["start"], g["end"]) for g in groups], text
        np.testing.assert_allclose([e.score for e in entities], [g["score"] for g in groups], atol=1e-4, rtol=0)
        assert all(e.text == text[e.start : e.end] for e in entities)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("aggregation", ["simple", "first", "average", "max"])
@pytest.mark.parametrize("family", OF_TEXTS)
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words, using fallback heuristic:UserWarning")
def test_entities_are_those_of_the_token_classification_pipeline(family, aggregation, route, served, predictions):
    """Words are to ours what the tokenizer cuts text into. Theirs guesses them from spaces where tokens are no WordPieces: it
    takes a full stop for a part of the word before it (RoBERTa), and a lone `Ġ` or `▁`, or an unknown character inside a word,
    for a word; and it gives a lone `▁` the character behind it. Such are left out."""
    model = served(family, "token_classification", TAGGED)
    texts = TEXTS
    if family in (*SENTENCEPIECE, "modernbert") or (aggregation != "simple" and family in BYTES):
        texts = [" ".join(model.whole_words(text)) for text in (WORDS if family in BYTES else TEXTS)]
        assert sum(len(text.split()) for text in texts) > 40
    expected = model.pipeline("token-classification", route)(texts, aggregation_strategy=aggregation)
    found = aggregating(predictions(Tagger, model), aggregation)(texts)
    assert_same_entities(found, expected, texts)
    assert {entity.label for entities in found for entity in entities} == {"PER", "LOC"}


@pytest.mark.parametrize("aggregation", ["simple", "first"])
def test_types_without_letters_are_merged_as_the_pipeline_merges_them(aggregation, served, predictions):
    types = {"0": "O", "1": "PER", "2": "LOC"}
    labels = json.dumps({"num_labels": 3, "id2label": types, "label2id": {name: int(i) for i, name in types.items()}})
    model = served("bert", "token_classification", labels)
    expected = model.pipeline("token-classification", "theirs")(TEXTS, aggregation_strategy=aggregation)
    found = aggregating(predictions(Tagger, model), aggregation)(TEXTS)
    assert_same_entities(found, expected, TEXTS)
    assert sum(len(entities) for entities in found) > len(TEXTS)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("family", OF_TEXTS)
def test_states_of_mixed_lengths_are_those_of_auto_model(family, route, served, predictions):
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = served(family, "masked_lm")
    auto = AutoModel.from_pretrained(model.directories[route]).eval()
    tokenizer = AutoTokenizer.from_pretrained(model.directories[route])
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = auto(**inputs).last_hidden_state.numpy()
    inputs = {name: tensor.numpy() for name, tensor in inputs.items()}
    real = inputs["attention_mask"] > 0
    assert len(set(real.sum(axis=1))) > 5
    hidden = np.asarray(jax.jit(model.ours.encode)(model.ours.params, **inputs))
    assert_close(hidden[real], states[real])
    means = np.stack([state[mask].mean(axis=0) for state, mask in zip(states, real, strict=True)])
    vectors = predictions(Embedder, model, pooling=Pooling("mean", normalize=False))(TEXTS)
    np.testing.assert_allclose(vectors, means, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", OF_TEXTS)
def test_special_tokens_in_texts_are_those_of_auto_tokenizer(family, served):
    """As SPECTER2 is used: title + sep_token + abstract."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = served(family, "masked_lm")
    directory = model.directories["theirs"]
    auto, tokenizer = AutoModel.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    names = [getattr(tokenizer, f"{role}_token") for role in ("sep", "cls", "mask", "unk", "eos")]
    names = [name for name in names if name]  # EuroBERT's states no sep, cls and unk
    texts = [f"The title{name}{text}" for name in names for text in (LINES[0], f" {LINES[1]}", f"a {name} b")]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states, mask = auto(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    expected = ((states * mask).sum(1) / mask.sum(1)).numpy()
    vectors = Embedder(model.ours, Pooling("mean", normalize=False))(texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0)
    as_text = dataclasses.replace(model.ours, tokenizer=model.ours.tokenizer.replace(special_tokens="text"))
    assert (np.abs(Embedder(as_text, Pooling("mean", normalize=False))(texts) - expected).max(axis=1) > 1e-3).all()
