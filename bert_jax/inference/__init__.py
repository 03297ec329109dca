"""Predictors: a model and texts in, predictions out."""

from bert_jax.inference.answerer import Answer as Answer
from bert_jax.inference.answerer import Answerer as Answerer
from bert_jax.inference.classifier import Classification as Classification
from bert_jax.inference.classifier import Classifier as Classifier
from bert_jax.inference.compressed import CompressedSearch as CompressedSearch
from bert_jax.inference.distil import to_static as to_static
from bert_jax.inference.embedder import Embedder as Embedder
from bert_jax.inference.embedder import sentence_vectors as sentence_vectors
from bert_jax.inference.fill_mask import Filling as Filling
from bert_jax.inference.fill_mask import FillMask as FillMask
from bert_jax.inference.multi_vector import MultiVector as MultiVector
from bert_jax.inference.multi_vector import max_sim as max_sim
from bert_jax.inference.predictor import Predictor as Predictor
from bert_jax.inference.reranker import Ranked as Ranked
from bert_jax.inference.reranker import Reranker as Reranker
from bert_jax.inference.search import Best as Best
from bert_jax.inference.search import Search as Search
from bert_jax.inference.search import cuts as cuts
from bert_jax.inference.search import nearest as nearest
from bert_jax.inference.sparse_embedder import SparseEmbedder as SparseEmbedder
from bert_jax.inference.tagger import Entity as Entity
from bert_jax.inference.tagger import Tagger as Tagger
from bert_jax.inference.vectors import Precision as Precision
from bert_jax.inference.vectors import Vectors as Vectors
from bert_jax.inference.vectors import open_vectors as open_vectors
from bert_jax.inference.vectors import quantize as quantize
