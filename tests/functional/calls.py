"""A call of each public function, whose arguments a test may change."""

from typing import Any

import torch

from cid import functional as F
from tests import draws

B, C, D = 6, 4, 9
S, Q = draws.normal(B, C), draws.normal(B, C)
FS, FT = draws.normal(B, D), draws.normal(B, D)
Y = torch.arange(B) % C
W, M = draws.uniform(B), draws.normal(C, D)
HEAD, BIAS = draws.normal(C, 2 * D), draws.normal(C)
CALLS: dict[str, dict[str, Any]] = {
    "kd_loss": {"student_logits": S, "teacher_logits": Q, "target": Y, "weight": W},
    "sample_loss": {"student_features": FS, "teacher_features": FT, "weight": W},
    "class_loss": {"student_features": FS, "teacher_features": FT, "target": Y},
    "context_weights": {"teacher_logits": Q, "target": Y},
    "accumulate_context": {
        "features": FS,
        "weights": W,
        "target": Y,
        "numerator": torch.zeros(C, D),
        "denominator": torch.zeros(C),
    },
    "marginal_context": {"student_logits": S, "context": M},
    "interventional_logits": {"features": FS, "logits": S, "context": M, "weight": HEAD, "bias": BIAS},
    "cid_loss": {
        "student_features": FS,
        "student_logits": S,
        "teacher_features": FT,
        "teacher_logits": Q,
        "target": Y,
        "weight": W,
        "adapter_weight": draws.normal(D, D),
        "adapter_bias": draws.normal(D),
        "head_weight": HEAD,
        "head_bias": BIAS,
        "context": M,
        "beta": 1.0,
        "gamma": 1.0,
    },
}


def call(name: str, backend: str | None = None, **changed: Any) -> Any:
    return getattr(F, name)(**(CALLS[name] | changed), backend=backend)
