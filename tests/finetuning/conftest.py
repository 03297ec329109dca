"""Fixtures of the tests of fine-tuning: a tiny model, and runs that several tests look at."""

import functools

import jax
import pytest
from finetune_cases import TINY, Finished, arguments

import finetune
from bert_jax import pretrained
from bert_jax.model.heads import Bert, initialize


@pytest.fixture(scope="session")
def model(tokenizer, tmp_path_factory):
    """The directory of an untrained model whose weights are large enough to learn within a few steps."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    params = jax.jit(lambda: initialize(Bert(TINY, "masked_lm"), 0))()
    pretrained.save(pretrained.Model(TINY, params, tokenizer, "masked_lm"), folder)
    return folder


@pytest.fixture(scope="session")
def finished(model, tmp_path_factory):
    """A function: a builder of a case -> that case, run once."""

    @functools.cache
    def run(build):
        case, folder = build(), tmp_path_factory.mktemp(build.__name__)
        options = case.write(folder)
        argv = arguments(model, case.task, workdir=folder / "run", **options)
        assert finetune.main(argv) == 0
        return Finished(case, folder / "run", argv, options)

    return run
