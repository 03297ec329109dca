"""The command lines of `bert_jax COMMAND`, one module a command or a few."""
