"""numformer's native kernels; call them through numformer's functions."""

from __future__ import annotations

import collections.abc
import typing

import numpy

__all__: list[str] = [
    "PackedMatrix",
    "adagrad_update",
    "adam_update",
    "adamw_update",
    "add",
    "as_array",
    "attention",
    "attention_backward",
    "available_processors",
    "cache_sizes",
    "cast",
    "ceiling_bandwidth",
    "ceiling_gflops",
    "cross_entropy",
    "cross_entropy_backward",
    "dlpack_capsule",
    "dropout",
    "dropout_backward",
    "embedding",
    "embedding_backward",
    "empty",
    "empty_pool",
    "explain",
    "explained",
    "fork_join_ns",
    "from_dlpack",
    "gelu",
    "gelu_backward",
    "get_num_threads",
    "global_norm",
    "has_threads",
    "isa",
    "isa_available",
    "layer_norm",
    "layer_norm_backward",
    "linear_cross_entropy",
    "matmul",
    "pool_fail_after",
    "pool_reset_peak",
    "pool_statistics",
    "processor_quota",
    "profile_clear",
    "profile_enter",
    "profile_leave",
    "profile_snapshot",
    "profile_start",
    "profile_stop",
    "relu",
    "relu_backward",
    "rms_norm",
    "rms_norm_backward",
    "rmsprop_update",
    "set_num_threads",
    "set_pool_limit",
    "sgd_update",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "sum_rows",
]

class PackedMatrix:
    def __init__(self, b: numpy.ndarray, dtype: typing.Any) -> None: ...
    def unpack(self) -> numpy.ndarray: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def stored(self) -> str: ...

def adagrad_update(
    values: collections.abc.Iterable[numpy.ndarray],
    grads: collections.abc.Iterable[numpy.ndarray],
    sums: collections.abc.Iterable[numpy.ndarray],
    lr: float,
    eps: float,
    weight_decay: float,
    grad_scale: float,
    copies: collections.abc.Iterable[numpy.ndarray | None] | None,
) -> None: ...
def adam_update(
    values: collections.abc.Iterable[numpy.ndarray],
    grads: collections.abc.Iterable[numpy.ndarray],
    m: collections.abc.Iterable[numpy.ndarray],
    v: collections.abc.Iterable[numpy.ndarray],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
    copies: collections.abc.Iterable[numpy.ndarray | None] | None,
) -> None: ...
def adamw_update(
    values: collections.abc.Iterable[numpy.ndarray],
    grads: collections.abc.Iterable[numpy.ndarray],
    m: collections.abc.Iterable[numpy.ndarray],
    v: collections.abc.Iterable[numpy.ndarray],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
    copies: collections.abc.Iterable[numpy.ndarray | None] | None,
) -> None: ...
def add(a: numpy.ndarray, b: numpy.ndarray) -> numpy.ndarray: ...
def as_array(operation: str, argument: str, x: typing.Any) -> numpy.ndarray: ...
def attention(
    q: numpy.ndarray,
    k: numpy.ndarray,
    v: numpy.ndarray,
    options: tuple[typing.Any, ...],
    return_lse: bool,
    out: numpy.ndarray | None,
) -> typing.Any: ...
def attention_backward(
    dout: numpy.ndarray,
    q: numpy.ndarray,
    k: numpy.ndarray,
    v: numpy.ndarray,
    out: numpy.ndarray,
    lse: numpy.ndarray,
    options: tuple[typing.Any, ...],
    dlse: numpy.ndarray | None,
    grads: tuple[str, ...],
    into: tuple[numpy.ndarray | None, numpy.ndarray | None, numpy.ndarray | None] | None,
) -> typing.Any: ...
def available_processors() -> int: ...
def cache_sizes() -> dict[str, int]: ...
def cast(x: numpy.ndarray, dtype: typing.Any, scale: float, out: numpy.ndarray | None) -> numpy.ndarray: ...
def ceiling_bandwidth(bytes: int, rounds: int) -> float: ...
def ceiling_gflops(dtype: str, rounds: int) -> float: ...
def cross_entropy(
    logits: numpy.ndarray,
    targets: numpy.ndarray,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    return_lse: bool,
) -> typing.Any: ...
def cross_entropy_backward(
    dloss: typing.Any,
    logits: numpy.ndarray,
    targets: numpy.ndarray,
    lse: numpy.ndarray,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    out: numpy.ndarray | None,
) -> numpy.ndarray: ...
def dlpack_capsule(array: numpy.ndarray, versioned: bool, copied: bool) -> typing.Any: ...
def dropout(
    x: numpy.ndarray,
    p: float,
    seed: int,
    layer: int,
    step: int,
    sample: int,
    residual: numpy.ndarray | None,
    cu_seqlens: numpy.ndarray | None,
) -> numpy.ndarray: ...
def dropout_backward(
    dy: numpy.ndarray, p: float, seed: int, layer: int, step: int, sample: int, cu_seqlens: numpy.ndarray | None
) -> numpy.ndarray: ...
def embedding(weight: numpy.ndarray, ids: numpy.ndarray) -> numpy.ndarray: ...
def embedding_backward(
    dy: numpy.ndarray, ids: numpy.ndarray, num_embeddings: int, accumulate: bool, out: numpy.ndarray | None
) -> numpy.ndarray: ...
def empty(shape: tuple[int, ...], dtype: typing.Any) -> numpy.ndarray: ...
def empty_pool() -> None: ...
def explain() -> None: ...
def explained() -> list[dict[str, typing.Any]]: ...
def fork_join_ns(rounds: int) -> float: ...
def from_dlpack(x: typing.Any) -> numpy.ndarray: ...
def gelu(x: numpy.ndarray, approximate: str) -> numpy.ndarray: ...
def gelu_backward(dy: numpy.ndarray, x: numpy.ndarray, approximate: str) -> numpy.ndarray: ...
def get_num_threads() -> int: ...
def global_norm(arrays: collections.abc.Iterable[numpy.ndarray]) -> float: ...
def has_threads() -> bool: ...
def isa_available() -> list[str]: ...
def layer_norm(
    x: numpy.ndarray, weight: numpy.ndarray | None, bias: numpy.ndarray | None, eps: float, return_stats: bool
) -> typing.Any: ...
def layer_norm_backward(
    dy: numpy.ndarray,
    x: numpy.ndarray,
    mean: numpy.ndarray,
    rstd: numpy.ndarray,
    weight: numpy.ndarray | None,
    bias: bool,
    residual: numpy.ndarray | None,
) -> tuple[numpy.ndarray, numpy.ndarray | None, numpy.ndarray | None]: ...
def linear_cross_entropy(
    x: numpy.ndarray,
    weight: numpy.ndarray,
    targets: numpy.ndarray,
    bias: numpy.ndarray | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    dloss: float,
    gradients: bool,
    dweight: numpy.ndarray | None,
    dbias: numpy.ndarray | None,
    accumulate: bool,
    chunk: int | None,
) -> typing.Any: ...
def matmul(
    a: numpy.ndarray,
    b: numpy.ndarray | PackedMatrix,
    bias: numpy.ndarray | None,
    activation: str | None,
    residual: numpy.ndarray | None,
    scale: float,
    accumulate: bool,
    dtype: typing.Any,
    save_preactivation: bool,
    out: numpy.ndarray | None,
) -> typing.Any: ...
def pool_fail_after(count: int) -> int: ...
def pool_reset_peak() -> None: ...
def pool_statistics() -> dict[str, int]: ...
def processor_quota(root: str) -> int: ...
def profile_clear() -> None: ...
def profile_enter(label: str) -> int: ...
def profile_leave(token: int) -> None: ...
def profile_snapshot() -> dict[str, typing.Any]: ...
def profile_start(capacity: int) -> bool: ...
def profile_stop() -> None: ...
def relu(x: numpy.ndarray) -> numpy.ndarray: ...
def relu_backward(dy: numpy.ndarray, x: numpy.ndarray) -> numpy.ndarray: ...
def rms_norm(x: numpy.ndarray, weight: numpy.ndarray | None, eps: float, return_stats: bool) -> typing.Any: ...
def rms_norm_backward(
    dy: numpy.ndarray,
    x: numpy.ndarray,
    rstd: numpy.ndarray,
    weight: numpy.ndarray | None,
    residual: numpy.ndarray | None,
) -> tuple[numpy.ndarray, numpy.ndarray | None]: ...
def rmsprop_update(
    values: collections.abc.Iterable[numpy.ndarray],
    grads: collections.abc.Iterable[numpy.ndarray],
    squares: collections.abc.Iterable[numpy.ndarray],
    means: collections.abc.Iterable[numpy.ndarray] | None,
    momenta: collections.abc.Iterable[numpy.ndarray] | None,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    grad_scale: float,
    copies: collections.abc.Iterable[numpy.ndarray | None] | None,
) -> None: ...
def set_num_threads(n: int) -> None: ...
def set_pool_limit(bytes: int) -> None: ...
def sgd_update(
    values: collections.abc.Iterable[numpy.ndarray],
    grads: collections.abc.Iterable[numpy.ndarray],
    momenta: collections.abc.Iterable[numpy.ndarray] | None,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    grad_scale: float,
    copies: collections.abc.Iterable[numpy.ndarray | None] | None,
) -> None: ...
def silu(x: numpy.ndarray) -> numpy.ndarray: ...
def silu_backward(dy: numpy.ndarray, x: numpy.ndarray) -> numpy.ndarray: ...
def softmax(x: numpy.ndarray, axis: int) -> numpy.ndarray: ...
def softmax_backward(dy: numpy.ndarray, y: numpy.ndarray, axis: int) -> numpy.ndarray: ...
def sum_rows(x: numpy.ndarray, accumulate: bool, out: numpy.ndarray | None) -> numpy.ndarray: ...

__version__: str
isa: str
