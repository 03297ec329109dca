"""The stream of masked batches: a function of (seed, step), each row once an epoch, fixed held-out masks."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import make_documents, quiet, with_template, write_documents

from bert_jax.config import BertConfig, DataConfig, InputError, MaskingConfig, OptimConfig, Phase, TrainConfig
from bert_jax.data import corpus, masking
from bert_jax.data.corpus import Rows
from bert_jax.data.pretraining import BatchSource, load_data, load_tokenizer, tokenizer_folder, unigram_loss
from bert_jax.data.tokenizer import Tokenizer

L = 32


@pytest.fixture(scope="module")
def config(tmp_path_factory, tokenizer_dir):
    folder = tmp_path_factory.mktemp("pretraining")
    write_documents(folder / "text.txt", make_documents(80, seed=4))
    return TrainConfig(
        workdir=str(folder / "run"),
        batch_size=8,
        model=BertConfig(vocab_size=300, max_position_embeddings=64),
        data=DataConfig(
            source=(str(folder / "text.txt"),), tokenizer=str(tokenizer_dir), max_seq_length=L, eval_fraction=0.2, num_workers=1
        ),
        optim=OptimConfig(warmup_steps=10),
    )


@pytest.fixture(scope="module")
def data(config):
    return load_data(config, quiet)


@pytest.fixture(scope="module")
def pairs(config):
    cfg = config.replace(data=config.data.replace(examples="sentence_pairs"))
    return cfg, load_data(cfg, quiet)


@pytest.fixture
def source(config, data):
    return BatchSource.of(config, data.tokenizer, data.training.train)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        assert one[name].dtype == other[name].dtype


def unmasked(batch):
    """The rows as they were before masking."""
    rows = batch["input_ids"].copy()
    for row, where, ids, weights in zip(
        rows, batch["masked_positions"], batch["masked_ids"], batch["masked_weights"], strict=True
    ):
        row[where[weights > 0]] = ids[weights > 0]
    return rows


def keys_of(rows):
    return sorted(row.tobytes() for row in rows)


# ---- batches


def test_a_batch_has_the_fields_shapes_and_types_that_were_agreed_on(source, pairs):
    slots = MaskingConfig().num_slots(L)
    expected = dict.fromkeys(("input_ids", "token_type_ids", "position_ids", "sequence_ids"), ((8, L), "int32"))
    expected |= dict.fromkeys(("masked_positions", "masked_ids"), ((8, slots), "int32"))
    expected["masked_weights"] = ((8, slots), "float32")
    assert {k: (v.shape, v.dtype.name) for k, v in source.train(0).items()} == expected
    cfg, data = pairs
    expected["next_sentence_label"] = ((8,), "int32")
    batch = BatchSource.of(cfg, data.tokenizer, data.training.train).train(0)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == expected


def test_seed_and_step_decide_the_batch(config, data, source):
    again = BatchSource.of(config, data.tokenizer, data.training.train)
    for step in (5, 0, 123, 5):
        assert_equal(source.train(step), again.train(step))
    other = BatchSource.of(config.replace(seed=1), data.tokenizer, data.training.train)
    assert keys_of(unmasked(other.train(0))) != keys_of(unmasked(source.train(0)))
    assert keys_of(unmasked(source.train(1))) != keys_of(unmasked(source.train(0)))


@pytest.mark.parametrize("first", [0, 7, 30])
def test_the_stream_is_the_batches_one_by_one_from_wherever_it_resumes(source, first):
    last = 33
    made = list(source.stream(first, last))
    assert len(made) == last - first
    for step, batch in enumerate(made, start=first):
        assert_equal(batch, source.train(step))


def test_a_stream_of_no_steps_is_empty(source):
    assert list(source.stream(4, 4)) == []


def test_a_rate_on_a_line_falls_with_the_step_in_one_program_and_leaves_evaluation_as_it_is(config, data, source):
    cfg = config.replace(num_steps=40, masking=MaskingConfig(rate=0.4, final_rate=0.1))
    falling = BatchSource.of(cfg, data.tokenizer, data.training.train)
    batches = [falling.train(step) for step in range(40)]
    assert {batch["masked_ids"].shape for batch in batches} == {(8, cfg.masking.num_slots(L))}
    assert cfg.masking.num_slots(L) == MaskingConfig(rate=0.4).num_slots(L)
    for step, batch in enumerate(batches):
        lengths = (batch["sequence_ids"] > 0).sum(1)
        counts = np.minimum(masking.target_counts(lengths, 0.4 - 0.3 * step / 40), lengths - 2)
        assert (batch["masked_weights"].sum(1) <= counts).all()
        assert batch["masked_weights"].sum() > 0.9 * counts.sum()
    constant = BatchSource.of(cfg.replace(masking=MaskingConfig(rate=0.4)), data.tokenizer, data.training.train)
    assert_equal(falling.train(0), constant.train(0))
    assert_equal(falling.evaluation(0), constant.evaluation(0))
    rising = BatchSource.of(cfg.replace(masking=MaskingConfig(rate=0.1, final_rate=0.4)), data.tokenizer, data.training.train)
    assert falling.train(39)["masked_weights"].sum() < rising.train(39)["masked_weights"].sum()


def test_a_step_predicts_masked_or_next_tokens_of_the_same_rows(config, data, source):
    cfg = config.replace(masking=config.masking.replace(causal_share=0.5))
    mixed = BatchSource.of(cfg, data.tokenizer, data.training.train)
    batches = [mixed.train(step) for step in range(12)]
    causal = [step for step, batch in enumerate(batches) if "causal" in batch]
    assert 0 < len(causal) < 12
    for step in set(range(12)) - set(causal):
        for name, values in source.train(step).items():
            np.testing.assert_array_equal(batches[step][name], values)
    step = causal[0]
    rows, masked = batches[step]["input_ids"], source.train(step)
    changed = np.zeros(rows.shape, bool)
    np.put_along_axis(changed, masked["masked_positions"], masked["masked_weights"] > 0, axis=1)
    assert (rows == masked["input_ids"])[~changed].all()
    part = mixed.train(step, slice(2, 4))
    for name, values in batches[step].items():
        np.testing.assert_array_equal(part[name], values[2:4])
    assert [set(batch) - set(source.train(0)) for batch in mixed.kinds(0)] == [set(), {"causal"}]
    assert len(source.kinds(0)) == 1


def test_batches_of_replaced_tokens_have_the_same_masks_and_draws_of_their_own(config, data, source):
    sampled = BatchSource.of(config.replace(objective="replaced_tokens"), data.tokenizer, data.training.train)
    seen = []
    for make, number in ((source.train, 0), (source.train, 5), (source.evaluation, 0), (source.evaluation, 1)):
        with_draws = getattr(sampled, make.__name__)
        batch, again = with_draws(number), with_draws(number)
        assert_equal(batch, again)
        draws = batch.pop("masked_draws")
        assert_equal(batch, make(number))
        assert (draws.shape, draws.dtype) == (batch["masked_ids"].shape, np.float32)
        seen.append(draws)
    draws = np.stack(seen)
    assert len(np.unique(draws)) > 0.99 * draws.size
    assert (draws >= 0).all()
    assert (draws <= 1 - 2.0**-23).all()
    assert abs(draws.mean() - 0.5) < 4 / np.sqrt(12 * draws.size)
    np.testing.assert_array_equal(sampled.train(5, slice(2, 4))["masked_draws"], seen[1][2:4])  # as another host makes them


def test_phases_of_one_length_share_an_order_and_another_length_has_rows_of_its_own(config, data, source):
    phases = (
        Phase(until=3, batch_size=4, mask_rate=0.3), Phase(until=5, max_seq_length=16, batch_size=16),
        Phase(until=9, mask_rate=0.3, final_mask_rate=0.1),
    )  # fmt: skip
    cfg = config.replace(num_steps=9, phases=phases, optim=OptimConfig(warmup_steps=0))
    longer = load_data(cfg, quiet)
    assert list(longer.other_lengths) == [16]
    one_by_one = replace(source, batch_size=1)
    first, second, third = longer.batches(cfg)
    rows = [
        row for source, steps in ((first, range(3)), (third, range(5, 9))) for s in steps for row in unmasked(source.train(s))
    ]
    assert [row.tobytes() for row in rows] == [unmasked(one_by_one.train(i))[0].tobytes() for i in range(3 * 4 + 4 * 8)]
    alone = BatchSource.of(cfg, data.tokenizer, longer.other_lengths[16].train)
    alone = replace(alone, max_seq_length=16, batch_size=16, begin=3)
    assert_equal(second.train(4), alone.train(4))
    assert second.train(3)["input_ids"].shape == (16, 16)
    for source, step in ((first, 2), (second, 4), (third, 7)):  # a host makes the same rows
        whole, half = source.train(step), source.train(step, slice(1, 3))
        assert_equal(half, {name: value[1:3] for name, value in whole.items()})
    counts = [third.train(step)["masked_weights"].sum() for step in range(5, 9)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 1.5 * counts[-1]
    assert longer.key == data.key  # so a branch may have phases of other lengths
    begun = {"data": f"{longer.key}+{longer.other_lengths[16].summary['key']}", "tokenizer": longer.tokenizer.fingerprint()}
    assert load_data(cfg, quiet, begun).key == longer.key  # an older checkpoint named them
    assert load_data(cfg.replace(phases=(Phase(until=9, max_seq_length=8),)), quiet, begun).key == longer.key


def test_an_epoch_reads_each_row_once_and_the_next_in_another_order(data, config):
    rows = data.training.train
    assert len(rows) > 40
    source = replace(BatchSource.of(config, data.tokenizer, rows), batch_size=1)
    epochs = [[unmasked(source.train(epoch * len(rows) + i))[0] for i in range(len(rows))] for epoch in range(3)]
    all_rows = rows[np.arange(len(rows))]
    for epoch in epochs:
        assert keys_of(epoch) == keys_of(all_rows)
    orders = {b"".join(row.tobytes() for row in order) for order in (*epochs, list(all_rows))}
    assert len(orders) == 4


def test_the_same_row_is_masked_otherwise_in_the_next_epoch_and_by_another_seed(data, config):
    one_row = Rows([(path, start, start + 1) for path, start, _ in data.training.train.shards[:1]], L)
    source = replace(BatchSource.of(config, data.tokenizer, one_row), batch_size=1)
    masks = {tuple(source.train(step)["masked_positions"][0].tolist()) for step in range(10)}
    masks.add(tuple(replace(source, seed=1).train(0)["masked_positions"][0].tolist()))
    assert len(masks) == 11


def test_the_order_of_rows_is_the_one_it_has_always_been(tmp_path, tokenizer):
    """Golden values: a change of Grain that moves them breaks the resumption of every run."""
    np.save(tmp_path / "rows.npy", np.arange(6)[:, None] + np.full((6, 8), 10))
    source = BatchSource(Rows([(tmp_path / "rows.npy", 0, 6)], 8), tokenizer, MaskingConfig(), 8, 4, seed=3)
    assert [(unmasked(source.train(step))[:, 0] - 10).tolist() for step in range(3)] == GOLDEN_ORDER


GOLDEN_ORDER = [[4, 1, 0, 2], [5, 3, 2, 1], [3, 4, 5, 0]]


def test_a_batch_larger_than_the_rows_repeats_them(data, config):
    few = Rows([(path, start, start + 3) for path, start, _ in data.training.train.shards[:1]], L)
    source = BatchSource.of(config, data.tokenizer, few)
    keys = keys_of(unmasked(source.train(0)))
    assert len(set(keys)) == 3


def test_labels_stay_with_their_rows(pairs):
    cfg, data = pairs
    rows = data.training.train[np.arange(len(data.training.train))]
    label_of = {row[:L].tobytes(): int(row[L]) for row in rows}
    source = BatchSource.of(cfg, data.tokenizer, data.training.train)
    seen = set()
    for step in range(5):
        batch = source.train(step)
        for row, label in zip(unmasked(batch), batch["next_sentence_label"].tolist(), strict=True):
            assert label_of[row.tobytes()] == label
            seen.add(label)
        assert (batch["token_type_ids"].max(1) == 1).all()
        assert (batch["sequence_ids"].max(1) == 1).all()
    assert seen == {0, 1}


# ---- evaluation


@pytest.mark.parametrize("kind", ["full_sentences", "sentence_pairs"])
def test_evaluation_reads_each_held_out_row_once_and_fills_up_with_weight_zero(config, data, pairs, kind):
    cfg, own = (config, data) if kind == "full_sentences" else pairs
    rows = own.held_out[np.arange(len(own.held_out))]
    assert len(rows) % cfg.batch_size
    source = BatchSource.of(cfg, own.tokenizer, own.held_out)
    count = source.num_evaluation_batches(1000)
    batches = [source.evaluation(i) for i in range(count)]
    assert all(len(values) == cfg.batch_size for batch in batches for values in batch.values())
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    real = joined["sequence_ids"].any(1)
    assert real.tolist() == [True] * len(rows) + [False] * (count * cfg.batch_size - len(rows))
    np.testing.assert_array_equal(unmasked(joined)[real], rows[:, :L])
    assert (joined["masked_weights"][real].sum(1) > 0).all()
    assert not joined["masked_weights"][~real].any()
    if kind == "sentence_pairs":
        np.testing.assert_array_equal(joined["next_sentence_label"][real], rows[:, L])
        assert (joined["next_sentence_label"][~real] == -1).all()


def test_evaluation_masks_are_fixed_but_differ_between_batches_and_from_training(config, data):
    source = BatchSource.of(config, data.tokenizer, data.held_out)
    again = BatchSource.of(config, data.tokenizer, data.held_out)
    assert_equal(source.evaluation(1), again.evaluation(1))
    twice = Rows(data.held_out.shards[:1] * 2, L)
    source = replace(source, rows=twice, batch_size=len(twice) // 2)
    masks = [source.evaluation(0), source.evaluation(1), source._batch(twice[np.arange(len(twice) // 2)], 0)]
    assert_equal({"rows": unmasked(masks[0])}, {"rows": unmasked(masks[1])})
    assert len({mask["masked_positions"].tobytes() for mask in masks}) == 3


def test_evaluation_masks_a_row_alike_whatever_the_batch_size(config, data):
    def joined(batch_size):
        source = replace(BatchSource.of(config, data.tokenizer, data.held_out), batch_size=batch_size)
        batches = [source.evaluation(i) for i in range(source.num_evaluation_batches(1000))]
        return {name: np.concatenate([batch[name] for batch in batches])[: len(data.held_out)] for name in batches[0]}

    assert_equal(joined(8), joined(3))


def test_no_more_evaluation_batches_are_made_than_asked_for(config, data):
    source = BatchSource.of(config, data.tokenizer, data.held_out)
    assert source.num_evaluation_batches(1) == 1
    assert source.num_evaluation_batches(1000) == math.ceil(len(data.held_out) / 8)


def test_no_held_out_rows_are_no_evaluation_batches(config, data):
    assert BatchSource.of(config, data.tokenizer, Rows([], L)).num_evaluation_batches(10) == 0


# ---- unigram loss


def test_the_unigram_loss_is_that_of_a_brute_force_count(config, data):
    source = BatchSource.of(config, data.tokenizer, data.held_out)
    batches = [source.evaluation(i) for i in range(source.num_evaluation_batches(100))]
    counts = [0] * data.tokenizer.vocab_size
    for row in data.training.train[np.arange(len(data.training.train))].tolist():
        for token in row:
            counts[token] += token not in data.tokenizer.special_ids
    whole, losses = sum(counts) + len(counts), []
    for batch in batches:
        for ids, weights in zip(batch["masked_ids"].tolist(), batch["masked_weights"].tolist(), strict=True):
            losses += [-math.log((counts[t] + 1) / whole) for t, weight in zip(ids, weights, strict=True) if weight]
    assert unigram_loss(data.training.token_counts, iter(batches)) == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    assert 3 < sum(losses) / len(losses) < math.log(280)


def test_the_unigram_loss_of_equal_counts_is_the_log_of_the_vocabulary():
    batch = {"masked_ids": np.array([[1, 2, 0]]), "masked_weights": np.array([[1.0, 1.0, 0.0]])}
    assert unigram_loss(np.full(50, 7), iter([batch])) == pytest.approx(math.log(50))


# ---- load_data


def test_a_tokenizer_with_more_ids_than_the_table_has_rows_is_refused(config, tmp_path):
    small = config.replace(workdir=str(tmp_path), model=config.model.replace(vocab_size=279))
    with pytest.raises(InputError, match=r"280 ids, more than model\.vocab_size=279 .*--model\.vocab-size 280"):
        load_data(small, quiet)


def test_a_run_reads_special_tokens_as_text_and_keeps_a_tokenizer_that_reads_them_and_lays_out_as_it_trained(
    config, tmp_path, tokenizer
):
    with_template(tokenizer, "[CLS] [MASK] $A", "[CLS] $A [SEP] [SEP] $B").save(tmp_path / "other")
    cls, sep = (tokenizer.cls_id,), (tokenizer.sep_id,)
    for examples, special_tokens in (("full_sentences", "text"), ("sentence_pairs", "read")):
        data = config.data.replace(examples=examples, special_tokens=special_tokens, tokenizer=str(tmp_path / "other"))
        run = config.replace(workdir=str(tmp_path / examples), data=data)
        assert load_tokenizer(run, quiet).special_tokens == special_tokens
        kept = Tokenizer.load(tokenizer_folder(run))
        assert kept.special_tokens == "read"
        assert kept.single == ((cls, sep), ((0,), (0,)), (0,))
        assert kept.pair == ((cls, sep, sep), ((0,), (0,), (1,)), (0, 1))


def test_no_source_is_an_input_error(config):
    with pytest.raises(InputError, match=r"no text: give --data\.source"):
        load_data(config.replace(data=config.data.replace(source=())), quiet)


def test_a_vocabulary_is_trained_once_and_kept(config, tmp_path, monkeypatch):
    cfg = config.replace(
        workdir=str(tmp_path), model=config.model.replace(vocab_size=200), data=config.data.replace(tokenizer="unigram")
    )
    first = load_data(cfg, quiet)
    assert first.tokenizer.vocab_size == 200
    monkeypatch.setattr(Tokenizer, "train", None)
    again = load_data(cfg, quiet)
    assert again.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    assert again.key == first.key


def test_held_out_text_can_be_of_its_own(config, tmp_path, data):
    other = write_documents(tmp_path / "other.txt", make_documents(20, seed=5))
    cfg = config.replace(workdir=str(tmp_path / "run"), data=config.data.replace(eval_source=(other,)))
    with pytest.raises(InputError, match=r"othre.txt: matches no file; nearest in .*'other.txt'"):
        load_data(cfg.replace(data=cfg.data.replace(eval_source=(str(tmp_path / "othre.txt"),))), quiet)
    assert not (tmp_path / "run").exists()  # refused before any text is tokenized
    both = load_data(cfg, quiet)
    assert len(both.held_out) > 5
    assert both.evaluation.summary["files"] == [other]
    assert both.training.summary["documents"] == 80
    assert len(both.training.held_out) == 0
    assert len(both.training.train) > len(data.training.train)
    alone = corpus.prepare(cfg.data.replace(eval_source=(), eval_fraction=0.0), config.data.tokenizer, tmp_path / "alone", quiet)
    np.testing.assert_array_equal(both.training.train[np.arange(50)], alone.train[np.arange(50)])
    assert both.key != data.key
    write_documents(Path(other), make_documents(20, seed=6))
    assert load_data(cfg, quiet).key != both.key


def test_a_run_goes_on_with_its_very_tokenizer_and_text_alone(config, tmp_path, tokenizer, monkeypatch):
    """Both are known before any text is tokenized, and each is named."""
    tokenizer.save(tmp_path / "given")
    moved = write_documents(tmp_path / "elsewhere" / "b.txt", make_documents(80, seed=4))
    cfg = config.replace(workdir=str(tmp_path / "run"))
    cfg = cfg.replace(data=cfg.data.replace(source=(moved,), tokenizer=str(tmp_path / "given")))
    data = load_data(cfg, quiet)
    begun = {"data": data.key, "tokenizer": data.tokenizer.fingerprint()}
    Path(moved).rename(tmp_path / "c.txt")  # the same bytes under another path
    (tmp_path / "given").rename(tmp_path / "gone")
    cfg = cfg.replace(data=cfg.data.replace(source=(str(tmp_path / "c.txt"),)))
    assert load_data(cfg, quiet, begun).key == data.key
    monkeypatch.setattr(Tokenizer, "encode_batch", None)
    write_documents(tmp_path / "c.txt", make_documents(81, seed=4))
    with pytest.raises(InputError, match=r"the text of .*c\.txt is not what .*run was begun with"):
        load_data(cfg, quiet, begun)
    file = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    spec = json.loads(file.read_text())
    spec["model"]["vocab"][20][0] += "x"
    file.write_text(json.dumps(spec))
    with pytest.raises(InputError, match=r"the tokenizer in .*run/tokenizer is not what .*run was begun with"):
        load_data(cfg, quiet, begun)


def test_a_given_vocabulary_that_was_changed_is_not_passed_over_for_the_kept_one(config, tmp_path, tokenizer):
    tokenizer.save(tmp_path / "given")
    cfg = config.replace(workdir=str(tmp_path / "run"), data=config.data.replace(tokenizer=str(tmp_path / "given")))
    load_data(cfg, quiet)
    Tokenizer.train(["\n".join(doc) for doc in make_documents(300, seed=9)], 280, "unigram").save(tmp_path / "given")
    with pytest.raises(InputError, match=r"the vocabulary of .*given is not the one that .*tokenizer was made from: id \d+ is"):
        load_data(cfg, quiet)
    Tokenizer.train(["\n".join(doc) for doc in make_documents(300, seed=9)], 270, "unigram").save(tmp_path / "given")
    with pytest.raises(InputError, match="270 tokens there, 280 here"):
        load_data(cfg, quiet)


def test_weights_are_not_put_under_another_vocabulary_of_the_same_size(config, tmp_path, tokenizer, capsys):
    texts = ["\n".join(doc) for doc in make_documents(300, seed=1)]
    tokenizer.save(tmp_path / "model")
    Tokenizer.train(texts, 280, "bpe").save(tmp_path / "other")
    cfg = config.replace(workdir=str(tmp_path / "run"), init_from="model")
    other = cfg.replace(data=config.data.replace(tokenizer=str(tmp_path / "other")))
    with pytest.raises(InputError, match=r"--init-from model has another vocabulary than .*other: id \d+ is .* there, .* here"):
        load_data(other, quiet, start=tmp_path / "model")
    cfg = cfg.replace(workdir=str(tmp_path / "taken"), data=config.data.replace(tokenizer="bpe"))
    taken = load_data(cfg, quiet, start=tmp_path / "model").tokenizer
    assert taken.fingerprint() == tokenizer.replace(special_tokens="text").fingerprint()
    with pytest.raises(InputError, match=r"--init-from model has no tokenizer: give .* --data.tokenizer"):
        load_data(cfg, quiet)
    assert capsys.readouterr().err == ""


def test_the_same_vocabulary_with_other_rules_is_said(config, tmp_path, tokenizer, capsys):
    tokenizer.save(tmp_path / "model")
    tokenizer.save(tmp_path / "given")
    file = tmp_path / "given" / "tokenizer.json"
    spec = json.loads(file.read_text())
    file.write_text(json.dumps(spec | {"normalizer": None}))
    data = config.data.replace(tokenizer=str(tmp_path / "given"))
    cfg = config.replace(workdir=str(tmp_path / "run"), init_from="m", data=data)
    load_data(cfg, quiet, start=tmp_path / "model")
    assert "given has the vocabulary of --init-from m, but cuts text by other rules" in capsys.readouterr().err


def test_a_text_to_fill_without_a_mask_is_refused_before_anything_is_tokenized(config, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "prepare", None)
    cfg = config.replace(workdir=str(tmp_path), fill_masks=("a [MASK] b", "no mask <mask>"))
    with pytest.raises(InputError, match=r"fill_masks\[1\] has no \[MASK\]: 'no mask <mask>'"):
        load_data(cfg, quiet)
