# SPDX-License-Identifier: Apache-2.0
"""Completions kept on disk, so that a run that was ended goes on where it was, with any number of ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from medvlt.data.files import replacing
from medvlt.distributed import gather, together, world
from medvlt.errors import DataError
from medvlt.rollout.store_identity import differences, short_hash
from medvlt.types import Completion, RolloutGroup, RolloutKey, Sample, SamplingParams

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

Generate: TypeAlias = Callable[[Sequence[Sample], SamplingParams, Sequence[RolloutKey]], list[RolloutGroup]]
"""Samples groups, as `RolloutEngine.generate` does."""

FORMAT = 1
IDENTITY_FILE = "store.json"
ROW_GROUP = 16
"""Questions that are read together; less than a shard, so that a batch in another order reads little in vain."""


@dataclass
class StoredPrompt:
    """What is known of one question.

    Attributes:
        token_ids: Prompt tokens; empty if nothing of it is stored.
        completions: Completions that did not fail, by their number.
        shards: The shard that each of them came from.
    """

    token_ids: tuple[int, ...] = ()
    completions: dict[int, Completion] = field(default_factory=dict)
    shards: dict[int, str] = field(default_factory=dict)


class CompletionStore:
    """A folder of Parquet shards with one row per question and call of the engine, and `store.json`.

    `store.json` holds the identity: all that completions depend on besides prompt and number (model, sampling, seed,
    wording, ...). A row holds benchmark, uid, a digest of the prompt, the prompt tokens and the completions with their
    numbers; log-probabilities are not kept. Each shard is written under a temporary name, flushed to the disk and
    renamed, and is named after what is in it, so that writing it twice does no harm. Completions that ended with
    "error" are kept for the record and count as missing.

    Every rank reads all shards and writes its own; the folder must be one that all ranks see.

    Args:
        folder: Where the shards lie; made if it is not there.

    Attributes:
        restored: Completions given back since `open`.
        sampled: Completions added since `open`.
        failed: How many of those ended with "error".
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.restored = self.sampled = self.failed = 0
        self._shards: dict[str, int] = {}  # file name to number, in the order of the numbers
        # benchmark to uid to the rows of the question, shard number * 2**32 + row: small, for all of 177k questions
        self._rows: dict[str, dict[str, tuple[int, ...]]] = {}

    def open(self, identity: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> None:
        """Compares the identity and reads what the store has; all ranks together.

        Args:
            identity: What completions depend on; must go through JSON.
            about: What a reader of `store.json` may want to know besides, such as names and dates; never compared.

        Raises:
            DataError: If the store has completions of another identity, or a file of it cannot be read.
        """
        self.restored = self.sampled = self.failed = 0
        plain = json.loads(json.dumps(identity))
        together(lambda: self._create(plain, about or {}) if world()[1] == 0 else None)
        together(lambda: self._check(plain))
        together(self._read_index)

    @property
    def questions(self) -> int:
        """Questions of which it has something, over all benchmarks."""
        return sum(map(len, self._rows.values()))

    @property
    def counts(self) -> tuple[int, int, int]:
        """Completions restored, sampled, and how many of the sampled failed, since `open`."""
        return self.restored, self.sampled, self.failed

    def complete(
        self,
        benchmark: str,
        samples: Sequence[Sample],
        digests: Sequence[str],
        sampling: SamplingParams,
        keys: Sequence[RolloutKey],
        generate: Generate,
    ) -> list[RolloutGroup]:
        """Returns whole groups: what is stored, and the rest sampled and stored; all ranks together.

        Completions that are missing are asked for in runs of neighbouring numbers, all runs of one length in one call;
        each call is written before the next. Ranks make the same calls, one that misses nothing with no sample.

        Args:
            benchmark: Name under which the questions are asked.
            samples: The questions.
            digests: `prompt_digest` of each.
            sampling: How; `n` completions make a whole group.
            keys: One per question; all have the same `first`, the number of the group's first completion.
            generate: Samples what is missing.

        Returns:
            One group per question, in order. A completion that failed again is there with its error.

        Raises:
            DataError: If a stored completion belongs to another prompt or contradicts another one, or a shard cannot
                be read or written.
        """
        stored = together(lambda: self.restore(benchmark, samples, digests))
        start = keys[0].first if keys else 0
        numbers = range(start, start + sampling.n)
        groups = [{number: c for number, c in found.completions.items() if number in numbers} for found in stored]
        prompts = [found.token_ids for found in stored]
        self.restored += sum(map(len, groups))
        runs: dict[int, list[tuple[int, int]]] = {}
        for place, group in enumerate(groups):
            for first, length in _gaps(group, numbers):
                runs.setdefault(length, []).append((place, first))
        for length in sorted(set().union(*gather(set(runs))), reverse=True):
            missing = runs.get(length, [])
            sampled = generate(
                [samples[place] for place, _ in missing],
                replace(sampling, n=length),
                [replace(keys[place], first=first) for place, first in missing],
            )
            fresh = [storable(group) for group in sampled]
            first_numbers = [first for _, first in missing]
            together(partial(self.add, benchmark, fresh, [digests[place] for place, _ in missing], first_numbers))
            for (place, first), part in zip(missing, fresh, strict=True):
                groups[place].update(enumerate(part.completions, first))
                prompts[place] = prompts[place] or part.prompt_token_ids
        return [
            RolloutGroup(sample, prompt, tuple(group[number] for number in numbers))
            for sample, prompt, group in zip(samples, prompts, groups, strict=True)
        ]

    def restore(self, benchmark: str, samples: Sequence[Sample], digests: Sequence[str]) -> list[StoredPrompt]:
        """Returns what is stored of each question, completions that failed left out.

        Raises:
            DataError: See `complete`.
        """
        known = self._rows.get(benchmark, {})
        wanted: dict[int, dict[int, list[int]]] = {}  # shard to row to places in the batch
        for place, sample in enumerate(samples):
            for entry in known.get(sample.uid, ()):
                shard, row = divmod(entry, 2**32)
                wanted.setdefault(shard, {}).setdefault(row, []).append(place)
        found = [StoredPrompt() for _ in samples]
        names = list(self._shards)
        for shard, places in wanted.items():
            name = names[shard]
            for row, record in self._read_rows(name, sorted(places)):
                for place in places[row]:
                    self._merge(found[place], record, digests[place], name)
        return found

    def add(self, benchmark: str, groups: Sequence[RolloutGroup], digests: Sequence[str], first: Sequence[int]) -> None:
        """Writes groups as one shard.

        Args:
            benchmark: Name under which the questions were asked.
            groups: The groups.
            digests: `prompt_digest` of each.
            first: Number of the first completion of each.

        Raises:
            DataError: If the shard cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not groups:
            return
        rows = [
            _row(benchmark, group, digest, begin) for group, digest, begin in zip(groups, digests, first, strict=True)
        ]
        # the same completions are the same file, whatever the order in the batch
        rows.sort(key=lambda row: (row["uid"], row["completions"][0]["sample"]))
        contents = [
            [row["uid"], *((c["sample"], c["finish_reason"] == "error") for c in row["completions"])] for row in rows
        ]
        name = f"{short_hash(benchmark, json.dumps(contents))}.parquet"
        table = pa.Table.from_pylist(rows, _schema())
        with replacing(self.folder / name, overwrite=True) as temporary:
            pq.write_table(table, temporary, compression="zstd", row_group_size=ROW_GROUP, write_page_checksum=True)
        self._note(name, [(benchmark, row["uid"]) for row in rows])
        completions = [completion for group in groups for completion in group.completions]
        self.sampled += len(completions)
        self.failed += sum(completion.finish_reason == "error" for completion in completions)

    def _create(self, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        path = self.folder / IDENTITY_FILE
        if path.exists():
            return
        if any(self.folder.glob("*.parquet")):
            raise DataError(
                f"{self.folder} has Parquet files and no {IDENTITY_FILE}, so nobody knows what they were sampled with; "
                "name an empty folder as the store"
            )
        with replacing(path, overwrite=True) as temporary:
            content = {"format": FORMAT, "identity": identity, "about": about}
            temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _check(self, identity: Mapping[str, Any]) -> None:
        path = self.folder / IDENTITY_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version, stored = content["format"], content["identity"]
        except FileNotFoundError as error:
            raise DataError(f"{path} is not there; the store must be a folder that all ranks see") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} cannot be read ({type(error).__name__}: {error}); restore it, or name another folder as the "
                "store"
            ) from error
        if version != FORMAT:
            raise DataError(f"{path} has format {version}, this release reads {FORMAT}; name another folder")
        if changed := differences(stored, identity):
            raise DataError(
                f"the completions in {self.folder} were sampled with other settings: {'; '.join(changed)}. Name "
                "another folder as the store, put the settings back, or delete the folder if its completions are no "
                "longer wanted"
            )

    def _read_index(self) -> None:
        self._shards, self._rows = {}, {}
        for path in sorted(self.folder.glob("*.parquet")):
            with _opened(path) as file:
                columns = file.read(columns=["benchmark", "uid"]).to_pydict()
            self._note(path.name, list(zip(columns["benchmark"], columns["uid"], strict=True)))

    def _note(self, name: str, questions: Sequence[tuple[str, str]]) -> None:
        if name in self._shards:  # written once more
            return
        shard = self._shards[name] = len(self._shards)
        for row, (benchmark, uid) in enumerate(questions):
            rows = self._rows.setdefault(benchmark, {})
            rows[uid] = (*rows.get(uid, ()), shard * 2**32 + row)

    def _read_rows(self, name: str, rows: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        needed = sorted({row // ROW_GROUP for row in rows})
        with _opened(self.folder / name) as file:
            records = file.read_row_groups(needed).to_pylist()
        for row in rows:
            yield row, records[needed.index(row // ROW_GROUP) * ROW_GROUP + row % ROW_GROUP]

    def _merge(self, found: StoredPrompt, record: Mapping[str, Any], digest: str, shard: str) -> None:
        """Adds the completions of a row to what is known of its question."""
        fine = [stored for stored in record["completions"] if stored["finish_reason"] != "error"]
        if not fine:
            return
        question = f"question {record['uid']} of {record['benchmark']}"
        token_ids = tuple(record["prompt_token_ids"])
        if record["digest"] != digest or (found.token_ids and found.token_ids != token_ids):
            raise DataError(
                f"{question} has other words, options or pictures than when it was sampled for {self.folder / shard}; "
                "name another folder as the store, or delete that file and its completions are sampled again"
            )
        found.token_ids = token_ids
        for stored in fine:
            number = stored["sample"]
            completion = _completion(stored)
            if found.completions.setdefault(number, completion) != completion:
                raise DataError(
                    f"{question}: completion {number} differs between {self.folder / found.shards[number]} and "
                    f"{shard}; two jobs sampled it and the engine does not repeat itself. Delete one of the two files; "
                    "what only it has is sampled again"
                )
            found.shards.setdefault(number, shard)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens a shard; whatever is wrong with it becomes one error that names it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(_schema()):
                raise pa.ArrowInvalid("it has other columns than a shard of completions")
            yield file
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read ({' '.join(str(error).split())}); delete it, and its completions are sampled again"
        ) from error


def _schema() -> pa.Schema:
    import pyarrow as pa

    completion = {
        "sample": pa.int32(),
        "text": pa.string(),
        "token_ids": pa.list_(pa.int32()),
        "finish_reason": pa.string(),
        "version": pa.int64(),
        "error": pa.string(),
        "reported_tokens": pa.int64(),
    }
    prompt = {"benchmark": pa.string(), "uid": pa.string(), "digest": pa.string()}
    return pa.schema(
        prompt
        | {"prompt_token_ids": pa.list_(pa.int32()), "completions": pa.list_(pa.struct(list(completion.items())))}
    )


def _gaps(present: Mapping[int, Completion], numbers: range) -> Iterator[tuple[int, int]]:
    """Yields (first, length) of each run of neighbouring numbers that are not present."""
    first = numbers.start
    for number in (*numbers, numbers.stop):
        if number == numbers.stop or number in present:
            if number > first:
                yield first, number - first
            first = number + 1


def storable(group: RolloutGroup) -> RolloutGroup:
    """Returns a group with texts that UTF-8 can hold: an endpoint may send halves of surrogate pairs."""
    completions = [
        replace(c, text=c.text.encode("utf-8", "replace").decode(), error=c.error.encode("utf-8", "replace").decode())
        for c in group.completions
    ]
    return replace(group, completions=tuple(completions))


def _completion(stored: Mapping[str, Any]) -> Completion:
    return Completion(
        token_ids=tuple(stored["token_ids"]),
        text=stored["text"],
        sampler_logprobs=(),
        finish_reason=stored["finish_reason"],
        version=stored["version"],
        error=stored["error"],
        reported_tokens=stored["reported_tokens"],
    )


def _row(benchmark: str, group: RolloutGroup, digest: str, first: int) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "uid": group.sample.uid,
        "digest": digest,
        "prompt_token_ids": group.prompt_token_ids,
        "completions": [
            {
                "sample": number,
                "text": c.text,
                "token_ids": c.token_ids,
                "finish_reason": c.finish_reason,
                "version": c.version,
                "error": c.error,
                "reported_tokens": c.reported_tokens,
            }
            for number, c in enumerate(group.completions, first)
        ],
    }
