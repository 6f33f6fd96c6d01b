"""The commands and their options; what they do is loaded when it is asked for."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="numformer",
    help="Train and run Transformers on NumPy arrays and native kernels.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class ModelKind(StrEnum):
    """Models that can be trained."""

    gpt = "gpt"
    transformer = "transformer"
    transformer_xl = "transformer-xl"


class NormKind(StrEnum):
    """Where the norms of a transformer are."""

    post = "post"
    pre = "pre"


class OnBad(StrEnum):
    """What becomes of lines that are no pair."""

    skip = "skip"
    error = "error"


class OnNaN(StrEnum):
    """What becomes of a step whose loss or gradient is not finite."""

    stop = "stop"
    skip = "skip"


class Device(StrEnum):
    """Where weights are and kernels run."""

    cpu = "cpu"
    cuda = "cuda"


class DType(StrEnum):
    """What kernels compute in."""

    float32 = "float32"
    float64 = "float64"
    float16 = "float16"
    bfloat16 = "bfloat16"


class WeightsDType(StrEnum):
    """What a trained model is used in."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    int8 = "int8"


class Explained(StrEnum):
    """Operations whose plan can be asked for."""

    matmul = "matmul"
    attention = "attention"


Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a trained model.")]
Threads = Annotated[int | None, typer.Option(help="Processors to use; all by default.")]
WeightsType = Annotated[
    WeightsDType | None,
    typer.Option(
        "--dtype",
        help="Of the weights: bfloat16 and int8 round them, take less memory and are faster; those of the file by "
        "default.",
    ),
]
PairsFile = Annotated[
    Path | None, typer.Option(help="Pairs, a line each: source, a tab, target. gzip is read too, here and below.")
]
SourceFile = Annotated[Path | None, typer.Option(help="Pairs as two files, line by line: sources ...")]
TargetFile = Annotated[Path | None, typer.Option(help="... and their translations.")]
OnBadLine = Annotated[OnBad, typer.Option(help="Whether lines that are no pair are left out or the file is refused.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Take files of different lengths up to the shorter's end.")]
LengthPenalty = Annotated[float, typer.Option(help="Of the beam search: 0 prefers short sentences.")]


def _run(command: Callable[..., None], **options: Any) -> None:
    """Run a command; a mistake of the user is one line and exit code 2, Ctrl-C is 130 and SIGTERM 143."""
    try:
        command(**options)
    except KeyboardInterrupt as error:
        raise typer.Exit(128 + getattr(error, "number", signal.SIGINT)) from None
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        message = f"numformer: {_line(error)}"
        if _speaks(message):
            typer.echo(message, err=True)
        raise typer.Exit(2) from None


def _speaks(message: str) -> bool:
    """Whether this process is to say a mistake: always, but for one of several ranks that all make it."""
    if "numformer.train.parallel" not in sys.modules:
        return True
    from numformer.cli.together import speaks

    return speaks(message)


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


@app.command()
def train(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="UTF-8 text to train a gpt on, or a file of numformer tokenize; Python's own reference by default."
        ),
    ] = None,
    model: Annotated[
        ModelKind, typer.Option(help="A gpt or transformer-xl continues text, a transformer translates.")
    ] = ModelKind.gpt,
    out: Annotated[Path | None, typer.Option(help="Folder to write into; runs/NAME by default.")] = None,
    pairs: PairsFile = None,
    source: SourceFile = None,
    target: TargetFile = None,
    valid_pairs: Annotated[
        Path | None, typer.Option(help="To validate a transformer; a part of the pairs by default.")
    ] = None,
    valid_source: Annotated[Path | None, typer.Option(help="The same as two files: sources ...")] = None,
    valid_target: Annotated[Path | None, typer.Option(help="... and their translations.")] = None,
    on_bad: OnBadLine = OnBad.skip,
    truncate: Truncate = False,
    vocab: Annotated[
        int | None, typer.Option(help="Subwords of a transformer, 0 for bytes.  [default: 8000]", show_default=False)
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="Blocks, of encoder and decoder each.  [default: gpt 4, transformer 3]")
    ] = None,
    heads: Annotated[int, typer.Option(help="Attention heads; they divide the width.")] = 4,
    width: Annotated[int | None, typer.Option(help="Channels.  [default: gpt 128, transformer 256]")] = None,
    hidden: Annotated[
        int | None, typer.Option(help="Inner channels of a transformer's feed-forward; 4 times the width by default.")
    ] = None,
    norm: Annotated[NormKind | None, typer.Option(help="Norms of a transformer.  [default: post]")] = None,
    context: Annotated[
        int | None, typer.Option(help="Longest sequence, in tokens.  [default: gpt 128, transformer 256, of bytes 512]")
    ] = None,
    memory: Annotated[
        int | None, typer.Option(help="Positions that a transformer-xl remembers; as many as --context by default.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Sequences a step; 0 is batch gradient descent.  [default: gpt 8, transformer 128]"),
    ] = None,
    batch_gradient_descent: Annotated[
        bool, typer.Option("--batch-gradient-descent", help="Each step is on the whole text: the same as --batch 0.")
    ] = False,
    micro_batch: Annotated[int | None, typer.Option(help="Sequences in memory at once.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates.  [default: gpt 2500, transformer 10 epochs]")] = None,
    epochs: Annotated[float | None, typer.Option(help="Times that a transformer sees each pair.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so long.")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate, after the warm-up.  [default: gpt 3e-3, else 1e-3]")
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Steps of a transformer's warm-up; at most 1000 by default.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of AdamW, on matrices.  [default: gpt 0.1, transformer 0]")
    ] = None,
    dropout: Annotated[float | None, typer.Option(help="Probability.  [default: gpt 0, transformer 0.1]")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Of a transformer.  [default: 0.1]")] = None,
    beams: Annotated[int | None, typer.Option(help="Of a transformer's last BLEU.  [default: 4]")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, batches and dropout.")] = 0,
    dtype: Annotated[DType, typer.Option(help="To compute in; 16 bits: mixed precision.")] = DType.float32,
    device: Annotated[
        Device, typer.Option(help='Where to compute; cuda needs the extra "cuda" (experimental).')
    ] = Device.cpu,
    threads: Threads = None,
    eval_every: Annotated[
        int | None,
        typer.Option(help="Steps between evaluations and checkpoints.  [default: gpt 250, transformer an epoch]"),
    ] = None,
    keep: Annotated[int, typer.Option(help="Checkpoints that stay: the newest, and those before it.")] = 2,
    keep_best: Annotated[
        bool, typer.Option("--keep-best", help="The checkpoint of the best evaluation stays too.")
    ] = False,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many evaluations that are no better than the best.")
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="Decay of an average of the weights, such as 0.999, that is evaluated and written."),
    ] = None,
    nan: Annotated[
        OnNaN, typer.Option(help="Whether a loss or gradient of NaN ends the run, or its step.")
    ] = OnNaN.stop,
    packing: Annotated[
        bool | None,
        typer.Option(
            "--packing/--no-packing",
            help="Whether documents of a token file do not see each other.  [default: they do not]",
            show_default=False,
        ),
    ] = None,
    sample_every: Annotated[
        int, typer.Option(min=0, help="Steps between samples of text, shown and kept in samples.jsonl; 0 is none.")
    ] = 0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write what TensorBoard reads, into tensorboard/ of --out.")
    ] = False,
    shard_optimizer: Annotated[
        bool,
        typer.Option("--shard-optimizer", help="Each rank of mpiexec keeps a part of the optimizer's state only."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make a step, say memory and time of the run, write nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Train a model and write weights, log and pictures into a folder.

    A gpt or a transformer-xl learns a text byte by byte, or the tokens of a file that numformer tokenize made; a
    transformer learns to translate from --pairs FILE, or --source A --target B.

    mpiexec -n 4 numformer train ... trains with four processes, each on its share of every batch.
    """
    shared = {
        "out": out,
        "heads": heads,
        "micro_batch": micro_batch,
        "minutes": minutes,
        "seed": seed,
        "dtype": dtype.value,
        "device": device.value,
        "threads": threads,
        "watch": {
            "keep": keep,
            "keep_best": keep_best,
            "patience": patience,
            "ema": ema,
            "nan": nan.value,
            "tensorboard": tensorboard,
            "shard_optimizer": shard_optimizer,
        },
        "sample_every": sample_every,
        "dry_run": dry_run,
        "resume": resume,
        "quiet": quiet,
    }
    if memory is not None and model is not ModelKind.transformer_xl:
        _run(_refuse, message="train: --memory is for --model transformer-xl")
    if model is ModelKind.transformer:
        _run(
            _train_transformer,
            files=files or [],
            packing=packing,
            training=(pairs, source, target),
            validation=(valid_pairs, valid_source, valid_target, "valid-"),
            on_bad=on_bad.value,
            truncate=truncate,
            vocab=vocab,
            layers=_or(layers, 3),
            width=_or(width, 256),
            hidden=hidden,
            norm=(norm or NormKind.post).value,
            context=context,
            batch=_batch(batch, batch_gradient_descent, 128),
            steps=steps,
            epochs=epochs,
            lr=_or(lr, 1e-3),
            warmup=warmup,
            weight_decay=_or(weight_decay, 0.0),
            dropout=_or(dropout, 0.1),
            label_smoothing=_or(label_smoothing, 0.1),
            beams=_or(beams, 4),
            eval_every=eval_every,
            **shared,
        )
        return
    other = {
        "pairs": pairs,
        "source": source,
        "target": target,
        "valid-pairs": valid_pairs,
        "valid-source": valid_source,
        "valid-target": valid_target,
        "truncate": truncate or None,
        "vocab": vocab,
        "hidden": hidden,
        "norm": norm,
        "epochs": epochs,
        "warmup": warmup,
        "label-smoothing": label_smoothing,
        "beams": beams,
    }
    _run(
        _train_gpt,
        model=model.value,
        memory=memory,
        other=[name for name, value in other.items() if value is not None],
        files=files or [],
        packing=packing,
        layers=_or(layers, 4),
        width=_or(width, 128),
        context=_or(context, 128),
        batch=_batch(batch, batch_gradient_descent, 8),
        steps=_or(steps, 2500),
        lr=_or(lr, 3e-3 if model is ModelKind.gpt else 1e-3),
        weight_decay=_or(weight_decay, 0.1),
        dropout=_or(dropout, 0.0),
        eval_every=_or(eval_every, 250),
        **shared,
    )


def _train_gpt(*, other: list[str], **options: Any) -> None:
    from numformer.cli.training import run

    if other:
        raise ValueError(f"train: --{other[0]} is for --model transformer")
    run(**options)


def _train_transformer(
    *, files: list[Path], packing: bool | None, training: Any, validation: Any, **options: Any
) -> None:
    from numformer.cli.pairs import Sources, run

    if packing is not None:
        raise ValueError("train: --packing is for a gpt; a transformer's pairs are packed always")
    if files:
        raise ValueError(f"train: a transformer learns from --pairs, or --source and --target, got {files[0]}")
    run(training=Sources(*training), validation=Sources(*validation), **options)


def _refuse(message: str) -> None:
    raise ValueError(message)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _or_none(choice: StrEnum | None) -> str | None:
    return None if choice is None else choice.value


def _batch(batch: int | None, whole: bool, default: int) -> int | None:
    return None if whole or batch == 0 else _or(batch, default)


@app.command()
def translate(
    folder: Folder,
    file: Annotated[Path | None, typer.Option(help="Text, a sentence a line, gzip read too; stdin by default.")] = None,
    beams: Annotated[int, typer.Option(help="Of the beam search; 1 is greedy.")] = 4,
    length_penalty: LengthPenalty = 0.6,
    on_bad: Annotated[
        OnBad, typer.Option(help="Whether lines that cannot be translated stay empty or the text is refused.")
    ] = OnBad.skip,
    dtype: WeightsType = None,
    threads: Threads = None,
) -> None:
    """Translate each line, in the order of the lines."""
    from numformer.cli.translation import run

    _run(
        run,
        folder=folder,
        file=file,
        beams=beams,
        length_penalty=length_penalty,
        on_bad=on_bad.value,
        dtype=_or_none(dtype),
        threads=threads,
    )


@app.command()
def score(
    folder: Folder,
    files: Annotated[list[Path] | None, typer.Argument(help="UTF-8 text, for a language model.")] = None,
    pairs: PairsFile = None,
    source: SourceFile = None,
    target: TargetFile = None,
    on_bad: OnBadLine = OnBad.skip,
    truncate: Truncate = False,
    beams: Annotated[int, typer.Option(help="Of the beam search; 1 is greedy.")] = 4,
    length_penalty: LengthPenalty = 0.6,
    memory: Annotated[
        int | None, typer.Option(help="Positions that a transformer-xl remembers; those of its training by default.")
    ] = None,
    dtype: WeightsType = None,
    threads: Threads = None,
) -> None:
    """Say how good a model is: loss and perplexity of text, and BLEU and chrF of translations."""
    from numformer.cli.pairs import Sources
    from numformer.cli.scoring import run

    _run(
        run,
        folder=folder,
        files=files or [],
        pairs=Sources(pairs, source, target),
        beams=beams,
        length_penalty=length_penalty,
        on_bad=on_bad.value,
        truncate=truncate,
        memory=memory,
        dtype=_or_none(dtype),
        threads=threads,
    )


@app.command()
def generate(
    folder: Folder,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "\n",
    max_new_tokens: Annotated[int, typer.Option(help="Bytes to add.")] = 300,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable byte.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k most probable bytes.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the most probable bytes that reach p.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    dtype: WeightsType = None,
    threads: Threads = None,
) -> None:
    """Continue a text."""
    from numformer.cli.generation import run

    _run(
        run,
        folder=folder,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        dtype=_or_none(dtype),
        threads=threads,
    )


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}
)
def profile(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="SCRIPT|COMMAND", help="A Python file, or train, generate, ...")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("profile.html"),
    trace: Annotated[Path | None, typer.Option(help="Trace for Perfetto or chrome://tracing to write.")] = None,
    capacity: Annotated[int, typer.Option(help="Calls that are kept one by one; the sums have all.")] = 250_000,
) -> None:
    """Run a Python script, or another command of numformer, and show where its time went.

    Options of profile come before SCRIPT or COMMAND, all that follows is its own.
    """
    from numformer.cli.profiling import run

    _run(run, target=target, arguments=list(context.args), out=out, trace=trace, capacity=capacity, app=app)


@app.command()
def bench(
    subjects: Annotated[
        list[str] | None, typer.Argument(help="matmul, attention, softmax, layer_norm, gelu; all by default.")
    ] = None,
    ceilings: Annotated[
        bool, typer.Option("--ceilings", help="Measure what this machine can do, and keep it for profiles.")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Picture to write; needs matplotlib.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes and short samples.")] = False,
    threads: Threads = None,
) -> None:
    """Compare kernels with NumPy, and with PyTorch where it is installed, on this machine."""
    from numformer.cli.benchmarking import run

    _run(run, subjects=subjects or [], ceilings=ceilings, picture=picture, quick=quick, threads=threads)


@app.command()
def explain(
    operation: Annotated[Explained, typer.Argument(help="Which operation.")],
    shape: Annotated[str, typer.Option(help="[BATCH,] M,K,N of matmul; [BATCH,] HEADS,N,D of attention's queries.")],
    dtype: Annotated[DType, typer.Option(help="Dtype of the arrays.")] = DType.float32,
    backward: Annotated[bool, typer.Option("--backward", help="Its gradients instead.")] = False,
    transpose_a: Annotated[bool, typer.Option("--transpose-a", help="matmul: a is stored as (K, M).")] = False,
    transpose_b: Annotated[bool, typer.Option("--transpose-b", help="matmul: b is stored as (N, K).")] = False,
    keys: Annotated[int | None, typer.Option(min=0, help="attention: keys; as many as queries by default.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="attention: heads of k and v.")] = None,
    value_dim: Annotated[
        int | None, typer.Option(min=0, help="attention: last axis of v; that of q by default.")
    ] = None,
    causal: Annotated[bool, typer.Option("--causal", help="attention: no query sees keys behind it.")] = False,
    window: Annotated[str | None, typer.Option(help="attention: LEFT,RIGHT; an empty side has no limit.")] = None,
    threads: Threads = None,
) -> None:
    """Say which way a call takes, its blocks and threads, and how long it takes at best, without doing it."""
    from numformer.cli.explaining import run

    _run(
        run,
        operation=operation.value,
        shape=shape,
        dtype=dtype.value,
        backward=backward,
        transposed=(transpose_a, transpose_b),
        keys=keys,
        kv_heads=kv_heads,
        value_dim=value_dim,
        causal=causal,
        window=window,
        threads=threads,
    )


@app.command()
def info() -> None:
    """Say what this installation runs on."""
    from numformer.cli.information import run

    _run(run)


def main() -> None:
    """Entry point."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # generated text may hold what the terminal cannot show
    app()
