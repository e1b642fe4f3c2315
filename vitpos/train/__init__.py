"""Training: the task, what it writes, and the command line of one run."""
