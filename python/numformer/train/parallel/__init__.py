"""Several processes that train one model: who they are, what they share, how their gradients become one."""

from numformer.train.parallel.join import join, joined
from numformer.train.parallel.launch import Launch, launched
from numformer.train.parallel.ranks import Exchange, Ranks

__all__ = ["Exchange", "Launch", "Ranks", "join", "joined", "launched"]
