"""ViT: an image as a sequence of patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numformer import ops
from numformer.models import pretrained
from numformer.models.config import activation_from_json, activation_to_json, check_blocks
from numformer.models.parts import first_position
from numformer.nn import (
    Backward,
    Context,
    CrossEntropy,
    Dropout,
    LayerNorm,
    LearnedPositions,
    Linear,
    Parameter,
    PreNormBlock,
    initial,
)
from numformer.nn.backward import chain
from numformer.nn.context import DEFAULT
from numformer.nn.dropout import number_dropouts
from numformer.ops.memory import beside, empty, namespace, number

Array = NDArray[Any]

__all__ = ["ViT", "ViTConfig"]


@dataclass(frozen=True)
class ViTConfig:
    """Sizes and options of a :class:`ViT`.

    Parameters
    ----------
    image, patch, channels : int
        Height and width of an image, of a patch, which divides it, and colours.
    labels : int
        Number of classes.
    layers, heads, width : int
        Blocks, attention heads a block, channels; `heads` divides `width`.
    hidden : int, optional
        Inner size of the feed-forward networks, 4 * width by default.
    dropout : float
        On the embeddings and on both residual branches.
    activation : {"gelu", "gelu_tanh", "relu", "silu"}
        Of the feed-forward networks.
    eps : float
        Of the norms.
    dtype : str
        Of the parameters: "float32" or "float64".
    """

    image: int = 224
    patch: int = 16
    channels: int = 3
    labels: int = 1000
    layers: int = 12
    heads: int = 12
    width: int = 768
    hidden: int | None = None
    dropout: float = 0.0
    activation: str = "gelu"
    eps: float = 1e-12
    dtype: str = "float32"

    def __post_init__(self) -> None:
        owner = "ViTConfig"
        sizes = {"image": self.image, "patch": self.patch, "channels": self.channels, "labels": self.labels}
        check_blocks(self, **sizes, layers=self.layers, heads=self.heads, width=self.width)
        if self.image % self.patch:
            raise ValueError(f"{owner}: patch must divide image {self.image}, got {self.patch}")

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a Hugging Face configuration."""
        return {
            "architectures": ["ViTForImageClassification"],
            "model_type": "vit",
            "image_size": self.image,
            "patch_size": self.patch,
            "num_channels": self.channels,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": 4 * self.width if self.hidden is None else self.hidden,
            "hidden_act": activation_to_json(self.activation),
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": 0.0,
            "layer_norm_eps": self.eps,
            "initializer_range": 0.02,
            "qkv_bias": True,
            "id2label": {str(i): f"LABEL_{i}" for i in range(self.labels)},
            "label2id": {f"LABEL_{i}": i for i in range(self.labels)},
            "torch_dtype": self.dtype,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ViTConfig:
        """Read the fields of a Hugging Face configuration; ValueError where they describe something else."""
        pretrained.check_type(fields, "vit", ("ViTForImageClassification",))
        pretrained.check_plain(fields, {"qkv_bias": (True,), "problem_type": (None, "single_label_classification")})
        labels = fields.get("id2label")
        width, hidden = pretrained.field(fields, "hidden_size"), pretrained.field(fields, "intermediate_size")
        return cls(
            image=pretrained.field(fields, "image_size"),
            patch=pretrained.field(fields, "patch_size"),
            channels=fields.get("num_channels", 3),
            labels=len(labels) if isinstance(labels, dict) and labels else fields.get("num_labels", 2),
            layers=pretrained.field(fields, "num_hidden_layers"),
            heads=pretrained.field(fields, "num_attention_heads"),
            width=width,
            hidden=None if hidden == 4 * width else hidden,
            dropout=fields.get("hidden_dropout_prob", 0.0),
            activation=activation_from_json("hidden_act", fields.get("hidden_act", "gelu")),
            eps=fields.get("layer_norm_eps", 1e-12),
            dtype=pretrained.parameter_dtype(fields),
        )


class ViT(pretrained.PretrainedModel):
    """Says what an image shows (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021).

    The state dict has the names of Hugging Face's ``ViTForImageClassification`` files. Departures: images have the one
    size that the configuration says, and weights of the attention are not dropped.

    Parameters
    ----------
    config : ViTConfig
        Sizes and options.
    rng : numpy.random.Generator or int, optional
        Draws the initial weights: normal with 0.02.

    Examples
    --------
    >>> import numpy as np
    >>> from numformer.models import ViT, ViTConfig
    >>> model = ViT(ViTConfig(image=8, patch=4, channels=1, labels=10, layers=1, heads=2, width=8), rng=0)
    >>> model.infer(np.zeros((5, 1, 8, 8), np.float32)).shape
    (5, 10)
    """

    renames: ClassVar[Mapping[str, str]] = {
        "patches.": "vit.embeddings.patch_embeddings.projection.",
        "positions.weight": "vit.embeddings.position_embeddings",
        "blocks.": "vit.encoder.layer.",
        "attention.output.": "attention.output.dense.",
        "norm1.": "layernorm_before.",
        "norm2.": "layernorm_after.",
        "mlp.inner.": "intermediate.dense.",
        "mlp.outer.": "output.dense.",
        "norm.": "vit.layernorm.",
        "token": "vit.embeddings.cls_token",
    }
    splits: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "attention.qkv.": (
            "attention.attention.query.",
            "attention.attention.key.",
            "attention.attention.value.",
        )
    }
    config_type: ClassVar[type[ViTConfig]] = ViTConfig
    config: ViTConfig

    def __init__(self, config: ViTConfig, *, rng: initial.Source | int | None = None) -> None:
        self.config = c = config
        source = np.random.default_rng(rng) if rng is None or isinstance(rng, int) else rng
        common: dict[str, Any] = {"std": 0.02, "dtype": np.dtype(c.dtype), "rng": source}
        self.patches = Linear(c.channels * c.patch**2, c.width, transposed=True, **common)
        self.token = Parameter(initial.normal(source, (1, c.width), 0.02, c.dtype))
        self.positions = LearnedPositions((c.image // c.patch) ** 2 + 1, c.width, **common)
        self.dropout = Dropout(c.dropout)
        self.blocks = [
            PreNormBlock(
                c.width,
                c.heads,
                hidden=c.hidden,
                activation=c.activation,
                dropout=c.dropout,
                eps=c.eps,
                transposed=True,
                output_std=0.02,
                **common,
            )
            for _ in range(c.layers)
        ]
        self.norm = LayerNorm(c.width, eps=c.eps, dtype=np.dtype(c.dtype))
        self.classifier = Linear(c.width, c.labels, transposed=True, **common)
        self.cross_entropy = CrossEntropy()
        number_dropouts(self)
        self.parameters()  # sets their names

    def _parts(self, name: str, array: Array) -> dict[str, Array]:
        """Give weights the shapes that files have: patches are a convolution there."""
        c = self.config
        if name.endswith("projection.weight"):
            return {name: array.reshape(c.width, c.channels, c.patch, c.patch)}
        if name.endswith(("cls_token", "position_embeddings")):
            return {name: array[None]}
        return super()._parts(name, array)

    def loss(self, batch: tuple[ArrayLike, ArrayLike], *, ctx: Context | None = None) -> tuple[float, Backward]:
        """Return the mean cross-entropy of a batch and its backward.

        Parameters
        ----------
        batch : (images, labels)
            Floats (batch, channels, image, image) and integers (batch,), in which -100 does not count.
        ctx : Context, optional
            Seed and step of dropout, compute dtype.

        Returns
        -------
        loss : float
            Mean over the images.
        backward : callable
            ``backward(dloss=1.0)`` leaves the gradients in the parameters.
        """
        images, labels = self._batch(batch)
        x, patches = self.patches(self._cut(images, (ctx or DEFAULT).dtype))
        self.token.pending += 1
        backwards: list[Any] = [patches, Backward(self._token_backward, [])]
        x, backward = self.positions(self._with_token(x))
        backwards.append(backward)
        x, backward = self.dropout(x, ctx=ctx)
        backwards.append(backward)
        for block in self.blocks:
            x, backward = block(x, ctx=ctx)
            backwards.append(backward)
        # The norm works row by row, and only one row of each image is asked for.
        x, backward = first_position(x)
        backwards.append(backward)
        x, backward = self.norm(x)
        backwards.append(backward)
        x, backward = self.classifier(x)
        backwards.append(backward)
        loss, backward = self.cross_entropy(x, labels)
        backwards.append(backward)
        return number(loss, wait=(ctx or DEFAULT).wait), Backward(self._backward, backwards)

    def _backward(self, saved: list[Any], dloss: float = 1.0) -> None:
        chain(saved, dloss)

    def _token_backward(self, saved: list[Any], dx: Array) -> Array:
        ops.sum_rows(dx[:, 0], out=self.token.buffer()[0], accumulate=not self.token.fresh)
        self.token.done()
        patches: Array = namespace(dx).ascontiguousarray(dx[:, 1:])
        return patches

    def infer_loss(self, batch: tuple[ArrayLike, ArrayLike], *, ctx: Context | None = None) -> float:
        """Return the mean cross-entropy of a batch without dropout; nothing is kept."""
        images, labels = self._batch(batch)
        return number(self.cross_entropy.infer(self._infer(images, (ctx or DEFAULT).dtype), labels))

    def infer(
        self, images: ArrayLike, *, hidden: list[Array] | None = None, dtype: np.dtype[Any] | None = None
    ) -> Array:
        """Return the logits of the classes.

        Parameters
        ----------
        images : floats
            (batch, channels, image, image), or without the first axis for one image.
        hidden : list, optional
            The hidden states before and after each block are appended to it.
        dtype : dtype, optional
            To compute in; that of the parameters by default.

        Returns
        -------
        array
            (batch, labels), or (labels,) for one image.
        """
        array = self._images(images)
        logits = self._infer(array if array.ndim == 4 else array[None], dtype, hidden)
        return logits if array.ndim == 4 else logits[0]

    def _infer(self, images: Array, dtype: np.dtype[Any] | None, hidden: list[Array] | None = None) -> Array:
        x = self.positions.infer(self._with_token(self.patches.infer(self._cut(images, dtype))))
        if hidden is not None:
            hidden.append(x)
        for block in self.blocks:
            x = block.infer(x)
            if hidden is not None:
                hidden.append(x)
        return self.classifier.logits(self.norm.infer(first_position(x)[0]))

    def _cut(self, images: Array, dtype: np.dtype[Any] | None) -> Array:
        """Return patches of images, row by row, (batch, patches, channels * patch * patch), where the weights are."""
        c, n = self.config, self.config.image // self.config.patch
        x = images.reshape(-1, c.channels, n, c.patch, n, c.patch).transpose(0, 2, 4, 1, 3, 5)
        weight = self.patches.weight.value
        return beside(
            np.ascontiguousarray(x.reshape(-1, n * n, c.channels * c.patch**2), dtype or weight.dtype), weight
        )

    def _with_token(self, x: Array) -> Array:
        y = empty((x.shape[0], x.shape[1] + 1, x.shape[2]), x.dtype, like=x)
        y[:, 0], y[:, 1:] = self.token.read(x.dtype), x
        return y

    def _images(self, images: ArrayLike) -> Array:
        c, array = self.config, np.asarray(images)
        if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
            raise TypeError(f"ViT: images must be numbers, got {array.dtype}")
        shape = (c.channels, c.image, c.image)
        if array.ndim not in (3, 4) or array.shape[-3:] != shape or array.size == 0:
            raise ValueError(f"ViT: images must have shape (batch, {', '.join(map(str, shape))}), got {array.shape}")
        return array

    def _batch(self, batch: tuple[ArrayLike, ArrayLike]) -> tuple[Array, Array]:
        if len(batch) != 2:
            raise ValueError(f"ViT: batch must be (images, labels), got {len(batch)} arrays")
        images, labels = self._images(batch[0]), np.asarray(batch[1])
        if images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ValueError(f"ViT: labels must have shape {images.shape[:1]}, got {labels.shape}")
        if labels.dtype.kind not in "iu":
            raise TypeError(f"ViT: labels must be integers, got {labels.dtype}")
        return images, labels
