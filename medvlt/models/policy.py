# SPDX-License-Identifier: Apache-2.0
"""The policy: the only place that calls the backbone for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from medvlt.data.packing import PackedBatch
from medvlt.models import attention, head

if TYPE_CHECKING:
    from peft import PeftModel

    from medvlt.models.sharding import Sharding


class Policy(nn.Module):
    """A Qwen2.5-VL that turns packed rows into log-probabilities of their target tokens.

    The whole computation, output head included, is the `forward` of this module: under sharding its weights are then
    whole wherever they are used. SFT minimises the negated, weighted result; GRPO is a function of it.

    Args:
        backbone: The model, with or without LoRA adapters.
        always_run_vision: Run the vision tower on a blank picture with weight zero when a batch has none. Needed when
            gradients or shards are exchanged between ranks, as every rank must then use the same parameters in the
            same order; and where the tower is trained, so that one rank decays its weights as several do.

    Attributes:
        sharding: How it was split, if a strategy did so; None before.
    """

    def __init__(
        self, backbone: Qwen2_5_VLForConditionalGeneration | PeftModel, *, always_run_vision: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.always_run_vision = always_run_vision
        self.sharding: Sharding | None = None
        self.base.set_attn_implementation({"text_config": attention.SHARED_PREFIX})

    @property
    def base(self) -> Qwen2_5_VLForConditionalGeneration:
        """The transformers model itself, LoRA layers in place but without the wrapper around it."""
        model = self.backbone
        if not isinstance(model, Qwen2_5_VLForConditionalGeneration):
            model = model.get_base_model()
        return cast(Qwen2_5_VLForConditionalGeneration, model)

    def forward(self, batch: PackedBatch, *, temperature: float = 1.0, banned: Tensor | None = None) -> Tensor:
        """Returns the log-probability of every target token.

        Args:
            batch: One row of groups.
            temperature: Divides the logits, above 0; the sampling temperature in RL.
            banned: Ids that the sampler never draws, (K,); they leave the distribution. None in SFT.

        Returns:
            log p(target | everything it may see), (N,), float32, natural log, carries the gradient.
        """
        hidden = self.hidden_states(batch)
        return head.token_logprobs(
            hidden, self.base.lm_head.weight, batch.targets, temperature=temperature, banned=banned
        )

    def hidden_states(self, batch: PackedBatch) -> Tensor:
        """Returns the last hidden state that predicts each target, (N, D)."""
        model = self.base.model
        pictures: dict[str, Any] = {}
        beside: AbstractContextManager[None] = nullcontext()
        if batch.pixel_values is not None:
            pictures = {"pixel_values": batch.pixel_values, "image_grid_thw": batch.image_grid_thw}
        elif self.always_run_vision:
            beside = self._blank_picture()
        with beside:
            output = model(
                input_ids=batch.input_ids,
                **pictures,
                position_ids=batch.position_ids,
                attention_mask={"full_attention": batch.segments},
                use_cache=False,
            )
        hidden: Tensor = output.last_hidden_state[0, batch.sources]
        return hidden

    @contextmanager
    def _blank_picture(self) -> Iterator[None]:
        """Runs the tower on a blank picture between embeddings and language model, where a real one is looked at.

        All ranks must call the same modules in the same order: ZeRO-3 gathers weights by it, and ZeRO-2 adds up the
        gradients of several ranks by the order in which they were computed.
        """

        def add_nothing(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
            embeddings = named["inputs_embeds"]
            blank = self._blank_picture_features(embeddings.device)
            return inputs, named | {"inputs_embeds": embeddings + 0.0 * blank.sum().to(embeddings.dtype)}

        language = self.base.model.language_model
        hook = language.register_forward_pre_hook(add_nothing, with_kwargs=True, prepend=True)
        try:
            yield
        finally:
            hook.remove()

    def _blank_picture_features(self, device: torch.device) -> Tensor:
        vision = self.base.config.vision_config
        side = vision.spatial_merge_size
        patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.zeros(side * side, patch, device=device)
        grid = torch.tensor([[1, side, side]], device=device)
        return torch.cat(self.base.model.get_image_features(pixels, grid, return_dict=True).pooler_output)
