"""The bank of contexts: what it gathers, and when it turns."""

import pytest
import torch

import cid
from tests.cases import features, labels, logits


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_bank_takes_a_teacher_of_another_type(half: torch.dtype) -> None:
    f, q, y = features(40, 9, torch.float32), logits(40, 3, half), labels(40, 3)
    banks = [cid.ContextBank(3, 9) for _ in range(2)]
    for bank, given in zip(banks, (q, q.float()), strict=True):
        bank.update(f, given, y)
    assert torch.equal(banks[0].numerator, banks[1].numerator)
    assert torch.equal(banks[0].denominator, banks[1].denominator)


def test_the_bank_turns() -> None:
    bank = cid.ContextBank(3, 2, momentum=0.25)
    q = torch.zeros(4, 3)
    bank.update(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [9.0, 9.0]]), q, torch.tensor([0, 0, 1, -100]))
    bank.epoch_end()
    # A first context is taken whole; a class that was not seen keeps its row.
    torch.testing.assert_close(bank.context, torch.tensor([[2.0, 3.0], [5.0, 6.0], [0.0, 0.0]]))
    bank.update(torch.full((1, 2), 10.0), q[:1], torch.tensor([0]))
    bank.epoch_end()
    torch.testing.assert_close(bank.context, torch.tensor([[8.0, 8.25], [5.0, 6.0], [0.0, 0.0]]))
    assert not bank.numerator.any()
    assert not bank.denominator.any()


def test_a_nan_shows_in_its_own_context_alone() -> None:
    bank = cid.ContextBank(2, 2)
    bank.update(torch.tensor([[1.0, torch.nan], [3.0, 4.0]]), torch.zeros(2, 2), torch.tensor([0, 1]))
    bank.epoch_end()
    assert bank.context[0].isnan().tolist() == [False, True]
    assert bank.context[1].isfinite().all()


def test_a_class_that_the_teacher_rules_out_keeps_its_row() -> None:
    """Its weights are all 0, and 0/0 is no context."""
    bank = cid.ContextBank(2, 2)
    bank.update(torch.ones(1, 2), torch.tensor([[-torch.inf, 0.0]]), torch.tensor([0]))
    bank.epoch_end()
    assert not bank.context.any()


def test_a_bank_turns_by_its_updates() -> None:
    bank = cid.ContextBank(2, 1, steps_per_turn=2)
    seen = []
    for value in (1.0, 3.0, 5.0, 7.0, 9.0):
        bank.update(torch.full((1, 1), value), torch.zeros(1, 2), torch.tensor([1]))
        bank.epoch_end()
        seen.append(float(bank.context[1]))
    assert seen == [0.0, 0.0, 2.0, 2.0, 6.0]
    bank.turn()  # by hand: counting starts anew
    assert float(bank.context[1]) == 9.0
    assert int(bank.steps) == 0
