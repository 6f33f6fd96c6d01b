"""Updates of parameters, and learning rates over time."""

from numformer.optim.adafactor import Adafactor
from numformer.optim.adam import Adam, AdamW
from numformer.optim.adaptive import Adagrad, RMSprop
from numformer.optim.average import Average
from numformer.optim.lion import Lion
from numformer.optim.optimizer import Group, Optimizer, decay_groups
from numformer.optim.schedule import constant, cosine, cosine_restarts, inverse_sqrt, linear, warm
from numformer.optim.sgd import SGD, GradientDescent

__all__ = [
    "SGD",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Average",
    "GradientDescent",
    "Group",
    "Lion",
    "Optimizer",
    "RMSprop",
    "constant",
    "cosine",
    "cosine_restarts",
    "decay_groups",
    "inverse_sqrt",
    "linear",
    "warm",
]
