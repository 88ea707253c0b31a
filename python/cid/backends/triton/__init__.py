"""The formulas in Triton, on a GPU: the functions of `cid._native`, one file a formula."""
