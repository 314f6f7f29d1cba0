# SPDX-License-Identifier: Apache-2.0
"""One SFT step (forward and backward), packed against padded rows, full logits against the target-only chunked head.

    python benchmarks/sft_step.py [--vocabulary 151936] [--hidden 256] [--layers 4] [--samples 4] [--repeats 3]

The four variants do the same work on the same samples, in turns inside one process, so that their seconds can be
compared; the memory of each is measured in a process of its own: the peak during the step minus what weights and
gradients hold. Compare ratios, not seconds. `padded, full logits` is what the usual trainers run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from medvlt.data.encoder import PromptEncoder
from medvlt.data.packing import EncodedPrompt, Group, PackedBatch, pack
from medvlt.losses.sft import sft_loss
from medvlt.models.head import token_logprobs
from medvlt.models.loading import Backbone, load_backbone
from medvlt.models.policy import Policy
from medvlt.models.tiny import TinySize, build_tiny
from medvlt.rollout.transformers import left_pad
from medvlt.types import Sample

VARIANTS = ("padded, full logits", "padded, target-only head", "packed, full logits", "packed, target-only head")


@dataclass(frozen=True)
class Work:
    """The same samples, packed and padded."""

    policy: Policy
    packed: PackedBatch
    rows: list[EncodedPrompt]  # prompt and target together
    prompt_lengths: list[int]
    tokens: int


def make_samples(kind: str, count: int) -> list[tuple[Sample, int]]:
    """Questions with the lengths of medical ones: ragged prompts and targets; pictures of 336 x 252 pixels."""
    generator = np.random.default_rng(0)
    samples = []
    for number in range(count):
        words = int(generator.integers(60, 200)) if kind == "text" else int(generator.integers(15, 60))
        target = int(generator.integers(100, 500)) if kind == "text" else int(generator.integers(20, 160))
        question = " ".join(f"{w:x}" for w in generator.integers(0, 4096, words))
        pixels = generator.integers(0, 255, (252, 336, 3), dtype=np.uint8)
        images = () if kind == "text" else (Image.fromarray(pixels),)
        samples.append((Sample(str(number), question, {"A": "yes", "B": "no"}, "A", "yes", images), target))
    return samples


def prepare(kind: str, args: argparse.Namespace, folder: Path) -> Work:
    """Builds the model once and the batch in both layouts."""
    if not (folder / "config.json").exists():
        size = TinySize(hidden_size=args.hidden, intermediate_size=11 * args.hidden // 4, layers=args.layers,
                        vision_hidden_size=args.hidden // 2, vision_layers=args.layers)  # fmt: skip
        build_tiny(folder, size=size)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
        model.resize_token_embeddings(args.vocabulary)
        model.save_pretrained(folder)
    policy = Policy(load_backbone(Backbone(str(folder)))).to(args.device)
    encoder = PromptEncoder(str(folder))
    generator = torch.Generator().manual_seed(0)
    samples = make_samples(kind, args.samples)
    prompts = [encoder.encode(sample) for sample, _ in samples]
    targets = [torch.randint(0, 256, (length,), generator=generator) for _, length in samples]
    count = sum(map(len, targets))
    groups = [Group(prompt, [target], [1 / count]) for prompt, target in zip(prompts, targets, strict=True)]
    rows = []
    for prompt, target in zip(prompts, targets, strict=True):
        following = int(prompt.position_ids.max()) + 1 + torch.arange(len(target)).expand(3, -1)
        positions = torch.cat([prompt.position_ids, following], 1)
        ids = torch.cat([prompt.token_ids, target])
        rows.append(EncodedPrompt(ids, positions, prompt.pixel_values, prompt.image_grid_thw))
    batch = pack(groups)
    return Work(policy, batch.to(args.device), rows, [len(p.token_ids) for p in prompts], batch.input_ids.numel())


def step(work: Work, variant: str) -> Tensor:
    """One forward and backward; every variant returns the same loss."""
    policy, batch = work.policy, work.packed
    layout, head = variant.split(", ")
    if layout == "packed" and head == "target-only head":
        loss = sft_loss(policy(batch), batch.weights)
    elif layout == "packed":
        hidden = policy.base.model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False,
            attention_mask={"full_attention": batch.segments}, pixel_values=batch.pixel_values,
            image_grid_thw=batch.image_grid_thw,
        ).last_hidden_state  # fmt: skip
        logits = policy.base.lm_head(hidden)[0]
        loss = F.cross_entropy(logits[batch.sources].float(), batch.targets)
    else:
        device = batch.input_ids.device
        padded = left_pad(work.rows, 0).to(device)
        hidden = policy.base.model(
            input_ids=padded.input_ids, position_ids=padded.position_ids, attention_mask=padded.attention_mask,
            pixel_values=padded.pixel_values, image_grid_thw=padded.image_grid_thw, use_cache=False,
        ).last_hidden_state  # fmt: skip
        labels = torch.full_like(padded.input_ids, -100)
        for number, (row, prompt) in enumerate(zip(work.rows, work.prompt_lengths, strict=True)):
            length = len(row.token_ids) - prompt
            labels[number, -length:] = padded.input_ids[number, -length:]
        shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
        if head == "full logits":
            logits = policy.base.lm_head(hidden)
            loss = F.cross_entropy(logits.float().flatten(0, 1), shifted.flatten(), ignore_index=-100)
        else:
            chosen = shifted != -100
            loss = -token_logprobs(hidden[chosen], policy.base.lm_head.weight, shifted[chosen]).mean()
    loss.backward()
    if work.packed.input_ids.is_cuda:
        torch.cuda.synchronize()
    return loss.detach()


def seconds(work: Work, repeats: int) -> dict[str, float]:
    """Median seconds of each variant, run in turns after one warm-up each."""
    taken: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    losses = [step(work, variant) for variant in VARIANTS]
    torch.testing.assert_close(torch.stack(losses), losses[0].expand(len(losses)), rtol=1e-4, atol=1e-4)
    for _ in range(repeats):
        for variant in VARIANTS:
            started = time.perf_counter()
            step(work, variant)
            taken[variant].append(time.perf_counter() - started)
    return {variant: statistics.median(values) for variant, values in taken.items()}


def peak_mib(work: Work, variant: str) -> float:
    """Peak memory of a step beyond weights and gradients, MiB."""
    for parameter in work.policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if work.packed.input_ids.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(work, variant)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    step(work, variant)
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """A line of /proc/self/status, KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("vocabulary", 151_936), ("hidden", 256), ("layers", 4), ("samples", 4), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", nargs=2, metavar=("KIND", "VARIANT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(peak_mib(prepare(args.memory_of[0], args, args.folder), args.memory_of[1])))
        return
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads, {args.device}; "
          f"hidden {args.hidden}, layers {args.layers}, vocabulary {args.vocabulary:,}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("picture", "text"):
            work = prepare(kind, args, Path(folder))
            taken = seconds(work, args.repeats)
            tokens, targets = work.tokens, len(work.packed.targets)
            positions = len(work.rows) * max(len(row.token_ids) for row in work.rows)
            print(f"\n{kind}: {len(work.rows)} samples, {tokens:,} tokens ({targets:,} targets), {positions:,} padded")
            print("| variant | s | tokens/s | speed | peak MiB | memory |\n|---|---|---|---|---|---|")
            del work
            base: tuple[float, float] | None = None
            for variant in VARIANTS:
                command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder, "--memory-of", kind, variant]
                memory = float(
                    subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
                )
                base = base or (taken[variant], memory)
                print(f"| {variant} | {taken[variant]:.2f} | {tokens / taken[variant]:,.0f} | "
                      f"{base[0] / taken[variant]:.2f}x | {memory:,.0f} | {memory / base[1]:.2f}x |")  # fmt: skip


if __name__ == "__main__":
    main()
