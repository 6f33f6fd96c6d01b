"""The kernels as documented functions over NumPy arrays; `numformer.reference` has a plain twin of each."""

from numformer.ops.activations import gelu, gelu_backward, relu, relu_backward, silu, silu_backward
from numformer.ops.attention import attention, attention_backward
from numformer.ops.attention_varlen import attention_varlen, attention_varlen_backward
from numformer.ops.dlpack import from_dlpack, to_dlpack
from numformer.ops.dropout import dropout, dropout_backward
from numformer.ops.elementwise import add, cast, sum_rows
from numformer.ops.embedding import embedding, embedding_backward
from numformer.ops.losses import cross_entropy, cross_entropy_backward, linear_cross_entropy
from numformer.ops.matmul import matmul, matmul_backward
from numformer.ops.norms import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward
from numformer.ops.softmax import softmax, softmax_backward
from numformer.ops.updates import (
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
    "from_dlpack",
    "gelu",
    "gelu_backward",
    "global_norm",
    "layer_norm",
    "layer_norm_backward",
    "linear_cross_entropy",
    "matmul",
    "matmul_backward",
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
    "to_dlpack",
]
