"""The head that predicts under the intervention."""

import math

import torch
from torch import Tensor, nn

from cid import _checks
from cid import functional as F


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
        _checks.size("dim", dim)
        _checks.size("num_classes", num_classes)
        _checks.temperature(temperature)
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

    def extra_repr(self) -> str:
        """The sizes and options."""
        return f"dim={self.dim}, num_classes={self.num_classes}, temperature={self.temperature}"
