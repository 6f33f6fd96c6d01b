"""The cases that ONNX's backend test builds for its operator Attention, mapped onto ours.

What the operator asks beyond `nf.attention`, and how it is met:

- Its causal masks and windows stand at an offset: the length of the past, or what is not padding minus the queries, or
  0. Ours is aligned at the last key: keys behind offset + queries, which nobody sees, are cut off, and where there are
  fewer, rows of NaN are put there and masked.
- `nonpad_kv_seqlen` is a number of keys for each sample: one call a sample.
- A past is concatenated by `nf.KVCache`, and comes back as the present.
- `softmax_precision` needs nothing: ours is float32 or wider.
"""

import warnings

import numformer as nf
import numpy as np
import pytest
import tolerance

onnx = pytest.importorskip("onnx")

NO_MATRIX = "asks for the matrix of scores or probabilities (qk_matmul_output), which nf.attention never holds"
# What cannot be mapped: of these cases the other outputs are compared.
NOT_MAPPED = dict.fromkeys(
    (
        "test_attention_4d_with_qk_matmul",
        "test_attention_4d_with_qk_matmul_bias",
        "test_attention_4d_with_qk_matmul_softcap",
        "test_attention_4d_with_qk_matmul_softmax",
        "test_attention_4d_with_past_and_present_qk_matmul_bias",
        "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask",
        "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask",
        "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
        "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
        "test_attention_4d_with_past_and_present_qk_matmul",
        "test_attention_3d_with_past_and_present_qk_matmul",
        "test_attention_3d_with_past_and_present_qk_matmul_bias",
        "test_attention_3d_with_past_and_present_qk_matmul_softcap",
        "test_attention_3d_with_past_and_present_qk_matmul_softmax",
        "test_attention_23_fullymasked_qk_matmul_output_mode3_zero",
        "test_attention_24_fullymasked_qk_matmul_output_mode3_zero",
        "test_attention_24_qk_matmul_output_mode3_softmax_precision",
        "test_attention_local_window_gqa_rank4_mask",
    ),
    NO_MATRIX,
)


def _cases():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the cases of other operators, which are built as well
        cases = collect_testcases("Attention")
    # "expanded" ones are the same in smaller operators.
    return [case for case in cases if not case.name.endswith("_expanded")]


CASES = _cases()


def attend(inputs, attributes):
    """Y, and the present keys and values where there is a past."""
    q, k, v = (inputs[name] for name in "QKV")
    flat = q.ndim == 3
    if flat:
        heads = {"q": attributes["q_num_heads"], "k": attributes["kv_num_heads"], "v": attributes["kv_num_heads"]}
        q, k, v = (
            x.reshape(*x.shape[:2], heads[which], -1).swapaxes(1, 2) for which, x in zip("qkv", (q, k, v), strict=True)
        )
    past = 0
    if "past_key" in inputs:
        cache = nf.KVCache()
        cache.append(inputs["past_key"], inputs["past_value"])
        past = cache.length
        k, v = (np.array(x) for x in cache.append(k, v))
    present = k, v
    mask = inputs.get("attn_mask")
    lengths = inputs.get("nonpad_kv_seqlen")
    if lengths is None:
        y = _one(q, k, v, mask, past, attributes)
    else:
        per_sample = mask is not None and mask.ndim == 4 and mask.shape[0] > 1
        samples = []
        for i, length in enumerate(lengths):
            own = mask[i] if per_sample else mask[0] if mask is not None and mask.ndim == 4 else mask
            samples.append(_one(q[i], k[i, :, :length], v[i, :, :length], own, int(length) - q.shape[2], attributes))
        y = np.stack(samples)
    if flat:
        y = y.swapaxes(1, 2).reshape(*y.shape[:1], y.shape[2], -1)
    return (y, *present)


def _one(q, k, v, mask, offset, attributes):
    n = q.shape[-2]
    causal = bool(attributes.get("is_causal", 0))
    sides = (attributes.get("left_window_size", -1), attributes.get("right_window_size", -1))
    window = None if sides == (-1, -1) else tuple(None if side < 0 else side for side in sides)
    keys = k.shape[-2] if mask is None else min(k.shape[-2], mask.shape[-1])
    if causal:
        keys = max(0, min(keys, offset + n))
    options = {}
    missing = offset + n - keys
    if causal and mask is None and 0 < offset < keys and missing > 0:
        nothing = [np.full((*x.shape[:-2], missing, x.shape[-1]), np.nan, x.dtype) for x in (k, v)]
        k, v = (np.concatenate([x[..., :keys, :], more], axis=-2) for x, more in zip((k, v), nothing, strict=True))
        keys += missing
        mask = np.arange(keys) < keys - missing
    if causal or window:
        if keys - n == offset:
            options["causal"] = causal
        elif offset == 0 and causal:
            options["causal"] = "top_left"
        else:
            raise NotImplementedError(f"a diagonal at {offset} for {n} queries and {keys} keys")
        options["window"] = window
    k, v = k[..., :keys, :], v[..., :keys, :]
    if mask is not None:
        mask = mask[..., :keys]
        options["mask" if mask.dtype == bool else "bias"] = mask
    softcap = attributes.get("softcap", 0.0)
    return nf.attention(q, k, v, scale=attributes.get("scale"), softcap=softcap or None, **options)


def test_all_cases_are_here():
    """93 with onnx 1.23; a case that wants a matrix is in the list, and no other."""
    assert len(CASES) >= 93
    asking = {case.name for case in CASES if "qk_matmul_output" in case.model.graph.node[0].output}
    assert set(NOT_MAPPED) == asking


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention(case):
    node = case.model.graph.node[0]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    for arrays, expected in case.data_sets:
        inputs = dict(zip((name for name in node.input if name), arrays, strict=True))
        got = dict(zip(("Y", "present_key", "present_value"), attend(inputs, attributes), strict=True))
        for name, want in zip((name for name in node.output if name), expected, strict=True):
            if name == "qk_matmul_output":
                continue  # see NOT_MAPPED
            assert got[name].dtype == want.dtype
            # Theirs rounds scaled operands, scores and probabilities to 16 bits as well; values are below 1.
            atol = 4 * tolerance.u(want.dtype) if want.dtype.itemsize == 2 else max(case.atol, 1e-6)
            np.testing.assert_allclose(got[name].astype(float), want.astype(float), rtol=case.rtol, atol=atol)
