"""Configuration of pretraining runs: frozen dataclasses, built once and passed whole. No jax in here.

A config file is a Python file with `get_config() -> TrainConfig`; every field can be overridden from the command line
(`load_train_config`). Names are those of a Hugging Face config.json where it has one. The string under a field is its --help; a
long one is written as strings in parentheses, since the line breaks of a docstring would show.

    train.py       TrainConfig, a run; its groups of fields: data.py, masking.py, optim.py, parallel.py, replaced_tokens.py
    objectives.py  what each objective asks of a run
    phases.py      parts of a run with settings of their own
    dicts.py       configs as JSON, and their differences
    loading.py     config files and command lines
"""

from bert_jax.config.data import TRAINED as TRAINED
from bert_jax.config.data import DataConfig as DataConfig
from bert_jax.config.data import TextFormat as TextFormat
from bert_jax.config.data import named_paths as named_paths
from bert_jax.config.dicts import Change as Change
from bert_jax.config.dicts import Json as Json
from bert_jax.config.dicts import differences as differences
from bert_jax.config.dicts import from_dict as from_dict
from bert_jax.config.dicts import to_dict as to_dict
from bert_jax.config.dicts import upgrade as upgrade
from bert_jax.config.loading import load_config_file as load_config_file
from bert_jax.config.loading import load_train_config as load_train_config
from bert_jax.config.loading import shipped_configs as shipped_configs
from bert_jax.config.masking import MaskingConfig as MaskingConfig
from bert_jax.config.optim import OptimConfig as OptimConfig
from bert_jax.config.parallel import ParallelConfig as ParallelConfig
from bert_jax.config.phases import Phase as Phase
from bert_jax.config.phases import Span as Span
from bert_jax.config.phases import spans as spans
from bert_jax.config.replaced_tokens import ReplacedTokensConfig as ReplacedTokensConfig
from bert_jax.config.train import TrainConfig as TrainConfig
from bert_jax.errors import Checked as Checked
from bert_jax.errors import InputError as InputError
from bert_jax.errors import did_you_mean as did_you_mean
from bert_jax.model.config import CHOSEN_BY_RUN as CHOSEN_BY_RUN
from bert_jax.model.config import BertConfig as BertConfig
from bert_jax.model.config import ComputeConfig as ComputeConfig
