"""A whole training step (loss, gradient, clipping, AdamW) of GPTs against PyTorch, eager and by torch.compile, on the
same weights and batches; the losses of the first steps must be equal. In float32, or in 16 bits against PyTorch's
autocast. Where torch.compile fails (it needs a C++ compiler) that is said, and the case goes on without it.
"""

import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numformer import nn
from numformer.models import GPT, GPTConfig
from numformer.nn.context import compute_dtype
from numformer.optim import AdamW, decay_groups

from benchmarks import common
from benchmarks.torch_gpt import TorchGPT
from benchmarks.torch_peer import TorchStep
from benchmarks.training_flops import step_flops

GPT2 = GPTConfig(vocab_size=50257, context=1024, layers=12, heads=12, width=768)


@dataclass(frozen=True)
class Case:
    """What is trained, and what is aimed at: times the peer, or a share of the ceiling where that is less."""

    config: GPTConfig
    batch: int
    aim: float
    cap: float
    compiled_aim: float = 1.0


CASES = {
    "GPT 6 x 384, T 256, B 8": Case(GPTConfig(vocab_size=256, context=256, layers=6, heads=6, width=384), 8, 1.2, 0.78),
    "GPT 4 x 128, T 64, B 12": Case(
        GPTConfig(vocab_size=65, context=64, layers=4, heads=4, width=128), 12, 2.0, 0.78, 1.3
    ),
    "GPT-2 124M, T 512, B 1": Case(replace(GPT2, context=512), 1, 1.5, 0.82),
    "GPT-2 124M, T 64, B 4": Case(replace(GPT2, context=64), 4, 1.5, 0.82),
}
PEERS = ["torch", "compiled"]
Tensors = tuple[torch.Tensor, ...]
# One layer, 32 wide: what is left is the cost of the calls.
FIXED, FIXED_AIM = GPTConfig(vocab_size=64, context=8, layers=1, heads=2, width=32), 300e-6
# Steps whose losses are compared, and how far they may be apart: AdamW turns rounding of small gradients into steps of
# the size of the learning rate.
STEPS, TOLERANCE = 20, {"float32": 1e-3, "bfloat16": 1e-2, "float16": 1e-2}
# In 16 bits: what the larger models are to reach against autocast, and the share of the ceiling of that dtype.
NARROW_AIM, NARROW_CAP = 1.4, 0.62
LR = 1e-4


def fixed_cost(count: int, top: float) -> common.Result:
    """Time the smallest step, with everything that a step has."""
    rng = np.random.default_rng()
    model = GPT(FIXED, rng=0)
    theirs = TorchGPT(FIXED).copy(model.state_dict())
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=LR, clip_norm=1.0)
    torch_step = TorchStep(theirs, lr=LR, weight_decay=0.1, clip_norm=1.0)
    ids, targets = rng.integers(0, FIXED.vocab_size, (2, 1, FIXED.context))
    tensors = (torch.from_numpy(ids), torch.from_numpy(targets))

    def ours() -> None:
        _, backward = model.loss((ids, targets))
        backward()
        optimizer.step()

    seconds = common.take_turns({"numformer": ours, "torch": lambda: torch_step(*tensors)}, slice_seconds=0.3)
    result = common.Result(
        "training_step",
        "GPT 1 x 32, T 8, B 1: fixed cost",
        count,
        step_flops(FIXED, 1),
        seconds,
        top,
        1.0,
        {"aim_seconds": FIXED_AIM},
    )
    common.print_result(result, PEERS)
    verdict = "met" if seconds["numformer"] <= FIXED_AIM else "below"
    print(f"{seconds['numformer'] * 1e6:.0f} us a step, aim {FIXED_AIM * 1e6:.0f} us: {verdict}", flush=True)
    return result


def _compiled(config: GPTConfig, model: GPT, autocast: torch.dtype | None, pair: Tensors) -> TorchStep | None:
    """The peer by torch.compile, or None, with the reason printed, where it cannot be compiled."""
    torch._dynamo.reset()
    theirs = TorchGPT(config).copy(model.state_dict())
    try:
        step = TorchStep(theirs, lr=LR, weight_decay=0.1, clip_norm=1.0, autocast=autocast, compiled=True)
        step.gradient(*pair)  # compiles
    except Exception as error:  # whatever stands in the way of its compiler
        print(f"torch.compile fails, so it is left out: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
        return None
    return step


def run(
    threads: list[int], folder: pathlib.Path, dtype: str = "float32", parts: Sequence[str] | None = None
) -> pathlib.Path:
    """Each model with each number of threads; of `parts`, only those whose name begins with one of them."""
    rng = np.random.default_rng()
    results = []
    narrow = None if dtype == "float32" else compute_dtype("training_step", dtype)
    ctx, autocast = nn.Context(dtype=narrow), None if narrow is None else getattr(torch, dtype)
    subject = "training_step" if narrow is None else f"training_step_{dtype}"
    chosen = {name: CASES[name] for name in common.of_parts(subject, list(CASES), parts)}
    common.print_header(subject, PEERS)
    for count in threads:
        common.set_threads(count)
        top = common.ceiling("float32" if dtype == "float16" else dtype)
        for name, case in chosen.items():
            config, batch = case.config, case.batch
            model = GPT(config, rng=0)
            ids, targets = rng.integers(0, config.vocab_size, (2, batch, config.context))
            tensors = (torch.from_numpy(ids), torch.from_numpy(targets))
            theirs = TorchGPT(config).copy(model.state_dict())
            optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=LR, clip_norm=1.0)
            eager = TorchStep(theirs, lr=LR, weight_decay=0.1, clip_norm=1.0, autocast=autocast)
            compiled = _compiled(config, model, autocast, tensors)
            for parameter in model.parameters():
                parameter.keep(narrow)

            def ours(
                model: GPT = model, optimizer: AdamW = optimizer, pair: tuple[np.ndarray, np.ndarray] = (ids, targets)
            ) -> float:
                loss, backward = model.loss(pair, ctx=ctx)
                backward()
                optimizer.step()
                return float(loss)

            contenders: dict[str, Callable[[], float]] = {"numformer": ours, "torch": partial(eager, *tensors)}
            if compiled is not None:
                contenders["compiled"] = partial(compiled, *tensors)
            for _ in range(STEPS if count == max(threads) else 3):
                losses = [step() for step in contenders.values()]
                np.testing.assert_allclose(losses[1:], losses[0], rtol=TOLERANCE[dtype])
            seconds = common.take_turns(contenders, slice_seconds=0.5)
            extra = {"tokens_per_second": batch * config.context / seconds["numformer"]}
            aim, cap = (case.aim, case.cap) if narrow is None else (NARROW_AIM, NARROW_CAP)
            flops = step_flops(config, batch)
            for peer, wanted in (("torch", aim), ("compiled", case.compiled_aim)):
                if peer in seconds:
                    pair = {key: seconds[key] for key in ("numformer", peer)}
                    label = name if peer == "torch" else f"{name}, compiled"
                    results.append(common.Result(subject, label, count, flops, pair, top, wanted, extra, cap))
                    common.print_result(results[-1], PEERS)
            del model, theirs, optimizer, eager, compiled, contenders, ours  # before the next one, which may be large
        if not parts:
            results.append(fixed_cost(count, top))
    return common.write(subject, results, folder, keep=bool(parts))
