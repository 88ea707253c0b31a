"""A network that sees an image as a bag of small patches: what is where, and so any shape, is lost to it."""

from __future__ import annotations

from torch import nn

from cid.train.models.layers import pool_and_classify
from cid.train.models.spec import InputSpec

PARTS = 8  # a patch is so much smaller than its image


def build_patches(width: int, spec: InputSpec) -> nn.Module:
    """W features of each patch, its side an eighth of the image's, then W of these, then the mean over the patches.

    It tells colours and textures, which is what contexts mostly are, and next to nothing of shapes: the model of a
    context whose knowledge is limited by what it can see (Bahng et al. 2020, "Learning De-biased Representations with
    Biased Representations"; bags of local features: Brendel and Bethge 2019).
    """
    side = max(1, round(min(spec.size) / PARTS))
    return nn.Sequential(
        nn.Conv2d(spec.channels, width, side, stride=max(1, side // 2), bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *pool_and_classify(width, spec.classes),
    )
