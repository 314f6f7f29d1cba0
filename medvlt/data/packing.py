# SPDX-License-Identifier: Apache-2.0
"""Micro-batches without padding: groups of one prompt and its completions, one after another in a single row."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Segment(NamedTuple):
    """A stretch of the row that attends causally to itself and, if it has one, to all of its prompt.

    Attributes:
        start: First position.
        stop: Position after the last.
        prompt: Index of the segment that holds the prompt, or None if this segment needs no other.
    """

    start: int
    stop: int
    prompt: int | None = None


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model sees it.

    Attributes:
        token_ids: With one placeholder per visual token, (P,).
        position_ids: M-RoPE positions (time, height, width), (3, P).
        pixel_values: Flattened patches of all pictures, (patches, channels * 2 * 14 * 14), or None.
        image_grid_thw: Patches of each picture in time, height and width, (pictures, 3), or None.
    """

    token_ids: Tensor
    position_ids: Tensor
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None


@dataclass(frozen=True)
class Group:
    """A prompt and its completions, each with the weight of its tokens in the loss.

    Attributes:
        prompt: The prompt.
        completions: Token ids of 1..G completions, each (T_i,) with T_i >= 1.
        weights: One factor per completion; every token of it gets that weight.
        uid: Which question this is.
    """

    prompt: EncodedPrompt
    completions: Sequence[Tensor]
    weights: Sequence[float]
    uid: str = ""

    @property
    def tokens(self) -> int:
        """Positions that the group takes in a row."""
        return len(self.prompt.token_ids) + sum(map(len, self.completions))


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: a single row of L tokens with N target tokens, those of all completions in row order.

    Attributes:
        input_ids: (1, L).
        position_ids: M-RoPE positions, (3, 1, L); each completion continues where its prompt ends.
        segments: Who sees whom; they cover the row in order.
        sources: Where the hidden state lies that predicts each target, (N,). The first token of every completion is
            predicted by the last token of its prompt.
        targets: Token ids, (N,).
        weights: Factor of each target token in the loss, (N,), float32. Already divided by the normaliser of the
            whole optimizer step, so that the loss of a micro-batch is a plain sum.
        completion_lengths: Target tokens of each completion, (C,).
        uids: Question of each completion, C entries.
        pixel_values: Patches of all pictures, each picture once, (patches, 1176), or None.
        image_grid_thw: (pictures, 3), or None.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: tuple[Segment, ...]
    sources: Tensor
    targets: Tensor
    weights: Tensor
    completion_lengths: Tensor
    uids: tuple[str, ...]
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None

    def to(self, device: torch.device | str, **kwargs: Any) -> PackedBatch:
        """Returns the batch with every tensor on `device`; Lightning calls this."""
        return self._mapped(lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self) -> PackedBatch:
        """Returns the batch with every tensor in page-locked memory; the DataLoader calls this."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> PackedBatch:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        mapped = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return PackedBatch(**(values | mapped))


def pack(groups: Sequence[Group]) -> PackedBatch:
    """Lays groups one after another in a single row.

    A group of one completion is one plain causal segment, prompt and completion together. A larger group is a prompt
    segment and one segment per completion that sees the prompt and itself, so the prompt (and its pictures) is
    computed once. Equal to separate rows up to rounding (tested against the Hugging Face forward).

    Args:
        groups: At least one; order is kept.

    Raises:
        ValueError: If there is no group, or a completion without tokens.
    """
    if not groups:
        raise ValueError("a packed batch needs at least one group, got none")
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    segments: list[Segment] = []
    sources: list[Tensor] = []
    at = 0
    for group in groups:
        prompt = group.prompt
        if not group.completions or any(len(completion) == 0 for completion in group.completions):
            raise ValueError(f"question {group.uid}: every group needs completions of at least one token")
        end = at + len(prompt.token_ids)
        following = int(prompt.position_ids.max()) + 1
        ids += [prompt.token_ids, *group.completions]
        positions.append(prompt.position_ids)
        prompt_index = len(segments)
        if len(group.completions) > 1:
            segments.append(Segment(at, end))
        begin = end
        for completion in group.completions:
            length = len(completion)
            positions.append((following + torch.arange(length)).expand(3, length))
            sources.append(torch.arange(begin - 1, begin + length - 1))
            sources[-1][0] = end - 1
            segments.append(
                Segment(at, begin + length)
                if len(group.completions) == 1
                else Segment(begin, begin + length, prompt_index)
            )
            begin += length
        at = begin
    completions = [
        (completion, weight) for g in groups for completion, weight in zip(g.completions, g.weights, strict=True)
    ]
    pictures = [g.prompt for g in groups if g.prompt.pixel_values is not None]
    return PackedBatch(
        input_ids=torch.cat(ids)[None],
        position_ids=torch.cat(positions, dim=1)[:, None],
        segments=tuple(segments),
        sources=torch.cat(sources),
        targets=torch.cat([completion for completion, _ in completions]),
        weights=torch.cat([torch.full((len(completion),), weight) for completion, weight in completions]),
        completion_lengths=torch.tensor([len(completion) for completion, _ in completions]),
        uids=tuple(g.uid for g in groups for _ in g.completions),
        pixel_values=torch.cat([p.pixel_values for p in pictures if p.pixel_values is not None]) if pictures else None,
        image_grid_thw=torch.cat([p.image_grid_thw for p in pictures if p.image_grid_thw is not None])
        if pictures
        else None,
    )


def balance(sizes: Sequence[int], bins: int) -> list[list[int]]:
    """Spreads items over bins so that the largest bin is small: longest item first, into the emptiest bin.

    The largest bin is at most 4/3 - 1/(3 bins) times the best possible (Graham 1969). Deterministic; every bin gets
    at least one item.

    Args:
        sizes: Size of each item, such as its tokens.
        bins: How many bins, at most `len(sizes)`.

    Returns:
        Item indices of each bin, ascending inside a bin.

    Raises:
        ValueError: If there are fewer items than bins.
    """
    if not 1 <= bins <= len(sizes):
        raise ValueError(f"{len(sizes)} items cannot fill {bins} bins: each needs at least one")
    heap = [(0, 0, index) for index in range(bins)]  # (tokens, items, bin): equal tokens go to the bin with fewer items
    filled: list[list[int]] = [[] for _ in range(bins)]
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        total, count, index = heapq.heappop(heap)
        filled[index].append(item)
        heapq.heappush(heap, (total + sizes[item], count + 1, index))
    return [sorted(items) for items in filled]
