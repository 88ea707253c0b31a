"""What the layers of a model read and yield in its own forward, and what a classifier makes of a batch."""

from cid.capture.classifier import Classifier, Layers
from cid.capture.outputs import with_logits

__all__ = ["Classifier", "Layers", "with_logits"]
