"""The reader of all files: one table of suffixes and formats, and records with their place.

Callers say which columns they want. Pretraining reads documents by offset (`read_records`); fine-tuning and predictions read rows
(`read_table`, `read_conll`, `read_squad`).

    storage.py     bytes of local files, URLs and compressed files; the files that a name stands for
    formats.py     a reader for each format of files
    datasets.py    readers of `tfds:` and `stdlib:`
    table.py       the table of formats, and rows of any format
    layouts.py     sentences with a word a line or a row; SQuAD's questions
"""

from bert_jax.data.files.datasets import tfds_name, tfds_splits
from bert_jax.data.files.formats import ClassName, Request, is_blank, json_object, text_lines
from bert_jax.data.files.layouts import first_fields, read_conll, read_squad, sentences_of_words, squad_questions
from bert_jax.data.files.storage import (
    BOM,
    Bad,
    Hasher,
    codec_of,
    decode,
    filesystem,
    matches,
    open_stream,
    read_lines,
    state,
    suffix_of,
)
from bert_jax.data.files.table import (
    CONLL_SUFFIXES,
    DELIMITED_SUFFIXES,
    DOCUMENTS,
    FORMATS,
    HEADED_SUFFIXES,
    TABLE_SUFFIXES,
    Quotes,
    Row,
    Table,
    format_of,
    list_files,
    read_records,
    read_table,
)

__all__ = [
    "BOM", "CONLL_SUFFIXES", "DELIMITED_SUFFIXES", "DOCUMENTS", "FORMATS", "HEADED_SUFFIXES", "TABLE_SUFFIXES", "Bad",
    "ClassName", "Hasher", "Quotes", "Request", "Row", "Table", "codec_of", "decode", "filesystem", "first_fields", "format_of",
    "is_blank", "json_object", "list_files", "matches", "open_stream", "read_conll", "read_lines", "read_records", "read_squad",
    "read_table", "sentences_of_words", "squad_questions", "state", "suffix_of", "text_lines", "tfds_name", "tfds_splits",
]  # fmt: skip
