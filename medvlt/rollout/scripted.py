# SPDX-License-Identifier: Apache-2.0
"""Rollouts that were written beforehand, for tests and for replaying stored completions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from medvlt.data.encoder import PromptEncoder
from medvlt.errors import ConfigurationError, DataError, EngineError
from medvlt.models.policy import Policy
from medvlt.rollout.base import RolloutEngine
from medvlt.rollout.refusal import refuse
from medvlt.rollout.store_identity import short_hash
from medvlt.types import Completion, FinishReason, RolloutGroup, RolloutKey, Sample, SamplingParams


class ScriptedEngine(RolloutEngine):
    """Answers with given texts, picked by the seed of each completion.

    Every completion is tokenized with the prompts' tokenizer, ended by the end of the turn or cut at `max_tokens`, and
    reported with the log-probability of its pick, so that it looks like any engine's.

    Args:
        texts: What may be answered to any question.
        by_uid: Texts for single questions, instead of `texts`.

    Attributes:
        refused: How many prompts of each kind were refused; see `medvlt.rollout.refusal`.
    """

    def __init__(self, texts: Sequence[str] = (), by_uid: Mapping[str, Sequence[str]] | None = None) -> None:
        if not texts and not by_uid:
            raise ConfigurationError("ScriptedEngine needs texts to answer with: give `texts` or `by_uid`")
        self.texts = list(texts)
        self.by_uid = dict(by_uid or {})
        self.version = 0
        self.refused: Counter[str] = Counter()
        self._encoder: PromptEncoder | None = None

    def start(self, encoder: PromptEncoder, policy: Policy | None) -> None:
        """Takes the tokenizer."""
        self._encoder = encoder

    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        """Returns scripted completions; greedy picks the first text."""
        if self._encoder is None:
            raise EngineError("the engine is not started, or was closed; call start(encoder, policy) first")
        groups = []
        for sample, key in zip(samples, keys, strict=True):
            texts = self.by_uid.get(sample.uid, self.texts)
            if not texts:
                raise EngineError(f"no text is scripted for question {sample.uid}")
            seeds = [key.sample_seed(index) for index in range(params.n)]
            picks = [0 if params.temperature == 0 else seed % len(texts) for seed in seeds]
            completions = tuple(self._completion(self._encoder, texts[pick], params.max_tokens) for pick in picks)
            try:
                prompt = self._encoder.encode(sample).token_ids
            except DataError as error:
                groups.append(refuse(sample, error, n=params.n, version=self.version, counts=self.refused))
                continue
            groups.append(RolloutGroup(sample, tuple(prompt.tolist()), completions))
        return groups

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Records the version; there are no weights."""
        self.version = version

    def identity(self) -> dict[str, Any]:
        """Returns its name and a hash of its texts."""
        return {"engine": "ScriptedEngine", "texts": short_hash(json.dumps([self.texts, self.by_uid], sort_keys=True))}

    def sleep(self) -> None:
        """Does nothing."""

    def wake(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Lets go of the tokenizer."""
        self._encoder = None

    def _completion(self, encoder: PromptEncoder, text: str, max_tokens: int) -> Completion:
        tokenizer = encoder.tokenizer
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], encoder.end_token_ids[0]]
        finish: FinishReason = "stop" if len(ids) <= max_tokens else "length"
        ids = ids[:max_tokens]
        return Completion(
            token_ids=tuple(ids),
            text=tokenizer.decode(ids, skip_special_tokens=True),
            sampler_logprobs=(0.0,) * len(ids),
            finish_reason=finish,
            version=self.version,
        )
