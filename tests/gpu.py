"""Where the Triton kernels are tested: on a GPU, or else in Triton's interpreter on the CPU."""

import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
