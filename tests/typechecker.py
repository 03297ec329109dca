"""The checker of types and shapes in signatures, which jaxtyping imports by this name (folders of tests have a conftest too)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as it is to mypy
