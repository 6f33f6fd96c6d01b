"""Types of the native module; its functions are called through `numformer.ops` with all arguments in place."""

from collections.abc import Iterable
from typing import Any

from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

__version__: str
isa: str

def isa_available() -> list[str]: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int, /) -> None: ...
def available_processors() -> int: ...
def pool_statistics() -> dict[str, int]: ...
def pool_reset_peak() -> None: ...
def set_pool_limit(bytes: int, /) -> None: ...
def empty_pool() -> None: ...
def explain() -> None: ...
def explained() -> list[dict[str, Any]]: ...
def empty(shape: tuple[int, ...], dtype: Any, /) -> Array: ...
def profile_start(capacity: int, /) -> bool: ...
def profile_clear() -> None: ...
def profile_stop() -> None: ...
def profile_enter(label: str, /) -> int: ...
def profile_leave(token: int, /) -> None: ...
def profile_snapshot() -> dict[str, Any]: ...
def ceiling_gflops(dtype: str, rounds: int) -> float: ...
def ceiling_bandwidth(bytes: int, rounds: int) -> float: ...
def fork_join_ns(rounds: int) -> float: ...
def cache_sizes() -> dict[str, int]: ...
def __getattr__(name: str) -> Any: ...
def softmax(x: Array, axis: int, /) -> Array: ...
def softmax_backward(dy: Array, y: Array, axis: int, /) -> Array: ...
def layer_norm(x: Array, weight: Array | None, bias: Array | None, eps: float, return_stats: bool, /) -> Any: ...
def layer_norm_backward(
    dy: Array, x: Array, mean: Array, rstd: Array, weight: Array | None, bias: bool, residual: Array | None, /
) -> tuple[Array, Array | None, Array | None]: ...
def rms_norm(x: Array, weight: Array | None, eps: float, return_stats: bool, /) -> Any: ...
def rms_norm_backward(
    dy: Array, x: Array, rstd: Array, weight: Array | None, residual: Array | None, /
) -> tuple[Array, Array | None]: ...
def relu(x: Array, /) -> Array: ...
def relu_backward(dy: Array, x: Array, /) -> Array: ...
def gelu(x: Array, approximate: str, /) -> Array: ...
def gelu_backward(dy: Array, x: Array, approximate: str, /) -> Array: ...
def silu(x: Array, /) -> Array: ...
def silu_backward(dy: Array, x: Array, /) -> Array: ...
def cross_entropy(
    logits: Array, targets: Array, ignore_index: int, label_smoothing: float, reduction: str, return_lse: bool, /
) -> Any: ...
def cross_entropy_backward(
    dloss: ArrayLike,
    logits: Array,
    targets: Array,
    lse: Array,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    out: Array | None,
    /,
) -> Array: ...
def linear_cross_entropy(
    x: Array,
    weight: Array,
    targets: Array,
    bias: Array | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    dloss: float,
    gradients: bool,
    dweight: Array | None,
    dbias: Array | None,
    accumulate: bool,
    chunk: int | None,
    /,
) -> Any: ...
def embedding(weight: Array, ids: Array, /) -> Array: ...
def embedding_backward(dy: Array, ids: Array, num_embeddings: int, accumulate: bool, out: Array | None, /) -> Array: ...
def dropout(
    x: Array,
    p: float,
    seed: int,
    layer: int,
    step: int,
    sample: int,
    residual: Array | None,
    cu_seqlens: Array | None,
    /,
) -> Array: ...
def dropout_backward(
    dy: Array, p: float, seed: int, layer: int, step: int, sample: int, cu_seqlens: Array | None, /
) -> Array: ...
def add(a: Array, b: Array, /) -> Array: ...
def cast(x: Array, dtype: Any, scale: float, out: Array | None, /) -> Array: ...
def sum_rows(x: Array, accumulate: bool, out: Array | None, /) -> Array: ...
def sgd_update(
    values: Iterable[Array],
    grads: Iterable[Array],
    momenta: Iterable[Array] | None,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    grad_scale: float,
    copies: Iterable[Array | None] | None,
    /,
) -> None: ...
def adam_update(
    values: Iterable[Array],
    grads: Iterable[Array],
    m: Iterable[Array],
    v: Iterable[Array],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
    copies: Iterable[Array | None] | None,
    /,
) -> None: ...
def adamw_update(
    values: Iterable[Array],
    grads: Iterable[Array],
    m: Iterable[Array],
    v: Iterable[Array],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
    copies: Iterable[Array | None] | None,
    /,
) -> None: ...
def adagrad_update(
    values: Iterable[Array],
    grads: Iterable[Array],
    sums: Iterable[Array],
    lr: float,
    eps: float,
    weight_decay: float,
    grad_scale: float,
    copies: Iterable[Array | None] | None,
    /,
) -> None: ...
def rmsprop_update(
    values: Iterable[Array],
    grads: Iterable[Array],
    squares: Iterable[Array],
    means: Iterable[Array] | None,
    momenta: Iterable[Array] | None,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    grad_scale: float,
    copies: Iterable[Array | None] | None,
    /,
) -> None: ...
def global_norm(arrays: Iterable[Array], /) -> float: ...
