"""Layers: ``y, backward = layer(x, ctx=ctx)`` to train, ``y = layer.infer(x)`` to use.

A layer is called on arrays and gives back an array and a function. There is no tape: the caller keeps `backward` and
calls it once.
"""

from numformer.nn.adaptive_embedding import AdaptiveEmbedding, Clusters
from numformer.nn.adaptive_softmax import AdaptiveSoftmax
from numformer.nn.attention import MultiHeadAttention
from numformer.nn.backward import Backward
from numformer.nn.block import PostNormBlock, PreNormBlock
from numformer.nn.cache import KVCache
from numformer.nn.context import Context
from numformer.nn.cross_attention import CrossAttention
from numformer.nn.cross_entropy import CrossEntropy
from numformer.nn.decoder_block import PostNormDecoderBlock, PreNormDecoderBlock
from numformer.nn.dropout import Dropout
from numformer.nn.embedding import Embedding
from numformer.nn.feed_forward import FeedForward
from numformer.nn.layer_norm import LayerNorm
from numformer.nn.linear import Linear
from numformer.nn.linear_cross_entropy import LinearCrossEntropy
from numformer.nn.module import Module
from numformer.nn.parameter import Parameter
from numformer.nn.positions import LearnedPositions, SinusoidalPositions
from numformer.nn.relative_attention import RelativeAttention, RelativeCache
from numformer.nn.relative_block import RelativeBlock
from numformer.nn.rms_norm import RMSNorm
from numformer.nn.sliding_attention import SlidingAttention

__all__ = [
    "AdaptiveEmbedding",
    "AdaptiveSoftmax",
    "Backward",
    "Clusters",
    "Context",
    "CrossAttention",
    "CrossEntropy",
    "Dropout",
    "Embedding",
    "FeedForward",
    "KVCache",
    "LayerNorm",
    "LearnedPositions",
    "Linear",
    "LinearCrossEntropy",
    "Module",
    "MultiHeadAttention",
    "Parameter",
    "PostNormBlock",
    "PostNormDecoderBlock",
    "PreNormBlock",
    "PreNormDecoderBlock",
    "RMSNorm",
    "RelativeAttention",
    "RelativeBlock",
    "RelativeCache",
    "SinusoidalPositions",
    "SlidingAttention",
]
