"""The settings of a run that all methods share, a section a job."""

from __future__ import annotations

from dataclasses import dataclass

from cid.train.settings import Rule, above, at_least, between, distinct, one_of, setting, within

MOST_WORKERS = 8  # that read images, unless more are asked for
RANDAUGMENT = Rule(
    lambda values: not values or (len(values) == 2 and values[0] >= 1 and 0 <= values[1] <= 30),
    "two numbers: from 1 up, 0 to 30",
)


@dataclass(frozen=True)
class DataConfig:
    """Which images, how many, and how a batch is augmented."""

    name: str = setting(
        "digits",
        "digits, coloured-digits, mnist, colored-mnist, cifar10, corrupted-cifar10, cifar100, the path of an image "
        "folder, wds:FOLDER of WebDataset shards or hf:FOLDER of a Hugging Face data set",
        flag="--data",
    )
    dir: str | None = setting(None, "folder that holds the published files of the data set", flag="--data-dir")
    classes: tuple[str, ...] = setting((), "only the images of these classes, by name (default: all)")
    resize: int | None = setting(
        None,
        "images in files: side of the square to resize to; with --crop, the shorter side before the middle is scored "
        "(default: 8/7 of the crop)",
        rule=at_least(1),
    )
    limit: int | None = setting(None, "use only this many training images (validation included)", rule=at_least(2))
    limit_test: int | None = setting(None, "use only this many test images", rule=at_least(1))
    skip_unreadable: bool = setting(
        False,
        "images in files: leave out those that cannot be read, and list them in the run's data.json; where images are "
        "read as needed, take the next one instead, and list them in unreadable.json",
    )
    memory: float = setting(
        2.0,
        "images in files: GiB that they may take in memory, decoded; more are read as they are needed",
        rule=at_least(0),
    )
    workers: int | None = setting(
        None,
        f"processes that read images as they are needed (default: one a core, up to {MOST_WORKERS}; 0: none)",
        rule=at_least(0),
    )
    validation: float | None = setting(
        None,
        "part of the training images held out to choose the epoch (default: 0.1; image folders with val/ and test/: "
        "none, val/ chooses)",
        rule=within(0.001, 1),
    )
    split_seed: int = setting(0, "seed of the split and of the limited selection", rule=at_least(0))
    rho: float | None = setting(
        None,
        "colored-mnist, corrupted-cifar10: part of the images whose colour or corruption goes with their class; "
        "coloured-digits: how often the ground's colour does, where else it is drawn from all",
        rule=between(0, 1),
    )
    label_noise: float = setting(
        0.0,
        "part of the training labels (validation included) that are replaced by a class drawn from all",
        rule=between(0, 1),
    )
    data_seed: int = setting(0, "seed of what --rho and --label-noise draw", rule=at_least(0))
    pad: int = setting(0, "augmentation: random crop after padding with this many pixels", rule=at_least(0))
    flip: bool = setting(False, "augmentation: random horizontal flip")
    crop: int | None = setting(
        None, "augmentation: random resized crop to this side; the middle is scored", rule=at_least(1)
    )
    randaugment: tuple[int, ...] = setting(
        (), "augmentation: RandAugment, how many operations and how strong (0 to 30)", rule=RANDAUGMENT
    )
    mixup: float | None = setting(None, "augmentation: mixup, shares drawn from Beta(a, a) of this a", rule=above(0))
    cutmix: float | None = setting(
        None, "augmentation: CutMix, areas drawn from Beta(a, a); beside --mixup, one of both a pair", rule=above(0)
    )
    views: int | None = setting(
        None,
        "augmentation: this many fixed views of each image, an epoch each in turn (default: ever new ones)",
        rule=at_least(1),
    )
    view_seed: int = setting(0, "seed of the fixed views", rule=at_least(0))

    @property
    def augments(self) -> bool:
        """Whether an image alone looks different each time."""
        return self.pad > 0 or self.flip or self.crop is not None or bool(self.randaugment)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others."""
        return self.mixup is not None or self.cutmix is not None


@dataclass(frozen=True)
class ModelsConfig:
    """The two networks, by name."""

    teacher: str = setting(
        "wrn-16-2",
        "teacher: cnn-W, convnet-W, resnetD, wrn-D-K, patches-W, timm:NAME, torchvision:NAME or hf:NAME, where NAME "
        "may be a folder",
    )
    student: str = setting("resnet8", "student: named as the teacher is")
    teacher_checkpoint: str | None = setting(
        None, "safetensors, .pt or .pth file with the teacher's weights: it is not trained"
    )
    pretrained: bool = setting(
        False, "the teacher starts from its published weights, of timm, torchvision or hf, and is trained further"
    )
    student_pretrained: bool = setting(False, "students start from their published weights, too")
    pretrained_dir: str | None = setting(
        None, "folder that holds the published weights of timm's and torchvision's models: nothing is downloaded"
    )
    teacher_inputs: str | None = setting(
        None,
        "how the images are normalised for a library's model of --teacher-checkpoint that is no run's: as the model "
        "is published, or as the data set (default: model)",
        rule=one_of("model", "data"),
    )
    teacher_size: int | None = setting(
        None,
        "side of the square to which the teacher brings images (default: as they are; a library's model that takes no "
        "such images: its own)",
        rule=at_least(1),
    )
    teacher_cache: str | None = setting(None, "folder of `cid cache`: read in place of running the teacher")
    cache_teacher: bool = setting(
        False,
        "where views are fixed: run the teacher once over all of them, and keep what it says in the run's folder",
    )


@dataclass(frozen=True)
class OptimConfig:
    """How every network of the run is trained."""

    epochs: int = setting(240, "epochs of each student", rule=at_least(1))
    teacher_epochs: int | None = setting(
        None,
        "epochs of the teacher (default: as --epochs); 0 with --pretrained, where it knows all classes: as it is",
        rule=at_least(0),
    )
    batch_size: int = setting(64, "images in a batch", rule=at_least(2))
    optimizer: str = setting("sgd", "sgd (nesterov, momentum 0.9) or adamw", rule=one_of("sgd", "adamw"))
    lr: float = setting(0.05, "highest learning rate", rule=above(0))
    teacher_lr: float | None = setting(
        None, "that of the teacher (default: as --lr); a pretrained one needs less", rule=above(0)
    )
    schedule: str = setting(
        "step",
        "step (a tenth at 150, 180, 210 of 240 epochs), cosine, onecycle or constant",
        rule=one_of("step", "cosine", "onecycle", "constant"),
    )
    weight_decay: float = setting(5e-4, "weight decay; the adapter has none", rule=at_least(0))
    accumulate: int = setting(
        1, "parts of a batch that pass one after another, their gradients added up to one step", rule=at_least(1)
    )
    clip_norm: float | None = setting(
        None, "scale the gradients of a step down to this norm where theirs is larger", rule=above(0)
    )
    ema: float | None = setting(
        None,
        "score, keep and save an exponential moving average of the students, of this decay in a step (0.999, say)",
        rule=within(0, 1),
    )
    patience: int | None = setting(
        None,
        "stop after so many epochs in a row without a better validation accuracy (or the same, and a lower loss)",
        rule=at_least(1),
    )


@dataclass(frozen=True)
class RunConfig:
    """Repetition, hardware and saving."""

    seeds: tuple[int, ...] = setting((0, 1, 2), "seeds: one student each, by every method", rule=distinct(at_least(0)))
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    devices: int = setting(
        1,
        "processes on this machine, each with a device, that share every batch (torchrun starts them, too)",
        rule=at_least(1),
    )
    sync_batchnorm: bool = setting(
        True, "several processes: batch normalisation takes its statistics of the whole batch, not of each one's part"
    )
    local_pairs: bool = setting(
        False, "several processes: class representations compare the samples of each one's part of a batch alone"
    )
    shard: bool = setting(
        False,
        "several processes: each keeps a part of parameters, gradients and momentum (FSDP2), gathered to compute",
    )
    threads: int | None = setting(None, "CPU threads (default: as PyTorch finds)", rule=at_least(1))
    precision: str = setting(
        "32-true",
        "Lightning Fabric's name of the precision, or auto: bf16-mixed where it is measured to be faster, else 32-true",
        rule=one_of("auto", "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"),
    )
    compile: bool = setting(
        False, "compile what a step computes (torch.compile): a minute or more at first, then faster"
    )
    checkpoint_every: int | None = setting(
        None, "save a checkpoint every so many steps, beside each epoch's", rule=at_least(1)
    )
    logger: tuple[str, ...] = setting(
        (),
        "where else the metrics go, one or more of csv, tensorboard, wandb and mlflow (but for csv they need the extra "
        "cid-distill[loggers])",
        rule=distinct(one_of("csv", "tensorboard", "wandb", "mlflow"), least=0),
    )
