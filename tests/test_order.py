"""The order of training rows: each part shuffled by epochs, parts interleaved exactly by their weights."""

from collections import Counter

import numpy as np
import pytest
from helpers import make_documents, quiet, write_documents

from bert_jax.config import BertConfig, DataConfig, InputError, OptimConfig, Phase, TrainConfig
from bert_jax.data import corpus
from bert_jax.data.order import Order, Part, interleave
from bert_jax.data.pretraining import load_data


@pytest.mark.parametrize("weights", [[1], [2, 1], [1, 1, 1], [7, 2, 4], [1, 30]])
def test_parts_are_interleaved_exactly_and_evenly(weights):
    pattern = interleave(weights)
    assert np.bincount(pattern).tolist() == weights
    for end in range(len(pattern) + 1):
        counts = np.bincount(pattern[:end], minlength=len(weights))
        assert (abs(counts - end * np.array(weights) / sum(weights)) < 1).all()


def test_each_part_is_drawn_by_its_weight_in_epochs_of_its_own():
    order = Order([Part(0, 5, 2), Part(5, 8, 1)], seed=3)
    rows = order.rows(range(45))
    books, web = [row for row in rows if row < 5], [row for row in rows if row >= 5]
    assert (len(books), len(web)) == (30, 15)
    assert all(sorted(books[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, 30, 5))
    assert all(sorted(web[i : i + 3]) == [5, 6, 7] for i in range(0, 15, 3))
    assert len({tuple(books[i : i + 5]) for i in range(0, 30, 5)}) > 3
    assert order.counts([0, 1, 3, 45]).tolist() == [[0, 0], [1, 0], [2, 1], [30, 15]]
    assert [order.rows([place])[0] for place in range(45)] == rows
    later = Order([Part(0, 5, 1, drawn=10), Part(5, 8, 1, drawn=5)], seed=3).rows(range(10))
    assert later[::2] == books[10:15]
    assert later[1::2] == web[5:10]


@pytest.fixture
def two_sources(tmp_path, tokenizer_dir):
    write_documents(tmp_path / "books.txt", make_documents(60, seed=4))
    write_documents(tmp_path / "web.txt", [[sentence.upper() for sentence in each] for each in make_documents(40, seed=5)])
    data = DataConfig(
        source=(f"books={tmp_path}/books.txt", f"web={tmp_path}/web.txt"), mixture="books=3,web=1", tokenizer=str(tokenizer_dir),
        max_seq_length=32, eval_fraction=0.2, num_workers=1,
    )  # fmt: skip
    return TrainConfig(
        workdir=str(tmp_path / "run"), num_steps=20, batch_size=8, model=BertConfig(vocab_size=300, max_position_embeddings=64),
        data=data, optim=OptimConfig(warmup_steps=0), phases=(Phase(until=10), Phase(until=20, mixture="web=1")),
    )  # fmt: skip


def test_a_mixture_draws_the_rows_of_its_sources_by_their_weights(two_sources):
    data = load_data(two_sources, quiet)
    (books_first, books_stop), (web_first, web_stop) = data.training.sources.values()
    assert (books_first, books_stop, web_stop) == (0, web_first, len(data.training.train))
    assert len(data.held_out) > 0
    first, second = data.batches(two_sources)
    drawn = [row for step in range(10) for row in first.order.rows(range(step * 8, step * 8 + 8))]
    assert Counter(row < books_stop for row in drawn) == {True: 60, False: 20}
    assert all(sum(row >= books_stop for row in drawn[step * 8 : step * 8 + 8]) == 2 for step in range(10))
    then = second.order.rows(range(80))
    assert min(then) >= web_first
    count = web_stop - web_first
    assert sorted([*(row for row in drawn if row >= web_first), *then][:count]) == list(range(web_first, web_stop))
    again = load_data(two_sources.replace(data=two_sources.data.replace(mixture="books=1,web=1")), quiet)
    assert again.key == data.key  # other weights draw otherwise from the same rows
    np.testing.assert_array_equal(data.training.train[np.arange(5)], again.training.train[np.arange(5)])
    again.training.sources["web"] = (web_first, web_first)  # all of it is held out
    alone = two_sources.replace(phases=(Phase(until=10, mixture="books=1"), Phase(until=20, mixture="web=1")))
    with pytest.raises(InputError, match=r"phases\[1\] \(steps 10 to 20\): there are no rows to train on in web: give"):
        again.batches(alone)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ("books=2,wbe=1", "mixture='books=2,wbe=1': no source is named wbe; source names books, web"),
        ("books", "mixture='books': 'books' is not NAME=WEIGHT"),
        ("books=1,books=2", "'books=2' is not NAME=WEIGHT, with a new name"),
        ("books=nan,web=1", "'books=nan' is not NAME=WEIGHT"),
        ("books=-1,web=1", "'books=-1' is not NAME=WEIGHT, with a new name and a number above 0"),
        ("books=0,web=1", "leave out books, whose weight is 0"),
        ("books=0.1234567,web=1", "give weights with fewer digits"),
    ],
)
def test_a_mixture_that_names_no_source_or_no_weight_is_refused(mixture, message):
    source = ("books=a.txt", "web=b.txt")
    with pytest.raises(InputError, match=message):
        DataConfig(source=source, mixture=mixture)
    with pytest.raises(InputError, match=r"phases\[0\] \(steps 0 to 9\): .*" + message):
        TrainConfig(num_steps=9, optim=OptimConfig(warmup_steps=0), data=DataConfig(source=source, mixture="web=1"),
                    phases=(Phase(until=9, mixture=mixture),))  # fmt: skip


def test_sources_without_names_are_refused_and_a_phase_needs_them(two_sources, tmp_path):
    with pytest.raises(InputError, match=r"source: 'a.txt' is not NAME=PATH, which mixture='books=1' needs"):
        DataConfig(source=("a.txt",), mixture="books=1")
    with pytest.raises(InputError, match=r"phases\[0\] .*mixture='books=1' needs data.mixture"):
        TrainConfig(num_steps=9, optim=OptimConfig(warmup_steps=0), phases=(Phase(until=9, mixture="books=1"),))
    with pytest.raises(InputError, match=r"books=.*matches no file.*; if NAME=PATH is meant, give --data.mixture"):
        corpus.list_files(two_sources.data.replace(mixture=None))
    both = two_sources.data.replace(source=(f"books={tmp_path}/*.txt", f"web={tmp_path}/web.txt"))
    with pytest.raises(InputError, match=r"web.txt is in the sources books and web"):
        load_data(two_sources.replace(data=both), quiet)
