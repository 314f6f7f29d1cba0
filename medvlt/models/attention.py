# SPDX-License-Identifier: Apache-2.0
"""Attention over a packed row: each segment sees its prompt and, causally, itself.

Registered with transformers under the name `shared_prefix`, so the library's own Qwen2.5-VL runs it unpatched. A
packed row passes its segments as `attention_mask={"full_attention": segments}`; with any other mask the function is
the library's sdpa, so `generate` and padded rows give what they always gave.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from medvlt.data.packing import Segment

SHARED_PREFIX = "shared_prefix"


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: tuple[Segment, ...] | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,  # the signature that transformers calls
) -> tuple[Tensor, None]:
    """Attention of one packed row, segment by segment, in sum(C * (P + C)) instead of L * L.

    Args:
        module: The calling attention layer.
        query: (1, H, L, D).
        key: (1, H_kv, L, D); H is a multiple of H_kv.
        value: (1, H_kv, L, D).
        attention_mask: The segments of the row, which lie one after another and cover it; or a tensor or None for
            ordinary attention.
        scaling: Factor of the scores; None for D ** -0.5.
        dropout: Must be 0 for packed rows: one draw would be shared by all completions of a prompt.
        kwargs: Passed on to the library's function for ordinary attention.

    Returns:
        Attention output, (1, L, H, D), and None for the weights.
    """
    if not isinstance(attention_mask, tuple):
        output: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )[0]
        return output, None
    # under autocast the rotary embedding leaves queries and keys in float32; a lower-right mask wants equal types
    query, key = query.to(value.dtype), key.to(value.dtype)
    # split, not slicing: the backward of a slice is a full-length tensor of zeros per segment, that of split one cat
    lengths = [segment.stop - segment.start for segment in attention_mask]
    queries, keys, values = (torch.split(tensor, lengths, dim=2) for tensor in (query, key, value))
    outputs = []
    for q, k, v, segment in zip(queries, keys, values, attention_mask, strict=True):
        mask = None
        if segment.prompt is not None:
            k = torch.cat([keys[segment.prompt], k], dim=2)
            v = torch.cat([values[segment.prompt], v], dim=2)
            mask = causal_lower_right(q.shape[2], k.shape[2])
        outputs.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=True
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
