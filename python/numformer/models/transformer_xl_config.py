"""What a Transformer-XL is made of, and how a Hugging Face config.json says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numformer.models import pretrained
from numformer.models.config import check_blocks
from numformer.nn import initial
from numformer.nn.adaptive_embedding import Clusters


@dataclass(frozen=True)
class TransformerXLConfig:
    """Sizes and options of a :class:`TransformerXL`.

    Parameters
    ----------
    vocab_size : int
        Number of tokens; with `cutoffs` in the order of their frequency, the most frequent ones first.
    context : int
        Tokens of a segment, which are read at once.
    memory : int
        Positions before a segment whose hidden states are kept.
    layers, heads, width : int
        Blocks, attention heads a block, channels; `heads` divides `width`, which is even.
    hidden : int, optional
        Inner size of the feed-forward networks, 4 * width by default.
    cutoffs : sequence of int
        First tokens of the clusters but the first, of adaptive input and softmax; none: all tokens are alike.
    embedding : int, optional
        Channels of the table of embeddings, of that of the first cluster; `width` by default.
    shrink : int
        Factor between the channels of a cluster and of the next one (``div_val``).
    tie_weights : bool
        The output layers are the tables of embeddings.
    tie_maps : sequence of bool, optional
        For each cluster whether its map to or from `width` is that of the embedding; by default all but the first.
    shared_biases : bool
        Whether all layers have the same two biases of relative positions.
    clamp : int, optional
        The largest distance that is told from others.
    same_length : bool
        Each position sees `memory` positions, itself included, instead of all of the memory and its segment.
    dropout : float
        On the embeddings, on both residual branches, and before the softmax.
    eps : float
        Of the norms.
    dtype : str
        Of the parameters: "float32" or "float64".
    """

    vocab_size: int = 256
    context: int = 128
    memory: int = 128
    layers: int = 4
    heads: int = 4
    width: int = 128
    hidden: int | None = None
    cutoffs: tuple[int, ...] = ()
    embedding: int | None = None
    shrink: int = 1
    tie_weights: bool = True
    tie_maps: tuple[bool, ...] | None = None
    shared_biases: bool = False
    clamp: int | None = None
    same_length: bool = False
    dropout: float = 0.0
    eps: float = 1e-5
    dtype: str = "float32"

    activation = "relu"

    def __post_init__(self) -> None:
        owner = "TransformerXLConfig"
        sizes = {"vocab_size": self.vocab_size, "context": self.context, "layers": self.layers}
        check_blocks(self, **sizes, heads=self.heads, width=self.width)
        if not isinstance(self.memory, int) or isinstance(self.memory, bool):
            raise TypeError(f"{owner}: memory must be an integer, got {self.memory!r}")
        if self.memory < (1 if self.same_length else 0):
            least = "at least 1 with same_length" if self.same_length else "at least 0"
            raise ValueError(f"{owner}: memory must be {least}, got {self.memory}")
        if self.width % 2:
            raise ValueError(f"{owner}: width must be even, got {self.width}")
        if self.clamp is not None:
            initial.size(owner, clamp=self.clamp)
        object.__setattr__(self, "cutoffs", tuple(self.cutoffs))
        clusters = self.clusters  # checks them
        if self.tie_maps is not None:
            object.__setattr__(self, "tie_maps", tuple(map(bool, self.tie_maps)))
            if len(self.tied_maps) != len(clusters):
                raise ValueError(
                    f"{owner}: tie_maps must have {len(clusters)} entries, one for each cluster, got {self.tie_maps}"
                )

    @property
    def clusters(self) -> Clusters:
        """How the vocabulary is cut."""
        return Clusters(self.vocab_size, self.cutoffs, self.embedding or self.width, self.shrink)

    @property
    def tied_maps(self) -> tuple[bool, ...]:
        """For each cluster whether its map is that of the embedding."""
        return (False,) + (True,) * len(self.cutoffs) if self.tie_maps is None else self.tie_maps

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a Hugging Face Transformer-XL configuration."""
        return {
            "architectures": ["TransfoXLLMHeadModel"],
            "model_type": "transfo-xl",
            "vocab_size": self.vocab_size,
            "cutoffs": list(self.cutoffs),
            "d_model": self.width,
            "d_embed": self.embedding or self.width,
            "n_head": self.heads,
            "d_head": self.width // self.heads,
            "d_inner": 4 * self.width if self.hidden is None else self.hidden,
            "div_val": self.shrink,
            "pre_lnorm": False,
            "n_layer": self.layers,
            "tgt_len": self.context,
            "mem_len": self.memory,
            "clamp_len": -1 if self.clamp is None else self.clamp,
            "same_length": self.same_length,
            "attn_type": 0,
            "adaptive": True,
            "sample_softmax": -1,
            "dropout": self.dropout,
            "dropatt": 0.0,
            "untie_r": not self.shared_biases,
            "layer_norm_epsilon": self.eps,
            "tie_word_embeddings": self.tie_weights,
            "tie_projs": list(self.tied_maps),
            "init": "normal",
            "init_std": 0.02,
            "proj_init_std": 0.01,
            "eos_token_id": 0,
            "torch_dtype": self.dtype,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> TransformerXLConfig:
        """Read the fields of a Hugging Face configuration; ValueError where they describe something else."""
        pretrained.check_type(fields, "transfo-xl", ("TransfoXLLMHeadModel",))
        pretrained.check_plain(fields, {"pre_lnorm": (False,), "attn_type": (0,), "adaptive": (True,)})
        width, heads = pretrained.field(fields, "d_model"), pretrained.field(fields, "n_head")
        size, hidden = fields.get("d_head", 64), pretrained.field(fields, "d_inner")
        if size * heads != width:
            raise ValueError(f"d_head must be d_model / n_head, {width} / {heads}, got {size}")
        cutoffs, clamp = pretrained.field(fields, "cutoffs"), fields.get("clamp_len", 1000)
        if not isinstance(cutoffs, list):
            raise TypeError(f"cutoffs must be a list, got {cutoffs!r}")
        tied = fields.get("tie_projs")
        if tied is None and not fields.get("proj_share_all_but_first", True):
            tied = [False] * (len(cutoffs) + 1)
        default = not tied or tied == [False] + [True] * len(cutoffs)
        channels = fields.get("d_embed", 1024)
        return cls(
            vocab_size=pretrained.field(fields, "vocab_size"),
            context=fields.get("tgt_len", 128),
            memory=pretrained.field(fields, "mem_len"),
            layers=pretrained.field(fields, "n_layer"),
            heads=heads,
            width=width,
            hidden=None if hidden == 4 * width else hidden,
            cutoffs=tuple(cutoffs),
            embedding=None if channels == width else channels,
            shrink=fields.get("div_val", 4),
            tie_weights=fields.get("tie_word_embeddings", True),
            tie_maps=None if default or not tied else tuple(tied),
            shared_biases=not fields.get("untie_r", True),
            clamp=clamp if clamp > 0 else None,
            same_length=fields.get("same_length", True),
            dropout=fields.get("dropout", 0.1),
            eps=fields.get("layer_norm_epsilon", 1e-5),
            dtype=pretrained.parameter_dtype(fields),
        )
