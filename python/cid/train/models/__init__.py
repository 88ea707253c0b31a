"""Networks by name: a small CNN, the residual networks of CIFAR, wide ones, and timm's."""

from cid.train.models.resnet import InputSpec, build_model, count_parameters

__all__ = ["InputSpec", "build_model", "count_parameters"]
