# SPDX-License-Identifier: Apache-2.0
"""From a question to what the model and the engine see: token ids, M-RoPE positions, pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from medvlt.data.decode import image_size
from medvlt.data.images import ImageLimits, prepare_image, target_size
from medvlt.data.packing import EncodedPrompt
from medvlt.data.prompts import PromptTemplate, chat_messages
from medvlt.errors import ConfigurationError, DataError
from medvlt.types import Sample


@dataclass(frozen=True)
class PromptEncoder:
    """Turns samples into prompts, the same way for the trainer and for every engine.

    Pictures are resized once, here, to the size the model sees; nothing downstream resizes them again. There are two
    token tracks: `engine_token_ids` has one placeholder per picture and goes to an engine that expands it; `encode`
    has one placeholder per visual token and goes to the forward.

    Attributes:
        model: Folder or Hub name that holds the tokenizer and the picture settings; the backbone's. May be left out
            where an endpoint answers, which has a tokenizer of its own.
        template: Wording of the prompt: a `PromptTemplate`, or the name of one (see `PromptTemplate.named`).
        images: Pixel budget of each picture.
        revision: Branch, tag or commit on the Hub.
    """

    model: str = ""
    template: PromptTemplate | str = "clean"
    images: ImageLimits = ImageLimits()  # noqa: RUF009 - frozen, so shared safely
    revision: str | None = None

    @cached_property
    def wording(self) -> PromptTemplate:
        """The template itself."""
        return PromptTemplate.named(self.template) if isinstance(self.template, str) else self.template

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model folder."""
        if not self.model:
            raise ConfigurationError(
                "encoder.model is empty, and its tokenizer is needed here (only OpenAIEngine can do without); give the "
                "folder or Hub name of the backbone"
            )
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.model, revision=self.revision, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"encoder.model={self.model!r} has no tokenizer that can be loaded; give the folder or Hub name of the "
                f"backbone. ({error})"
            ) from error
        return tokenizer

    @cached_property
    def image_processor(self) -> Qwen2VLImageProcessorPil:
        """The Pillow and numpy picture processor with the folder's mean, deviation and patch sizes."""
        try:
            return Qwen2VLImageProcessorPil.from_pretrained(self.model, revision=self.revision)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"encoder.model={self.model!r} has no preprocessor_config.json that can be loaded; give the folder or "
                f"Hub name of the backbone. ({error})"
            ) from error

    @cached_property
    def image_token_id(self) -> int:
        """Token that stands for one visual token."""
        token: int = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        return token

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """Texts that the tokenizer turns into control tokens; they must not occur in a question."""
        added = self.tokenizer.added_tokens_decoder.values()
        return tuple(token.content for token in added if token.special)

    @cached_property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: the end of a turn first, then the end of a text."""
        ids = [self.tokenizer.eos_token_id, self.tokenizer.pad_token_id]
        return tuple(dict.fromkeys(token for token in ids if token is not None))

    @cached_property
    def banned_token_ids(self) -> tuple[int, ...]:
        """Tokens that must never be sampled: all control tokens that do not end a completion."""
        added = {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return tuple(sorted(added - set(self.end_token_ids)))

    def unsampled_token_ids(self, vocab_size: int) -> list[int]:
        """Returns all ids that no engine may sample: control tokens, and the padding of the embedding.

        Args:
            vocab_size: Rows of the output embedding, more than the tokenizer has tokens.
        """
        return [*self.banned_token_ids, *range(len(self.tokenizer), vocab_size)]

    def check_text(self, sample: Sample) -> None:
        """Refuses texts that would be read as control tokens and break the turn or the pictures' placeholders.

        Raises:
            DataError: Naming the question and the token.
        """
        for text in (sample.question, *sample.options.values(), sample.reasoning or ""):
            for token in self.special_tokens:
                if token in text:
                    raise DataError(f"question {sample.uid}: its text contains the control token {token}; remove it")

    def engine_token_ids(self, sample: Sample) -> list[int]:
        """Returns the prompt tokens with one placeholder per picture."""
        text = self.tokenizer.apply_chat_template(
            chat_messages(self.wording, sample), tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def image_grids(self, sample: Sample) -> list[tuple[int, int, int]]:
        """Returns the patches (time, height, width) of each picture, from the picture's header alone."""
        patch = self.image_processor.patch_size
        sizes = [target_size(*image_size(picture), self.images) for picture in sample.images]
        return [(1, height // patch, width // patch) for width, height in sizes]

    def expand(self, token_ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> Tensor:
        """Returns the prompt tokens with one placeholder per visual token, (P,).

        Raises:
            DataError: If the number of placeholders is not the number of pictures.
        """
        if token_ids.count(self.image_token_id) != len(grids):
            raise DataError(
                f"the prompt has {token_ids.count(self.image_token_id)} picture placeholders and {len(grids)} "
                "pictures; check that the chat template renders them and the question has no placeholder of its own"
            )
        merged = self.image_processor.merge_size**2
        counts = iter(time * height * width // merged for time, height, width in grids)
        expanded: list[int] = []
        for token in token_ids:
            expanded += [token] * (next(counts) if token == self.image_token_id else 1)
        return torch.tensor(expanded)

    def prompt_length(self, sample: Sample) -> int:
        """Returns the tokens of the prompt, visual tokens included, without decoding a picture."""
        return len(self.expand(self.engine_token_ids(sample), self.image_grids(sample)))

    def pictures(self, sample: Sample) -> list[Image.Image]:
        """Returns the decoded pictures at the size the model sees."""
        return [prepare_image(picture, self.images) for picture in sample.images]

    def encode(self, sample: Sample) -> EncodedPrompt:
        """Returns the whole prompt: expanded tokens, positions, pixels.

        Raises:
            DataError: If a text contains control tokens or a picture cannot be read.
        """
        self.check_text(sample)
        grids = self.image_grids(sample)
        token_ids = self.expand(self.engine_token_ids(sample), grids)
        positions = mrope_positions(token_ids, grids, self.image_token_id, self.image_processor.merge_size)
        if not sample.images:
            return EncodedPrompt(token_ids, positions)
        pixels = self.image_processor(
            images=self.pictures(sample),
            size={"shortest_edge": self.images.min_pixels, "longest_edge": self.images.max_pixels},  # areas, in fact
            return_tensors="pt",
        )
        if pixels["image_grid_thw"].tolist() != [list(grid) for grid in grids]:
            raise DataError(f"question {sample.uid}: the picture processor resized a picture that was already resized")
        return EncodedPrompt(token_ids, positions, pixels["pixel_values"], pixels["image_grid_thw"])

    def encode_target(self, sample: Sample) -> Tensor:
        """Returns the tokens that SFT teaches: reasoning, answer and the end of the turn, (T,)."""
        text = self.wording.target_text(sample) + self.tokenizer.decode([self.end_token_ids[0]])
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def mrope_positions(
    token_ids: Tensor, grids: Sequence[tuple[int, int, int]], image_token_id: int, merge_size: int
) -> Tensor:
    """Returns the M-RoPE positions of a prompt (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Text counts up on all three axes. A picture starts at the next position p: its tokens have time p, height p + row
    and width p + column, and the text after it goes on at p + max(rows, columns). Equal to transformers'
    `get_rope_index` (tested), which needs a loaded model.

    Args:
        token_ids: Expanded prompt, (P,).
        grids: Patches of each picture (time, height, width).
        image_token_id: The placeholder.
        merge_size: Patches per visual token along each side.

    Returns:
        Positions on (time, height, width), (3, P).
    """
    is_image = token_ids == image_token_id
    pieces: list[Tensor] = []
    at, start = 0, 0
    for time, height, width in grids:
        rows, columns = height // merge_size, width // merge_size
        begin = at + int(is_image[at:].int().argmax())
        pieces.append((torch.arange(begin - at) + start).expand(3, -1))
        start += begin - at
        t, h, w = torch.meshgrid(torch.arange(time), torch.arange(rows), torch.arange(columns), indexing="ij")
        pieces.append(torch.stack([t.flatten(), h.flatten(), w.flatten()]) + start)
        at = begin + time * rows * columns
        start += max(rows, columns)
    pieces.append((torch.arange(len(token_ids) - at) + start).expand(3, -1))
    return torch.cat(pieces, dim=1)
