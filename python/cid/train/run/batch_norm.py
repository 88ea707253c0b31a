"""Batch normalisation over the samples of all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cid._across import uncompiled
from cid._errors import ConfigError

aten = torch.ops.aten
KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
WITH_MORE = ("BatchNormAct2d",)  # timm's


def over_ranks(module: nn.Module, device: torch.device) -> None:
    """Has what is trained of a module normalise over all ranks, in place; what is frozen has its statistics already.

    Args:
        module: of which all layers within are looked at.
        device: where it is trained.

    Raises:
        ConfigError: a layer normalises batches in a way of its own.
    """
    for name, child in module.named_children():
        if not isinstance(child, _BatchNorm):
            over_ranks(child, device)
        elif child.weight is None or child.weight.requires_grad:
            setattr(module, name, _like(child, device))


def _like(norm: _BatchNorm, device: torch.device) -> _BatchNorm:
    """A normalisation over ranks with the parameters and buffers of one within, and what that does next."""
    if type(norm) not in KNOWN and type(norm).__name__ not in WITH_MORE:
        raise ConfigError(
            f"--sync-batchnorm: the network normalises batches by {type(norm).__name__}, accepted: PyTorch's "
            "BatchNorm1d, 2d, 3d and timm's; or --no-sync-batchnorm"
        )
    kind = RanksBatchNorm if device.type == "cpu" else SyncBatchNorm
    own = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    own._parameters, own._buffers, own._modules = norm._parameters, norm._buffers, norm._modules
    return own.train(norm.training)


class SyncBatchNorm(nn.SyncBatchNorm):
    """PyTorch's, and what was within the layer that it replaces."""

    def forward(self, input: Tensor) -> Tensor:
        """The normalised maps."""
        return _rest(self, super().forward(input))


class RanksBatchNorm(_BatchNorm):
    """The same where PyTorch has none, on processors: by the kernels for one process, and an exchange."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # whoever made the layer that this replaces chose that

    def forward(self, input: Tensor) -> Tensor:
        """The normalised maps."""
        if not self.training:
            return _rest(self, super().forward(input))
        return _rest(self, uncompiled("batch normalisation over ranks", self._normalise, input))

    def _normalise(self, x: Tensor) -> Tensor:
        normalised, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), share)
        found: Tensor = normalised
        return found


def _rest(norm: nn.Module, x: Tensor) -> Tensor:
    """What timm's layers have after the normalisation, in this order: dropout and activation."""
    for module in norm.children():
        x = module(x)
    return x


class _Normalise(torch.autograd.Function):
    """`(x - mean) / sqrt(var + eps) * weight + bias`, of the mean and the biased variance over all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x if x.dtype == torch.float64 else x.float()
        own = torch.stack(aten.batch_norm_update_stats(wide, None, None, 0.0))
        count = own.new_full((1, own.shape[1]), x.numel() // x.shape[1])
        every = own.new_empty(dist.get_world_size(), 3, own.shape[1])
        dist.all_gather_into_tensor(every.flatten(0, 1), torch.cat((own, count)))
        means, variances, counts = every.unbind(1)
        total = counts.sum(0)
        mean = (counts * means).sum(0) / total
        var = (counts * (variances + (means - mean).square())).sum(0) / total
        kind = mean.dtype if weight is None else weight.dtype  # which the kernels want the statistics in
        ctx.save_for_backward(x, weight, mean.to(kind), var.to(kind), total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, total)
        return nn.functional.batch_norm(x, mean.to(kind), var.to(kind), weight, bias, False, 0.0, eps), mean, var, total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, total = ctx.saved_tensors
        # As if mean and variance were constants; then what they owe to x.
        grad_x, grad_weight, grad_bias = aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack((grad_bias, grad_weight))
        dist.all_reduce(sums)
        scale = (var + ctx.eps).rsqrt()
        by_mean, by_var = sums / total * (scale if weight is None else scale * weight)
        slope = -by_var * scale
        shape = (1, -1, *(1,) * (x.dim() - 2))
        grad_x += (-by_mean - slope * mean).view(shape).to(x.dtype)
        grad_x.addcmul_(x, slope.view(shape).to(x.dtype))
        return grad_x, None if weight is None else grad_weight, None if weight is None else grad_bias, None
