"""What the layers of a model read and yield in its own forward, and what a classifier makes of a batch."""

from cid.capture.calls import Call, buffers_kept, capture, uncompiled
from cid.capture.classifier import Classifier, Layers

__all__ = ["Call", "Classifier", "Layers", "buffers_kept", "capture", "uncompiled"]
