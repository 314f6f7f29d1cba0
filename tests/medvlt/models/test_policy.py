# SPDX-License-Identifier: Apache-2.0
"""The packed forward against the Hugging Face forward of one sample per row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from medvlt.data.packing import EncodedPrompt, Group, PackedBatch, Segment, pack
from medvlt.models import head
from medvlt.models.loading import Backbone, LoRA, load_backbone
from medvlt.models.policy import Policy


def make_prompt(folder: Path, text: str, sizes: list[tuple[int, int]]) -> EncodedPrompt:
    """A prompt made with the library's own parts: its picture processor and its rope index."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    generator = np.random.default_rng(len(text))
    pictures = [Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    pixels = Qwen2VLImageProcessorPil.from_pretrained(folder)(images=pictures, return_tensors="pt") if sizes else None
    parts = []
    for index in range(len(sizes)):
        count = int(pixels["image_grid_thw"][index].prod()) // 4
        parts.append("<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>")
    ids = tokenizer("<|im_start|>user\n" + "".join(parts) + text + "<|im_end|>\n", return_tensors="pt")["input_ids"]
    grids = pixels["image_grid_thw"] if pixels else None
    types = (ids == model.config.image_token_id).int()
    positions, _ = model.model.get_rope_index(ids, types, grids)
    return EncodedPrompt(ids[0], positions[:, 0], pixels["pixel_values"] if pixels else None, grids)


@pytest.fixture(scope="module")
def prompts(tiny_folder: Path) -> list[EncodedPrompt]:
    return [
        make_prompt(tiny_folder, "Which side?", [(84, 56)]),
        make_prompt(tiny_folder, "A text question, rather longer than the others.", []),
        make_prompt(tiny_folder, "Compare the two.", [(56, 112), (140, 84)]),
        make_prompt(tiny_folder, "Short.", []),
    ]


def make_groups(prompts: list[EncodedPrompt], lengths: list[list[int]]) -> list[Group]:
    generator = torch.Generator().manual_seed(1)
    return [
        Group(
            prompt,
            [torch.randint(3, 250, (length,), generator=generator) for length in row],
            [float(torch.rand((), generator=generator)) - 0.3 for _ in row],
            uid=str(index),
        )
        for index, (prompt, row) in enumerate(zip(prompts, lengths, strict=True))
    ]


def plain_logprobs(model: torch.nn.Module, groups: list[Group]) -> Tensor:
    """One prompt and one completion per forward, full logits, log_softmax and gather: the definition."""
    rows = []
    for group in groups:
        for completion in group.completions:
            ids = torch.cat([group.prompt.token_ids, completion])[None]
            types = (ids == model.config.image_token_id).int()
            positions, _ = model.model.get_rope_index(ids, types, group.prompt.image_grid_thw)
            logits = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                position_ids=positions,
                pixel_values=group.prompt.pixel_values,
                image_grid_thw=group.prompt.image_grid_thw,
                use_cache=False,
            ).logits[0]
            begin = len(group.prompt.token_ids) - 1
            logprobs = logits[begin:-1].log_softmax(-1)
            rows.append(logprobs.gather(-1, completion[:, None])[:, 0])
    return torch.cat(rows)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], relative: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    scale = torch.cat([g.flatten() for g in theirs.values()]).norm()
    for name, gradient in theirs.items():
        error = (ours[name] - gradient).norm()
        # a gradient that all but cancels (key biases) is measured against the whole gradient
        assert error <= relative * max(gradient.norm(), 1e-2 * scale), (name, float(error), float(gradient.norm()))


CASES: dict[str, list[list[int]]] = {
    "ragged groups": [[7, 1, 20, 3], [5, 9], [9, 31, 1, 17], [2, 2, 2]],
    "groups of one": [[4], [13], [1], [6]],
    "mixed": [[3], [6, 2, 8], [11], [1, 1]],
}


def spread_norms_and_biases(model: torch.nn.Module) -> None:
    """A fresh model has zero biases and unit norms, behind which mistakes could hide."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def load(tiny_folder: Path) -> Callable[..., Policy]:
    def build(**settings: object) -> Policy:
        torch.manual_seed(0)
        model = load_backbone(Backbone(str(tiny_folder), **settings))
        spread_norms_and_biases(model)
        return Policy(model)

    return build


def plain_copy(policy: Policy, folder: Path) -> torch.nn.Module:
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).train()
    spread_norms_and_biases(plain)
    assert plain.config._attn_implementation == "sdpa"
    torch.testing.assert_close(plain.state_dict(), policy.base.state_dict(), rtol=0, atol=0)
    return plain


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_packed_equals_plain(
    case: str, checkpointing: bool, prompts: list[EncodedPrompt], load: Callable[..., Policy], tiny_folder: Path
) -> None:
    groups = make_groups(prompts, CASES[case])
    policy = load(gradient_checkpointing=checkpointing)
    plain = plain_copy(policy, tiny_folder)
    batch = pack(groups)

    ours = policy(batch)
    theirs = plain_logprobs(plain, groups)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    # a non-linear loss, so that a wrong value shows in every gradient
    (batch.weights * (ours + 0.1 * ours.square())).sum().backward()
    (batch.weights * (theirs + 0.1 * theirs.square())).sum().backward()
    assert_same_gradients(gradients(policy.base), gradients(plain))
    assert any("visual" in name for name in gradients(plain))


@pytest.mark.parametrize("case", CASES)
def test_autocast(case: str, prompts: list[EncodedPrompt], load: Callable[..., Policy], tiny_folder: Path) -> None:
    """Under bf16-mixed every layout runs, and is as near to float32 as the plain forward is."""
    groups = make_groups(prompts, CASES[case])
    policy = load()
    plain = plain_copy(policy, tiny_folder)
    exact = policy(pack(groups)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        ours = policy(pack(groups))
        theirs = plain_logprobs(plain, groups).detach()
    ours.sum().backward()
    assert ours.dtype == torch.float32
    error, plain_error = (float((values.detach() - exact).abs().mean()) for values in (ours, theirs))
    assert error < 1.5 * plain_error < 0.1


def test_half_precision_weights_give_float32_logprobs(tiny_folder: Path, prompts: list[EncodedPrompt]) -> None:
    policy = Policy(load_backbone(Backbone(str(tiny_folder), dtype="bfloat16")))
    logprobs = policy(pack(make_groups(prompts, CASES["mixed"])))
    assert logprobs.dtype == torch.float32
    assert (logprobs != logprobs.bfloat16().float()).any()  # not merely cast from a rounded value


def test_lora_equals_plain(prompts: list[EncodedPrompt], load: Callable[..., Policy], tiny_folder: Path) -> None:
    lora = LoRA(rank=4, alpha=8, components=("vision", "projector", "language"))
    policy = load(lora=lora, gradient_checkpointing=True)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:  # zero at first, which would hide A from the result
                parameter.normal_(std=0.1)
    groups = make_groups(prompts, CASES["mixed"])
    batch = pack(groups)
    (batch.weights * policy(batch)).sum().backward()
    ours = gradients(policy)
    assert ours
    assert all("lora_" in name for name in ours)
    for component in ("visual.blocks", "visual.merger", "language_model.layers"):
        assert any(component in name for name in ours), component

    policy.zero_grad()
    policy.base.set_attn_implementation({"text_config": "sdpa"})
    theirs = plain_logprobs(policy.base, groups)
    (batch.weights * theirs).sum().backward()
    assert_same_gradients(ours, gradients(policy))


def test_wrong_layouts_are_noticed(
    prompts: list[EncodedPrompt], load: Callable[..., Policy], tiny_folder: Path
) -> None:
    """The comparison above is sharp enough to see each mistake that a packed row can have."""
    groups = make_groups(prompts, CASES["ragged groups"])
    policy = load()
    right = policy(pack(groups))
    batch = pack(groups)

    def error(wrong: PackedBatch) -> float:
        return float((policy(wrong) - right).detach().abs().max())

    cut_off = tuple(segment._replace(prompt=None) for segment in batch.segments)
    running_on = batch.position_ids.clone()
    running_on[:, 0] = torch.arange(running_on.shape[-1])
    assert error(replace(batch, segments=cut_off)) > 1e-2
    assert error(replace(batch, segments=(Segment(0, batch.input_ids.shape[1]),))) > 1e-2
    assert error(replace(batch, position_ids=running_on)) > 1e-3
    assert error(replace(batch, pixel_values=batch.pixel_values.flip(0))) > 1e-3


def test_temperature(prompts: list[EncodedPrompt], load: Callable[..., Policy], tiny_folder: Path) -> None:
    groups = make_groups(prompts[1:2], [[5, 3]])
    policy = load()
    hidden = policy.hidden_states(pack(groups))
    logits = hidden @ policy.base.lm_head.weight.T
    targets = pack(groups).targets
    expected = (logits / 0.7).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(policy(pack(groups), temperature=0.7), expected, rtol=1e-5, atol=1e-5)


def test_text_only_batches_can_touch_the_vision_tower(
    prompts: list[EncodedPrompt], load: Callable[..., Policy]
) -> None:
    """Every rank must use the same parameters; the blank picture has weight zero and changes nothing."""
    policy = load()
    batch = pack(make_groups(prompts[1:2], [[5]]))
    without = policy(batch)
    policy.always_run_vision = True
    with_blank = policy(batch)
    torch.testing.assert_close(with_blank, without, rtol=0, atol=0)
    with_blank.sum().backward()
    vision = {name: g for name, g in gradients(policy.base).items() if "visual" in name}
    assert len(vision) == sum("visual" in name for name, _ in policy.base.named_parameters())
    assert all((gradient == 0).all() for gradient in vision.values())


@pytest.mark.parametrize("banned", [None, torch.arange(500, 540)])
def test_chunked_head_equals_fused_head_and_full_logits(banned: Tensor | None) -> None:
    """torch before 2.13 has no fused head; both paths are tested wherever this runs."""
    torch.manual_seed(0)
    hidden = torch.randn(300, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1000, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 500, (300,))

    def run(function: Callable[..., Tensor]) -> list[Tensor]:
        result = function(hidden, weight, targets, temperature=1.3, banned=banned)
        return [result, *torch.autograd.grad((result * torch.linspace(-1, 1, 300)).sum(), [hidden, weight])]

    def full(hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float, banned: Tensor | None) -> Tensor:
        logits = hidden @ weight.T / temperature
        if banned is not None:
            logits[:, banned] = -torch.inf
        return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0].float()

    for function in (head.token_logprobs, head.chunked_token_logprobs):
        for ours, expected in zip(run(function), run(full), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
