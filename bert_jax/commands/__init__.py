"""The command lines of `bert_jax COMMAND`; a module has one or a few commands."""
