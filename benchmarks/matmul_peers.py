"""Products by libraries beside NumPy and PyTorch: BLIS (the package blis), onnxruntime and oneDNN with a weight that
does not change. Each function gives a call without arguments, or None where a package is not installed, which is said
once.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Product = Callable[[], Any]


@functools.cache
def _installed(peer: str, *packages: str) -> bool:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{peer}: needs {' and '.join(missing)}, left out")
    return not missing


def blis_product(a: np.ndarray, b: np.ndarray, threads: int) -> Product | None:
    """a @ b of two matrices, either of which may be the transpose of an array in C order.

    The package's BLIS is compiled without threads, so it is a peer of one thread only; of AMD's processors it knows
    those up to Zen 2, and takes its generic kernel on others.
    """
    if threads > 1 or not _installed("BLIS", "blis"):
        return None
    from blis.py import gemm

    trans1, trans2 = (not x.flags.c_contiguous for x in (a, b))
    first, second = a.T if trans1 else a, b.T if trans2 else b
    return lambda: gemm(first, second, trans1=trans1, trans2=trans2)


def onnxruntime_product(x: np.ndarray, weight: np.ndarray, threads: int) -> Product | None:
    """x @ weight, float32, where the weight is a constant of the model, which onnxruntime packs once.

    x and the output are bound beforehand, so that a call neither copies nor allocates.
    """
    if not _installed("onnxruntime", "onnx", "onnxruntime"):
        return None
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    k, n = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", n])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8  # of opset 17, which onnxruntime has read for years
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    y = onnxruntime.OrtValue.ortvalue_from_shape_and_type((x.shape[0], n), np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_ortvalue_output("y", y)

    def product() -> np.ndarray:
        session.run_with_iobinding(binding)
        return y.numpy()

    return product


def onednn_product(x: np.ndarray, weight: np.ndarray) -> Product:
    """x @ weight by PyTorch's oneDNN, with the weight in its own order, prepared for as many rows as x has.

    It takes as many threads as PyTorch does.
    """
    rows = torch.from_numpy(x)
    packed = torch.ops.mkldnn._reorder_linear_weight(torch.from_numpy(weight).T.contiguous(), rows.shape[0])
    return lambda: torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
