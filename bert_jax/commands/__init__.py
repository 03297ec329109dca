"""Command lines of `python -m bert_jax`, beside the small ones in __main__.py."""
