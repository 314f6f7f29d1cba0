# SPDX-License-Identifier: Apache-2.0
"""The policy: the only place that calls the backbone for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from medvlt.data.packing import PackedBatch
from medvlt.models import attention, head

if TYPE_CHECKING:
    from peft import PeftModel


class Policy(nn.Module):
    """A Qwen2.5-VL that turns packed rows into log-probabilities of their target tokens.

    The whole computation, output head included, is the `forward` of this module: under sharding its weights are then
    whole wherever they are used. SFT minimises the negated, weighted result; GRPO is a function of it.

    Args:
        backbone: The model, with or without LoRA adapters.
        always_run_vision: Run the vision tower on a blank picture with weight zero when a batch has none. Needed when
            gradients or shards are exchanged between ranks, as every rank must then use the same parameters in the
            same order; and where the tower is trained, so that one rank decays its weights as several do.
    """

    def __init__(
        self, backbone: Qwen2_5_VLForConditionalGeneration | PeftModel, *, always_run_vision: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.always_run_vision = always_run_vision
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
        inputs: dict[str, Any] = {"input_ids": batch.input_ids}
        if batch.pixel_values is not None:
            inputs |= {"pixel_values": batch.pixel_values, "image_grid_thw": batch.image_grid_thw}
        elif self.always_run_vision:
            # before the language model, as with a real picture: sharded ranks must gather parameters in one order
            blank = self._blank_picture_features(batch.input_ids.device)
            embeddings = model.get_input_embeddings()(batch.input_ids)
            inputs = {"inputs_embeds": embeddings + 0.0 * blank.sum().to(embeddings.dtype)}
        output = model(
            **inputs,
            position_ids=batch.position_ids,
            attention_mask={"full_attention": batch.segments},
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state[0, batch.sources]
        return hidden

    def _blank_picture_features(self, device: torch.device) -> Tensor:
        vision = self.base.config.vision_config
        side = vision.spatial_merge_size
        patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.zeros(side * side, patch, device=device)
        grid = torch.tensor([[1, side, side]], device=device)
        return torch.cat(self.base.model.get_image_features(pixels, grid, return_dict=True).pooler_output)
