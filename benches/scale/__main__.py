"""Prints the model beside what is counted here, or draws it."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benches.scale import counted, model, picture
from benches.scale.machines import Machine


def show_counted() -> bool:
    """Whether all that is to be equal is; printed line by line."""
    right = True
    for step, (equal, rough) in zip(counted.STEPS, counted.count(counted.STEPS), strict=True):
        dims = f"D {step.student_dim} and {step.teacher_dim}"
        print(f"\ntwo processes, B {step.batch}, C {step.classes}, {dims}, {step.pairs} pairs")
        for what, modelled, found in equal:
            print(f"  {what:<38}{modelled:>14,.0f}{found:>14,}  {'equal' if modelled == found else 'DIFFERENT'}")
            right &= modelled == found
        print(f"  {rough.what:<38}{rough.modelled:>14,.0f}{rough.counted:>14,}  {rough.counted / rough.modelled:.2f}")
    return right


def show_modelled() -> None:
    """Seconds and bytes of the pictures' steps."""
    for title, step, machine in picture.PANELS:
        print(f"\nmodelled: {title} ({machine.name}); milliseconds a step")
        print("  GPUs", *(f"{name:>21}" for name in model.seconds(step, machine)), f"{'local pairs save':>18}")
        for ranks in picture.RANKS:
            at = replace(step, ranks=ranks)
            parts = model.seconds(at, machine)
            print(f"{ranks:>6}", *(f"{1e3 * part:>21.2f}" for part in parts.values()), f"{saved(at, machine):>17.0%}")


def saved(step: model.Step, machine: Machine) -> float:
    """The part of a step's modelled time that local pairs spare."""
    every, local = (sum(model.seconds(replace(step, pairs=pairs), machine).values()) for pairs in ("all", "local"))
    return 1 - local / every


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where something that is to be equal is not."""
    parser = argparse.ArgumentParser("python -m benches.scale", description=__doc__)
    parser.add_argument("--picture", type=Path, metavar="FOLDER", help="draw the pictures there, and do nothing else")
    options = parser.parse_args(arguments)
    if options.picture is not None:
        print(*picture.draw(options.picture), sep="\n")
        return 0
    show_modelled()
    return 0 if show_counted() else 1


if __name__ == "__main__":
    raise SystemExit(main())
