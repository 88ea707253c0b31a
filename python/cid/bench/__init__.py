"""What `cid bench` measures: the time, memory and accuracy of each term, beside PyTorch and what no one can avoid."""
