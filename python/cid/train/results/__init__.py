"""What became of a run: scores, the table, and the page of `cid report`."""
