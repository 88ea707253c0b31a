"""The whole criterion, `alpha (ce + kd) + beta sample + gamma class`, but for its matrix products: what comes before
them, and what comes after. No formula is here but the total.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cid.backends.triton.class_ import class_
from cid.backends.triton.context import accumulate_context
from cid.backends.triton.cross_entropy import cross_entropy_rows
from cid.backends.triton.kd import kd_rows
from cid.backends.triton.rows import count_labelled, launch, sum_of
from cid.backends.triton.sample import sample_rows

# Where the value of each term stands.
_KD, _CLASS = 1, 3
