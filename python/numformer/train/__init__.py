"""Training: the loop, checkpoints, the log and its picture."""

from numformer.train.checkpoint import load_checkpoint, save_checkpoint
from numformer.train.interrupt import Terminated
from numformer.train.loss_scale import LossScale
from numformer.train.trainer import Trainer

__all__ = ["LossScale", "Terminated", "Trainer", "load_checkpoint", "save_checkpoint"]
