# SPDX-License-Identifier: Apache-2.0
"""Any set as a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medvlt.curation.stored import stored
from medvlt.data.mixture import Subset
from medvlt.data.samples import SampleSet, Source
from medvlt.evaluation.benchmarks.checks import BenchmarkChecks
from medvlt.evaluation.benchmarks.rows import as_stored, read_rows, stored_rows


@dataclass(frozen=True)
class Benchmark(BenchmarkChecks, Source):
    """A set of one's own, or one that `medvlt data build benchmark` wrote, whose questions are counted.

    A source brings checks of its own, which come first: what it may leave out is still counted as lost here. Of which
    data set an unusable record of a source was cannot be told: with `dataset_name` and `expected`, only what is missing
    counts.

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
        names = [self.dataset_name] if isinstance(self.dataset_name, str) else self.dataset_name
        if isinstance(self.source, Source):
            source = stored(self.source, revision=self.revision)
            return self.checked((source if names is None else Subset(source, names)).load(), part=names is not None)
        rows = stored_rows(self.source, revision=self.revision)
        if names is not None:
            rows = rows.of(names, unnamed=rows.name, source=f"{rows.source} ({', '.join(names)})")
        return self.checked(read_rows(rows, as_stored, self.read_checks, dataset_name=rows.name, pictures=("images",)))
