"""NumPy's own tests of `matmul`, run on ours."""

import numformer as nf
import numpy as np
import pytest

suite = pytest.importorskip("numpy._core.tests.test_multiarray", reason="this NumPy was installed without its tests")

FLOATS = "efd"
# Tests whose body, not only whose types, asks for what ours does not have.
BOOLEAN = "it ends with products of booleans, which are not of floats"
OBJECT = "products of Python objects"
OTHER = {
    "test_scalar_output": BOOLEAN,
    "test_vector_vector_values": BOOLEAN,
    "test_vector_matrix_values": BOOLEAN,
    "test_matrix_vector_values": BOOLEAN,
    "test_matrix_matrix_values": BOOLEAN,
    "test_matmul_bool": BOOLEAN,
    "test_out_arg": "out is not positional; out of another dtype is no cast: float64 is never mixed with other types",
    "test_empty_out": "the same error in other words, which the test spells",
    "test_dot_equivalent_matrix_matrix_blastypes": "complex numbers; float32 and float64 are below",
    "test_matmul_object": OBJECT,
    "test_matmul_object_type_scalar": OBJECT,
    "test_matmul_empty": OBJECT,
    "test_matmul_exception_multiply": OBJECT,
    "test_matmul_exception_add": OBJECT,
}


@pytest.fixture
def ours(monkeypatch):
    """A test class of NumPy's with our function in the place of theirs, where its tests say ``self.`` or ``np.``."""
    monkeypatch.setattr(np, "matmul", nf.matmul)
    case = suite.TestMatmul()
    case.matmul = nf.matmul
    case.types = FLOATS
    return case


def numpys_tests() -> list[str]:
    return sorted(name for name in dir(suite.TestMatmul) if name.startswith("test_"))


def parameters(name: str) -> list[tuple]:
    """What a parametrized test is called with."""
    marks = [mark for mark in getattr(getattr(suite.TestMatmul, name), "pytestmark", []) if mark.name == "parametrize"]
    return [(value,) for value in marks[0].args[1]] if marks else [()]


@pytest.mark.parametrize("name", [name for name in numpys_tests() if name not in OTHER])
def test_numpys_tests_pass(ours, name):
    for arguments in parameters(name):
        getattr(ours, name)(*arguments)


def test_most_are_run_and_every_exception_is_one_of_theirs():
    assert OTHER.keys() <= set(numpys_tests())
    assert {"test_exceptions", "test_shapes", "test_result_types", "test_dot_equivalent", "test_out_contiguous"} <= (
        set(numpys_tests()) - OTHER.keys()
    )


@pytest.mark.parametrize("name", sorted(name for name, reason in OTHER.items() if reason == BOOLEAN))
def test_values_before_booleans(ours, name):
    """All that the test checks of floats has passed when it comes to booleans, which raise."""
    with pytest.raises(TypeError, match="matmul: a must have dtype float32, float64, float16 or bfloat16"):
        getattr(ours, name)()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layouts(ours, dtype):
    ours.test_dot_equivalent_matrix_matrix_blastypes(dtype)
