# SPDX-License-Identifier: Apache-2.0
"""Completions for the batches that need them, in evaluation and in training."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.phases import Phases
from medvlt.data.batches import PromptBatch
from medvlt.distributed import gather, interleave, together, world
from medvlt.errors import ConfigurationError, EngineError
from medvlt.models.policy import Policy
from medvlt.rollout.base import RolloutEngine
from medvlt.rollout.iteration import Iteration, ScoredGroup
from medvlt.rollout.parity import ParityGate, choose_samples, compare
from medvlt.rollout.transformers import TransformersEngine
from medvlt.rollout.vllm import VLLMEngine
from medvlt.rollout.weights import hub_weights
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams

logger = logging.getLogger(__name__)

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
    disagree, the run stops and says where. An engine that fails is started again once with the present weights; if it
    fails again, a checkpoint is written and the run stops.

    Hooks used: `setup`, `on_train_start`, `on_train_epoch_start`, `on_train_epoch_end`,
    `on_{validation,test,predict}_batch_start`, `on_validation_end`, `teardown`, `on_exception`.
    Logs, per iteration: `seconds/{generate,sync,score,update,iteration}`, `share/{generate,sync,score,update}` of the
    iteration, `tokens_per_second` of generation over all ranks, and with resampling `resampling/rounds`,
    `resampling/discarded_all_right`, `resampling/discarded_all_wrong`, `resampling/discarded_other`, in groups.

    Args:
        engine: What samples; None for `TransformersEngine`, the live policy itself.
        sampling: How completions are drawn in evaluation; the default is greedy, one completion, 4,096 tokens, as in
            the reference.
        group_sampling: How groups are drawn in training; the default is 8 completions at temperature 1 of at most
            4,096 tokens, as in the reference.
        seed: Of the sampling; a completion is a function of (seed, iteration, question, index) and of nothing else.
        resampling_rounds: Dynamic sampling (DAPO, arXiv 2503.14476): at most this many times per iteration, replace
            groups whose rewards are all equal by groups for further prompts. 0 keeps them.
        parity: Comparison of engine and trainer; None leaves it out.
    """

    def __init__(
        self,
        engine: RolloutEngine | None = None,
        sampling: SamplingParams | None = None,
        group_sampling: SamplingParams | None = None,
        seed: int = 42,
        resampling_rounds: int = 0,
        parity: ParityGate | None = ParityGate(),  # noqa: B008 - frozen
    ) -> None:
        if resampling_rounds < 0:
            raise ConfigurationError(f"resampling_rounds must be 0 (keep all groups) or above, got {resampling_rounds}")
        self.engine: RolloutEngine = engine or TransformersEngine()
        self.sampling = sampling or SamplingParams(n=1, temperature=0.0)
        self.group_sampling = group_sampling or SamplingParams(n=8, temperature=1.0)
        self.seed = seed
        self.resampling_rounds = resampling_rounds
        self.parity = parity
        self.phases = Phases()
        self._loaded: tuple[int, int] | None = None  # the policy and the step of the weights in the engine
        self._discarded: list[ScoredGroup] = []
        self._rounds = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses settings that cannot work, before a model is loaded."""
        data = trained_prompts(trainer)
        if stage != "fit" or data is None:
            return
        check_sampling = getattr(pl_module, "check_sampling", None)
        if check_sampling is None:
            raise ConfigurationError(
                f"{type(data).__name__} yields prompts to learn from by RL, {type(pl_module).__name__} cannot; use "
                "lightning_modules.GRPOModule"
            )
        check_sampling(self.group_sampling)
        limit = getattr(self.engine, "max_model_len", None)
        needed = data.longest_prompt_tokens + self.group_sampling.max_tokens
        if limit is not None and needed > limit:
            raise ConfigurationError(
                f"the longest prompt has {data.longest_prompt_tokens} tokens, with group_sampling.max_tokens="
                f"{self.group_sampling.max_tokens} that makes {needed}, and the engine's max_model_len is {limit}; set "
                "max_model_len to that, or lower data.max_prompt_tokens or group_sampling.max_tokens"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the engine and compares it with the trainer."""
        data = trained_prompts(trainer)
        if data is None:
            return
        self._sync(trainer, pl_module)
        if self.parity is not None:
            self._check_parity(trainer, pl_module, self.parity)
        self.engine.sleep()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Samples and scores the groups of an iteration and hands them to the data module."""
        data = trained_prompts(trainer)
        if data is None:
            return
        self.phases.start()
        cursor = data.cursor
        try:
            groups = self._groups(trainer, pl_module, data)
        except EngineError as error:
            data.cursor = cursor
            path = Path(trainer.default_root_dir) / "engine-failure.ckpt"
            trainer.save_checkpoint(path)
            raise EngineError(
                f"{error}\nThe run stops; a checkpoint was written, go on with --ckpt_path {path}"
            ) from error
        data.rollouts = Iteration(trainer.current_epoch, tuple(groups), self.group_sampling)
        self.engine.sleep()
        self.phases.enter("update")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs where the time went."""
        data = trained_prompts(trainer)
        if data is None or not self.phases.running:  # resumed inside an iteration that was sampled before
            return
        seconds = self.phases.stop()
        total = sum(seconds.values())
        values = {f"seconds/{name}": value for name, value in seconds.items()} | {"seconds/iteration": total}
        values |= {f"share/{name}": value / total for name, value in seconds.items()}
        tokens = sum(sum(row) for row in data.buffer.iteration.lengths)
        tokens += sum(len(c.token_ids) for group in self._discarded for c in group.group.completions)
        values["tokens_per_second"] = tokens / seconds["generate"]
        if self.resampling_rounds:
            right = [group for group in self._discarded if all(verdict.correct for verdict in group.verdicts)]
            wrong = [group for group in self._discarded if not any(verdict.correct for verdict in group.verdicts)]
            values["resampling/rounds"] = float(self._rounds)
            values["resampling/discarded_all_right"] = float(len(right))
            values["resampling/discarded_all_wrong"] = float(len(wrong))
            values["resampling/discarded_other"] = float(len(self._discarded) - len(right) - len(wrong))
        pl_module.log_dict(values, sync_dist=True)

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

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Closes the engine."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the engine; Lightning does not call `teardown` after an error."""
        self._close()

    def _attach(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if not isinstance(batch, PromptBatch):
            return
        self._sync(trainer, pl_module)
        keys = [RolloutKey(self.seed, EVALUATION_ITERATION, sample.uid) for sample in batch.samples]
        batch.groups = self._generate(trainer, batch.samples, self.sampling, keys)

    def _groups(self, trainer: Trainer, pl_module: LightningModule, data: Any) -> list[ScoredGroup]:
        """Groups for one iteration, the same on every rank."""
        wanted = data.prompts_per_iteration
        kept: list[ScoredGroup] = []
        self._discarded, self._rounds = [], 0
        while True:
            seen = [group.index for group in (*kept, *self._discarded)]
            prompts = data.take_prompts(wanted - len(kept), excluding=seen)
            scored = self._score(trainer, pl_module, prompts)
            if self._rounds == self.resampling_rounds:
                # what teaches nothing fills the places that are left; it counts in the statistics and not in the loss
                return kept + scored
            kept += [group for group in scored if group.has_variance]
            if len(kept) == wanted:
                return kept
            self._discarded += [group for group in scored if not group.has_variance]
            self._rounds += 1

    def _score(
        self, trainer: Trainer, pl_module: LightningModule, prompts: Sequence[tuple[int, Sample]]
    ) -> list[ScoredGroup]:
        """Samples and scores a group for each prompt; each rank does its share and gets the result of all."""
        ranks, rank = world()
        mine = prompts[rank::ranks]
        self.phases.enter("sync")
        self._sync(trainer, pl_module)
        self.phases.enter("generate")
        keys = [RolloutKey(self.seed, trainer.current_epoch, sample.uid) for _, sample in mine]
        samples = [sample for _, sample in mine]
        generate = partial(self._generate, trainer, samples, self.group_sampling, keys)
        try:
            groups = together(generate)
        except EngineError as error:
            logger.warning("the engine failed and is started again with the present weights: %s", error)
            self._close()
            self._sync(trainer, pl_module)
            groups = together(generate)
        self.phases.enter("score")
        indices = [index for index, _ in mine]
        scored: list[ScoredGroup] = together(
            lambda: pl_module.score(list(zip(indices, groups, strict=True)))  # type: ignore[operator]
        )
        if ranks > 1:
            states = interleave(gather([group.to_state() for group in scored]))
            scored = [ScoredGroup.from_state(state, sample) for state, (_, sample) in zip(states, prompts, strict=True)]
        if not any(c.token_ids for group in scored for c in group.group.completions):
            raise EngineError(
                f"the engine refused all {len(scored)} prompts of the iteration; its warnings above say why"
            )
        return scored

    def _generate(
        self, trainer: Trainer, samples: Sequence[Sample], sampling: SamplingParams, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        with trainer.precision_plugin.forward_context():  # the precision that the forward of training has
            return self.engine.generate(samples, sampling, keys=keys)

    def _sync(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wakes the engine; starts it and sends weights if the policy has moved since the last time."""
        policy = getattr(pl_module, "policy", None)
        if self._loaded == (id(policy), trainer.global_step):
            self.engine.wake()
            return
        encoder = getattr(getattr(trainer, "datamodule", None), "encoder", None)
        if encoder is None:
            raise ConfigurationError(
                "RolloutCallback needs the prompt encoder of a data module: pass `datamodule=` (BenchmarkDataModule, "
                "SFTDataModule, PromptDataModule) to the Trainer"
            )
        self.engine.start(encoder, policy if isinstance(policy, Policy) else None)
        if trainer.world_size == 1:  # vLLM has a process group of one, which Lightning takes for a distributed run
            warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\(")
        self.engine.wake()
        if isinstance(policy, Policy):
            self.engine.load_weights(hub_weights(policy), version=trainer.global_step)
        self._loaded = (id(policy), trainer.global_step)

    def _check_parity(self, trainer: Trainer, pl_module: LightningModule, gate: ParityGate) -> None:
        data: Any = trained_prompts(trainer)
        policy: Any = pl_module.policy
        samples = choose_samples(data.train_samples, data.encoder, prompts=gate.prompts)
        sampling = replace(
            self.group_sampling,
            n=2,
            top_p=1.0,
            top_k=0,
            max_tokens=min(gate.max_tokens, self.group_sampling.max_tokens),
        )
        keys = [RolloutKey(self.seed, PARITY_ITERATION, sample.uid) for sample in samples]
        groups = together(partial(self._generate, trainer, samples, sampling, keys))
        sampled = [group for group in groups if all(completion.token_ids for completion in group.completions)]
        if not sampled:
            raise EngineError(f"the engine refused all {len(groups)} prompts of the comparison; its warnings say why")
        with trainer.precision_plugin.forward_context():
            comparisons = compare(sampled, policy, data.encoder, temperature=sampling.temperature)
        full = trainer.precision == "32-true"
        tolerance = gate.tolerance if gate.tolerance is not None else 1e-3 if full else 0.05
        worst = max(comparisons, key=lambda c: (not c.agrees(tolerance), c.mean_difference))
        beyond = [str(worst) for comparison in comparisons if not comparison.agrees(tolerance)]
        failed = [message for share in gather(beyond) for message in share]  # on every rank, or one would go on alone
        if failed:
            raise EngineError(
                f"engine and trainer disagree, learning from its samples would be wrong. {len(failed)} completions are "
                f"beyond the tolerance of {tolerance:g}, the worst: {failed[0]}. Likely causes: another precision in "
                "the engine (its dtype), other pixel limits, a stale cache. parity.tolerance of the rollout callback "
                "sets the bound"
            )
        logger.info("engine and trainer agree on %d completions, the worst: %s", len(comparisons), worst)

    def _close(self) -> None:
        self.engine.close()
        self._loaded = None


class VLLMRolloutCallback(RolloutCallback):
    """`RolloutCallback` with vLLM in this process, on the devices of the trainer.

    Args:
        engine: What samples; None for `VLLMEngine` with its defaults.
        sampling: See `RolloutCallback`, as for all that follow.
        group_sampling: How groups are drawn in training.
        seed: Of the sampling.
        resampling_rounds: Most rounds of dynamic sampling in an iteration.
        parity: Comparison of engine and trainer.
    """

    def __init__(
        self,
        engine: RolloutEngine | None = None,
        sampling: SamplingParams | None = None,
        group_sampling: SamplingParams | None = None,
        seed: int = 42,
        resampling_rounds: int = 0,
        parity: ParityGate | None = ParityGate(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(engine or VLLMEngine(), sampling, group_sampling, seed, resampling_rounds, parity)


def trained_prompts(trainer: Trainer) -> Any:
    """Returns the data module if it yields prompts to learn from (`PromptDataModule`), else None."""
    data = getattr(trainer, "datamodule", None)
    return data if hasattr(data, "take_prompts") else None
