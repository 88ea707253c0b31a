"""Weights that stand for the intervention: each sample counts by the inverse of what its context foretells of it.

The backdoor adjustment over contexts, as `cid` has it in its head, has a second estimator: samples weighted by inverse
propensities (Horvitz and Thompson 1952; Robins 1986). The propensity of a sample is the belief in its true class of a
model that knows its context and not more, calibrated, and that has not seen the sample: `CrossFit` trains such models,
`calibrate_with_noise` and `label_belief` make beliefs of their logits. So that wrong labels do not count most, the
numerator is how likely a label is right: `right_label_belief`, of models that know all they can and are trained with
the weights so far. `context_power` says how much the context tells at all, `propensity_weights` makes the weights, and
`overlap_warnings` says where they had better not be trusted. The losses take them as `weight`. `logit_adjustment`
takes the context out of a teacher's logits. All of it is plain PyTorch, of any models and loops; `cid distill
--methods kd-ipw` does it as a stage of a run.
"""

from cid.propensity.adjustment import logit_adjustment
from cid.propensity.calibration import (
    NoisyCalibration,
    calibrate,
    calibrate_with_noise,
    label_belief,
    right_label_belief,
)
from cid.propensity.cross_fit import CrossFit, OutOfFold
from cid.propensity.weights import context_power, effective_sample_size, overlap_warnings, propensity_weights

__all__ = [
    "CrossFit",
    "NoisyCalibration",
    "OutOfFold",
    "calibrate",
    "calibrate_with_noise",
    "context_power",
    "effective_sample_size",
    "label_belief",
    "logit_adjustment",
    "overlap_warnings",
    "propensity_weights",
    "right_label_belief",
]
