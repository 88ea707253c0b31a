"""What a step of `cid.Distiller(..., process_group=...)` computes, sends and keeps on one rank: each formula once.

Bytes and products are counted, and `counted.py` holds them against what is sent and computed. Seconds follow from them
and from what `machines.py` assumes, as if nothing went on at the same time: an upper bound of the model.
"""

from dataclasses import dataclass

from benches.scale import machines
from benches.scale.machines import Machine

FLOAT, INT = 4, 8  # bytes of float32, which parameters, gradients and the bank have, and of int64


@dataclass(frozen=True)
class Step:
    """A step after the warm-up, by SGD with momentum. Networks are without their classifiers here."""

    batch: int
    """B: samples of a rank; the most that one has."""
    classes: int
    student_dim: int
    teacher_dim: int
    ranks: int = 1
    body: int = 0
    """Trained parameters of the student."""
    student_flop: float = 0.0
    """Of an image, forward."""
    teacher_flop: float = 0.0
    norms: tuple[int, ...] = ()
    """Channels of each batch normalisation over ranks."""
    width: int = FLOAT
    """Bytes of a value of features and logits: 2 under autocast."""
    pairs: str = "all"

    @property
    def compared(self) -> int:
        """Samples that class compares on a rank."""
        return self.batch * (self.ranks if self.pairs == "all" else 1)

    @property
    def head(self) -> int:
        """Parameters of the head."""
        return self.classes * (2 * self.student_dim + 1)

    @property
    def adapter(self) -> int:
        """Parameters of the adapter."""
        return self.teacher_dim * (self.student_dim + 1)

    @property
    def student(self) -> int:
        """Trained parameters of the student, with its classifier."""
        return self.body + self.classes * (self.student_dim + 1)


# Bytes.


def gathered(step: Step, payload: float) -> float:
    """What a rank receives in an all-gather."""
    return (step.ranks - 1) * payload


def reduced(step: Step, payload: float) -> float:
    """What a rank receives in an all-reduce: a ring's reduce-scatter, and its all-gather."""
    return 2 * (step.ranks - 1) / step.ranks * payload


def labels(step: Step) -> int:
    """Payload: how many samples, how many of them with a label, and the labels."""
    return INT * (2 + step.batch)


def features(step: Step) -> int:
    """Payload: f and t."""
    return step.width * step.batch * (step.student_dim + step.teacher_dim) if step.pairs == "all" else 0


def gradients(step: Step) -> int:
    """Payload, by `DistributedDataParallel`."""
    return FLOAT * (step.student + step.adapter)


def head_gradients(step: Step) -> int:
    """Payload, by the loss itself."""
    return FLOAT * step.head


def statistics(step: Step, gpu: bool = True) -> int:
    """Payload, forward: mean, variance and count; PyTorch's `SyncBatchNorm` has one count for all channels."""
    return FLOAT * sum(2 * channels + (1 if gpu else channels) for channels in step.norms)


def statistics_gradients(step: Step) -> int:
    """Payload, backward."""
    return FLOAT * sum(2 * channels for channels in step.norms)


def bank_sums(step: Step) -> int:
    """Payload, once an epoch."""
    return FLOAT * step.classes * (step.student_dim + 1)


# FLOP.


def networks(step: Step) -> float:
    """Both forward, and the student backward, which is twice its forward; with their classifiers."""
    student = step.student_flop + 2 * step.classes * step.student_dim
    teacher = step.teacher_flop + 2 * step.classes * step.teacher_dim
    return step.batch * (3 * student + teacher)


def products(step: Step) -> int:
    """Of the loss: five of the head's two halves and one of the contexts; three of the adapter."""
    return step.batch * step.student_dim * (12 * step.classes + 6 * step.teacher_dim)


def pairs(step: Step) -> float:
    """Samples of a class with each other, themselves too, where labels are drawn at random."""
    return step.compared * (1 + (step.compared - 1) / step.classes)


def class_products(step: Step) -> float:
    """Cosines of student and teacher, and the gradient: of the GPU's kernel, all of a class with all of it."""
    return 2 * pairs(step) * (2 * step.student_dim + step.teacher_dim)


# Memory.


def kept(step: Step) -> dict[str, float]:
    """Bytes that stay on a rank. Of what is trained: parameter, gradient and momentum."""
    return {
        "classifiers": FLOAT * step.classes * (3 * (step.student_dim + 1) + step.teacher_dim + 1),
        "head": FLOAT * step.head * 3,
        "bank": FLOAT * step.classes * (2 * step.student_dim + 1),
    }


def passing(step: Step) -> dict[str, float]:
    """Bytes that a step needs at its fullest."""
    rows = 2 * step.width * (step.student_dim + step.teacher_dim) if step.pairs == "all" else 0
    return {
        # s, q and the gradient of s; and three that are the loss's own, z among them.
        "logits": FLOAT * step.batch * step.classes * 6,
        # Of all, as gathered, with our own among them, and the gradient; of our own, adapted, and the gradient.
        "features": step.compared * (rows + FLOAT * step.student_dim) + 2 * FLOAT * step.batch * step.teacher_dim,
        # The gradient is copied to be averaged, while a half is still there by itself.
        "head, averaged": FLOAT * step.head * 1.5 if step.ranks > 1 else 0.0,
    }


# Seconds.


def seconds(step: Step, machine: Machine) -> dict[str, float]:
    """Of the parts of a step, one after another."""
    gather, reduce = machines.gather_delay(machine, step.ranks), machines.reduce_delay(machine, step.ranks)
    memory_rate = machine.memory_rate * machines.MEMORY_REACH

    def receiving(received: float) -> float:
        return machines.transfer(machine, step.ranks, received)

    product_rate = machine.single * machines.PRODUCTS_REACH
    # Each parameter of the head and each row of the bank, forward, backward and by the optimizer; and the logits.
    traffic = FLOAT * (8 * step.head + step.classes * step.student_dim + 10 * step.batch * step.classes)
    gathers = 3 if step.pairs == "all" else 1  # labels, t and f
    return {
        "networks": networks(step) / (machine.half * machines.NETWORKS_REACH),
        "loss, own samples": products(step) / product_rate + traffic / memory_rate,
        "class, all samples": class_products(step) / product_rate,
        "labels and features": gathers * gather + receiving(gathered(step, labels(step) + features(step))),
        "gradients": 2 * reduce + receiving(reduced(step, gradients(step) + head_gradients(step))),
        "batch normalisation": len(step.norms) * (gather + reduce)
        + receiving(gathered(step, statistics(step)) + reduced(step, statistics_gradients(step))),
    }
