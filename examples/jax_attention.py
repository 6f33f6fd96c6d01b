"""A JAX function trained through numformer's attention: one layer learns to copy the token two places back.

Needs jax: ``python examples/jax_attention.py``
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from numformer.interop.jax import attention


def logits(weights: dict[str, jax.Array], ids: jax.Array) -> jax.Array:
    """Return (batch, positions, tokens) from one layer of attention over tokens and positions."""
    x = weights["tokens"][ids] + weights["positions"][: ids.shape[1]]
    q, k, v = (jnp.moveaxis((x @ weights[name]).reshape(*ids.shape, 4, 8), 2, 1) for name in "qkv")
    heads = attention(q, k, v, causal=True)
    return jnp.moveaxis(heads, 1, 2).reshape(x.shape) @ weights["output"]


def loss(weights: dict[str, jax.Array], ids: jax.Array) -> jax.Array:
    """Return the mean loss of naming the token two places back."""
    says = jax.nn.log_softmax(logits(weights, ids)[:, 2:])
    return -jnp.take_along_axis(says, ids[:, :-2, None], axis=-1).mean()


def main() -> None:
    """Train by plain gradient descent with momentum, all of it compiled by JAX."""
    jax.config.update("jax_platforms", "cpu")
    shapes = {
        "tokens": (12, 32),
        "positions": (24, 32),
        "q": (32, 32),
        "k": (32, 32),
        "v": (32, 32),
        "output": (32, 12),
    }
    keys = jax.random.split(jax.random.key(0), len(shapes))
    weights = {name: 0.3 * jax.random.normal(k, shape) for (name, shape), k in zip(shapes.items(), keys, strict=True)}
    momenta = jax.tree.map(jnp.zeros_like, weights)

    @jax.jit
    def step(weights, momenta, key):
        ids = jax.random.randint(key, (32, 24), 0, 12)
        value, gradients = jax.value_and_grad(loss)(weights, ids)
        momenta = jax.tree.map(lambda m, g: 0.9 * m + g, momenta, gradients)
        return jax.tree.map(lambda w, m: w - 0.1 * m, weights, momenta), momenta, value

    first = None
    for number in range(400):
        weights, momenta, value = step(weights, momenta, jax.random.key(number))
        first = value if first is None else first
        if number % 100 == 99:
            print(f"step {number + 1}: loss {value:.3f}")
    assert value < 0.5 * first


if __name__ == "__main__":
    main()
