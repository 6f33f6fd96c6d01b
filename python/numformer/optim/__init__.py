"""Updates of parameters, and learning rates over time."""

from numformer.optim.adamw import AdamW
from numformer.optim.optimizer import Group, Optimizer, decay_groups
from numformer.optim.schedule import constant, cosine, linear
from numformer.optim.sgd import SGD, GradientDescent

__all__ = ["SGD", "AdamW", "GradientDescent", "Group", "Optimizer", "constant", "cosine", "decay_groups", "linear"]
