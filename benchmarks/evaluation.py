# SPDX-License-Identifier: Apache-2.0
"""What evaluating costs beyond the engine: `medvlt validate` with store and run folder, against bare calls of it.

    python benchmarks/evaluation.py [--questions 512] [--n 1] [--max-tokens 128] [--batch-size 256] [--rounds 5]
                                    [--engine vllm] [--hidden 128] [--layers 4] [--profile]

Both ask one and the same engine for the same questions in the same batches, greedily, in turns. `--n 3` is the paper's
protocol: three decodings of each question, for the bare engine three calls per batch.
Bare: `engine.generate` and nothing else. Evaluating: the Trainer, the data module, the store on disk (a shard per
call), the grader, the metrics, the table, and the run folder with its thumbnails. A random model rarely ends, so
completions have their full length. Half of the questions have a picture; all are drawn before, as part of neither.
Evaluating is timed from the call of `Trainer.validate` to its end, with hashing the weights and writing the
run; the engine has been started before, as for the bare calls.

"Outside" is the time of evaluating in which no call of the engine was under way, in percent of the time in which one
was: on a machine that is not quiet it says more than the ratio. `--profile` says where it goes, in a further round that
counts for nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import io
import platform
import pstats
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from curation import Kept
from lightning.pytorch import Trainer

from callbacks import EvaluationRecorder, ResultsTable, RolloutCallback
from callbacks.rollout import EVALUATION_ITERATION
from datamodules import BenchmarkDataModule
from lightning_modules import RolloutModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.data.samples import SampleSet, Source
from medvlt.evaluation.runs import read_run
from medvlt.models.loading import Backbone, load_backbone
from medvlt.models.policy import Policy
from medvlt.models.tiny import TinySize, build_tiny
from medvlt.rollout.base import RolloutEngine
from medvlt.rollout.transformers import TransformersEngine
from medvlt.rollout.vllm import VLLMEngine
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams

SHOWN = 30
"""Lines of a profile."""

PROFILED = r"/(callbacks|datamodules|lightning_modules|medvlt/(data|evaluation|rewards|metrics|rollout/store.*))"
"""Files whose functions a profile shows."""


@dataclass(frozen=True)
class Drawn(Source):
    """Questions that are there already."""

    samples: SampleSet

    def load(self) -> SampleSet:
        return self.samples


class Timed(Kept):
    """An engine that knows how long it was asked."""

    seconds = 0.0

    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        started = time.perf_counter()
        groups = super().generate(samples, params, keys=keys)
        self.seconds += time.perf_counter() - started
        return groups


def evaluate(engine: Timed, data: BenchmarkDataModule, params: SamplingParams, folder: Path) -> tuple[float, float]:
    """Seconds of the command, from the start of the Trainer's work on, and how many of them in the engine."""
    rollout = RolloutCallback(engine, sampling=params, seed=0, store=True)
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[ResultsTable(), EvaluationRecorder(), rollout],
    )  # fmt: skip
    engine.seconds = 0.0
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # the table
        trainer.validate(RolloutModule(), data, verbose=False)
    return time.perf_counter() - started, engine.seconds


def bare(engine: Kept, samples: Sequence[Sample], params: SamplingParams, batch_size: int) -> float:
    """Seconds of the engine alone; greedy repeats are calls of their own, as in the callback."""
    started = time.perf_counter()
    once = replace(params, n=1)
    for first in range(0, len(samples), batch_size):
        batch = [samples[index] for index in range(first, min(first + batch_size, len(samples)))]
        for number in range(params.n):
            keys = [RolloutKey(0, EVALUATION_ITERATION, sample.uid, number) for sample in batch]
            engine.generate(batch, once, keys=keys)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("questions", 512), ("n", 1), ("max-tokens", 128), ("batch-size", 256), ("rounds", 5), ("hidden", 128),
        ("layers", 4),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--engine", default="vllm", choices=["transformers", "vllm"])
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    params = SamplingParams(n=args.n, temperature=0.0, max_tokens=args.max_tokens)
    with tempfile.TemporaryDirectory() as folder:
        size = TinySize(
            hidden_size=args.hidden, intermediate_size=2 * args.hidden, layers=args.layers, initializer_range=0.1
        )
        model = build_tiny(Path(folder) / "model", size=size)
        encoder = PromptEncoder(str(model), template="plain")
        drawn = list(Phantom("test", args.questions).load())
        samples = SampleSet(drawn, uids=[sample.uid for sample in drawn])
        inner: RolloutEngine = (
            TransformersEngine(512) if args.engine == "transformers" else VLLMEngine(max_model_len=1024, max_images=1)
        )
        engine = Timed(inner, Policy(load_backbone(Backbone(str(model)))))
        engine.start(encoder, None)

        def whole(place: str) -> tuple[float, float]:
            data = BenchmarkDataModule(encoder, {"phantom": Drawn(samples)}, batch_size=args.batch_size)
            return evaluate(engine, data, params, Path(folder, place))

        # the first evaluation also imports what it needs, once per process
        bare(engine, samples[: args.batch_size], params, args.batch_size)
        whole("warm-up")
        rows = []
        for number in range(args.rounds):
            alone = 0.0
            if number % 2:  # in turns, as a machine gets slower or faster
                alone = bare(engine, samples, params, args.batch_size)
            seconds, inside = whole(f"run-{number}")
            alone = alone or bare(engine, samples, params, args.batch_size)
            rows.append((alone, seconds, 100 * (seconds - inside) / inside))
        tokens = int(read_run(Path(folder, "run-0")).benchmarks["phantom"].tokens.sum())
        if args.profile:
            profile = cProfile.Profile()
            profile.runcall(whole, "profile")
            pstats.Stats(profile).sort_stats("cumulative").print_stats(PROFILED, SHOWN)
        inner.close()
    alone, seconds, outside = (statistics.median(column) for column in zip(*rows, strict=True))
    ratios = ", ".join(f"{evaluating / bare_seconds:.3f}" for bare_seconds, evaluating, _ in rows)
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads; hidden {args.hidden}, "
          f"layers {args.layers}; {args.questions} questions, {args.n} greedy decodings of up to {args.max_tokens} "
          f"tokens, {args.batch_size} questions a batch, {args.rounds} rounds\n")  # fmt: skip
    print("| engine | tokens | bare | evaluating | ratio of the medians | ratios by round | outside, median |")
    print("|---|---|---|---|---|---|---|")
    print(f"| {args.engine} | {tokens:,} | {alone:.2f} s | {seconds:.2f} s | {seconds / alone:.3f} | {ratios} | "
          f"{outside:.1f}% |")  # fmt: skip


if __name__ == "__main__":
    main()
