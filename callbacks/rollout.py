# SPDX-License-Identifier: Apache-2.0
"""Completions for the batches that need them, in evaluation and in training."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks.checkpoints import save_before_end
from callbacks.phases import Phases, phase_metrics
from callbacks.rollout_settings import (
    check_equal_batches,
    check_rollout_settings,
    prompt_encoder,
    rollout_identity,
    trained_prompts,
)
from medvlt.data.batches import PromptBatch
from medvlt.distributed import gather, interleave, naming_lost_ranks, together, world
from medvlt.errors import ConfigurationError, DataError, EngineError, LostRankError, MedvltError
from medvlt.metrics.rollouts import discarded_statistics
from medvlt.models.sharding import as_policy
from medvlt.rollout.base import RolloutEngine
from medvlt.rollout.iteration import Iteration, ScoredGroup
from medvlt.rollout.parity import ParityGate, check, choose_samples
from medvlt.rollout.repeats import engine_calls, joined
from medvlt.rollout.store import CompletionStore, storable
from medvlt.rollout.store_identity import prompt_digest
from medvlt.rollout.transformers import TransformersEngine
from medvlt.rollout.vllm import VLLMEngine
from medvlt.rollout.weights import hub_weights
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

EVALUATION_ITERATION = -1
"""The iteration in the rollout keys of evaluation, so that its samples never coincide with those of training."""

PARITY_ITERATION = -2
"""The iteration in the rollout keys of the parity gate."""


class RolloutCallback(Callback):
    """Samples completions: a group per prompt in training, and what a validation, test or predict batch asks for.

    In training one epoch is one iteration. At its start the callback takes the next prompts from the data module, sends
    the weights to the engine if the policy has moved, samples, has the module score the groups, and hands them to the
    data module. Every completion carries the version of its weights, the number of optimizer steps before it.

    Before the first iteration, and after every resume, engine and trainer are compared on real prompts; if they
    disagree, the run stops and says where. An engine that fails to take weights or to sample is started again once with
    the present weights; if it fails again, the run stops, in an iteration or a validation of `fit` with a checkpoint.
    All ranks sample together, also one that has nothing to ask: ranks may share an engine, and start it together.

    Hooks used: `setup`, `on_train_start`, `on_train_epoch_start`, `on_train_epoch_end`,
    `on_{validation,test,predict}_start`, `on_{validation,test,predict}_batch_start`,
    `on_{validation,test,predict}_end`, `on_load_checkpoint`, `teardown`, `on_exception`.
    Logs, per iteration: `seconds/{generate,sync,score,update,validate,iteration}` and the `share/` of each in the
    iteration, `tokens_per_second` of generation over all ranks, and with resampling `resampling/rounds`,
    `resampling/discarded_all_right`, `resampling/discarded_all_wrong`, `resampling/discarded_other`, in groups.

    Args:
        engine: What samples; None for `default_engine`, here `TransformersEngine`, the live policy itself.
        sampling: How completions are drawn in evaluation; the default is greedy, one completion, 4,096 tokens, as in
            the reference. n greedy completions are decoded n times, each in a call of its own.
        group_sampling: How groups are drawn in training; the default is 8 completions at temperature 1 of at most
            4,096 tokens, as in the reference.
        seed: Of the sampling; a completion is a function of (seed, iteration, question, index) and of nothing else.
        resampling_rounds: Dynamic sampling (DAPO, arXiv 2503.14476): at most this many times per iteration, replace
            groups whose rewards are all equal by groups for further prompts. 0 keeps them.
        parity: Comparison of engine and trainer; None leaves it out.
        store: Folder that keeps the completions of validate, test and predict (`medvlt.rollout.store`): what it has of
            a batch is not sampled again, so a run that was killed goes on when it is started again, with any number of
            ranks. True means `completions` in the Trainer's `default_root_dir`. Refused in `fit`, whose weights move.
    """

    default_engine: type[RolloutEngine] = TransformersEngine

    def __init__(
        self,
        engine: RolloutEngine | None = None,
        sampling: SamplingParams | None = None,
        group_sampling: SamplingParams | None = None,
        seed: int = 42,
        resampling_rounds: int = 0,
        parity: ParityGate | None = ParityGate(),  # noqa: B008 - frozen
        store: bool | str | None = None,
    ) -> None:
        if resampling_rounds < 0:
            raise ConfigurationError(f"resampling_rounds must be 0 (keep all groups) or above, got {resampling_rounds}")
        self.engine: RolloutEngine = engine or self.default_engine()
        self.sampling = sampling or SamplingParams(n=1, temperature=0.0)
        self.group_sampling = group_sampling or SamplingParams(n=8, temperature=1.0)
        self.seed = seed
        self.resampling_rounds = resampling_rounds
        self.parity = parity
        self.store = CompletionStore(store) if isinstance(store, str) else None
        self._store_in_root = store is True
        self.phases = Phases()
        self._loaded: tuple[int, int] | None = None  # the policy and the step of the weights in the engine
        self._loaded_step = 0  # of the checkpoint
        self.known_identity: dict[str, Any] | None = None  # of the engine with its present weights
        self._discarded: list[ScoredGroup] = []
        self._rounds = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses settings that cannot work, before a model is loaded."""
        if self._store_in_root:
            self.store = CompletionStore(Path(trainer.default_root_dir) / "completions")
        check_rollout_settings(self, trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the engine and compares it with the trainer."""
        data = trained_prompts(trainer)
        if data is None:
            return
        self._with_restart(partial(self._sync, trainer, pl_module))
        if self.parity is not None:
            self._check_parity(trainer, pl_module, self.parity)
        self.engine.sleep()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Samples and scores the groups of an iteration and hands them to the data module."""
        data = trained_prompts(trainer)
        if data is None:
            return
        self.phases.start()
        groups = self._groups(trainer, pl_module, data)
        data.rollouts = Iteration(trainer.current_epoch, tuple(groups), self.group_sampling)
        self.engine.sleep()
        self.phases.enter("update")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs where the time went."""
        data = trained_prompts(trainer)
        if data is None or not self.phases.running:  # resumed inside an iteration that was sampled before
            return
        seconds = self.phases.stop()
        values = phase_metrics(seconds)
        tokens = sum(sum(row) for row in data.buffer.iteration.lengths)
        tokens += sum(len(c.token_ids) for group in self._discarded for c in group.group.completions)
        values["tokens_per_second"] = tokens / seconds["generate"]
        if self.resampling_rounds:
            values |= {"resampling/rounds": float(self._rounds), **discarded_statistics(self._discarded)}
        pl_module.log_dict(values, sync_dist=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the engine the present weights."""
        self.phases.enter("validate")
        self._prepare(trainer, pl_module, trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the engine the present weights."""
        self._prepare(trainer, pl_module, trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the engine the present weights."""
        self._prepare(trainer, pl_module, trainer.num_predict_batches)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Attaches completions."""
        self._attach(trainer, pl_module, batch)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Attaches completions."""
        self._attach(trainer, pl_module, batch)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Attaches completions."""
        self._attach(trainer, pl_module, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the engine's memory back to the training that goes on."""
        if trainer.state.fn == "fit":
            self.engine.sleep()
            self.phases.enter("update")
        self._report()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what came out of the store."""
        self._report()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what came out of the store."""
        self._report()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Closes the engine."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the engine; Lightning does not call `teardown` after an error."""
        self._close()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes the step of the weights; outside of `fit` the Trainer does not keep it."""
        self._loaded_step = checkpoint["global_step"]

    def _prepare(self, trainer: Trainer, pl_module: LightningModule, batches: Sequence[float]) -> None:
        if getattr(trainer, "datamodule", None) is None:  # loaders of the user's own, perhaps without prompts
            return
        check_equal_batches(batches)
        try:
            self._with_restart(partial(self._sync, trainer, pl_module))
        except EngineError as error:
            raise self._saved(trainer, error) from error
        if self.store is not None:
            self.store.open(*together(lambda: rollout_identity(self, trainer, pl_module)))
            rank_zero_info(f"{self.store.folder} has completions of {self.store.questions} questions")

    def _report(self) -> None:
        if self.store is None:
            return
        restored, sampled, failed = map(sum, zip(*gather(self.store.counts), strict=True))
        again = f"; {failed} failed, and the same command asks for them again" if failed else ""
        rank_zero_info(f"{self.store.folder}: {restored} completions restored, {sampled} sampled{again}")

    def _attach(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if not isinstance(batch, PromptBatch):
            return
        samples, generate = batch.samples, partial(self._sample, trainer, pl_module)
        digests: list[str] = []
        if self.store is not None:
            wording = prompt_encoder(trainer).wording
            digests = together(lambda: [prompt_digest(wording, sample) for sample in samples])
        calls = []
        try:
            for sampling, first in engine_calls(self.sampling):
                keys = [RolloutKey(self.seed, EVALUATION_ITERATION, sample.uid, first) for sample in samples]
                if self.store is None:
                    calls.append(generate(samples, sampling, keys))
                else:
                    calls.append(self.store.complete(batch.benchmark, samples, digests, sampling, keys, generate))
            batch.groups = [storable(group) for group in joined(calls)]
        except EngineError as error:
            raise self._saved(trainer, error) from error

    def _saved(self, trainer: Trainer, error: EngineError) -> EngineError:
        """Writes a checkpoint of a run that an engine ended, and returns what to raise, also if that cannot be."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or isinstance(error, LostRankError):
            return error
        path = Path(trainer.default_root_dir) / "engine-failure.ckpt"
        return EngineError(f"{error}\nThe run stops; {save_before_end(trainer, path)}")

    def _groups(self, trainer: Trainer, pl_module: LightningModule, data: Any) -> list[ScoredGroup]:
        """Groups for one iteration, the same on every rank; a resampled group takes the place of another."""
        groups = self._score(trainer, pl_module, data.take_prompts(data.prompts_per_iteration))
        self._discarded, self._rounds = [], 0
        while self._rounds < self.resampling_rounds:
            dull = [place for place, group in enumerate(groups) if not group.has_variance]
            seen = [group.index for group in (*groups, *self._discarded)]
            if not dull or len(dull) > len(data.train_samples) - len(seen):
                break  # nothing to replace, or nothing to replace it with; what stays teaches nothing and does no harm
            further = self._score(trainer, pl_module, data.take_prompts(len(dull), excluding=seen))
            for place, group in zip(dull, further, strict=True):
                self._discarded.append(groups[place])
                groups[place] = group
            self._rounds += 1
        if not any(c.token_ids for group in groups for c in group.group.completions):
            raise DataError(
                f"the engine refused all {len(groups)} prompts of the iteration; its warnings above say why"
            )
        return groups

    def _score(
        self, trainer: Trainer, pl_module: LightningModule, prompts: Sequence[tuple[int, Sample]]
    ) -> list[ScoredGroup]:
        """Samples and scores a group for each prompt; each rank does its share and gets the result of all."""
        ranks, rank = world()
        mine = prompts[rank::ranks]
        samples = [sample for _, sample in mine]
        keys = [RolloutKey(self.seed, trainer.current_epoch, sample.uid) for sample in samples]
        try:
            groups = self._sample(trainer, pl_module, samples, self.group_sampling, keys)
        except EngineError as error:
            raise self._saved(trainer, error) from error
        self.phases.enter("score")
        scored: list[ScoredGroup] = together(
            lambda: pl_module.score([(i, group) for (i, _), group in zip(mine, groups, strict=True)])  # type: ignore[operator]
        )
        if ranks > 1:
            states = interleave(gather([group.to_state() for group in scored]))
            scored = [ScoredGroup.from_state(state, sample) for state, (_, sample) in zip(states, prompts, strict=True)]
        return scored

    def _sample(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        samples: Sequence[Sample],
        sampling: SamplingParams,
        keys: Sequence[RolloutKey],
    ) -> list[RolloutGroup]:
        """Samples with the present weights, on all ranks together.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            samples: Questions of this rank, perhaps none.
            sampling: How.
            keys: One per question.
        """

        def generate() -> list[RolloutGroup]:
            if trainer.training:  # else all of it is validation
                self.phases.enter("sync")
            self._sync(trainer, pl_module)
            if trainer.training:
                self.phases.enter("generate")
            with trainer.precision_plugin.forward_context():  # the precision that the forward of training has
                return self.engine.generate(samples, sampling, keys=keys)

        return self._with_restart(generate)

    def _with_restart(self, action: Callable[[], Result]) -> Result:
        """Runs an action on all ranks; if an engine fails, starts all of them again and tries once more.

        Args:
            action: Has to begin with `_sync`, which starts the engine and sends the present weights.
        """

        def attempt() -> Result:
            try:
                with naming_lost_ranks():
                    return action()
            except MedvltError:
                raise
            except Exception as error:  # an engine may fail in its own way, such as out of memory
                raise EngineError(f"the engine failed: {type(error).__name__}: {error}") from error

        try:
            return together(attempt)
        except LostRankError:  # a start needs all ranks
            raise
        except EngineError as error:
            failure = str(error)
        # outside of the `except`: the error holds the frames of the engine, and with them its memory
        logger.warning("the engine failed and is started again with the present weights: %s", failure)
        self._close()
        return together(attempt)

    def _sync(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wakes the engine; starts it and sends weights if the policy has moved since the last time."""
        policy = as_policy(getattr(pl_module, "policy", None))
        if self._loaded == (id(policy), trainer.global_step):
            self.engine.wake()
            return
        encoder = prompt_encoder(trainer)

        def start() -> None:
            with trainer.precision_plugin.forward_context():  # an engine may compute in the type of the forward
                self.engine.start(encoder, policy)
            self.engine.wake()

        together(start)  # before any rank begins to gather weights
        if trainer.world_size == 1:  # vLLM has a process group of one, which Lightning takes for a distributed run
            warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\(")
        if policy is not None:
            version = trainer.global_step if trainer.state.fn == "fit" else self._loaded_step
            self.engine.load_weights(hub_weights(policy), version=version)
        self._loaded, self.known_identity = (id(policy), trainer.global_step), None

    def _check_parity(self, trainer: Trainer, pl_module: LightningModule, gate: ParityGate) -> None:
        data: Any = trained_prompts(trainer)
        policy: Any = pl_module.policy
        samples = choose_samples(data.train_samples, data.encoder, prompts=gate.prompts)
        sampling = gate.sampling(self.group_sampling)
        keys = [RolloutKey(self.seed, PARITY_ITERATION, sample.uid) for sample in samples]
        groups = self._sample(trainer, pl_module, samples, sampling, keys)
        half = {"bfloat16", "float16"}
        types = {str(policy.base.lm_head.weight.dtype).removeprefix("torch."), getattr(self.engine, "dtype", "")}
        full = trainer.precision == "32-true" and not types & half
        tolerance = gate.tolerance if gate.tolerance is not None else 1e-3 if full else 0.05
        with trainer.precision_plugin.forward_context():
            check(groups, policy, data.encoder, temperature=sampling.temperature, tolerance=tolerance)

    def _close(self) -> None:
        self.engine.close()
        self._loaded = self.known_identity = None


class VLLMRolloutCallback(RolloutCallback):
    """`RolloutCallback` whose engine, if none is given, is vLLM in this process, on the devices of the trainer."""

    default_engine = VLLMEngine
