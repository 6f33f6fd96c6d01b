"""What `numformer.ops` sends here: its functions by name, with the same arguments by position.

The table of contents; each subject has a file of its own. A function checks its arguments as the CPU's does, before
anything is launched, takes new arrays from CuPy's pool, and launches on CuPy's current stream.
"""

from typing import Any

from numformer_cuda import ranks
from numformer_cuda.arrays import Array, array, empty, namespace, numbers_of, to_device, to_host
from numformer_cuda.attention import attention, attention_backward
from numformer_cuda.elementwise import (
    add,
    cast,
    dropout,
    dropout_backward,
    embedding,
    embedding_backward,
    gelu,
    gelu_backward,
    relu,
    relu_backward,
    silu,
    silu_backward,
    sum_rows,
)
from numformer_cuda.matmul import matmul
from numformer_cuda.rows import (
    cross_entropy,
    cross_entropy_backward,
    layer_norm,
    layer_norm_backward,
    linear_cross_entropy,
    rms_norm,
    rms_norm_backward,
    softmax,
    softmax_backward,
)
from numformer_cuda.updates import (
    Clip,
    adafactor_update,
    adagrad_update,
    adam_update,
    adamw_update,
    global_norm,
    lion_update,
    rmsprop_update,
    sgd_update,
)


def as_array(operation: str, argument: str, x: Any) -> Array:
    """Return the array itself, or what DLPack gives of it."""
    return array(operation, argument, x, "any")


def from_dlpack(x: Any) -> Array:
    """Return CuPy's array over the memory of another library's array, on the current stream."""
    return namespace.from_dlpack(x)
