"""The head that predicts under the intervention, and its folded form for inference."""

import math

import torch
from torch import Tensor, nn

import cid._checks as check
import cid.functional as F


class InterventionalHead(nn.Module):
    r"""The linear layer :math:`z = W [f ; m] + b` over a representation and its marginal context.

    Initialised as `torch.nn.Linear`.

    Args:
        dim: D, the size of the representation.
        num_classes: C.
        temperature: T of the marginal context, from 1e-30 to 1e30.
        differentiable: Whether gradients flow through m into the logits.
        backend: See `cid.functional`.
        device: Where the parameters are made.
        dtype: Their type.

    Attributes:
        weight: W, shape (C, 2 D).
        bias: b, shape (C,).

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: An argument is out of range.

    Example:
        >>> head = InterventionalHead(16, 5)
        >>> head(torch.randn(8, 16), torch.randn(8, 5), torch.zeros(5, 16)).shape
        torch.Size([8, 5])

    Source: Deng and Zhang 2021.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        temperature: float = 4.0,
        differentiable: bool = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check.size("dim", dim)
        check.size("num_classes", num_classes)
        check.temperature(temperature)
        self.dim = dim
        self.num_classes = num_classes
        self.temperature = temperature
        self.differentiable = differentiable
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(num_classes, 2 * dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_classes, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias from U(-1/sqrt(2 D), 1/sqrt(2 D)), as `torch.nn.Linear` does."""
        bound = 1 / math.sqrt(2 * self.dim)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, features: Tensor, logits: Tensor, context: Tensor) -> Tensor:
        """The interventional logits z, shape (B, C): see `cid.functional.interventional_logits`."""
        return F.interventional_logits(
            features,
            logits,
            context,
            self.weight,
            self.bias,
            temperature=self.temperature,
            differentiable=self.differentiable,
            backend=self.backend,
        )

    @torch.no_grad()
    def fold(self, context: Tensor) -> "FoldedHead":
        r"""This head with the contexts multiplied in, for inference.

        Args:
            context: M, shape (C, D).

        Returns:
            A head that computes the same z from f and s alone, and shares no memory with this one.

        Raises:
            TypeError: `context` is no tensor.
            ValueError: It has a wrong shape.

        Example:
            >>> head, context = InterventionalHead(16, 5), torch.randn(5, 16)
            >>> f, s = torch.randn(8, 16), torch.randn(8, 5)
            >>> torch.allclose(head.fold(context)(f, s), head(f, s, context), atol=1e-6)
            True
        """
        check.tensor("context", context)
        check.shape("context", context, (self.num_classes, self.dim))
        folded = FoldedHead(
            self.dim,
            self.num_classes,
            temperature=self.temperature,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        folded.weight.copy_(self.weight[:, : self.dim])
        folded.bias.copy_(self.bias)
        # Contexts are wider than a head in half precision: rounded once, after the product.
        factors = [context, self.weight[:, self.dim :].T.to(context.dtype)]
        if len(folded.mixing) == 1:
            factors = [factors[0] @ factors[1]]
        for kept, factor in zip(folded.mixing, factors, strict=True):
            kept.copy_(factor)
        return folded

    def extra_repr(self) -> str:
        """The sizes and options."""
        return f"dim={self.dim}, num_classes={self.num_classes}, temperature={self.temperature}"


class FoldedHead(nn.Module):
    r"""An `InterventionalHead` with the contexts multiplied in, for inference: see `InterventionalHead.fold`.

    .. math:: z = W_1 f + \mathrm{softmax}(s / T) \, (M W_2^T) + b

    with :math:`W = [W_1 ; W_2]`. A sample costs C (C + D) multiply-adds instead of 3 C D, and the head holds as many
    values (and C of b). With more than 2 D classes the product would cost more than it saves: then M and
    :math:`W_2^T` stay apart, and nothing is gained or lost.

    Plain PyTorch, so that it can be exported to where this package is not. Gradients flow through all of it, also
    through the contexts into the logits.

    Args:
        dim: D, the size of the representation.
        num_classes: C.
        temperature: T of the marginal context, from 1e-30 to 1e30.
        device: Where the parameters are made.
        dtype: Their type.

    Attributes:
        weight: W_1, shape (C, D).
        bias: b, shape (C,).
        mixing: The factors of :math:`M W_2^T`: the product, shape (C, C), or M and :math:`W_2^T`.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: An argument is out of range.

    Source: Deng and Zhang 2021.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        temperature: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check.size("dim", dim)
        check.size("num_classes", num_classes)
        check.temperature(temperature)
        self.temperature = temperature

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

        self.weight = zeros(num_classes, dim)
        self.bias = zeros(num_classes)
        shapes = [(num_classes, num_classes)] if num_classes <= 2 * dim else [(num_classes, dim), (dim, num_classes)]
        self.mixing = nn.ParameterList(zeros(*shape) for shape in shapes)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """The interventional logits z, shape (B, C), of representations (B, D) and the student's own logits (B, C)."""
        mixed = torch.softmax(logits / self.temperature, dim=1)
        for factor in self.mixing:
            mixed = mixed @ factor
        return nn.functional.linear(features, self.weight, self.bias) + mixed

    def extra_repr(self) -> str:
        """The sizes and options."""
        num_classes, dim = self.weight.shape
        return f"dim={dim}, num_classes={num_classes}, temperature={self.temperature}"
