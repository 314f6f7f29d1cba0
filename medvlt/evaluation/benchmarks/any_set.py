# SPDX-License-Identifier: Apache-2.0
"""Any set as a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medvlt.curation.stored import stored
from medvlt.data.mixture import Subset
from medvlt.data.samples import SampleSet, Source
from medvlt.evaluation.benchmarks.checks import BenchmarkChecks


@dataclass(frozen=True)
class Benchmark(BenchmarkChecks, Source):
    """A set of one's own, or one that `medvlt data build benchmark` wrote, whose questions are counted.

    A source brings checks of its own, which come first: what it may leave out is still counted as lost here.

    Args:
        source: A JSON Lines or Parquet file, a folder, a name on the Hub (split `train`; name another split with the
            source `HubDataset`), or a source.
        dataset_name: Keep only the questions of this data set, or of these.
        revision: Commit, branch or tag of a name on the Hub.
    """

    source: str | Path | Source
    dataset_name: str | list[str] | None = None
    revision: str | None = None

    def load(self) -> SampleSet:
        """Reads the set and counts it.

        Raises:
            DataError: If it cannot be read, or questions are missing.
        """
        checks = None if isinstance(self.source, Source) else self.read_checks
        source = stored(self.source, revision=self.revision, checks=checks)
        return self.checked((source if self.dataset_name is None else Subset(source, self.dataset_name)).load())
