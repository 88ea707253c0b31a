"""A run: the teacher once, then every student; its loop, checkpoints, signals and progress."""
