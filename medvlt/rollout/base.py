# SPDX-License-Identifier: Apache-2.0
"""The contract of a rollout engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

    from medvlt.data.encoder import PromptEncoder
    from medvlt.models.policy import Policy


@runtime_checkable
class RolloutEngine(Protocol):
    """Samples completions. Every implementation passes `tests/contracts/test_rollout_engine.py`.

    The constructor takes settings only, so that an engine can be named in YAML; `start` hands it what it works on.

    Attributes:
        version: Version of its weights; 0 until weights are loaded.
        refused: How many prompts of each kind were refused; see `medvlt.rollout.refusal`.
    """

    version: int
    refused: Counter[str]

    def start(self, encoder: PromptEncoder, policy: Policy | None) -> None:
        """Gets ready to sample; calling it again with the same arguments changes nothing.

        Args:
            encoder: Turns samples into prompt tokens and pictures, the same object the trainer uses.
            policy: The live policy, or None where the engine has weights of its own.
        """

    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        """Samples `params.n` completions for each sample, in the order given.

        Equal keys give equal completions, whatever else is in the call; a key with `first` above 0 gives those from
        number `first` on of the group that it would give with 0. A prompt that cannot be sampled is refused: its
        completions are empty and end with "error".
        """

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Replaces all weights by full tensors under Hub names, streamed; every parameter exactly once."""

    def identity(self) -> dict[str, Any]:
        """Returns what completions depend on besides prompt, sampling and key, of a started engine.

        Weights, number format, limits; not how fast or where it runs. The same on every rank, goes through JSON, and
        does not change when a model folder is moved. Stored completions of another identity are not used again.
        """
        ...

    def sleep(self) -> None:
        """Gives memory back until `wake`. Calling it twice is the same as once."""

    def wake(self) -> None:
        """Takes memory again. Calling it twice is the same as once."""

    def close(self) -> None:
        """Ends the engine and everything it started. Calling it twice is the same as once."""
