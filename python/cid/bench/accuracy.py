"""Errors of a term against the truth: the reference backend in float64, on the same inputs."""

from __future__ import annotations

import torch
from torch import Tensor

import cid._native as rust
from cid.bench.measure import Row
from cid.bench.plan import DEVICES, Case
from cid.bench.terms import TERMS, Step, Tensors, Term, copies

FACTORS = (1.0, 1e-30, 1e-10, 1e10, 1e30)


def accuracy(case: Case, factor: float) -> Row:
    """The largest errors of the device's backend and of eager PyTorch.

    Args:
        case: what to measure.
        factor: scales the random inputs; parameters and the weights of samples stay as they are.

    Returns:
        `loss` (largest error over the largest true value; of the result, for a term without a loss) and `gradient`
        (the largest of that over all tensors that get gradients; None without) of `cid` and `eager`; or `skipped`: why
        the backend does not serve the type.
    """
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    term, dtype = TERMS[case.term], getattr(torch, case.dtype)
    with torch.device(case.device):
        state = term.state(case.size, dtype)
        inputs = term.draw(case.size, dtype)
    # A matrix: labels and the weights of samples have one dimension.
    inputs = tuple((x.detach() * factor).requires_grad_(x.requires_grad) if x.ndim == 2 else x for x in inputs)
    row: Row = {**case.to_json(), "simd": rust.build_info()["simd"], "factor": factor}
    try:
        ours = _run(term, inputs, state, DEVICES[case.device])
    except RuntimeError as error:  # the backend's refusal
        return {**row, "skipped": str(error)}
    truth = _run(term, copies(inputs, torch.float64), copies(state, torch.float64), "reference")
    eager = _run(term, inputs, state, None)
    return {**row, "cid": _errors(ours, truth), "eager": _errors(eager, truth)}


def fits(dtype: str, factor: float) -> bool:
    """Whether the type holds random values at that scale."""
    limits = torch.finfo(getattr(torch, dtype))
    return limits.tiny < factor < limits.max / 100


def _run(term: Term, inputs: Tensors, state: Tensors, backend: str | None) -> tuple[Tensor, list[Tensor]]:
    """Result and gradients, of a backend or of eager PyTorch (None)."""
    state = copies(state)  # the bank is changed
    step: Step = term.ours(state, backend) if backend else lambda *x: term.eager(*x, *state)
    result = step(*inputs)
    if result is None:
        result = state[-term.bank]
    leaves = term.leaves(inputs, state)
    return result.detach(), list(torch.autograd.grad(result, leaves)) if leaves else []


def _errors(got: tuple[Tensor, list[Tensor]], truth: tuple[Tensor, list[Tensor]]) -> dict[str, float | str | None]:
    gradients = [_error(*pair) for pair in zip(got[1], truth[1], strict=True)]
    return {"loss": _plain(_error(got[0], truth[0])), "gradient": _plain(_worst(gradients)) if gradients else None}


def _error(got: Tensor, truth: Tensor) -> float:
    error, size = float((got.double() - truth).abs().max()), float(truth.abs().max())
    return error / size if size else (0.0 if error == 0 else float("inf"))


def _worst(errors: list[float]) -> float:
    return float(torch.tensor(errors, dtype=torch.float64).max())  # unlike Python's, this keeps a NaN


def _plain(error: float) -> float | str:
    """A number that JSON can hold, or "nan" or "inf"."""
    return error if abs(error) < float("inf") else str(error)
