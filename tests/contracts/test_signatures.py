"""`numformer.ops` and `numformer.reference` are called alike, and say so."""

import inspect

import numformer as nf
import pytest
from numformer import ops, reference

FUNCTIONS = sorted(set(ops.__all__) - {"to_dlpack", "from_dlpack"})


def test_every_operation_has_a_twin():
    assert set(FUNCTIONS) == set(reference.__all__) - {"philox4x32"}
    assert len(FUNCTIONS) > 25


@pytest.mark.parametrize("function", FUNCTIONS)
def test_same_signature(function):
    ours, twin = (inspect.signature(getattr(module, function)).parameters.values() for module in (ops, reference))
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in twin]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_public_and_documented(function):
    assert getattr(nf, function) is getattr(ops, function)
    for module in (ops, reference):
        assert len(inspect.getdoc(getattr(module, function)) or "") > 20
