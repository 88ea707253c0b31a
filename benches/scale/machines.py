"""What the model assumes of the machines: their data sheets, and how much of that is reached."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A GPU, and the links between 8 of them and to other machines. Rates are a second's, and are not all reached."""

    name: str
    half: float
    """FLOP of products in bfloat16, without sparsity."""
    single: float
    """FLOP of products of float32 (TF32), without sparsity."""
    memory: float
    """Bytes of a GPU's memory."""
    memory_rate: float
    """Bytes read or written there."""
    link: float
    """Bytes that a GPU receives from those of its machine."""
    network: float
    """Bytes that a machine receives from others, which a ring passes on within it."""
    gpus: int = 8


# NVIDIA H100 Tensor Core GPU data sheet, SXM: bfloat16 1979 and TF32 989 TFLOP/s, both with sparsity; 80 GB at 3.35
# TB/s; NVLink 900 GB/s, half of it in each direction. NVIDIA DGX H100 data sheet: eight ports of 400 Gb/s.
DGX_H100 = Machine(
    name="DGX H100",
    half=1979e12 / 2,
    single=989e12 / 2,
    memory=80e9,
    memory_rate=3.35e12,
    link=900e9 / 2,
    network=8 * 400e9 / 8,
)
# The same GPUs with one port of 100 Gigabit Ethernet (IEEE 802.3) a machine.
ETHERNET = Machine(**{**DGX_H100.__dict__, "name": "100 Gb/s Ethernet", "network": 100e9 / 8})

# Assumed, on no data sheet: what is reached of a rate.
NETWORKS_REACH = 0.2  # convolutions and normalisation, forward and backward
PRODUCTS_REACH = 0.5  # plain products of matrices
MEMORY_REACH = 0.8
LINKS_REACH = 0.8

# Seconds, of NCCL's own model of its low-latency protocol (its src/graph/tuning.cc: baseLat and hwLat).
RING_START, RING_HOP, RING_NETWORK_HOP = 3.6e-6, 0.47e-6, 2.7e-6
TREE_START, TREE_HOP, TREE_NETWORK_HOP = 4.4e-6, 0.52e-6, 5.0e-6
AMONG_MACHINES = 1.8  # how much longer a hop within a machine takes where there are several


def hops(machine: Machine, ranks: int) -> tuple[int, int, float]:
    """Machines, ranks on each, and how much longer hops take within one."""
    machines = math.ceil(ranks / machine.gpus)
    return machines, min(ranks, machine.gpus), AMONG_MACHINES if machines > 1 else 1.0


def gather_delay(machine: Machine, ranks: int) -> float:
    """Seconds until an all-gather of next to nothing has gone round the ring."""
    if ranks == 1:
        return 0.0
    machines, _, longer = hops(machine, ranks)
    return RING_START + (ranks - machines) * RING_HOP * longer + (machines - 1) * RING_NETWORK_HOP


def reduce_delay(machine: Machine, ranks: int) -> float:
    """Seconds that an all-reduce of next to nothing takes, up a tree and down again."""
    if ranks == 1:
        return 0.0
    machines, here, longer = hops(machine, ranks)
    return TREE_START + 2 * ((here - 1) * TREE_HOP * longer + math.log2(machines) * TREE_NETWORK_HOP)


def transfer(machine: Machine, ranks: int, received: float) -> float:
    """Seconds in which each rank receives so many bytes."""
    rate = machine.link if ranks <= machine.gpus else min(machine.link, machine.network)
    return received / (LINKS_REACH * rate)
