"""The compiled kernels: plain functions over dense CPU tensors, used by `cid.backends.native` alone.

Float tensors of one call share one type, float32, float64, bfloat16 or float16, and are contiguous; a teacher's may be
bfloat16 or float16 beside a student's in float32. Labels are int64. Losses, shares of classes, context weights and the
sums of the context bank are float32 where the type is a half-precision one. Everything is checked before anything is
written. Outputs are written in place and never overlap an input or each other.
A `loss` of shape () receives the sum of the rows' losses or, where `mean` is true, their mean over the rows that count;
one of shape (B,) each row's, as it adds to that. `grad` receives the derivative of their sum or mean and is skipped
where it is None.
"""

from torch import Tensor

def build_info() -> dict[str, str]:
    """`version`, `profile` ("release" or "debug") and `simd` (the tier in use) of this build."""

def use_torch_threads(parallel_for: int, get_num_threads: int) -> None:
    """Run on PyTorch's thread pool: the addresses of `torch_parallel_for` and `torch_get_num_threads`."""

def run_serially() -> None:
    """Stay in the calling thread from now on: a forked child has no thread pool that works."""

def plain(*tensors: object) -> bool:
    """Whether all are contiguous CPU tensors of one float type, of PyTorch's own classes, with elements."""

def cid_fits(
    student_features: object,
    student_logits: object,
    teacher_features: object,
    teacher_logits: object,
    target: object,
    adapter_weight: object,
    adapter_bias: object,
    head_weight: object,
    head_bias: object,
    context: object,
    factors: tuple[object, object, object],
    temperature: object,
    ignore_index: object,
) -> bool:
    """Whether all arguments of the criterion are as its kernels and its products take them.

    Without a context the head may be anything.
    """

def column_sums(matrix: Tensor, factor: float, out: Tensor) -> None:
    """`factor` times the sum of each column."""

def cid_before(
    student_features: Tensor,
    student_logits: Tensor,
    teacher_features: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
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

    kd and class into `terms` (ce, kd, sample, class), f into the left half of `inputs` (B, 2 Ds), `softmax(s/T)` into
    `belief`; the batch's contexts are added to the sums.
    """

def cid_after(
    adapted: Tensor,
    teacher_features: Tensor,
    logits: Tensor | None,
    target: Tensor,
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

def kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None,
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

def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int, loss: Tensor, grad: Tensor | None) -> None:
    """The mean over the labelled rows of `-log softmax(z_i)[y_i]` into `loss` (shape ()), and its derivative in `z`."""

def soft_cross_entropy(logits: Tensor, target: Tensor, loss: Tensor, grad: Tensor | None) -> None:
    """The mean over rows with a share of `-sum_k y_ik log softmax(z_i)_k` into `loss`, and its derivative in `z`."""

def sample(student_features: Tensor, teacher_features: Tensor, mean: bool, loss: Tensor, grad: Tensor | None) -> None:
    """`||s_i - t_i||^2 / ||t_i||^2` of each row, 0 where `t_i` is 0, and its derivative in `s`."""

def class_(
    student_features: Tensor,
    teacher_features: Tensor,
    target: Tensor,
    ignore_index: int,
    loss: Tensor,
    grad: Tensor | None,
) -> None:
    """The mean over classes of `||Gt_k - Gs_k||_F^2 / n_k^2` into `loss` (shape ()), and its derivative in `s`."""

def softmax(logits: Tensor, temperature: float, out: Tensor) -> None:
    """`softmax(s_i / T)` of each row."""

def softmax_backward(grad_output: Tensor, probabilities: Tensor, temperature: float, grad: Tensor) -> None:
    """`P (g - sum_k P_k g_k) / T` of each row: the derivative through `softmax`."""

def context_weights(teacher_logits: Tensor, target: Tensor, temperature: float, ignore_index: int, out: Tensor) -> None:
    """`softmax(q_i / T)[y_i]` of each row, 0 for an ignored one."""

def soft_context_weights(teacher_logits: Tensor, target: Tensor, temperature: float, out: Tensor) -> None:
    """`y_ik softmax(q_i / T)_k`, 0 where `y_ik` is."""

def accumulate_context(
    features: Tensor, weights: Tensor, target: Tensor, ignore_index: int, numerator: Tensor, denominator: Tensor
) -> None:
    """Adds `w_i f_i` to row `y_i` of `numerator` (C, D) and `w_i` to element `y_i` of `denominator` (C,)."""
