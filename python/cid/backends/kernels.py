"""The kernels: what each computes, said once.

`cid._native` has them in Rust, `cid.backends.triton.kernels` in Triton, and `cid.backends.ops` makes an operator of
PyTorch of each: all with the arguments that stand here. `cid.backends.fused` calls them.
"""

import inspect
from typing import Protocol

import torch
from torch import Tensor


class Kernels(Protocol):
    """The kernels of a backend: plain functions over dense tensors.

    Float tensors of one call share one type, float32, float64, bfloat16 or float16 (Triton: not float64), and are
    contiguous; a teacher's may be bfloat16 or float16 beside a student's in float32. Labels are int64. Losses, weights,
    shares of classes, context weights and the sums of the context bank are float32 where the type is a half-precision
    one.

    The value of row i and its derivative are multiplied by `weight` (B,), where that is not None: finite numbers from
    0. A row of weight 0 counts in a mean all the same, and its value and derivative are 0, whatever it holds.

    Results are written in place, into tensors that never overlap an input or each other. A `loss` of shape () receives
    the sum of the rows' losses or, where `mean` is true, their mean over the rows that count; one of shape (B,) each
    row's, as it adds to that. `grad` receives the derivative of their sum or mean, and is skipped where it is None.
    Rust checks everything before it writes anything; Triton trusts its caller.
    """

    def kd(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor | None,
        weight: Tensor | None,
        temperature: float,
        divergence: str,
        beta: float,
        ignore_index: int,
        mean: bool,
        loss: Tensor,
        grad: Tensor | None,
    ) -> None:
        """`T^2` times a divergence ("forward", "reverse" or "js") of the rows' softmaxes, and its derivative in `s`.

        0 where the label is `ignore_index`.
        """

    def sample(
        self,
        student_features: Tensor,
        teacher_features: Tensor,
        weight: Tensor | None,
        mean: bool,
        loss: Tensor,
        grad: Tensor | None,
    ) -> None:
        """`||s_i - t_i||^2 / ||t_i||^2` of each row, 0 where `t_i` is 0, and its derivative in `s`."""

    def class_(
        self,
        student_features: Tensor,
        teacher_features: Tensor,
        target: Tensor,
        ignore_index: int,
        loss: Tensor,
        grad: Tensor | None,
    ) -> None:
        """The mean over classes of `||Gt_k - Gs_k||_F^2 / n_k^2` into `loss` (shape ()), and its derivative in `s`."""

    def cross_entropy(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        loss: Tensor,
        grad: Tensor | None,
    ) -> None:
        """The mean over the labelled rows of `-log softmax(z_i)[y_i]` into `loss` (shape ()), and its derivative."""

    def soft_cross_entropy(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, loss: Tensor, grad: Tensor | None
    ) -> None:
        """The mean over rows with a share of `-sum_k y_ik log softmax(z_i)_k` into `loss`, and its derivative."""

    def softmax(self, logits: Tensor, temperature: float, out: Tensor) -> None:
        """`softmax(s_i / T)` of each row."""

    def softmax_backward(self, grad_output: Tensor, probabilities: Tensor, temperature: float, grad: Tensor) -> None:
        """`P (g - sum_k P_k g_k) / T` of each row: the derivative through `softmax`."""

    def context_weights(
        self, teacher_logits: Tensor, target: Tensor, temperature: float, ignore_index: int, out: Tensor
    ) -> None:
        """`softmax(q_i / T)[y_i]` of each row, 0 for an ignored one."""

    def soft_context_weights(self, teacher_logits: Tensor, target: Tensor, temperature: float, out: Tensor) -> None:
        """`y_ik softmax(q_i / T)_k`, 0 where `y_ik` is."""

    def accumulate_context(
        self,
        features: Tensor,
        weights: Tensor,
        target: Tensor,
        ignore_index: int,
        numerator: Tensor,
        denominator: Tensor,
    ) -> None:
        """Adds `w_i f_i` to row `y_i` of `numerator` (C, D) and `w_i` to element `y_i` of `denominator` (C,)."""

    def column_sums(self, matrix: Tensor, factor: float, out: Tensor) -> None:
        """`factor` times the sum of each column."""

    def cid_before(
        self,
        student_features: Tensor,
        student_logits: Tensor,
        teacher_features: Tensor,
        teacher_logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        temperature: float,
        ignore_index: int,
        terms: Tensor,
        kd_grad: Tensor | None,
        class_grad: Tensor | None,
        inputs: Tensor | None,
        belief: Tensor | None,
        numerator: Tensor | None,
        denominator: Tensor | None,
    ) -> None:
        """All of the criterion that comes before its products.

        kd and class into `terms` (ce, kd, sample, class), f into the left half of `inputs` (B, 2 Ds), `softmax(s/T)`
        into `belief`; the batch's contexts are added to the sums.
        """

    def cid_after(
        self,
        adapted: Tensor,
        teacher_features: Tensor,
        logits: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        alpha: float,
        beta: float,
        gamma: float,
        terms: Tensor,
        loss: Tensor,
        sample_grad: Tensor | None,
        ce_grad: Tensor | None,
    ) -> None:
        """All that comes after: sample and ce (0 without logits) into `terms`, and the total into `loss`.

        The target of ce may be shares, as of `soft_cross_entropy`.
        """


NAMES = tuple(name for name in vars(Kernels) if not name.startswith("_"))

_WRITTEN = frozenset(
    ("loss", "grad", "out", "numerator", "denominator", "terms", "kd_grad", "class_grad", "inputs", "belief",
     "sample_grad", "ce_grad")
)  # fmt: skip
"""What kernels call the tensors that they write."""


def signature(name: str) -> inspect.Signature:
    """The arguments of a kernel."""
    whole = inspect.signature(getattr(Kernels, name))
    return whole.replace(parameters=[each for argument, each in whole.parameters.items() if argument != "self"])


def schema(name: str) -> str:
    """The arguments of a kernel in the language of PyTorch's operators, which of them are written included."""

    def prototype() -> None: ...

    vars(prototype)["__signature__"] = arguments = signature(name)
    inferred = torch.library.infer_schema(prototype, mutates_args=_WRITTEN & arguments.parameters.keys())
    # A number of the caller's is no size of a tensor, which might be unknown in a trace.
    return inferred.replace("SymInt ", "int ")
