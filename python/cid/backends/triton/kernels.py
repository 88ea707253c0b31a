"""The kernels, under the names of `cid._native`."""
