"""The distilled student: its model, and the head that puts interventional logits in the place of its own."""

import copy
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from cid.capture import Classifier, Layers
from cid.capture.calls import thread
from cid.capture.outputs import with_logits
from cid.head import FoldedHead, InterventionalHead


class InterventionalStudent(nn.Module):
    """A distilled student with its parts side by side, as a run saves it; `fold` makes one model of them, to ship.

    It maps an input to the interventional logits z, and stands on its own, with copies of the student, the head and the
    contexts as they were; see `Distiller.student`.

    Attributes:
        model: The student.
        layers: Its classifying layer, or layers; see `Distiller.student_layer`.
        head: Its `InterventionalHead`.
        context: M, shape (C, Ds), a buffer.
    """

    context: Tensor

    def __init__(self, model: nn.Module, layers: Layers, head: InterventionalHead, context: Tensor) -> None:
        super().__init__()
        self.model = model
        self._classifier = Classifier(model, head.num_classes, layers, role="student").checked()
        self.head = head
        self.register_buffer("context", context)

    @property
    def layers(self) -> Layers:
        """The name of the student's classifying layer, or a tuple of names."""
        return self._classifier.layers

    def forward(self, x: Any) -> Tensor:
        """The interventional logits z of a batch, shape (B, C)."""
        features, logits = self._classifier.read(self.model, x)
        z: Tensor = self.head(features, logits, self.context)
        return z

    def fold(self) -> nn.Module:
        """A copy of the model that yields z for its logits, by a `cid.FoldedHead`; see `Distiller.student`."""
        return with_head(copy.deepcopy(self.model), self.layers, self.head.fold(self.context))


def with_head(model: nn.Module, layers: Layers, head: FoldedHead) -> nn.Module:
    """Attach a folded head to a model, in place: z takes the place of its logits."""
    # Hooks, not other layers in their place: the layers keep their types, their weights their names.
    classifier = Classifier(model, head.weight.shape[0], layers, role="student")
    holder = named = model.get_submodule(classifier.names[-1])
    while isinstance(holder, nn.Sequential):  # calls all that is in it
        holder = holder[-1]
    holder.add_module("intervention", head)
    if classifier.yields_logits and holder is named:
        holder.register_forward_hook(_intervene, with_kwargs=True)
        return model
    replace = _Replace(classifier)
    for name in classifier.names:
        model.get_submodule(name).register_forward_pre_hook(partial(replace.keep, name), with_kwargs=True)
    holder.register_forward_pre_hook(replace.keep_head)
    model.register_forward_hook(replace.intervene)
    return model


def _intervene(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], logits: Tensor) -> Tensor:
    """Without state, so that it can be copied, replicated, compiled, exported and called from several threads."""
    (features,) = (*args, *kwargs.values())
    z: Tensor = cast(nn.Module, layer.intervention)(features, logits)
    return z


class _Replace:
    """Puts z where a model yields its logits, which are not a linear layer's output as it is.

    What the layers read is kept until the model is done. It lies here, by thread, as no other place holds up: replicas
    share their hooks and run in threads, one model may serve several of them, and what is thread-local or of a context
    can neither be copied nor pickled.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.kept: dict[tuple[int, str | None], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: nothing that a forward left here which failed half-way."""
        return {**vars(self), "kept": {}}

    def keep(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a layer."""
        self.kept[thread(), name] = next(iter((*args, *kwargs.values())))

    def keep_head(self, holder: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the layer with the head: a replica has its own, and no path leads to it where a layer was wrapped."""
        self.kept[thread(), None] = holder.intervention

    def intervene(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """After the model."""
        features = self.classifier.features([self.kept.pop((thread(), name)) for name in self.classifier.names])
        head = self.kept.pop((thread(), None))
        return with_logits(output, self.classifier.num_classes, lambda logits: head(features, logits))
