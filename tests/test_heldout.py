"""Held-out text: BERT's masks whatever is trained, and bits per byte, which compare vocabularies."""

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers import make_documents, quiet, write_documents

from bert_jax.config import BertConfig, DataConfig, InputError, MaskingConfig, OptimConfig, Phase, TrainConfig, named_paths
from bert_jax.data import heldout
from bert_jax.data.pretraining import BatchSource, load_data
from bert_jax.data.tokenizer import Tokenizer

L = 32


@pytest.fixture(scope="module")
def config(tmp_path_factory, tokenizer_dir):
    folder = tmp_path_factory.mktemp("heldout")
    texts = [write_documents(folder / f"{name}.txt", make_documents(60, seed=seed)) for seed, name in enumerate("abc")]
    return TrainConfig(
        workdir=str(folder / "run"),
        batch_size=8,
        eval_sources=(f"law={texts[1]}", f"law={texts[2]}", f"novels={texts[2]}"),
        model=BertConfig(vocab_size=300, max_position_embeddings=64),
        data=DataConfig(source=(texts[0],), tokenizer=str(tokenizer_dir), max_seq_length=L, eval_fraction=0.2, num_workers=1),
        optim=OptimConfig(warmup_steps=10),
    )


@pytest.fixture(scope="module")
def data(config):
    return load_data(config, quiet)


def test_the_masks_are_bert_s_whatever_is_trained(config, data):
    """The same bits as those of a run of seed 0 that trains on BERT's own masks."""
    other = MaskingConfig(rate=0.4, mask_prob=1.0, random_prob=0.0, whole_word=True)
    ends = (Phase(until=100), Phase(until=200, mask_rate=0.3))  # of 200 steps, only phases end with a checkpoint
    by_phases = config.replace(num_steps=200, phases=ends, optim=config.optim.replace(average="last:2"))
    for changed in (config, config.replace(masking=other, seed=7), by_phases):
        for number, batch in enumerate(heldout.load(changed, data, quiet)[0].batches):
            expected = BatchSource.of(config, data.tokenizer, data.held_out).evaluation(number)
            assert batch.keys() == expected.keys()
            for name, values in expected.items():
                np.testing.assert_array_equal(batch[name], values, err_msg=name)


def test_each_source_is_a_text_of_its_own(config, data):
    own, law, novels = heldout.load(config, data, quiet)
    assert [text.name for text in (own, law, novels)] == ["", "law", "novels"]
    assert law.predictions > novels.predictions > 100
    assert law.predictions == sum(batch["masked_weights"].sum() for batch in law.batches)
    fewer = heldout.load(config.replace(eval_batches=1), data, quiet)
    assert [len(text.batches) for text in fewer] == [1, 1, 1]
    without = config.replace(data=config.data.replace(eval_fraction=0.0), eval_sources=())
    assert heldout.load(without, load_data(without, quiet), quiet) == []


def test_bits_per_byte_are_the_bits_of_all_tokens_over_the_bytes_of_their_text(config, data):
    t, text = data.tokenizer, "bako tine rodusi."
    ids = t.encode_batch([text])[0]
    row = np.array([[t.cls_id, *ids, t.sep_id, t.cls_id, *ids, t.sep_id, t.pad_id, t.unk_id]])
    per_byte = heldout.tokens_per_byte(row, t)
    assert per_byte == len(ids) / len(text.replace(" ", ""))
    values = replace(heldout.load(config, data, quiet)[1], tokens_per_byte=per_byte).measures({"masked_lm_loss": math.log(8)})
    assert values["eval/law/bits_per_byte"] == pytest.approx(3 * per_byte)
    assert values["eval/law/masked_lm_loss"] == math.log(8)


def test_one_text_has_as_many_bytes_in_every_vocabulary(config, data):
    """So a vocabulary of longer tokens, each of which is harder, does not look better or worse by that alone."""
    texts = [" ".join(sentences).lower() for sentences in make_documents(20, seed=3)]
    for kind in ("unigram", "bpe", "wordpiece"):
        tokenizer = Tokenizer.train(texts, 150, kind)
        rows = tokenizer.encode_batch(texts)
        num_bytes = sum(len(row) / heldout.tokens_per_byte(row[None], tokenizer) for row in rows)
        assert num_bytes == pytest.approx(sum(len(text.replace(" ", "")) for text in texts))


def test_sources_are_named():
    with pytest.raises(InputError, match=r"eval_sources: 'a.txt' is not NAME=PATH, .*give for example novels='novels/\*.txt'"):
        named_paths(["a.txt"], "eval_sources")
    with pytest.raises(InputError, match="is not NAME=PATH"):
        named_paths(["a/b=a.txt"], "eval_sources")


def test_a_source_without_text_is_refused_by_its_name(config, data, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match=r"eval_sources: blank: .*empty\.txt.*: leave it out$"):
        heldout.load(config.replace(eval_sources=(f"blank={tmp_path / 'empty.txt'}",)), data, quiet)
    t = data.tokenizer
    unknown = np.array([[t.cls_id, *[t.unk_id] * (L - 2), t.sep_id]])
    with pytest.raises(InputError, match="the held-out text has no token that can be masked: all are unknown"):
        heldout._of(config, data, unknown, "", data.evaluation)
