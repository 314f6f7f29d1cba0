# SPDX-License-Identifier: Apache-2.0
"""Reinforcement learning with verifiable rewards: group-relative policy optimization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_modules.policy import PolicyModule
from medvlt.data.batches import RolloutBatch
from medvlt.distributed import gather
from medvlt.errors import ConfigurationError, MissingRolloutError
from medvlt.losses.advantages import AdvantageScale, Baseline, group_advantages
from medvlt.losses.correction import Correction, correction_weights
from medvlt.losses.kl import KLEstimator, kl_penalty
from medvlt.losses.policy import ClippedLoss, GSPOLoss, PolicyLoss
from medvlt.metrics.policy import PolicyStatistics
from medvlt.metrics.rollouts import rollout_statistics
from medvlt.models.loading import Backbone
from medvlt.models.optimization import Optimization
from medvlt.models.policy import Policy
from medvlt.models.reference import ReferencePolicy
from medvlt.rewards.base import AccuracyReward, Reward, SoftOverlong
from medvlt.rewards.combine import OnRewardError, Rewards
from medvlt.rewards.grade import GradePolicy
from medvlt.rollout.buffer import NO_ROLLOUTS, RolloutBuffer
from medvlt.rollout.iteration import Iteration, ScoredGroup
from medvlt.types import RolloutGroup, SamplingParams


class GRPOModule(PolicyModule):
    """Learns from the rewards of its own completions (GRPO, arXiv 2402.03300), compared inside each group.

    One Trainer epoch is one iteration. `callbacks.RolloutCallback` samples groups for the prompts of
    `datamodules.PromptDataModule` and asks `score` for their rewards; at the start of the epoch this module forms
    advantages, computes log-probabilities under the old weights (only where an iteration has several optimizer steps)
    and under the reference (only with a KL penalty); a training step is the loss of one packed micro-batch. Its weights
    hold the normaliser of the whole optimizer step, so the result does not depend on micro-batches and ranks.

    Published methods are settings: `policy_loss` (clipped with clip-higher and dual clip, GSPO, CISPO), the
    advantage's scale and baseline, and `data.loss_reduction`; `configs/algorithms` has one file for each. The defaults
    are the reference's apart from that reduction and the KL penalty (0.01 there).

    Hooks used: those of `PolicyModule`, `setup`, `training_step`, `on_train_epoch_end`.
    Logs per optimizer step `train/loss` and `PolicyStatistics`, per iteration `rollout_statistics`, all with `train/`
    in front; with `on_reward_error` "no_verdict" `train/rewards/{name}/errors`, its failures in the iteration; and
    the metrics of `RolloutModule`.

    Args:
        backbone: Which Qwen2.5-VL, and how to load it. The reference policy is the same model as it is stored.
        optimization: AdamW and its schedule; None for the reference's: 1e-6, constant, no warm-up.
        grader: Rules for right and wrong, in training and validation.
        rewards: Rewards by name; None for `accuracy` alone, 1 or 0.
        reward_weights: Factor of each reward; 1 where a name is missing.
        on_reward_error: What a reward that fails does: stop the run, or count as no verdict.
        policy_loss: Loss of a token; None for `ClippedLoss`.
        advantage_scale: What a centred reward is divided by.
        advantage_baseline: What a reward is compared with.
        advantage_eps: Added to that divisor.
        kl_coef: Weight of the KL penalty; 0 loads no reference policy.
        kl_estimator: How the penalty is estimated.
        kl_clamp: Bound of the penalty of a token; None for no bound.
        correction: Weights for the mismatch between engine and trainer; None for none.
        mask_truncated: Leave completions that hit the token limit out of the loss; they still count in the baseline.
        reference_on_cpu: Keep the reference policy in main memory while it is not used.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimization: Optimization | None = None,
        grader: GradePolicy = "robust",
        rewards: dict[str, Reward] | None = None,
        reward_weights: dict[str, float] | None = None,
        on_reward_error: OnRewardError = "raise",
        policy_loss: PolicyLoss | None = None,
        advantage_scale: AdvantageScale = "group",
        advantage_baseline: Baseline = "mean",
        advantage_eps: float = 1e-6,
        kl_coef: float = 0.0,
        kl_estimator: KLEstimator = "k3",
        kl_clamp: float | None = 10.0,
        correction: Correction | None = None,
        mask_truncated: bool = False,
        reference_on_cpu: bool = False,
    ) -> None:
        super().__init__(backbone, optimization or reference_optimization(), grader)
        if kl_coef < 0:
            raise ConfigurationError(f"kl_coef must be 0 (no penalty) or above, got {kl_coef}")
        if backbone.lora is not None and backbone.lora.dropout:
            raise ConfigurationError(
                f"backbone.lora.dropout={backbone.lora.dropout} makes the trained policy another one than the sampled "
                "one; set it to 0 for RL"
            )
        self.rewards = Rewards(
            {"accuracy": AccuracyReward()} if rewards is None else rewards, reward_weights, on_reward_error
        )
        self.policy_loss = policy_loss or ClippedLoss()
        self.advantage_scale: AdvantageScale = advantage_scale
        self.advantage_baseline: Baseline = advantage_baseline
        self.advantage_eps = advantage_eps
        self.kl_coef = kl_coef
        self.kl_estimator: KLEstimator = kl_estimator
        self.kl_clamp = kl_clamp
        self.correction = correction
        self.mask_truncated = mask_truncated
        self.reference_on_cpu = reference_on_cpu
        self._reference: ReferencePolicy | None = None
        self._statistics = (PolicyStatistics(),)  # in a tuple: no submodule, so that it is in no checkpoint
        self._banned: Tensor | None = None  # ids that no engine samples
        self._step_loss: Tensor | None = None  # of this rank since the last optimizer step

    def setup(self, stage: str) -> None:
        """Refuses settings that contradict one another before anything is loaded."""
        super().setup(stage)
        if stage != "fit":
            return
        reduction = getattr(getattr(self.trainer, "datamodule", None), "loss_reduction", None)
        if reduction is None:
            raise ConfigurationError(
                "GRPOModule trains on the prompts of datamodules.PromptDataModule; pass it as data"
            )
        if isinstance(self.policy_loss, GSPOLoss) and reduction != "sequence":
            raise ConfigurationError(
                f"GSPOLoss has one ratio per completion, data.loss_reduction={reduction!r} would weight it by length; "
                "set data.loss_reduction: sequence"
            )

    def check_sampling(self, sampling: SamplingParams) -> None:
        """Refuses ways of sampling that groups cannot be learned from.

        Raises:
            ConfigurationError: Saying which setting to change.
        """
        if sampling.n < 2:
            raise ConfigurationError(
                f"a group of {sampling.n} completion has nothing to be compared with, every advantage would be 0; set "
                "group_sampling.n of the rollout callback to 2 or more (the reference has 8)"
            )
        if sampling.temperature == 0:
            raise ConfigurationError(
                "greedy completions of a group are all the same; set group_sampling.temperature above 0, such as 1.0"
            )
        if self.correction is not None and (sampling.top_p < 1 or sampling.top_k):
            raise ConfigurationError(
                f"group_sampling has top_p={sampling.top_p} and top_k={sampling.top_k}: the engine then draws from a "
                "part of the vocabulary, and model.correction would take what was cut off for a mismatch; set top_p: "
                "1.0 and top_k: 0, or correction: null"
            )
        for name, reward in self.rewards.rewards.items():
            if isinstance(reward, SoftOverlong) and reward.max_tokens != sampling.max_tokens:
                raise ConfigurationError(
                    f"the reward {name!r} takes {reward.max_tokens} tokens for the limit of a completion, "
                    f"group_sampling.max_tokens is {sampling.max_tokens}; set both to the same"
                )

    def configure_model(self) -> None:
        """Loads the policy and, with a KL penalty, its reference."""
        super().configure_model()
        if self.kl_coef and self._reference is None and self.trainer.training:
            self._reference = ReferencePolicy(
                self.loaded_policy(), self.backbone, mesh=self.device_mesh, on_cpu=self.reference_on_cpu
            )

    def score(self, groups: Sequence[tuple[int, RolloutGroup]]) -> list[ScoredGroup]:
        """Grades completions and gives them rewards.

        Args:
            groups: Position of each question in the training data, and its completions.
        """
        scored = []
        for index, group in groups:
            verdicts = self.grade_group(group)
            results = [
                self.rewards(group.sample, completion, verdict) if completion.finish_reason != "error" else None
                for completion, verdict in zip(group.completions, verdicts, strict=True)
            ]
            scored.append(
                ScoredGroup(
                    index,
                    group,
                    tuple(verdicts),
                    tuple(None if result is None else result.total for result in results),
                    {
                        name: tuple(None if result is None else result.parts[name] for result in results)
                        for name in self.rewards.rewards
                    },
                )
            )
        return scored

    def on_train_epoch_start(self) -> None:
        """Completes the iteration that the rollout callback handed over, and fills the buffer with it."""
        super().on_train_epoch_start()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.rollouts is None:
            raise MissingRolloutError(NO_ROLLOUTS)
        buffer: RolloutBuffer = data.buffer
        buffer.fill(self.form_advantages(data.rollouts, keep_all=data.loss_reduction == "micro_batch"))
        data.rollouts = None
        if buffer.steps > 1:
            buffer.add_logprobs(old=self._logprobs(self.loaded_policy(), buffer))
        if self._reference is not None:
            with self._reference.active(self.device) as reference:
                buffer.add_logprobs(ref=self._logprobs(reference, buffer))
        data.commit()

    def form_advantages(self, iteration: Iteration, *, keep_all: bool = False) -> Iteration:
        """Returns the iteration with advantages, masked completions and the groups that have to be computed.

        Args:
            iteration: Scored groups.
            keep_all: Compute groups without variance too, though they add nothing: the mean over a micro-batch, as the
                reference takes it, depends on what else is in it.
        """
        advantages = group_advantages(
            iteration.rewards,
            scale=self.advantage_scale,
            baseline=self.advantage_baseline,
            eps=self.advantage_eps,
        )
        left_out = ("error", "length") if self.mask_truncated else ("error",)
        masked = torch.tensor([[c.finish_reason in left_out for c in g.group.completions] for g in iteration.groups])
        contributes = (advantages != 0) | bool(self.kl_coef or keep_all)
        return iteration.updated(advantages=advantages, masked=masked, used=(contributes & ~masked).any(dim=1))

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """Returns the loss of one micro-batch: its share of the loss of the optimizer step."""
        packed, lengths = batch.packed, batch.packed.completion_lengths
        logprobs = self._forward(self.loaded_policy(), batch)
        old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        result = self.policy_loss(logprobs, old, batch.advantages, lengths)
        losses = result.losses
        if self.correction is not None:
            losses = losses * correction_weights(old, batch.sampler_logprobs, lengths, self.correction)
        kl = None
        if batch.ref_logprobs is not None:
            kl = kl_penalty(logprobs, batch.ref_logprobs, estimator=self.kl_estimator, clamp=self.kl_clamp)
            losses = losses + self.kl_coef * kl
        loss = (packed.weights * losses).sum()
        statistics = self._statistics[0].to(self.device)
        statistics.update(result, old, batch.sampler_logprobs, kl, packed.weights)
        self._log_step(loss, batch_idx)
        return self.scale_loss(loss)

    def on_train_epoch_end(self) -> None:
        """Logs what the rollouts of the iteration were like."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        iteration = data.buffer.iteration
        statistics = rollout_statistics(iteration)
        self.log("train/reward", statistics.pop("reward"), prog_bar=True, sync_dist=True)
        self.log_dict({f"train/{name}": value for name, value in statistics.items()}, sync_dist=True)
        if self.rewards.on_error == "no_verdict":  # the same on every rank, as this exchange between them must be
            errors = {f"train/rewards/{name}/errors": float(count) for name, count in self.rewards.errors.items()}
            self.log_dict(errors, sync_dist=True, reduce_fx="sum")
            self.rewards.errors = dict.fromkeys(self.rewards.errors, 0)

    def _forward(self, policy: Policy, batch: RolloutBatch) -> Tensor:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self._banned is None or self._banned.device != self.device:
            unsampled = data.encoder.unsampled_token_ids(policy.base.config.text_config.vocab_size)
            self._banned = torch.tensor(unsampled, dtype=torch.long, device=self.device)
        temperature: float = data.buffer.iteration.sampling.temperature
        logprobs: Tensor = policy(batch.packed, temperature=temperature, banned=self._banned)
        return logprobs

    @torch.no_grad()
    def _logprobs(self, policy: Policy, buffer: RolloutBuffer) -> dict[int, Tensor]:
        """Log-probabilities of all completions of the iteration by group number, computed by all ranks together."""
        assert buffer.iteration is not None
        lengths = buffer.iteration.lengths
        mine: dict[int, Tensor] = {}
        for number in range(len(buffer)):
            batch = buffer.micro_batch(number).to(self.device)
            with self.trainer.precision_plugin.forward_context():
                logprobs = self._forward(policy, batch).cpu()
            _, members = buffer.members(number)
            if members:  # else the micro-batch only stands in
                mine |= dict(
                    zip(members, torch.split(logprobs, [sum(lengths[group]) for group in members]), strict=True)
                )
        return {group: values for share in gather(mine) for group, values in share.items()}

    def _log_step(self, loss: Tensor, batch_idx: int) -> None:
        self._step_loss = loss.detach() if self._step_loss is None else self._step_loss + loss.detach()
        if self.ends_step(batch_idx):
            self.log("train/loss", self._step_loss, prog_bar=True, sync_dist=True, reduce_fx="sum", batch_size=1)
            statistics = self._statistics[0]
            values = {f"train/{name}": value for name, value in statistics.compute().items()}
            self.log_dict(values, sync_dist=True, batch_size=1)
            statistics.reset()
            self._step_loss = None


def reference_optimization() -> Optimization:
    """Returns the optimizer of the reference's GRPO: AdamW, 1e-6, constant, no warm-up."""
    return Optimization(
        learning_rate=1e-6, schedule="constant", warmup_ratio=0.0, betas=(0.9, 0.999), weight_decay=0.01
    )
