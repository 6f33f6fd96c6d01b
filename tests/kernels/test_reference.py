"""What the reference itself is judged by, without another library: known answers and arithmetic by hand."""

import math

import numpy as np
from numformer import reference


def test_philox_known_answers():
    """The three vectors for philox4x32-10 that come with Random123, the library of the paper's authors."""
    ones = 0xFFFFFFFF
    vectors = [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones, ones), (ones, ones, ones, ones), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for key, counter, words in vectors:
        assert tuple(int(w) for w in reference.philox4x32(key, counter)) == words


def test_attention_by_hand():
    """One query, two keys: weights 1/4 and 3/4 where the scores differ by log 3."""
    q, k, v = np.array([[1.0]]), np.array([[0.0], [math.log(3)]]), np.array([[0.0], [4.0]])
    out, lse = reference.attention(q, k, v, return_lse=True)
    assert abs(out[0, 0] - 3.0) < 1e-14 and abs(lse[0] - math.log(4)) < 1e-14


def test_masks_by_hand():
    q, k, v = np.zeros((2, 1)), np.zeros((4, 1)), np.arange(4.0)[:, None]
    means = {
        (True, None): [1.0, 1.5],  # keys 0 to 2, 0 to 3
        ("top_left", None): [0.0, 0.5],
        (False, (1, 0)): [1.5, 2.5],  # keys 1 and 2, 2 and 3
        ("top_left", (0, 0)): [0.0, 1.0],
    }
    for (causal, window), want in means.items():
        np.testing.assert_allclose(reference.attention(q, k, v, causal=causal, window=window)[:, 0], want, rtol=1e-14)
    # More queries than keys: the first two see nothing.
    out, lse = reference.attention(np.zeros((4, 1)), np.zeros((2, 1)), np.ones((2, 1)), causal=True, return_lse=True)
    assert out[:, 0].tolist() == [0, 0, 1, 1] and np.isneginf(lse[:2]).all()


def test_cross_entropy_by_hand():
    x, t = np.log([[1.0, 3.0], [1.0, 1.0]]), np.array([1, 0])
    assert abs(reference.cross_entropy(x, t) - (math.log(4 / 3) + math.log(2)) / 2) < 1e-15
    assert abs(reference.cross_entropy(x, np.array([1, -100])) - math.log(4 / 3)) < 1e-15


def test_linear_cross_entropy_by_hand():
    """Logits 0 and log 3: probabilities 1/4 and 3/4."""
    x, weight = np.array([[1.0], [9.0]]), np.array([[0.0], [math.log(3)]])
    loss, dx, dweight = reference.linear_cross_entropy(x, weight, np.array([1, -100]), dloss=2.0)
    assert abs(loss - math.log(4 / 3)) < 1e-15
    np.testing.assert_allclose(dx, [[-0.5 * math.log(3)], [0.0]], atol=1e-15)
    np.testing.assert_allclose(dweight, [[0.5], [-0.5]], atol=1e-15)


def test_adamw_first_step_by_hand():
    """The first step of Adam is lr * sign(gradient), before eps."""
    w, g, m, v = (np.array([x]) for x in (2.0, -5.0, 0.0, 0.0))
    reference.adamw_update([w], [g], [m], [v], lr=0.1, eps=0.0, weight_decay=0.5, step=1)
    assert abs(w[0] - (2.0 * 0.95 + 0.1)) < 1e-15
