"""What a training step of a GPT computes at least."""

from numformer.models import GPTConfig


def step_flops(config: GPTConfig, batch: int) -> float:
    """Products only: 6 a weight and token (forward 2, backward 4), and attention's 3.5 x 4 N^2 D a head,
    half of it as it is causal.
    """
    width, tokens = config.width, batch * config.context
    weights = config.layers * 12 * width * width + config.vocab_size * width
    return 6.0 * weights * tokens + config.layers * batch * 3.5 * 4.0 * config.context**2 * width * 0.5
