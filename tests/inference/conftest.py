"""Fixtures of the tests of predictors: each is compiled for the shapes that any of them asks for."""

import pytest
from inference_models import LABELS, model_of

from bert_jax.inference import Answerer, Classifier, Embedder, FillMask, Tagger


@pytest.fixture(scope="session")
def fill(tokenizer):
    return FillMask(model_of(tokenizer, "masked_lm"), top_k=3)


@pytest.fixture(scope="session")
def classifier(tokenizer):
    return Classifier(model_of(tokenizer, "sequence_classification", ("no", "maybe", "yes")))


@pytest.fixture(scope="session")
def tagger(tokenizer):
    return Tagger(model_of(tokenizer, "token_classification", LABELS))


@pytest.fixture(scope="session")
def answerer(tokenizer):
    return Answerer(model_of(tokenizer, "question_answering"), max_question_length=24, stride=16, top_k=3)


@pytest.fixture(scope="session")
def embedder(tokenizer):
    return Embedder(model_of(tokenizer, "encoder"))


@pytest.fixture
def predictor(request):
    return request.getfixturevalue(request.param)
