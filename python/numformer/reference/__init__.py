"""Every function of `numformer.ops` in plain NumPy and float64: the oracle of the tests, and a textbook.

Signatures and defaults are those of `numformer.ops`. What comes in is converted to float64 and what comes out is
float64,
so ``dtype=`` changes nothing here; arrays that are given to be written into keep their own dtype.
Nothing here is fast, blocked or clever: the code is the formula. It imports nothing else of numformer.
"""

from numformer.reference.activations import gelu, gelu_backward, relu, relu_backward, silu, silu_backward
from numformer.reference.attention import attention, attention_backward
from numformer.reference.attention_varlen import attention_varlen, attention_varlen_backward
from numformer.reference.dropout import dropout, dropout_backward, philox4x32
from numformer.reference.elementwise import add, cast, sum_rows
from numformer.reference.embedding import embedding, embedding_backward
from numformer.reference.losses import cross_entropy, cross_entropy_backward, linear_cross_entropy
from numformer.reference.matmul import matmul, matmul_backward
from numformer.reference.norms import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward
from numformer.reference.softmax import softmax, softmax_backward
from numformer.reference.updates import (
    adagrad_update,
    adam_update,
    adamw_update,
    global_norm,
    rmsprop_update,
    sgd_update,
)

__all__ = [
    "adagrad_update",
    "adam_update",
    "adamw_update",
    "add",
    "attention",
    "attention_backward",
    "attention_varlen",
    "attention_varlen_backward",
    "cast",
    "cross_entropy",
    "cross_entropy_backward",
    "dropout",
    "dropout_backward",
    "embedding",
    "embedding_backward",
    "gelu",
    "gelu_backward",
    "global_norm",
    "layer_norm",
    "layer_norm_backward",
    "linear_cross_entropy",
    "matmul",
    "matmul_backward",
    "philox4x32",
    "relu",
    "relu_backward",
    "rms_norm",
    "rms_norm_backward",
    "rmsprop_update",
    "sgd_update",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "sum_rows",
]
