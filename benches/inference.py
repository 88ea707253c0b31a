"""What the interventional head costs at inference.

    python benches/inference.py [--seconds 5]

Each student by itself, with its head as it is trained, and with the head folded, in turns on one thread; the folded one
also in onnxruntime, where that is installed; and the heads by themselves. Before the times, what is computed and held,
counted. The shortest times stand beside the medians, as they suffer less from what else the machine does.
"""

import argparse
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn

import cid
from cid.bench.hardware import hardware
from cid.bench.timing import Timing, interleaved
from cid.train.models import InputSpec, build_model

STUDENTS = {
    "cnn-8 on digits": ("cnn-8", InputSpec(1, (12, 12), 10)),
    "WRN-16-2 on CIFAR-100": ("wrn-16-2", InputSpec(3, (32, 32), 100)),
}
BATCHES = (1, 256)
INPUTS = 3  # rotated


def variants(name: str, spec: InputSpec) -> dict[str, nn.Module]:
    """The student without a head, with one as it is trained, and with it folded; random weights take as long."""
    student = build_model(name, spec)
    distiller = cid.Distiller(student, build_model(name, spec), num_classes=spec.classes, beta=1.0, gamma=1.0)
    distiller.criterion.bank.context.normal_()
    return {
        "alone": distiller.student(head=False),
        "unfolded": distiller.student(fold=False),
        "folded": distiller.student(),
    }


def multiply_adds(model: nn.Module, x: Tensor) -> int:
    """Of convolutions and matrix products, for one sample."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return int(counter.get_total_flops()) // 2


def values(model: nn.Module) -> int:
    """Weights, and the contexts of an unfolded head; not the statistics of batch normalisation."""
    context = model.context.numel() if isinstance(model, cid.InterventionalStudent) else 0
    return sum(parameter.numel() for parameter in model.parameters()) + context


def in_pytorch(model: nn.Module, inputs: Sequence[tuple[Tensor, ...]]) -> Callable[[int], object]:
    """A contender, eager."""

    def call(i: int) -> object:
        with torch.inference_mode():
            return model(*inputs[i % INPUTS])

    return call


def in_onnxruntime(model: nn.Module, inputs: Sequence[tuple[Tensor, ...]]) -> Callable[[int], object]:
    """A contender, on one thread."""
    import onnxruntime

    program = torch.onnx.export(model, inputs[0], input_names=["images"], dynamo=True, verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    arrays = [x.numpy() for (x,) in inputs]
    return lambda i: session.run(None, {"images": arrays[i % INPUTS]})


def report(title: str, timings: dict[str, Timing]) -> None:
    """One line: microseconds of each contender."""
    times = ", ".join(f"{name} {1e6 * t.median:,.0f} us ({1e6 * t.best:,.0f})" for name, t in timings.items())
    print(f"  {title}: {times}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the interventional head costs at inference.")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each line (default: 5)")
    seconds: float = parser.parse_args().seconds
    torch.set_num_threads(1)
    print(", ".join(f"{key} {value}" for key, value in hardware().items()))
    for title, (name, spec) in STUDENTS.items():
        models = variants(name, spec)
        print(f"{title}; times: median (shortest)")
        for variant, model in models.items():
            counted = multiply_adds(model, torch.zeros(1, spec.channels, *spec.size))
            print(f"  {variant}: {counted:,} multiply-adds a sample, {values(model):,} values")
        for batch in BATCHES:
            images = [(torch.rand(batch, spec.channels, *spec.size),) for _ in range(INPUTS)]
            eager = {variant: in_pytorch(model, images) for variant, model in models.items()}
            report(f"batch {batch}, PyTorch", interleaved(eager, seconds=seconds))
            if find_spec("onnxruntime") and find_spec("onnxscript"):
                compiled = {variant: in_onnxruntime(models[variant], images) for variant in ("alone", "folded")}
                report(f"batch {batch}, onnxruntime", interleaved(compiled, seconds=seconds))
            head, context, folded = heads(models)
            pairs = [(torch.randn(batch, head.dim), torch.randn(batch, spec.classes)) for _ in range(INPUTS)]
            alone = {
                "unfolded": in_pytorch(head, [(*pair, context) for pair in pairs]),
                "folded": in_pytorch(folded, pairs),
            }
            report(f"batch {batch}, PyTorch, the head by itself", interleaved(alone, seconds=seconds))


def heads(models: dict[str, nn.Module]) -> tuple[cid.InterventionalHead, Tensor, nn.Module]:
    """The head as it is trained, its contexts, and the two as one."""
    student = models["unfolded"]
    assert isinstance(student, cid.InterventionalStudent)
    return student.head, student.context, student.head.fold(student.context)


if __name__ == "__main__":
    main()
