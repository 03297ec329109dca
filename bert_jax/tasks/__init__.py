"""Tasks: one file for each kind of task, and the table of those with a name."""
