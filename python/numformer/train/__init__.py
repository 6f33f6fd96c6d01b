"""Training: the loop, checkpoints, the log and its picture."""

from numformer.train.checkpoint import load_checkpoint, save_checkpoint
from numformer.train.interrupt import Terminated
from numformer.train.trainer import Trainer

__all__ = ["Terminated", "Trainer", "load_checkpoint", "save_checkpoint"]
