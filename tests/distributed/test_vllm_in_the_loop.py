# SPDX-License-Identifier: Apache-2.0
"""vLLM in the loop of two processes (gloo) against one: GRPO under each strategy, and evaluation with a shared engine.

Everything runs in the same two processes, one after the other, as starting them is what takes time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_strategies import HAS_DEEPSPEED, Kind, needs_deepspeed, spawn, strategy
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from callbacks import CompletionLogger, EvaluationRecorder, PassCountLedger, RolloutCallback, VLLMRolloutCallback
from datamodules import BenchmarkDataModule, PromptDataModule
from lightning_modules import GRPOModule, RolloutModule
from medvlt.curation.ledger import Ledger
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.distributed import gather, world
from medvlt.errors import ConfigurationError, EngineError
from medvlt.evaluation.runs import read_run
from medvlt.models.loading import Backbone
from medvlt.models.optimization import Optimization
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.rollout.vllm import VLLMEngine
from medvlt.types import Completion, RolloutGroup, RolloutKey, Sample, SamplingParams, Verdict

STRATEGIES: tuple[Kind, ...] = ("ddp", "fsdp2", *(("zero2",) if HAS_DEEPSPEED else ()))
SMALL: dict[str, Any] = {"max_model_len": 512, "max_images": 2, "max_num_seqs": 16, "kv_cache_gib": 0.125}
QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False,
}  # fmt: skip


class Recorder(Callback):
    """Losses, norms of the gradients, and which micro-batches of this rank have pictures."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.pictures: list[bool] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None])
        self.norms.append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.pictures.append(args[1].packed.pixel_values is not None)
        engine: Any = trainer.model
        if hasattr(engine, "get_global_grad_norm"):  # DeepSpeed keeps the gradients to itself
            self.norms = [*self.norms[: len(self.losses) - 1], float(engine.get_global_grad_norm())]


class Parity:
    """A reward that a random model earns half of the time."""

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        return float(sum(completion.token_ids[:3]) % 2)


def train(folder: Path, output: Path, kind: Kind, ranks: int) -> dict[str, Any]:
    """Two iterations of eight prompts and two optimizer steps."""
    recorder = Recorder()
    rollout = VLLMRolloutCallback(VLLMEngine(**SMALL), group_sampling=SamplingParams(n=3, max_tokens=10), seed=1)
    trainer = Trainer(
        devices=ranks, strategy=strategy(kind, ranks), max_epochs=2, limit_val_batches=0, default_root_dir=output,
        callbacks=[recorder, rollout, CompletionLogger()], **QUIET,
    )  # fmt: skip
    module = GRPOModule(
        Backbone(str(folder)), Optimization(learning_rate=1e-3), rewards={"parity": Parity()}, kl_coef=0.1
    )
    data = PromptDataModule(
        Phantom("train", 20, seed=1), PromptEncoder(str(folder), template="plain"), prompts_per_iteration=8,
        updates_per_iteration=2,
    )  # fmt: skip
    trainer.fit(module, data)
    iteration = data.buffer.iteration
    assert iteration is not None
    return {
        "losses": recorder.losses,
        "norms": recorder.norms,
        "pictures": recorder.pictures,
        "token_ids": [c.token_ids for group in iteration.groups for c in group.group.completions],
        "versions": [c.version for group in iteration.groups for c in group.group.completions],
    }


def evaluate(folder: Path, output: Path, engine: Any, how: str, ranks: int, **settings: Any) -> dict[str, Any]:
    """Asks five questions and one; with two ranks one of them has nothing to ask in the last round of each."""
    benchmarks = {"five": Phantom("test", 5), "one": Phantom("test", 1, modality="picture")}
    data = BenchmarkDataModule(PromptEncoder(str(folder), template="plain"), benchmarks, batch_size=1)
    rollout = RolloutCallback(engine, SamplingParams(n=2, max_tokens=12), seed=3, **settings)
    callbacks: list[Callback] = [rollout, EvaluationRecorder()]
    if how == "predict":
        callbacks.append(PassCountLedger(str(output / "ledger.parquet"), "tiny", max_failed_share=1.0))
    trainer = Trainer(
        devices=ranks, strategy=strategy("ddp" if ranks > 1 else "single"), callbacks=callbacks,
        default_root_dir=output, **QUIET,
    )  # fmt: skip
    if how == "predict":
        trainer.predict(RolloutModule(), data)
        return {}
    trainer.validate(RolloutModule(), data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class Shared(ScriptedEngine):
    """Exchanges something between ranks whenever it is asked, as an engine on several ranks does.

    Fails on one of them the first time that rank has nothing to ask.
    """

    def __init__(self) -> None:
        super().__init__(["<think> x </think>\n<answer> A </answer>", "B", "C"])
        self.asked: list[str] = []
        self.calls: list[int] = []
        self.failed = False

    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        counts = gather(len(samples))
        if 0 in counts and not self.failed:
            self.failed = True
            if not samples:
                raise EngineError("the engine died")
            return super().generate(samples, params, keys=keys)
        self.calls = [*self.calls, sum(counts)]
        self.asked += [f"{key.uid} {key.first + number}" for key in keys for number in range(params.n)]
        return super().generate(samples, params, keys=keys)


def work(rank: int, folder: Path, output: Path) -> None:
    found: dict[str, Any] = {}
    scripted, again = Shared(), Shared()
    store = {"store": str(output / "store")}
    evaluate(folder, output / "scripted", scripted, "predict", 2, **store)
    for shard in sorted((output / "store").glob("*.parquet"))[:2] if rank == 0 else []:
        shard.unlink()
    gather(None)
    evaluate(folder, output / "again", again, "predict", 2, **store)
    found["scripted"] = {"asked": scripted.asked, "calls": scripted.calls, "failed": scripted.failed}
    found["again"] = {"asked": again.asked, "calls": again.calls}
    try:
        VLLMEngine("/nowhere" if rank else None).start(PromptEncoder(str(folder), template="plain"), None)
    except ConfigurationError as error:
        found["start"] = str(error)
    for kind in STRATEGIES:
        found[kind] = train(folder, output / kind, kind, 2)
    found["validate"] = evaluate(folder, output / "shared", VLLMEngine(**SMALL, tensor_parallel_size=2), "validate", 2)
    assert world() == (2, rank)
    torch.save(found, output / f"{rank}.pt")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(tiny_folder: Path, output: Path) -> Iterator[list[dict[str, Any]]]:
    pytest.importorskip("vllm", reason="vLLM is not installed", exc_type=ImportError)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)  # kv_cache_gib is set
        spawn(work, tiny_folder, output)
        yield [torch.load(output / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone(ranks: list[dict[str, Any]], tiny_folder: Path, output: Path) -> dict[str, Any]:
    return train(tiny_folder, output / "alone", "single", 1)


@pytest.mark.slow
@pytest.mark.vllm
class TestTwoRanks:
    @pytest.mark.parametrize("kind", ["ddp", "fsdp2", pytest.param("zero2", marks=needs_deepspeed)])
    def test_grpo_equals_one_process(self, kind: str, ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
        one, other = (rank[kind] for rank in ranks)
        assert any(has != others for has, others in zip(one["pictures"], other["pictures"], strict=True))
        assert len(alone["losses"]) == 4
        assert min(alone["norms"]) > 0
        for rank in (one, other):
            assert rank["token_ids"] == alone["token_ids"]
            assert rank["versions"] == alone["versions"] == [2] * 24
            assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4, abs=1e-6)
            assert rank["norms"] == pytest.approx(alone["norms"], rel=1e-4)

    def test_a_shared_engine_gives_the_verdicts_of_one_process(
        self, ranks: list[dict[str, Any]], alone: dict[str, Any], tiny_folder: Path, output: Path
    ) -> None:
        metrics = evaluate(tiny_folder, output / "single", VLLMEngine(**SMALL), "validate", 1)
        assert metrics["val/five/questions"] == 5
        assert metrics["val/one/questions"] == 1
        for rank in ranks:
            assert rank["validate"] == pytest.approx(metrics)
        runs = [read_run(output / name) for name in ("shared", "single")]
        assert runs[0].about["completions"] == runs[1].about["completions"]  # byte for byte
        assert runs[0].about["completions"]["lines"] == 12

    def test_an_engine_that_cannot_start_keeps_nobody_waiting(self, ranks: list[dict[str, Any]]) -> None:
        assert "'/nowhere'" in ranks[1]["start"]
        assert ranks[0]["start"] == f"rank 1: {ranks[1]['start']}"

    def test_every_rank_enters_every_call(self, ranks: list[dict[str, Any]], tiny_folder: Path, output: Path) -> None:
        """Also where the store has the answers of one rank, and where one has no question; an engine may fail there."""
        first, second = ([rank[run] for rank in ranks] for run in ("scripted", "again"))
        assert [rank["calls"] for rank in first] == [first[0]["calls"]] * 2
        assert [rank["calls"] for rank in second] == [second[0]["calls"]] * 2
        assert all(rank["failed"] for rank in first)
        asked = sorted(name for rank in first for name in rank["asked"])
        assert len(asked) == len(set(asked)) == 12
        later = sorted(name for rank in second for name in rank["asked"])
        assert len(later) == len(set(later)) == 4  # two shards of one question each
        assert set(later) < set(asked)
        evaluate(tiny_folder, output / "single_scripted", Shared(), "predict", 1)
        expected = Ledger.read(output / "single_scripted" / "ledger.parquet").column("tiny/strict")
        for run in ("scripted", "again"):
            assert Ledger.read(output / run / "ledger.parquet").column("tiny/strict") == expected
