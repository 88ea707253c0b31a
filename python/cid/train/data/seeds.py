"""Seeds of several numbers: all that is random in the data is drawn from one."""

import numpy as np


def mix_seed(*parts: int) -> int:
    """One seed from several numbers, so that neighbouring ones share nothing."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
