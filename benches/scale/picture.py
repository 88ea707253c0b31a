"""The pictures of `docs/scale.md`: seconds by ranks, and memory by classes. Both are the model's."""

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benches.scale import model
from benches.scale.machines import DGX_H100, ETHERNET, Machine
from benches.scale.model import Step

RANKS = [2**power for power in range(11)]
CLASSES = [round(10 ** (power / 8)) for power in range(16, 49)]

# torchvision's ResNet-50 and ResNet-152 without their last layers: FLOP of 224 x 224 pixels are twice the
# multiply-adds of its table; parameters and channels are counted. In bfloat16.
STAGES = ((3, 64, 256), (4, 128, 512), (6, 256, 1024), (3, 512, 2048))
NORMS = (64, *(n for blocks, mid, out in STAGES for n in (mid, mid, out) * blocks), *(out for _, _, out in STAGES))
IMAGENET = Step(
    batch=64,
    classes=1000,
    student_dim=2048,
    teacher_dim=2048,
    body=25_557_032 - 1000 * 2049,
    student_flop=2 * 4.09e9,
    teacher_flop=2 * 11.51e9,
    norms=NORMS,
    width=2,
)
# The same with features of 512, for each of whose classes there are few images.
MILLION = replace(IMAGENET, classes=1_000_000, student_dim=512, teacher_dim=512)

PANELS: tuple[tuple[str, Step, Machine], ...] = (
    ("1,000 classes, D = 2,048", IMAGENET, DGX_H100),
    ("the same, by 100 Gb/s Ethernet", IMAGENET, ETHERNET),
    ("1,000,000 classes, D = 512", MILLION, DGX_H100),
)
# Okabe and Ito's, without black and yellow: told apart by every kind of colour vision, on light and dark grounds.
COLOURS = ("#999999", "#009E73", "#D55E00", "#E69F00", "#0072B2", "#CC79A7")
BLACK = "#000000"


def draw(folder: Path) -> list[Path]:
    """Writes both, as `scale-time.svg` and `scale-memory.svg`."""
    return [
        _write(_time(), folder / "scale-time.svg", "Modelled time of a step, by GPUs"),
        _write(_memory(), folder / "scale-memory.svg", "Modelled memory of classes, by their number"),
    ]


def _figure(panels: int) -> tuple[Any, Sequence[Any]]:
    # The object interface: no window system is asked for, and no global state of pyplot's is touched.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * panels, 4.4), layout="constrained")
    return figure, figure.subplots(1, panels)


def _time() -> Any:
    figure, panels = _figure(len(PANELS))
    for axes, (title, step, machine) in zip(panels, PANELS, strict=True):
        parts = [model.seconds(replace(step, ranks=ranks), machine) for ranks in RANKS]
        layers = [[1e3 * part[name] for part in parts] for name in parts[0]]
        axes.stackplot(RANKS, layers, labels=list(parts[0]), colors=COLOURS, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(RANKS[::2], [f"{ranks:,}" for ranks in RANKS[::2]])
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("GPUs, 64 images each")
        axes.minorticks_off()
        axes.margins(x=0)
        axes.set_ylim(0)
    panels[0].set_ylabel("modelled milliseconds a step")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _memory() -> Any:
    figure, panels = _figure(2)
    for axes, dim in zip(panels, (512, 2048), strict=True):
        steps = [
            replace(IMAGENET, classes=classes, student_dim=dim, teacher_dim=dim, ranks=1024) for classes in CLASSES
        ]
        parts = [{**model.kept(step), **model.passing(step)} for step in steps]
        for name, colour in zip(parts[0], COLOURS, strict=False):
            axes.plot(CLASSES, [part[name] / 1e9 for part in parts], color=colour, label=name)
        axes.plot(CLASSES, [sum(part.values()) / 1e9 for part in parts], color=BLACK, label="all of these")
        axes.axhline(DGX_H100.memory / 1e9, color=BLACK, linestyle=":", label="80 GB")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"D = {dim:,}, 1,024 GPUs of 64 images", fontsize="medium")
        axes.set_xlabel("classes")
        axes.grid(alpha=0.3)
        axes.set_ylim(1e-2, 1e3)
        axes.minorticks_off()
    panels[0].set_ylabel("modelled GB a GPU")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _write(figure: Any, path: Path, title: str) -> Path:
    """As part of a page, which brings its colours: what is black is in that of its text."""
    import matplotlib

    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem, "font.family": "sans-serif"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(<svg[^>]*>)", rf"\1\n<title>{title}</title>", svg, count=1).replace("<svg ", '<svg role="img" ', 1)
    svg = re.sub(r'id="([\w.]+_\d+)"', rf'id="{path.stem}-\1"', svg).replace(BLACK, "currentColor")
    path.write_text("\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n", encoding="utf-8")
    return path
