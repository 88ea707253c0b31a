"""Saved students for elsewhere."""

# What `cid export` writes, and how such files end.
EXPORTS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
