"""Models of Hugging Face's Transformers on numformer's attention: ``attn_implementation="numformer"``."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from numformer.interop.torch import attention

NAME = "numformer"


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as a layer of Transformers asks for it.

    Parameters
    ----------
    module : torch.nn.Module
        The layer; its `is_causal` counts where the argument is None.
    query, key, value : (batch, heads, positions, size) tensors
        Fewer heads of key and value than of query are grouped queries.
    attention_mask : (batch, 1 or heads, queries, keys) tensor, optional
        Boolean, True = attend, or added to the scores. None: all, or those before where the layer is causal.
    dropout : float
        Of the probabilities; what is dropped follows PyTorch's seed.
    scaling, softcap : float, optional
        Of the scores.
    position_bias, s_aux : tensors, optional
        Added to the scores, and the logits of sinks.
    **kwargs
        What other implementations need.

    Returns
    -------
    (batch, queries, heads, size) tensor, None
        Attention weights are never made, so there are none to return.

    Raises
    ------
    ValueError
        Where ``output_attentions=True``.
    """
    if kwargs.get("output_attentions"):
        raise ValueError("numformer: output_attentions must be False, the weights are never made; use 'eager' for them")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask = bias = None
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        mask = attention_mask
    elif attention_mask is not None:
        bias = attention_mask.to(query.dtype)
    if position_bias is not None:
        bias = position_bias if bias is None else position_bias + bias
    options: dict[str, Any] = {"scale": scaling, "softcap": softcap, "mask": mask, "bias": bias, "sinks": s_aux}
    if attention_mask is None and causal and query.shape[2] > 1:
        options["causal"] = "top_left"  # keys beyond the queries are room that a static cache has not filled
    if dropout:
        options |= {"dropout": float(dropout), "seed": int(torch.randint(2**31, ()))}
    out = attention(query, key, value, **options)
    return out.transpose(1, 2).contiguous(), None


def register() -> str:
    """Make "numformer" a name of an attention implementation of Transformers, and return it.

    Examples
    --------
    >>> from numformer.interop import transformers as nf_transformers
    >>> nf_transformers.register()
    'numformer'
    >>> from transformers import AutoModelForCausalLM, GPT2Config
    >>> config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=16)
    >>> model = AutoModelForCausalLM.from_config(config, attn_implementation="numformer")  # and from_pretrained
    """
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
