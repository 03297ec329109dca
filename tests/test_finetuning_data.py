"""Items of fine-tuning and their batches: packed, padded or alone the same loss; every item once an epoch; few shapes."""

import dataclasses
import itertools
from collections import Counter
from functools import cache
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import make_words, with_template
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import BertConfig, InputError
from bert_jax.data.batching import Example
from bert_jax.data.finetuning import IGNORED, Batches, Item, Shape, choose_shapes, special_tokens_in
from bert_jax.data.layout import AT_FIRST, Layout, cut, cut_windows, most_context
from bert_jax.data.records import Record
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.finetuning.trainer import make_sums
from bert_jax.model.convert import flatten
from bert_jax.model.heads import Bert, initialize
from bert_jax.pooling import Pooling
from bert_jax.tasks.table import KINDS
from bert_jax.tasks.task import Options

CFG = BertConfig(vocab_size=280, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                 max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compiled, as it runs but once
WORDS = make_words()
CLASSES = ("bad", "fair", "good")
HEADS = {
    "classification": "sequence_classification", "multi_label": "sequence_classification",
    "regression": "sequence_classification", "tagging": "token_classification", "similarity": "encoder",
    "question_answering": "question_answering", "multiple_choice": "multiple_choice",
}  # fmt: skip
CASES = [*(kind for kind in HEADS if kind != "similarity"), "cosine", "ranking", "triplet"]


def record(texts, label=None, number=0):
    return Record(tuple(texts), label, str(number), f"file.tsv:{number + 1}")


def encode(kind, records, labels, layout, limit, *stride, **options):
    return KINDS[kind].encode(records, labels, dataclasses.replace(layout, limit=limit), *stride, **options)


def batches_of(kind, *args, **options):
    return Batches(*args, **options, targets=KINDS[kind].targets)


# ---- the loss of a batch does not depend on how it is laid out


def random_record(case, rng, number):
    """A record of a kind, or of similarity with that loss; some pairs, some long, some without label parts."""

    def text(most=12):
        return " ".join(rng.choice(WORDS, rng.integers(1, most)))

    if case == "tagging":
        words = text(30).split()
        return record(words, tuple(rng.choice(CLASSES, len(words))), number)
    if case == "question_answering":
        words = text(30).split()
        at = int(rng.integers(len(words)))
        answer = " ".join(words[at : at + 3])
        return record((text(), " ".join(words)), ((answer, len(" ".join([*words[:at], ""]))),) if number % 3 else (), number)
    if case == "multiple_choice":
        return record([text() for _ in range(4)], int(rng.integers(3)), number)
    if case in ("cosine", "ranking", "triplet"):
        texts = [text() for _ in range(3 if case == "triplet" else 2)]
        return record(texts, float(rng.random()) if case == "cosine" else None, number)
    label = {
        "classification": str(rng.choice(CLASSES)), "regression": float(rng.normal()),
        "multi_label": tuple(str(name) for name in CLASSES if rng.random() < 0.5),
    }[case]  # fmt: skip
    return record([text(), text()] if number % 2 else [text()], label, number)


def kind_of(case):
    return "similarity" if case in ("cosine", "ranking", "triplet") else case


def setting_of(case):
    """The arguments of make_sums."""
    kind = kind_of(case)
    smoothing = 0.1 if kind in ("classification", "tagging", "multiple_choice") else 0.0
    mode = {"cosine": "cls", "triplet": "max"}.get(case, "mean")
    return SimpleNamespace(
        kind=KINDS[kind],
        module=Bert(CFG, HEADS[kind], 3 if kind in ("classification", "multi_label", "tagging") else 1),
        model=SimpleNamespace(pooling=Pooling(mode)),
        options=Options(loss=case if kind == "similarity" else "auto", temperature=0.5, label_smoothing=smoothing),
    )


@cache
def params_of(module):
    """Random ones, large enough that every token counts."""
    shapes = jax.eval_shape(lambda: initialize(module, 0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: (rng.standard_normal(x.shape) * 0.2).astype(np.float32), shapes)
    params["encoder"]["embeddings"]["norm"]["scale"] += 1
    return params


def loss_and_gradients(setting, batch):
    """The training loss, and its gradients by path."""

    def loss(params):
        sums = make_sums(**vars(setting))(params, batch, None)
        return sum(of.mean() for name, of in sums.items() if name.endswith("_loss"))

    # a maximum's gradient is lost where its operand is computed twice, not the same to the bit, as these options do
    options = None if setting.model.pooling.mode == "max" else QUICKLY
    value, gradients = jax.jit(jax.value_and_grad(loss), compiler_options=options)(params_of(setting.module))
    return float(value), flatten(jax.device_get(gradients))


def log_softmax(x):
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def loss_by_hand(case, setting, items):
    """The mean loss of items in NumPy, from the model's outputs for each sequence in a row of its own."""
    sequences = [sequence for item in items for sequence in item.sequences]
    sizes = [len(s.input_ids) for s in sequences]
    rows = {
        name: np.array([np.pad(ids, (0, 64 - len(ids))) for ids in column])
        for name, column in (
            ("input_ids", [s.input_ids for s in sequences]),
            ("token_type_ids", [s.token_type_ids for s in sequences]),
            ("attention_mask", [np.ones(size, np.int32) for size in sizes]),
        )
    }
    out = jax.device_get(jax.jit(setting.module.apply, compiler_options=QUICKLY)({"params": params_of(setting.module)}, rows))
    targets = [item.target for item in items]
    if case == "question_answering":
        ends = [[log_softmax(logits[:size]) for logits in both]
                for *both, size in zip(out["start_logits"], out["end_logits"], sizes, strict=True)]  # fmt: skip
        return np.mean([-(s[a] + e[b]) / 2 for (s, e), (a, b) in zip(ends, targets, strict=True)])
    if case in ("cosine", "ranking", "triplet"):
        states = [hidden[:size] for hidden, size in zip(out["last_hidden_state"], sizes, strict=True)]
        pooled = np.array([{"cls": x[0], "max": x.max(0), "mean": x.mean(0)}[setting.model.pooling.mode] for x in states])
        pooled /= np.linalg.norm(pooled, axis=-1, keepdims=True)
        anchors, others, *worse = np.moveaxis(pooled.reshape(len(items), -1, pooled.shape[-1]), 1, 0)
        cosines = (anchors * others).sum(-1)
        if case == "cosine":
            return np.mean((cosines - targets) ** 2)
        if case == "triplet":
            return np.mean(np.maximum(0, 0.5 - cosines + (anchors * worse[0]).sum(-1)))
        return -np.mean(np.diag(log_softmax(anchors @ others.T / 0.5)))
    logits = out["logits"]
    if case == "regression":
        return np.mean((logits[:, 0] - targets) ** 2)
    if case == "multi_label":
        return np.mean(np.logaddexp(0, logits) - logits * targets)
    if case == "tagging":
        logits = np.concatenate([each[:size] for each, size in zip(logits, sizes, strict=True)])
        targets = np.concatenate(targets)
        logits, targets = logits[targets != IGNORED], targets[targets != IGNORED]
    logs = log_softmax(logits.reshape(len(targets), -1))
    return np.mean([-0.9 * row[target] - 0.1 * row.mean() for row, target in zip(logs, targets, strict=True)])


@pytest.mark.parametrize("case", CASES)
def test_packed_and_padded_batches_have_the_loss_and_the_gradients_of_their_items(case, tokenizer):
    rng = np.random.default_rng(0)
    records = [random_record(case, rng, number) for number in range(10)]
    kind, setting = kind_of(case), setting_of(case)
    items = encode(
        kind, records, CLASSES, Layout(tokenizer, CFG), 64, **({"stride": 16} if kind == "question_answering" else {})
    ).items
    streams = [batches_of(kind, items, 6, how, 32, tokenizer.pad_id) for how in ("packed", "padded")]
    step = streams[0].steps_per_epoch - 1
    packed, padded = (stream.train([3], step) for stream in streams)
    chosen = [items[i] for i in streams[0].order(3, step)]
    assert len(chosen) < 6
    assert streams[0].order(3, step) == streams[1].order(3, step)
    assert packed["sequence_ids"].max() > 1
    assert padded["sequence_ids"].max() == 1
    loss, gradients = loss_and_gradients(setting, packed)
    np.testing.assert_allclose(loss, loss_by_hand(case, setting, chosen), rtol=1e-5)
    again, theirs = loss_and_gradients(setting, padded)
    np.testing.assert_allclose(loss, again, rtol=1e-5)
    assert sum(np.abs(gradient).max() < 1e-5 for gradient in gradients.values()) <= 3  # biases that a softmax does not see
    for path in gradients:
        np.testing.assert_allclose(gradients[path], theirs[path], atol=1e-5, err_msg=path)


# ---- every item once


def made_up_items(count, kind="classification", seed=0, longest=60, each=1):
    """Items of ids that name them: item i has the target i, and its sequences are of the token 10 + i."""
    rng, items = np.random.default_rng(seed), []
    for number in range(count):
        ids = [np.full(n, 10 + number, np.int32) for n in np.minimum(longest, rng.geometric(0.08, each) + 2)]
        sequences = tuple(Example(x, np.zeros_like(x), AT_FIRST) for x in ids)
        target = np.full(len(ids[0]), number, np.int32) if kind == "tagging" else np.array(number, np.int32)
        items.append(Item(sequences, target))
    return items


def who(batch):
    """The items whose targets count, in the batch's order."""
    return batch["labels"][batch["weights"] > 0].tolist()


BATCHINGS = ["packed", "padded", "by_length"]


@pytest.mark.parametrize("batching", BATCHINGS)
def test_each_epoch_has_every_item_once_in_another_order(batching):
    batches = batches_of("classification", made_up_items(45), 8, batching, 32, 0)
    assert batches.steps_per_epoch == 6
    epochs = [[who(batches.train([seed], step)) for step in range(first, first + 6)] for seed in (0, 1) for first in (0, 6)]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(45))
        assert [len(batch) for batch in epoch] == [8, 8, 8, 8, 8, 5]
    contents = [tuple(tuple(sorted(batch)) for batch in epoch) for epoch in epochs]
    assert len(set(contents)) == 4


@pytest.mark.parametrize("batching", BATCHINGS)
def test_a_batch_follows_from_seed_and_step_in_whatever_order_it_is_asked_for(batching):
    items = made_up_items(45)
    first, second = (batches_of("classification", items, 8, batching, 32, 0) for _ in range(2))
    asked = [(seed, step) for seed in (0, 7) for step in (0, 5, 6, 13, 2)]
    there = {key: first.train([key[0]], key[1]) for key in asked}
    for seed, step in reversed(asked):
        for name, values in second.train([seed], step).items():
            np.testing.assert_array_equal(values, there[seed, step][name], err_msg=name)


@pytest.mark.parametrize("kind", ["classification", "tagging", "question_answering", "multiple_choice"])
@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_targets_stand_where_the_tokens_of_their_items_are(kind, batching):
    each = 3 if kind == "multiple_choice" else 1
    items = made_up_items(20, kind, each=each)
    if kind == "question_answering":
        items = [Item(item.sequences, np.array([1, 2], np.int32)) for item in items]
    batches = batches_of(kind, items, 8, batching, 32, 0)
    for step in range(3):
        batch, chosen = batches.train([0], step), batches.order(0, step)
        assert batch["input_ids"].dtype == batch["labels"].dtype == np.int32
        ids, firsts = batch["input_ids"], np.take_along_axis(batch["input_ids"], batch["cls_positions"], axis=1)
        assert Counter(ids[ids > 0].tolist()) == Counter(x for i in chosen for s in items[i].sequences for x in s.input_ids)
        np.testing.assert_array_equal(ids > 0, batch["sequence_ids"] > 0)
        counts = batch["weights"] > 0
        if kind == "classification":
            np.testing.assert_array_equal(firsts[counts], batch["labels"][counts] + 10)
            np.testing.assert_array_equal(batch["weights"].sum(), len(chosen))
        if kind == "tagging":
            np.testing.assert_array_equal(ids[counts], batch["labels"][counts] + 10)
            np.testing.assert_array_equal(counts, ids > 0)
        if kind == "question_answering":
            places = np.stack([batch["cls_positions"] + 1, batch["cls_positions"] + 2], axis=-1)
            np.testing.assert_array_equal(batch["labels"][counts], places[counts])
            assert counts.sum() == len(chosen)
        if kind == "multiple_choice":
            assert batch["slots"].shape == (8, 3)
            assert counts.tolist() == [True] * len(chosen) + [False] * (8 - len(chosen))
            np.testing.assert_array_equal(firsts.reshape(-1)[batch["slots"]][counts], np.array([chosen] * 3).T + 10)
            assert who(batch) == chosen


def test_the_order_in_a_row_starts_positions_anew_and_numbers_sequences_from_one():
    items = made_up_items(16, longest=12)
    batch = batches_of("classification", items, 16, "packed", 32, 0).train([0], 0)
    for ids, sequences, positions in zip(batch["input_ids"], batch["sequence_ids"], batch["position_ids"], strict=True):
        for number in range(1, sequences.max() + 1):
            inside = np.flatnonzero(sequences == number)
            assert len(set(ids[inside].tolist())) == 1
            np.testing.assert_array_equal(inside, np.arange(inside[0], inside[0] + len(inside)))
            np.testing.assert_array_equal(positions[inside], np.arange(len(inside)))


def test_batches_that_are_made_ahead_are_those_that_are_asked_for_and_may_be_none():
    batches = batches_of("classification", made_up_items(20), 8, "packed", 32, 0)
    ahead = list(batches.stream([0, 1], 2, 6))
    assert len(ahead) == 4
    for step, batch in enumerate(ahead, 2):
        for name, values in batches.train([0, 1], step).items():
            np.testing.assert_array_equal(batch[name], values)
    assert list(batches.stream([0], 6, 6)) == []


@pytest.mark.parametrize("batching", BATCHINGS)
def test_batches_of_several_seeds_are_stacked_and_each_is_its_seeds(batching):
    batches = batches_of("classification", made_up_items(45), 8, batching, 32, 0)
    for step in range(8):
        stacked = batches.train([0, 1, 2], step)
        assert all(len(values) == 3 for values in stacked.values())
        for number in range(3):
            alone = batches.train([number], step)
            assert sorted(who({name: values[number] for name, values in stacked.items()})) == sorted(who(alone))


@pytest.mark.parametrize("kind, count", [("classification", 3), ("multiple_choice", 3), ("tagging", 1)])
def test_fewer_items_than_a_batch_has_make_one_batch(kind, count):
    each = 2 if kind == "multiple_choice" else 1
    batches = batches_of(kind, made_up_items(count, kind, each=each), 8, "packed", 32, 0)
    assert batches.steps_per_epoch == 1
    assert set(who(batches.train([0], 5))) == set(range(count))


# ---- shapes


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("granule", [1, 8])
def test_shapes_are_few_hold_all_batches_and_divide_over_the_devices(batching, granule):
    batches = batches_of("classification", made_up_items(150, longest=200), 16, batching, 32, 0, granule, most_shapes=4)
    assert len(batches.shapes) <= 4
    seen = Counter(Shape(*batches.train([seed], step)["input_ids"].shape) for seed in range(3) for step in range(40))
    assert sum(count for shape, count in seen.items() if shape not in batches.shapes) <= 2
    assert len(seen) > 1
    assert all(shape.rows % granule == 0 for shape in [*batches.shapes, *seen])
    assert batches.shapes == sorted(batches.shapes, key=lambda s: s.rows * s.length * (1 + s.length / 192))


def test_items_divide_over_the_devices_too():
    batch = batches_of("multiple_choice", made_up_items(9, "multiple_choice", each=2), 6, "packed", 32, 0, granule=4).train(
        [0], 1
    )
    assert batch["slots"].shape == (8, 2)
    assert batch["weights"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_a_batch_larger_than_all_that_were_planned_for_is_made_all_the_same():
    items = made_up_items(64, longest=100)
    batches = batches_of("classification", items, 32, "packed", 32, 0, granule=2)
    expected = [sorted(who(batches.train([0], step))) for step in range(2)]
    batches.shapes = [Shape(2, 64)]
    for step in range(2):
        batch = batches.train([0], step)
        assert sorted(who(batch)) == expected[step]
        assert batch["input_ids"].shape[0] % 8 == 0


def test_batches_by_length_and_packed_ones_have_less_padding_than_padded_ones():
    items = made_up_items(600, longest=100)
    padding = {how: batches_of("classification", items, 16, how, 384, 0).padding for how in BATCHINGS}
    assert padding["packed"] < 0.15
    assert padding["by_length"] < 0.4 < 0.6 < padding["padded"] < 1


def test_the_share_of_padding_is_what_is_computed_in_vain():
    items = [Item((Example(np.full(12, 5, np.int32), np.zeros(12, np.int32), AT_FIRST),), np.array(0, np.int32))] * 8
    assert batches_of("classification", items, 4, "padded", 32, 0).padding == 0.25  # 12 of 16 tokens
    assert batches_of("classification", items, 4, "packed", 32, 0).padding == 0.25  # 48 of 64


def cost(shape, hidden_size):
    return shape.rows * shape.length * (1 + shape.length / (6 * hidden_size))


def total(needs, shapes, hidden_size):
    """Of all batches, each in the cheapest shape that holds it."""
    return sum(
        min((cost(s, hidden_size) for s in shapes if need.get(s.length, s.rows + 1) <= s.rows), default=np.inf) for need in needs
    )


def random_needs(rng):
    """Rows that 12 batches take, of lengths that hold their longest example."""
    needs = []
    for _ in range(12):
        tokens, longest = rng.integers(200, 1500), rng.choice([40, 100, 200])
        needs.append({n: int(np.ceil(tokens * rng.uniform(1, 1.15) / n)) for n in (64, 128, 256) if n >= longest})
    return needs


@pytest.mark.parametrize("most", [1, 2, 3])
def test_chosen_shapes_hold_all_batches_and_are_near_the_best_there_are(most):
    ratios = []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        needs, granule = random_needs(rng), int(rng.choice([1, 2]))
        chosen = choose_shapes(needs, 64, most, granule)
        candidates = {Shape(-(-rows // granule) * granule, length) for need in needs for length, rows in need.items()}
        best = min(total(needs, some, 64) for n in range(1, most + 1) for some in itertools.combinations(candidates, n))
        assert len(chosen) <= most
        assert set(chosen) <= candidates
        ratios.append(total(needs, chosen, 64) / best)
    assert max(ratios) < 1.15
    assert np.mean(ratios) < 1.02


def test_where_one_shape_is_allowed_it_is_the_cheapest_that_holds_all():
    needs = [{256: 3}, {128: 6, 256: 4}, {128: 5, 256: 3}]
    assert choose_shapes(needs, 384, most=1) == [Shape(4, 256)]
    assert choose_shapes(needs, 384, most=2) == [Shape(6, 128), Shape(3, 256)]


# ---- tagging


VOCAB = "[PAD] [UNK] [CLS] [SEP] [MASK] un ##able ##ly jo ##hn saw ann in ro ##me , . the a b c d e f"


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory):
    path = tmp_path_factory.mktemp("wordpiece") / "vocab.txt"
    path.write_text(VOCAB.replace(" ", "\n") + "\n")
    return Tokenizer.load(path)


def shown(tokenizer, ids):
    return " ".join(tokenizer.tokens(ids))


TAGS = ("O", "B", "I")


def tagged(words, tags, wordpiece, limit=64):
    return encode("tagging", [record(words, tags)], TAGS, Layout(wordpiece, CFG), limit)


def test_the_first_token_of_each_word_has_its_tag(wordpiece):
    encoded = tagged(("John", "unable", "saw", "Rome."), ("B", "O", "O", "I"), wordpiece)
    (item,) = encoded.items
    assert shown(wordpiece, item.sequences[0].input_ids) == "[CLS] jo ##hn un ##able saw ro ##me . [SEP]"
    assert item.target.tolist() == [-100, 1, -100, 0, -100, 0, 2, -100, -100, -100]
    assert encoded.first_tokens[0].tolist() == [0, 2, 4, 5]


@pytest.mark.parametrize("empty", ["\u200b", "", "\x00"])
def test_a_word_without_tokens_has_no_target(wordpiece, empty):
    encoded = tagged((empty, "ann", empty, "saw", empty), ("B", "I", "B", "O", "I"), wordpiece)
    assert encoded.first_tokens[0].tolist() == [-1, 0, -1, 1, -1]
    assert encoded.items[0].target.tolist() == [-100, 2, 0, -100]


def test_a_sentence_without_any_token_is_an_item_without_targets(wordpiece):
    encoded = tagged(("\u200b",), ("B",), wordpiece)
    assert encoded.items[0].target.tolist() == [-100, -100]
    batch = batches_of("tagging", encoded.items, 2, "packed", 32, 0).train([0], 0)
    assert batch["weights"].sum() == 0


def test_words_that_have_no_tag_are_not_trained_on(wordpiece):
    assert tagged(("ann", "saw"), None, wordpiece).items[0].target.tolist() == [-100] * 4


@pytest.mark.parametrize("count", [1, 8, 9, 17, 40])
def test_each_word_of_a_long_sentence_is_labelled_once_where_it_stands(wordpiece, count):
    """Tags tell the words; 8 tokens a window."""
    rng = np.random.default_rng(count)
    words = rng.choice(["john", "ann", "unably", "the"], count).tolist()
    tags = [TAGS[i % 3] for i in range(count)]
    encoded = encode("tagging", [record(["saw"], ["O"]), record(words, tags)], TAGS, Layout(wordpiece, CFG), 10)
    assert [window.text for window in encoded.windows] == [0] + [1] * (len(encoded.items) - 1)
    whole = wordpiece.encode_batch([" ".join(words)])[0]
    labelled = {}
    for item, window in list(zip(encoded.items, encoded.windows, strict=True))[1:]:
        np.testing.assert_array_equal(item.sequences[0].input_ids[1:-1], whole[window.start : window.stop])
        assert len(item.sequences[0].input_ids) == len(item.target) <= 10
        for place in np.flatnonzero(item.target != IGNORED):
            token = window.start + int(place) - 1
            assert token not in labelled
            labelled[token] = TAGS[item.target[place]]
    assert list(encoded.first_tokens[1]) == sorted(labelled)
    assert [labelled[token] for token in encoded.first_tokens[1]] == tags


@pytest.mark.parametrize("words", [("Bako", "tine", "rodusi", "."), ("émile", "x!y", "日本", "🙂", "a"), ("\u00a0", "bako")])
def test_the_first_token_of_a_word_stands_at_its_start_with_pieces_of_any_kind(tokenizer, words):
    encoded = encode("tagging", [record(words)], TAGS, Layout(tokenizer, CFG), 64)
    (encoding,) = tokenizer.encode_with_offsets([" ".join(words)])
    starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
    for word, start, first in zip(words, starts, encoded.first_tokens[0], strict=True):
        assert (first == -1) == (not word.strip())
        assert first == -1 or encoding.offsets[first, 0] == start


# ---- question answering


def asked(context, answers, wordpiece, limit=64, stride=128, question="the ann"):
    return encode("question_answering", [record((question, context), answers)], (), Layout(wordpiece, CFG), limit, stride)


def test_the_target_of_a_question_is_the_first_and_last_token_of_its_answer(wordpiece):
    encoded = asked("Ann saw John in Rome.", (("John in Rome", 8), ("Ann", 0)), wordpiece)
    (item,) = encoded.items
    assert shown(wordpiece, item.sequences[0].input_ids) == "[CLS] the ann [SEP] ann saw jo ##hn in ro ##me . [SEP]"
    assert item.target.tolist() == [6, 10]
    assert item.target.dtype == np.int32
    assert item.sequences[0].token_type_ids.tolist() == [0] * 4 + [1] * 9


@pytest.mark.parametrize(
    "answer, start, tokens", [("ohn", 9, "jo ##hn"), ("j", 8, "jo"), ("n in", 11, "##hn in"), (" in", 12, "in")]
)
def test_an_answer_inside_of_a_token_is_the_tokens_that_it_touches(wordpiece, answer, start, tokens):
    (item,) = asked("ann saw john in rome.", ((answer, start),), wordpiece).items
    first, last = item.target
    assert shown(wordpiece, item.sequences[0].input_ids[first : last + 1]) == tokens


def test_without_an_answer_every_window_points_to_its_first_token(wordpiece):
    for answers in ((), None):
        items = asked("a b c d e f " * 4, answers, wordpiece, limit=12, stride=4).items
        assert len(items) > 3
        assert all(item.target.tolist() == [0, 0] for item in items)


def test_windows_that_do_not_hold_the_whole_answer_point_to_their_first_token(wordpiece):
    context = "a b c d e f a b c d john e f"
    encoded = asked(context, (("d john", 18),), wordpiece, limit=12, stride=4)  # 8 minus the specials: 7 tokens of the context
    assert [(w.start, w.stop) for w in encoded.windows] == [(0, 7), (4, 11), (8, 14)]
    assert [item.target.tolist() for item in encoded.items] == [[0, 0], [0, 0], [5, 7]]
    assert shown(wordpiece, encoded.items[2].sequences[0].input_ids[5:8]) == "d jo ##hn"


@pytest.mark.parametrize("limit, stride", [(64, 128), (24, 8), (16, 3)])
def test_targets_of_random_answers_decode_to_them_in_every_window_that_holds_them(tokenizer, limit, stride):
    rng, found = np.random.default_rng(0), 0
    for number in range(40):
        words = rng.choice(WORDS, rng.integers(1, 40)).tolist()
        at = int(rng.integers(len(words)))
        answer, start = " ".join(words[at : at + 2]), len(" ".join([*words[:at], ""]))
        encoded = encode("question_answering", [record(("bako?", " ".join(words)), ((answer, start),), number)], (),
                         Layout(tokenizer, CFG), limit, stride)  # fmt: skip
        for item in encoded.items:
            first, last = item.target
            ids = item.sequences[0].input_ids
            if last:
                assert tokenizer.decode(ids[first : last + 1]).strip() == answer
                found += 1
            else:
                assert first == 0
                context = tokenizer.decode(ids[ids.tolist().index(tokenizer.sep_id) + 1 : -1]).strip()
                assert f" {answer} " not in f" {context} "
    assert found >= 30


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60), st.data())
def test_whatever_the_context_a_window_that_has_the_answer_points_to_tokens_that_cover_it(tokenizer, context, data):
    start = data.draw(st.integers(0, max(0, len(context) - 1)))
    answer = context[start : data.draw(st.integers(start, len(context)))]
    encoded = encode("question_answering", [record(("bako?", context), ((answer, start),))], (), Layout(tokenizer, CFG), 24, 4)
    (encoding,) = tokenizer.encode_with_offsets([context])
    touched = [i for i, (a, b) in enumerate(encoding.offsets.tolist()) if a < start + len(answer) and b > start]
    for item, window in zip(encoded.items, encoded.windows, strict=True):
        first, last = item.target
        ids = item.sequences[0].input_ids.tolist()
        if touched and window.start <= touched[0] and touched[-1] < window.stop:
            assert ids[first : last + 1] == encoding.ids[touched[0] : touched[-1] + 1].tolist()
        else:
            assert (first, last) == (0, 0)


def test_a_question_is_cut_to_what_leaves_the_context_room_and_counted(wordpiece):
    encoded = asked("john " * 10, (), wordpiece, limit=16, question="a b c d e f " * 10)
    assert encoded.lost == 1
    assert all(len(item.sequences[0].input_ids) <= 16 for item in encoded.items)
    assert shown(wordpiece, encoded.items[0].sequences[0].input_ids).startswith("[CLS] a b c d e f [SEP] jo")
    assert asked("john", (), wordpiece).lost == 0


# ---- other kinds


def test_items_of_each_kind_have_its_sequences_and_targets(wordpiece):
    layout = Layout(wordpiece, CFG)

    def one(kind, texts, label, labels=()):
        (item,) = encode(kind, [record(texts, label)], labels, layout, 64).items
        return [shown(wordpiece, s.input_ids) for s in item.sequences], item.target

    pair = ["[CLS] ann saw [SEP] jo ##hn [SEP]"]
    assert one("classification", ("ann saw", "john"), "I", TAGS) == (pair, 2)
    assert one("classification", ("ann",), None, TAGS) == (["[CLS] ann [SEP]"], 0)
    _, target = one("multi_label", ("ann",), ("I", "O"), TAGS)
    assert target.tolist() == [1, 0, 1]
    assert target.dtype == np.float32
    assert one("regression", ("ann", "saw"), 2.5) == (["[CLS] ann [SEP] saw [SEP]"], np.float32(2.5))
    assert one("multiple_choice", ("ann", "saw", "a"), 1) == (["[CLS] ann [SEP] saw [SEP]", "[CLS] ann [SEP] a [SEP]"], 1)
    assert one("similarity", ("ann", "saw"), 0.5) == (["[CLS] ann [SEP]", "[CLS] saw [SEP]"], np.float32(0.5))
    assert one("similarity", ("a", "b", "c"), None)[0] == ["[CLS] a [SEP]", "[CLS] b [SEP]", "[CLS] c [SEP]"]


def test_long_texts_are_cut_to_the_limit_or_the_model_and_counted(wordpiece):
    layout = Layout(wordpiece, CFG.replace(max_position_embeddings=16))
    records = [record(("a " * n,), "O", n) for n in (3, 14, 15, 30)]
    for limit, sizes, lost in ((64, [5, 16, 16, 16], 2), (10, [5, 10, 10, 10], 3)):
        encoded = encode("classification", records, TAGS, layout, limit)
        assert [len(item.sequences[0].input_ids) for item in encoded.items] == sizes
        assert encoded.lost == lost


def test_equal_texts_of_a_batch_have_equal_ids(wordpiece):
    texts = [("a b", "saw"), ("ann", "a b"), ("A  B", "ann"), ("saw a", "b saw")]
    records = [record(pair, None, number) for number, pair in enumerate(texts)]
    items = encode("similarity", records, (), Layout(wordpiece, CFG), 16).items
    assert batches_of("multiple_choice", items, 3, "packed", 32, 0).train([0], 0).keys() >= {"slots", "labels"}
    batches, all_seen = batches_of("similarity", items, 3, "packed", 32, 0), set()
    for step in range(4):  # two epochs; the second batch of one has a single pair
        batch, chosen, seen = batches.train([7], step), batches.order(7, step), {}
        assert batch["text_ids"].shape == batch["slots"].shape == (3, 2)
        assert (batch["text_ids"][len(chosen) :] == -1).all()
        for number, ids in zip(chosen, batch["text_ids"].tolist(), strict=False):
            for text, id in zip(texts[number], ids, strict=True):
                assert seen.setdefault(text.lower().replace("  ", " "), id) == id  # "A  B" is "a b" to a model of lower case
        assert len(set(seen.values())) == len(seen)
        all_seen |= set(seen)
    assert all_seen == {"a b", "saw", "ann", "saw a", "b saw"}


def test_another_number_of_texts_is_refused_with_both_places():
    records = [record(("a", "b", "c"), 0, 0), record(("a", "b"), 0, 1)]
    for kind in ("multiple_choice", "similarity"):
        with pytest.raises(InputError, match=r"file.tsv:2 has 2 texts, but file.tsv:1 has 3"):
            KINDS[kind].settle(Options(), records)
    KINDS["classification"].settle(Options(), records)
    KINDS["multiple_choice"].settle(Options(), [])


def test_special_tokens_whose_characters_stand_in_texts_are_counted_where_they_are_text(wordpiece):
    texts = [("a[SEP]b", "[SEP]"), ("[SEP] [CLS]",), ("[sep] a",), ("[MASK]",), ("[UNK] [SEP]",), ("[CLS]",)]
    records = [record(each, None, number) for number, each in enumerate(texts)]
    as_text = wordpiece.replace(special_tokens="text")
    assert list(special_tokens_in(records, as_text).items()) == [("[SEP]", 3), ("[CLS]", 2), ("[MASK]", 1)]
    assert special_tokens_in(records, wordpiece) == special_tokens_in(records[2:3], as_text) == {}


# ---- layout


def test_what_the_tokenizer_puts_around_texts_is_followed_by_every_kind(wordpiece):
    marked = with_template(wordpiece, "[CLS] [MASK] $A", "[CLS] [MASK] $A [SEP] [SEP] $B:1")
    layout = Layout(marked, CFG)

    def one(kind, texts, label, labels=TAGS):
        (item,) = encode(kind, [record(texts, label)], labels, layout, 10).items
        return shown(marked, item.sequences[0].input_ids), item

    found, item = one("classification", ("ann", "saw a"), "O")
    assert found == "[CLS] [MASK] ann [SEP] [SEP] saw a"
    assert item.sequences[0].token_type_ids.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert one("classification", ("a " * 30,), "O")[0] == "[CLS] [MASK]" + " a" * 8
    assert one("classification", ("a " * 30, "b " * 30), "O")[0] == "[CLS] [MASK] a a a [SEP] [SEP] b b b"
    found, item = one("tagging", ("John", "saw"), ("B", "O"))
    assert found == "[CLS] [MASK] jo ##hn saw"
    assert item.target.tolist() == [-100, -100, 1, -100, 0]
    found, item = one("question_answering", ("the", "ann saw john"), (("john", 8),))
    assert found == "[CLS] [MASK] the [SEP] [SEP] ann saw jo ##hn"
    assert item.target.tolist() == [7, 8]


def test_a_tokenizer_that_puts_nothing_around_texts_serves_all_that_needs_nothing(wordpiece):
    layout = Layout(with_template(wordpiece, "$A", "$A $B:1"), CFG)
    example = layout.example(wordpiece.encode_batch(["ann saw", "john"]))
    assert shown(wordpiece, example.input_ids) == "ann saw jo ##hn"
    assert example.token_type_ids.tolist() == [0, 0, 1, 1]
    with pytest.raises(InputError, match="a text has no tokens, and the tokenizer of this model adds no special tokens"):
        layout.examples(["ann", ""])
    with pytest.raises(InputError, match=r'question answering needs a tokenizer that begins pairs with a token .*"no answer"'):
        encode("question_answering", [record(("ann", "saw"), ())], (), layout, 64)


def test_a_cut_keeps_as_much_as_there_is_room_for_and_the_shorter_part_whole():
    for a, b, room in itertools.product(range(8), range(8), range(1, 12)):
        first, second = cut([np.arange(a), np.arange(b)], room)
        assert len(first) + len(second) == min(a + b, room)
        assert first.tolist() == list(range(len(first)))
        assert second.tolist() == list(range(len(second)))
        if a + b > room and a != b:
            shorter, kept = (a, len(first)) if a < b else (b, len(second))
            assert kept == min(shorter, kept)
            assert kept == shorter or abs(len(first) - len(second)) <= 1


def test_every_token_has_its_most_context_in_one_window():
    for size, room, stride in itertools.product(range(1, 25), (1, 4, 7), (1, 3)):
        windows = cut_windows(0, size, room, min(stride, room))
        home = most_context(windows, size)
        for token in range(size):
            contexts = [min(token - w.start, w.stop - 1 - token) if w.start <= token < w.stop else -1 for w in windows]
            assert home[token] == int(np.argmax(contexts))
            assert max(contexts) >= 0


def test_a_model_without_room_for_a_text_is_refused(wordpiece):
    with pytest.raises(InputError, match="max_position_embeddings=3 leaves no room"):
        Layout(wordpiece, CFG.replace(max_position_embeddings=3))


def test_ids_past_the_models_vocabulary_are_refused_with_the_token(wordpiece):
    with pytest.raises(InputError, match=r"gives id 23 \('f'\), past the model's vocabulary of 23"):
        encode("classification", [record(("a f",), "O")], TAGS, Layout(wordpiece, CFG.replace(vocab_size=23)), 64)
