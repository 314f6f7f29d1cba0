# SPDX-License-Identifier: Apache-2.0
"""GRPO through a real Trainer, against plain loops over single completions and the Hugging Face forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks import RolloutCallback
from datamodules import BenchmarkDataModule, PromptDataModule
from lightning_modules import GRPOModule, SFTModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.errors import ConfigurationError, DataError, EngineError, MissingRolloutError, RewardError
from medvlt.losses.correction import Correction
from medvlt.losses.policy import GSPOLoss
from medvlt.models.loading import Backbone, LoRA
from medvlt.models.optimization import Optimization
from medvlt.models.policy import Policy
from medvlt.rewards.base import SoftOverlong
from medvlt.rollout.base import RolloutEngine
from medvlt.rollout.iteration import Iteration
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.rollout.transformers import TransformersEngine
from medvlt.types import Completion, RolloutGroup, RolloutKey, Sample, SamplingParams, Verdict

SAMPLING = SamplingParams(n=3, temperature=0.8, max_tokens=12)


class Parity:
    """A reward that a random model earns half of the time: whether the sum of its first token ids is odd."""

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        return float(sum(completion.token_ids[:3]) % 2)


class Recorder(Callback):
    """Keeps the iterations, the gradients before the first optimizer step, and the loss of every step."""

    def __init__(self) -> None:
        self.iterations: list[Iteration] = []
        self.gradients: dict[str, Tensor] = {}
        self.losses: list[float] = []
        self.metrics: dict[str, float] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.iterations.append(trainer.datamodule.buffer.iteration)  # type: ignore[attr-defined]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if (args[2] + 1) % trainer.accumulate_grad_batches == 0:
            self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}


def train(
    folder: Path,
    root: Path,
    *,
    engine: RolloutEngine | None = None,
    callback: dict[str, Any] | None = None,
    backbone: dict[str, Any] | None = None,
    module: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    resume: Path | None = None,
    kind: type[GRPOModule] = GRPOModule,
) -> tuple[GRPOModule, Recorder]:
    recorder = Recorder()
    rollout = RolloutCallback(
        engine or TransformersEngine(), **({"group_sampling": SAMPLING, "seed": 3} | (callback or {}))
    )
    runner = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=root,
        callbacks=[rollout, recorder], enable_checkpointing=False, limit_val_batches=0,
        **({"max_epochs": 1, "gradient_clip_val": 1e9} | (trainer or {})),
    )  # fmt: skip
    learner = kind(
        Backbone(str(folder), **(backbone or {})),
        Optimization(learning_rate=1e-3, schedule="constant", warmup_ratio=0.0),
        **({"rewards": {"parity": Parity()}} | (module or {})),
    )
    prompts = PromptDataModule(
        encoder=PromptEncoder(str(folder), template="plain"),
        **({"train": Phantom("train", 12, seed=1), "prompts_per_iteration": 4} | (data or {})),
    )
    runner.fit(learner, prompts, ckpt_path=resume)
    return learner, recorder


def hugging_face_logprobs(policy: Policy, encoder: PromptEncoder, group: RolloutGroup, ids: Sequence[int]) -> Tensor:
    """Log-probabilities of one completion from the library's own forward on prompt + completion, nothing shared."""
    prompt = encoder.encode(group.sample)
    tokens = torch.cat([prompt.token_ids, torch.tensor(ids)])
    begin = int(prompt.position_ids.max()) + 1
    positions = torch.cat([prompt.position_ids, (begin + torch.arange(len(ids))).expand(3, -1)], dim=1)
    logits = policy.base(
        input_ids=tokens[None], position_ids=positions[:, None], pixel_values=prompt.pixel_values,
        image_grid_thw=prompt.image_grid_thw, attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
    ).logits[0, len(prompt.token_ids) - 1 : -1]  # fmt: skip
    logits = logits / SAMPLING.temperature
    logits[:, [*encoder.banned_token_ids, *range(len(encoder.tokenizer), logits.shape[-1])]] = -torch.inf
    return logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


def fresh_policy(folder: Path, **settings: Any) -> Policy:
    from medvlt.models.loading import load_backbone

    return Policy(load_backbone(Backbone(str(folder), **settings)))


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[GRPOModule, Recorder]:
    return train(tiny_folder, tmp_path_factory.mktemp("whole"))


def test_gradient_is_that_of_a_plain_loop(tiny_folder: Path, whole: tuple[GRPOModule, Recorder]) -> None:
    """(sum over groups, completions, tokens of -A log p) / tokens, with the textbook advantage, one row at a time."""
    _, recorder = whole
    iteration = recorder.iterations[0]
    policy = fresh_policy(tiny_folder)
    encoder = PromptEncoder(str(tiny_folder), template="plain")
    tokens = sum(len(c.token_ids) for group in iteration.groups for c in group.group.completions)
    live = 0
    for scored in iteration.groups:
        rewards = [sum(c.token_ids[:3]) % 2 for c in scored.group.completions]
        mean = sum(rewards) / 3
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 2)
        live += deviation > 0
        for reward, completion in zip(rewards, scored.group.completions, strict=True):
            advantage = (reward - mean) / (deviation + 1e-6)
            logprobs = hugging_face_logprobs(policy, encoder, scored.group, completion.token_ids)
            if advantage:
                (-(advantage * logprobs).sum() / tokens).backward()
    assert live >= 2  # else nothing was compared
    assert any(scored.group.sample.images for scored in iteration.groups)
    expected = {f"policy.backbone.{n}": p.grad for n, p in policy.base.named_parameters() if p.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(recorder.gradients[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize(("reduction", "accumulate"), [("token", 4), ("token", 2), ("sequence", 4), ("constant", 2)])
def test_result_does_not_depend_on_micro_batches(
    reduction: str, accumulate: int, tiny_folder: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"module": {"kl_coef": 0.1}, "data": {"loss_reduction": reduction}}
    _, one = train(tiny_folder, tmp_path, **settings)
    _, cut = train(tiny_folder, tmp_path, **settings, trainer={"accumulate_grad_batches": accumulate})
    assert_same_gradients(cut, one)


def test_result_does_not_depend_on_the_order_of_groups(
    tiny_folder: Path, tmp_path: Path, whole: tuple[GRPOModule, Recorder]
) -> None:
    class Reversed(PromptDataModule):
        def take_prompts(self, count: int, *, excluding: Any = ()) -> list[tuple[int, Sample]]:
            return super().take_prompts(count, excluding=excluding)[::-1]

    _, straight = whole
    recorder = Recorder()
    runner = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=1,
        callbacks=[RolloutCallback(TransformersEngine(), group_sampling=SAMPLING, seed=3), recorder],
        enable_checkpointing=False, default_root_dir=tmp_path, gradient_clip_val=1e9,
    )  # fmt: skip
    data = Reversed(
        Phantom("train", 12, seed=1), PromptEncoder(str(tiny_folder), template="plain"), prompts_per_iteration=4
    )
    runner.fit(GRPOModule(Backbone(str(tiny_folder)), Optimization(), rewards={"parity": Parity()}), data)
    uids = [[group.group.sample.uid for group in r.iterations[0].groups] for r in (straight, recorder)]
    assert uids[0] == uids[1][::-1]
    assert_same_gradients(recorder, straight)


def assert_same_gradients(ours: Recorder, theirs: Recorder) -> None:
    assert ours.gradients.keys() == theirs.gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs.gradients.values())
    assert largest > 0
    for name, gradient in theirs.gradients.items():
        torch.testing.assert_close(ours.gradients[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


def test_several_updates_compare_with_the_weights_that_sampled(tiny_folder: Path, tmp_path: Path) -> None:
    """Old and reference log-probabilities are those of the untouched model, from the library's own forward."""
    _, recorder = train(
        tiny_folder, tmp_path, module={"kl_coef": 0.1}, data={"updates_per_iteration": 2, "loss_reduction": "sequence"},
        trainer={"accumulate_grad_batches": 2},
    )  # fmt: skip
    iteration = recorder.iterations[0]
    policy = fresh_policy(tiny_folder)
    encoder = PromptEncoder(str(tiny_folder), template="plain")
    assert iteration.old_logprobs is not None
    assert iteration.ref_logprobs is not None
    for number, scored in enumerate(iteration.groups):
        with torch.no_grad():
            rows = [hugging_face_logprobs(policy, encoder, scored.group, c.token_ids) for c in scored.group.completions]
        torch.testing.assert_close(iteration.old_logprobs[number], torch.cat(rows), rtol=0, atol=1e-5)
        torch.testing.assert_close(iteration.ref_logprobs[number], torch.cat(rows), rtol=0, atol=1e-5)
    assert len(recorder.losses) == 2
    assert recorder.metrics["train/kl"] > 0  # the second step has moved away from the reference
    assert recorder.metrics["train/sampling/sampling_logp_difference/max"] < 1e-4


def test_kl_penalty_is_part_of_the_loss(tiny_folder: Path, tmp_path: Path) -> None:
    """At the start policy and reference are one, so only the second step differs, by kl_coef times the mean KL."""
    two: dict[str, Any] = {"data": {"updates_per_iteration": 2}, "module": {}}
    _, without = train(tiny_folder, tmp_path, **two)
    _, penalised = train(tiny_folder, tmp_path, **two | {"module": {"kl_coef": 0.5}})
    assert penalised.losses[0] == pytest.approx(without.losses[0], abs=1e-6)
    kl = penalised.metrics["train/kl"]
    assert kl > 1e-4
    assert penalised.losses[1] - without.losses[1] == pytest.approx(0.5 * kl, rel=1e-2)


def test_no_reference_and_no_old_logprobs_unless_needed(whole: tuple[GRPOModule, Recorder]) -> None:
    module, recorder = whole
    assert recorder.iterations[0].old_logprobs is None
    assert recorder.iterations[0].ref_logprobs is None
    assert module._reference is None


def test_reference_does_not_follow_the_policy_and_is_in_no_checkpoint(tiny_folder: Path, tmp_path: Path) -> None:
    module, _ = train(tiny_folder, tmp_path, module={"kl_coef": 0.1, "reference_on_cpu": True})
    assert module._reference is not None
    assert module._reference.copy is not None
    start = dict(fresh_policy(tiny_folder).named_parameters())
    assert all(torch.equal(p, start[name]) for name, p in module._reference.copy.named_parameters())
    assert any(not torch.equal(p, start[name]) for name, p in module.policy.named_parameters())  # type: ignore[union-attr]
    assert set(module.state_dict()) == {f"policy.{name}" for name in fresh_policy(tiny_folder).state_dict()}


def test_lora_uses_its_base_as_reference_and_leaves_it_alone(tiny_folder: Path, tmp_path: Path) -> None:
    module, recorder = train(
        tiny_folder, tmp_path, backbone={"lora": LoRA(rank=4)}, module={"kl_coef": 0.1}, trainer={"max_epochs": 2}
    )
    assert module._reference is not None
    assert module._reference.copy is None
    start = fresh_policy(tiny_folder).base.state_dict()
    assert module.policy is not None
    for name, parameter in module.policy.base.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, start[name.replace(".base_layer", "")]), name
    first, second = recorder.iterations
    assert first.groups[0].group.completions[0].version == 0
    assert second.groups[0].group.completions[0].version == 1
    assert recorder.metrics["train/kl"] > 0
    assert recorder.metrics["train/sampling/sampling_logp_difference/max"] < 1e-4  # the engine has the adapters too


def test_truncated_completions_can_be_masked(tiny_folder: Path, tmp_path: Path) -> None:
    """Masked: out of the loss, still in the baseline. With 12 tokens nearly every completion is truncated."""
    _, kept = train(tiny_folder, tmp_path)
    _, masked = train(tiny_folder, tmp_path, module={"mask_truncated": True})
    cut = [[c.finish_reason == "length" for c in g.group.completions] for g in masked.iterations[0].groups]
    assert masked.iterations[0].masked is not None
    assert masked.iterations[0].masked.tolist() == cut
    assert any(map(any, cut))
    assert torch.equal(masked.iterations[0].advantages, kept.iterations[0].advantages)  # type: ignore[arg-type]
    assert any(not torch.equal(masked.gradients[name], gradient) for name, gradient in kept.gradients.items())


def test_mismatch_correction_multiplies_the_loss(tiny_folder: Path, tmp_path: Path) -> None:
    """An engine that reports log-probabilities lower by log 1.5 makes every weight 1.5, clipped at 1.2."""

    class Shifted(TransformersEngine):
        def generate(self, *args: Any, **kwargs: Any) -> list[RolloutGroup]:
            return [
                RolloutGroup(g.sample, g.prompt_token_ids, tuple(
                    Completion(c.token_ids, c.text, tuple(x - math.log(1.5) for x in c.sampler_logprobs),
                               c.finish_reason, c.version)
                    for c in g.completions
                ))
                for g in super().generate(*args, **kwargs)
            ]  # fmt: skip

    _, plain = train(tiny_folder, tmp_path)
    _, corrected = train(
        tiny_folder, tmp_path, engine=Shifted(), callback={"parity": None},
        module={"correction": Correction("token_tis", high=1.2)},
    )  # fmt: skip
    plain.gradients = {name: 1.2 * gradient for name, gradient in plain.gradients.items()}
    assert_same_gradients(corrected, plain)
    assert corrected.metrics["train/sampling/importance_sampling_ratio/mean"] == pytest.approx(1.5, rel=1e-4)


RIGHT, WRONG = "<think> x </think>\n<answer> {} </answer>", "<think> x </think>\n<answer> nothing </answer>"


class Classroom(ScriptedEngine):
    """Every second question is always answered wrong; the others right or wrong by the seed."""

    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        self.by_uid = {
            s.uid: [WRONG] if int(s.dataset_index) % 2 else [RIGHT.format(s.answer_label), WRONG] for s in samples
        }
        return super().generate(samples, params, keys=keys)


class Numbered(Phantom):
    """Generated questions with their number as the index."""

    def load(self) -> Any:
        from dataclasses import replace

        return [replace(sample, dataset_index=number) for number, sample in enumerate(super().load())]


def test_dynamic_sampling_replaces_groups_without_variance(tiny_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "module": {"rewards": None},
        "data": {"train": Numbered("train", 40, seed=1, modality="text")},
    }
    sampling = {"parity": None, "group_sampling": SamplingParams(n=8, max_tokens=99)}
    _, plain = train(tiny_folder, tmp_path, engine=Classroom(["x"]), callback=sampling, **settings)
    _, refilled = train(
        tiny_folder, tmp_path, engine=Classroom(["x"]), callback=sampling | {"resampling_rounds": 9}, **settings
    )
    before, after = plain.iterations[0].groups, refilled.iterations[0].groups
    assert len(before) == len(after) == 4
    assert not all(group.has_variance for group in before)
    assert all(group.has_variance for group in after)
    kept = {place: group.index for place, group in enumerate(before) if group.has_variance}
    assert {place: after[place].index for place in kept} == kept  # the others have taken the places of the rest
    assert len({group.index for group in after}) == 4
    assert plain.metrics["train/frac_reward_zero_std"] > 0
    assert plain.metrics["train/frac_all_wrong"] == plain.metrics["train/frac_reward_zero_std"]
    assert refilled.metrics["train/frac_reward_zero_std"] == 0
    assert refilled.metrics["resampling/discarded_all_wrong"] >= 4 - len(kept)
    _, capped = train(
        tiny_folder, tmp_path, engine=ScriptedEngine([WRONG]), callback=sampling | {"resampling_rounds": 2}, **settings
    )
    assert len(capped.iterations[0].groups) == 4
    assert [group.index for group in capped.iterations[0].groups] != [group.index for group in before]
    assert capped.metrics["resampling/rounds"] == 2
    assert capped.metrics["resampling/discarded_all_wrong"] == 8
    assert capped.metrics["train/loss"] == 0


def test_resampling_ends_where_the_data_do(tiny_folder: Path, tmp_path: Path) -> None:
    """Six questions, four an iteration, all wrong: there are two to replace four."""
    _, recorder = train(
        tiny_folder, tmp_path, engine=ScriptedEngine([WRONG]), module={"rewards": None},
        callback={"parity": None, "group_sampling": SamplingParams(n=2, max_tokens=99), "resampling_rounds": 3},
        data={"train": Phantom("train", 6, modality="text")}, trainer={"max_epochs": 2},
    )  # fmt: skip
    assert [len(iteration.groups) for iteration in recorder.iterations] == [4, 4]
    assert recorder.metrics["resampling/rounds"] == 0


def test_refused_prompts_are_left_out_and_counted(tiny_folder: Path, tmp_path: Path) -> None:
    class Picky(TransformersEngine):
        refuse_all = False

        def generate(self, samples: Sequence[Sample], params: SamplingParams, **kwargs: Any) -> list[RolloutGroup]:
            groups = super().generate(samples, params, **kwargs)
            refused = tuple(Completion((), "", (), "error") for _ in range(params.n))
            return [RolloutGroup(g.sample, (), refused) if g.sample.images or self.refuse_all else g for g in groups]

    _, recorder = train(tiny_folder, tmp_path, engine=Picky(), callback={"parity": None})
    refused = [group for group in recorder.iterations[0].groups if not group.group.completions[0].token_ids]
    assert 0 < len(refused) < 4
    assert recorder.metrics["train/completions/refused_ratio"] == len(refused) / 4
    assert all(reward is None for group in refused for reward in group.rewards)
    assert math.isfinite(recorder.losses[0])
    Picky.refuse_all = True
    with pytest.raises(DataError, match="refused all 4 prompts"):
        train(tiny_folder, tmp_path, engine=Picky(), callback={"parity": None})


class Failing(TransformersEngine):
    """Dies at given calls of `generate`, and stays dead until it is closed and started again."""

    def __init__(self, *at: int) -> None:
        super().__init__()
        self.at, self.calls, self.dead = at, 0, False

    def generate(self, *args: Any, **kwargs: Any) -> list[RolloutGroup]:
        self.calls += 1
        self.dead = self.dead or self.calls in self.at
        if self.dead:
            raise EngineError("the engine died")
        return super().generate(*args, **kwargs)

    def close(self) -> None:
        super().close()
        self.dead = False


def test_a_failing_engine_is_restarted_once(tiny_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"callback": {"parity": None}, "trainer": {"max_epochs": 3}}
    _, undisturbed = train(tiny_folder, tmp_path, **settings)
    _, recorder = train(tiny_folder, tmp_path, engine=Failing(2), **settings)
    assert recorder.losses == undisturbed.losses
    with pytest.raises(EngineError, match=r"died(.|\n)*engine-failure.ckpt"):
        train(tiny_folder, tmp_path, engine=Failing(2, 3), **settings)
    _, resumed = train(tiny_folder, tmp_path, resume=tmp_path / "engine-failure.ckpt", **settings)
    assert resumed.losses == undisturbed.losses[1:]
    assert ids(resumed.iterations) == ids(undisturbed.iterations[1:])


def test_an_engine_that_never_works_leaves_a_checkpoint_of_the_start(tiny_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"callback": {"parity": None}, "trainer": {"max_epochs": 2}}
    with pytest.raises(EngineError, match=r"engine-failure.ckpt"):
        train(tiny_folder, tmp_path, engine=Failing(1, 2), **settings)
    _, undisturbed = train(tiny_folder, tmp_path, **settings)
    _, resumed = train(tiny_folder, tmp_path, resume=tmp_path / "engine-failure.ckpt", **settings)
    assert resumed.losses == undisturbed.losses


class Dropping(TransformersEngine):
    """Fails once in `load_weights`, in its own way."""

    failures = 0

    def load_weights(self, weights: Any, *, version: int) -> None:
        if version == 1 and Dropping.failures == 0:
            Dropping.failures += 1
            raise RuntimeError("CUDA error: out of memory")
        super().load_weights(weights, version=version)


def test_a_failing_sync_is_repeated_as_well(tiny_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trainer": {"max_epochs": 2}}
    _, undisturbed = train(tiny_folder, tmp_path, **settings)
    _, recorder = train(tiny_folder, tmp_path, engine=Dropping(), **settings)
    assert Dropping.failures == 1
    assert recorder.losses == undisturbed.losses


def test_an_iteration_that_fails_after_sampling_is_sampled_again(tiny_folder: Path, tmp_path: Path) -> None:
    """A checkpoint written on the way out holds the prompts of the failed iteration as still to come."""

    class Interrupted(GRPOModule):
        def form_advantages(self, iteration: Iteration, **kwargs: Any) -> Iteration:
            if iteration.number == 1:
                self.trainer.save_checkpoint(tmp_path / "interrupted.ckpt")
                raise KeyboardInterrupt
            return super().form_advantages(iteration, **kwargs)

    settings: dict[str, Any] = {"trainer": {"max_epochs": 3}}
    _, undisturbed = train(tiny_folder, tmp_path, **settings)
    with pytest.raises(SystemExit):
        train(tiny_folder, tmp_path, kind=Interrupted, **settings)
    _, resumed = train(tiny_folder, tmp_path, resume=tmp_path / "interrupted.ckpt", **settings)
    assert resumed.losses == undisturbed.losses[1:]
    assert ids(resumed.iterations) == ids(undisturbed.iterations[1:])


def ids(iterations: Sequence[Iteration]) -> list[Any]:
    return [[c.token_ids for group in i.groups for c in group.group.completions] for i in iterations]


class Broken(TransformersEngine):
    """Sees other prompts, or computes other probabilities, than the trainer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def generate(self, *args: Any, **kwargs: Any) -> list[RolloutGroup]:
        groups = super().generate(*args, **kwargs)
        if self.how == "prompt":
            return [RolloutGroup(g.sample, (*g.prompt_token_ids, 1), g.completions) for g in groups]
        shift = {"nan": math.nan, "shifted": 0.01}[self.how]
        return [
            RolloutGroup(g.sample, g.prompt_token_ids, tuple(
                Completion(c.token_ids, c.text, tuple(x + shift for x in c.sampler_logprobs), c.finish_reason)
                for c in g.completions
            ))
            for g in groups
        ]  # fmt: skip


@pytest.mark.parametrize("how", ["prompt", "nan", "shifted"])
def test_parity_gate_stops_a_run_whose_engine_disagrees(how: str, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"engine and trainer disagree.*question phantom"):
        train(tiny_folder, tmp_path, engine=Broken(how))


def test_reward_that_is_nan_stops_or_counts_as_no_verdict(tiny_folder: Path, tmp_path: Path) -> None:
    class Undefined:
        def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
            return math.nan if sample.images else float(len(completion.text) % 2)

    with pytest.raises(RewardError, match="phantom"):
        train(tiny_folder, tmp_path, module={"rewards": {"mine": Undefined()}})
    _, recorder = train(
        tiny_folder, tmp_path, module={"rewards": {"mine": Undefined()}, "on_reward_error": "no_verdict"}
    )
    pictures = sum(bool(group.group.sample.images) for group in recorder.iterations[0].groups)
    assert recorder.metrics["train/frac_no_verdict"] == pictures / 4
    assert recorder.metrics["train/rewards/mine/errors"] == pictures * 3
    assert math.isfinite(recorder.losses[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"callback": {"group_sampling": SamplingParams(n=1)}}, "nothing to be compared with"),
        ({"callback": {"group_sampling": SamplingParams(n=2, temperature=0)}}, "greedy completions"),
        (
            {
                "callback": {"group_sampling": SamplingParams(n=2, top_p=0.9)},
                "module": {"correction": Correction("token_tis")},
            },
            "top_p=0.9",
        ),
        ({"module": {"policy_loss": GSPOLoss()}}, "loss_reduction: sequence"),
        ({"module": {"kl_coef": -1.0}}, "kl_coef"),
        ({"module": {"rewards": {"length": SoftOverlong(99, 9)}}}, "takes 99 tokens"),
        ({"backbone": {"lora": LoRA(dropout=0.1)}}, "dropout"),
        ({"data": {"prompts_per_iteration": 13}}, "12 usable questions"),
        ({"data": {"prompts_per_iteration": 4}, "trainer": {"accumulate_grad_batches": 8}}, "must fill"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(
    settings: dict[str, Any], message: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GRPOModule, "configure_model", lambda self: pytest.fail("the model is already being loaded"))
    with pytest.raises(ConfigurationError, match=message):
        train(tiny_folder, tmp_path, **settings)


def test_a_prompt_that_does_not_fit_the_engine_is_refused_before_loading(tiny_folder: Path, tmp_path: Path) -> None:
    class Small(TransformersEngine):
        max_model_len = 30

    with pytest.raises(ConfigurationError, match="max_model_len is 30"):
        train(tiny_folder, tmp_path, engine=Small())


def test_data_and_module_must_belong_together(tiny_folder: Path, tmp_path: Path) -> None:
    encoder = PromptEncoder(str(tiny_folder), template="plain")
    runner = Trainer(
        accelerator="cpu", logger=False, max_epochs=1, enable_checkpointing=False, default_root_dir=tmp_path,
        enable_progress_bar=False, callbacks=[RolloutCallback()],
    )  # fmt: skip
    backbone = Backbone(str(tiny_folder))
    with pytest.raises(ConfigurationError, match="PromptDataModule"):
        runner.fit(GRPOModule(backbone), BenchmarkDataModule(encoder, {"b": Phantom("test", 2)}))
    with pytest.raises(ConfigurationError, match="GRPOModule"):
        runner.fit(SFTModule(backbone), PromptDataModule(Phantom("train", 4), encoder, prompts_per_iteration=2))
    alone = Trainer(
        accelerator="cpu", logger=False, max_epochs=1, enable_checkpointing=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(MissingRolloutError, match="RolloutCallback"):
        alone.fit(GRPOModule(backbone), PromptDataModule(Phantom("train", 4), encoder, prompts_per_iteration=2))
