# SPDX-License-Identifier: Apache-2.0
"""What probing costs beyond the engine: `medvlt predict` with store and ledger, against bare calls of the engine.

    python benchmarks/curation.py [--questions 512] [--n 16] [--max-tokens 64] [--batch-size 128] [--rounds 3]
                                  [--engines transformers vllm] [--hidden 128] [--layers 4]

Both ask one and the same engine for the same questions in the same batches with the same seeds, in turns.
Bare: `engine.generate` and nothing else. Probing: the Trainer, the data module, the store on disk (a shard per batch),
two graders, the ledger. A random model rarely ends, so completions have their full length. Half of the questions have a
picture. Probing is timed from the call of `Trainer.predict` to its end, with reading the questions, opening the store,
hashing the weights, and writing the ledger; the engine has been started before, as for the bare calls.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from callbacks import PassCountLedger, RolloutCallback
from callbacks.rollout import EVALUATION_ITERATION
from datamodules import BenchmarkDataModule
from lightning_modules import RolloutModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.models.loading import Backbone, load_backbone
from medvlt.models.policy import Policy
from medvlt.models.tiny import TinySize, build_tiny
from medvlt.rollout.base import RolloutEngine
from medvlt.rollout.transformers import TransformersEngine
from medvlt.rollout.vllm import VLLMEngine
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams


class Kept:
    """An engine that was started once and stays."""

    def __init__(self, engine: RolloutEngine, policy: Policy) -> None:
        self.engine, self.policy = engine, policy
        self.version = 0
        self.refused = engine.refused

    def start(self, encoder: PromptEncoder, policy: Policy | None) -> None:
        self.engine.start(encoder, self.policy)

    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        return self.engine.generate(samples, params, keys=keys)

    def identity(self) -> dict[str, Any]:
        return self.engine.identity()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], *, version: int) -> None:
        raise AssertionError("RolloutModule has no weights to send")

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


def probe(engine: Kept, data: BenchmarkDataModule, params: SamplingParams, folder: Path) -> float:
    """Seconds of the command, from the start of the Trainer's work on."""
    rollout = RolloutCallback(engine, sampling=params, seed=0, store=str(folder / "completions"))
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[rollout, PassCountLedger(str(folder / "ledger.parquet"), "probe")],
    )  # fmt: skip
    started = time.perf_counter()
    trainer.predict(RolloutModule(), data, return_predictions=False)
    return time.perf_counter() - started


def bare(engine: Kept, samples: Sequence[Sample], params: SamplingParams, batch_size: int) -> float:
    """Seconds of the engine alone."""
    started = time.perf_counter()
    for first in range(0, len(samples), batch_size):
        batch = [samples[index] for index in range(first, min(first + batch_size, len(samples)))]
        engine.generate(batch, params, keys=[RolloutKey(0, EVALUATION_ITERATION, sample.uid) for sample in batch])
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("questions", 512), ("n", 16), ("max-tokens", 64), ("batch-size", 128), ("rounds", 3), ("hidden", 128),
        ("layers", 4),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--engines", nargs="+", default=["transformers", "vllm"], choices=["transformers", "vllm"])
    args = parser.parse_args()
    params = SamplingParams(n=args.n, temperature=1.0, max_tokens=args.max_tokens)
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads; hidden {args.hidden}, "
          f"layers {args.layers}; {args.questions} questions x {args.n} completions of up to {args.max_tokens} tokens, "
          f"{args.batch_size} questions a batch, {args.rounds} rounds\n")  # fmt: skip
    print("| engine | bare | probing | ratio of the medians | ratios by round | beyond the engine, per completion |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        size = TinySize(
            hidden_size=args.hidden, intermediate_size=2 * args.hidden, layers=args.layers, initializer_range=0.1
        )
        model = build_tiny(Path(folder) / "model", size=size)
        encoder = PromptEncoder(str(model), template="plain")
        source = Phantom("train", args.questions)
        samples = source.load()
        for kind in args.engines:
            inner: RolloutEngine = (
                TransformersEngine(512) if kind == "transformers" else VLLMEngine(max_model_len=1024, max_images=1)
            )
            engine = Kept(inner, Policy(load_backbone(Backbone(str(model)))))
            engine.start(encoder, None)
            bare(engine, samples[: args.batch_size], params, args.batch_size)  # warm-up
            rows = []
            for number in range(args.rounds):
                data = BenchmarkDataModule(encoder, {"phantom": source}, batch_size=args.batch_size)
                place = Path(folder, f"{kind}-{number}")
                alone = 0.0
                if number % 2:  # in turns, as a machine gets slower or faster
                    alone = bare(engine, samples, params, args.batch_size)
                whole = probe(engine, data, params, place)
                alone = alone or bare(engine, samples, params, args.batch_size)
                rows.append((alone, whole))
            inner.close()
            alone, whole = (statistics.median(column) for column in zip(*rows, strict=True))
            ratios = ", ".join(f"{probing / bare_seconds:.3f}" for bare_seconds, probing in rows)
            each = 1e6 * (whole - alone) / (args.questions * args.n)
            print(f"| {kind} | {alone:.2f} s | {whole:.2f} s | {whole / alone:.3f} | {ratios} | {each:.0f} us |")


if __name__ == "__main__":
    main()
