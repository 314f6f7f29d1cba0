# SPDX-License-Identifier: Apache-2.0
"""Pass counts of a predict run, against counts that were laid down beforehand."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from callbacks import PassCountLedger, RolloutCallback
from callbacks.ledger import check_coverage, count_group, failure_messages, in_words
from callbacks.rollout_settings import rollout_identity
from datamodules import BenchmarkDataModule
from lightning_modules import RolloutModule
from medvlt import __version__
from medvlt.curation.ledger import Ledger
from medvlt.curation.selection import Selected, Selection
from medvlt.data.encoder import PromptEncoder
from medvlt.data.mixture import Mixture, WithoutPictures
from medvlt.data.phantom import Phantom
from medvlt.data.sources import Source
from medvlt.errors import ConfigurationError, DataError
from medvlt.rewards.grade import GRADER_VERSION
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.types import Completion, RolloutGroup, RolloutKey, Sample, SamplingParams

TEXTS, PICTURES = Phantom("train", 5, modality="text"), Phantom("train", 3, modality="picture")
EIGHT = SamplingParams(n=8, max_tokens=99)


class Laid(ScriptedEngine):
    """Answers question i of the sources right in i of the completions; fails where it is told to.

    Args:
        fails: Uid to the numbers of the completions that fail.
    """

    def __init__(self, fails: dict[str, Sequence[int]] | None = None) -> None:
        super().__init__(["nothing"])
        samples = [*TEXTS.load(), *PICTURES.load()]
        self.right = {sample.uid: number for number, sample in enumerate(samples)}
        self.fails = fails or {}

    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        groups = super().generate(samples, params, keys=keys)
        return [
            replace(group, completions=tuple(self.answer(group.sample, key.first + i) for i in range(params.n)))
            for group, key in zip(groups, keys, strict=True)
        ]

    def answer(self, sample: Sample, number: int) -> Completion:
        if number in self.fails.get(sample.uid, ()):
            return Completion((), "", (), "error", error="the line was cut")
        wrong = next(letter for letter in sample.options if letter != sample.answer_label)
        letter = sample.answer_label if number < self.right[sample.uid] else wrong
        return Completion((1,) * (number + 1), f"<think> x </think>\n<answer> {letter} </answer>", (), "stop")


def predict(
    folder: Path,
    tiny_folder: Path,
    engine: ScriptedEngine,
    benchmarks: dict[str, Source] | None = None,
    callback: PassCountLedger | None = None,
    sampling: SamplingParams = EIGHT,
    before: Sequence[Callback] = (),
    **settings: Any,
) -> None:
    rollout = RolloutCallback(engine, sampling, store=str(folder / "store"))
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder,
        callbacks=[*before, callback or PassCountLedger(str(folder / "ledger.parquet"), "tiny"), rollout], **settings,
    )  # fmt: skip
    data = BenchmarkDataModule(
        PromptEncoder(str(tiny_folder), template="plain"),
        benchmarks or {"texts": TEXTS, "pictures": PICTURES},
        batch_size=2,
    )
    trainer.predict(RolloutModule(), data, return_predictions=False)


def test_counts_are_those_that_were_laid_down(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Laid()
    predict(tmp_path, tiny_folder, engine)
    ledger = Ledger.read(tmp_path / "ledger.parquet")
    assert ledger.column("tiny/strict") == ledger.column("tiny/robust") == engine.right
    assert set(ledger.column("tiny/n").values()) == set(ledger.column("tiny/format").values()) == {8}
    assert set(ledger.column("tiny/mean_tokens").values()) == {4.5}
    assert sorted(ledger.column("tiny/pictures").values()) == [0] * 5 + [1] * 3
    probe = ledger.probes["tiny"]
    assert (probe.model, probe.prompt, probe.n, probe.seed) == (str(tiny_folder), "plain", 8, 42)
    assert (probe.questions, probe.pictures, probe.grader_version) == (8, 3, GRADER_VERSION)
    sample = TEXTS.load()[1]
    assert ledger.questions()[sample.uid] == (sample.dataset_name, str(sample.dataset_index))
    out = capsys.readouterr().out
    assert "not for clinical use" in out
    assert "43.8%" in out  # 28 of 64


def test_truncated_and_failed_completions_are_counted_apart() -> None:
    sample = Sample("u", "Which?", {"A": "yes", "B": "no"}, "A", "yes")
    right = Completion((1, 2), "<answer> A </answer>", (), "stop")
    cut = Completion((1, 2, 3, 4), "<answer> A </answer>", (), "length")
    failed = Completion((), "", (), "error")
    counts = count_group(RolloutGroup(sample, (), (right, cut, failed, replace(right, text="(a) yes"))))
    assert counts == {
        "n": 3,
        "strict": 2,  # the reference does not look at the limit
        "robust": 2,  # and the robust grader reads more than the asked form
        "format": 0,
        "truncated": 1,
        "errors": 1,
        "mean_tokens": pytest.approx(8 / 3),
        "pictures": 0,
    }
    assert count_group(RolloutGroup(sample, (), (failed, failed)))["mean_tokens"] == 0


def test_failed_completions_are_asked_again(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then the question is not measured; its other completions are attempts all the same."""
    uid = TEXTS.load().uids[3]
    patient = PassCountLedger(str(tmp_path / "ledger.parquet"), "tiny", max_failed_share=0.125)
    with caplog.at_level(logging.WARNING):
        predict(tmp_path, tiny_folder, Laid({uid: (0, 5)}), callback=patient)
    assert "1 of 8 questions (12.5%)" in caplog.text
    assert "1 times 'the line was cut'" in caplog.text
    assert "asks for these once more" in caplog.text
    ledger = Ledger.read(tmp_path / "ledger.parquet")
    assert [ledger.column(f"tiny/{name}")[uid] for name in ("n", "errors", "strict")] == [6, 2, 2]
    selection = Selection(tmp_path / "ledger.parquet", low=1, high=7, min_measured=0.5)
    assert uid not in Selected(TEXTS, selection).load().uids
    predict(tmp_path, tiny_folder, Laid())
    ledger = Ledger.read(tmp_path / "ledger.parquet")
    assert [ledger.column(f"tiny/{name}")[uid] for name in ("n", "errors", "strict")] == [8, 0, 3]
    assert uid in Selected(TEXTS, selection).load().uids


def test_a_probe_that_failed_too_often_is_written_and_an_error(tiny_folder: Path, tmp_path: Path) -> None:
    uids = [*TEXTS.load().uids, *PICTURES.load().uids]
    with pytest.raises(DataError, match=r"2 of 8 questions \(25.0%\).*max_failed_share=0.05 allows 5.0%"):
        predict(tmp_path, tiny_folder, Laid({uids[0]: (0,), uids[7]: range(8)}))
    ledger = Ledger.read(tmp_path / "ledger.parquet")
    assert ledger.column("tiny/errors") == dict.fromkeys(uids, 0) | {uids[0]: 1, uids[7]: 8}
    with pytest.raises(DataError, match="measured 4 of the 5"):
        Selection(tmp_path / "ledger.parquet").apply(TEXTS.load())


def test_reasons_are_counted_whatever_numbers_they_have() -> None:
    failures = Counter({"prompt of # tokens": 2000, "no picture": 7, "c": 3, "d": 2, "e": 1})
    assert (
        in_words(failures) == "2000 times 'prompt of # tokens'; 7 times 'no picture'; 3 times 'c'; and 2 other messages"
    )
    sample = Sample("u", "Which?", {"A": "yes", "B": "no"}, "A", "yes")
    failed = [Completion((), "", (), "error", error=f"prompt of {number} tokens") for number in (1_201, 977)]
    assert failure_messages(RolloutGroup(sample, (), tuple(failed))) == {"prompt of # tokens"}


class Tampers(Callback):
    """Changes the groups of a batch behind the back of the ledger, before it counts them."""

    def __init__(self, change: Callable[[Sequence[RolloutGroup]], list[RolloutGroup]]) -> None:
        self.change = change

    def on_predict_batch_end(self, *args: Any, **_: Any) -> None:
        batch = args[3]
        batch.groups = self.change(batch.groups)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda groups: groups[:1], "of 8 questions 3 never counted"),
        (lambda groups: [*groups, groups[0]], "was asked twice"),
        (lambda groups: [replace(group, completions=group.completions[:7]) for group in groups], "without their 8"),
    ],
)
def test_a_run_that_loses_or_doubles_something_writes_no_ledger(
    change: Callable[[Sequence[RolloutGroup]], list[RolloutGroup]], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        predict(tmp_path, tiny_folder, Laid(), before=[Tampers(change)])
    assert not (tmp_path / "ledger.parquet").exists()


def test_other_weights_under_the_same_name_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    callback = PassCountLedger(str(tmp_path / "ledger.parquet"), "tiny")
    predict(tmp_path / "one", tiny_folder, Laid(), callback=callback)
    other = Laid()
    other.texts = ["something"]  # what stands for weights in this engine's identity
    with pytest.raises(DataError, match=r"details.engine.texts"):
        predict(tmp_path / "two", tiny_folder, other, callback=callback)
    assert not list((tmp_path / "two" / "store").glob("*.parquet"))


def test_a_copy_of_the_model_goes_on_with_the_probe(tiny_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    predict(tmp_path, tiny_folder, Laid(), {"texts": TEXTS})
    predict(tmp_path, copy, Laid(), {"pictures": PICTURES})
    probe = Ledger.read(tmp_path / "ledger.parquet").probes["tiny"]
    assert (probe.questions, probe.model) == (8, str(copy))


def test_versions_and_checkpoint_are_noted(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rollout_identity

    def from_checkpoint(*args: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        identity, about = real(*args)
        return identity, about | {"checkpoint": "last.ckpt"}

    predict(tmp_path, tiny_folder, Laid(), {"texts": TEXTS})
    before = Ledger.read(tmp_path / "ledger.parquet").probes["tiny"]
    assert (before.checkpoint, before.versions["medvlt"]) == ("", __version__)
    assert {"torch", "transformers"} < before.versions.keys()
    monkeypatch.setattr("callbacks.rollout_settings.rollout_identity", from_checkpoint)
    predict(tmp_path, tiny_folder, Laid())
    assert Ledger.read(tmp_path / "ledger.parquet").probes["tiny"].checkpoint == "last.ckpt"


@pytest.mark.parametrize(
    ("path", "probe", "share", "message"),
    [
        ("", "tiny", 0.05, "path is empty"),
        ("l", "my probe", 0.05, "heads its columns"),
        ("l", "mark", 0.05, "heads its columns"),
        ("l", "tiny", 1.5, r"max_failed_share must be in \[0, 1\]"),
    ],
)
def test_settings_without_meaning_are_refused(path: str, probe: str, share: float, message: str) -> None:
    with pytest.raises((ConfigurationError, DataError), match=message):
        PassCountLedger(path, probe, share)


@pytest.mark.parametrize("content", [None, "my notes"])
def test_what_cannot_become_a_ledger_is_refused_before_the_model_is_loaded(
    content: str | None, tiny_folder: Path, tmp_path: Path
) -> None:
    class NeverStarts(Laid):
        def start(self, *_: Any, **__: Any) -> None:
            raise AssertionError("the engine was started")

    path = tmp_path / "ledger.parquet"
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(DataError, match="is a folder" if content is None else "not a whole Parquet file"):
        predict(tmp_path, tiny_folder, NeverStarts())


def test_another_probe_adds_columns_and_other_questions_add_rows(tiny_folder: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.parquet")
    predict(tmp_path, tiny_folder, Laid(), {"texts": TEXTS})
    predict(tmp_path, tiny_folder, Laid(), {"pictures": PICTURES})
    blind = PassCountLedger(path, "blind")
    predict(tmp_path / "blind", tiny_folder, Laid(), {"pictures": WithoutPictures(PICTURES)}, blind)
    ledger = Ledger.read(path)
    assert len(ledger) == ledger.probes["tiny"].questions == 8
    assert ledger.column("blind/pictures") == dict.fromkeys(PICTURES.load().uids, 0)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (SamplingParams(n=8, max_tokens=50), "sampling.max_tokens 50 and 99"),
        (SamplingParams(n=8, max_tokens=99, temperature=0.5), "sampling.temperature 0.5 and 1.0"),
    ],
)
def test_other_settings_under_the_same_name_are_refused_before_sampling(
    sampling: SamplingParams, message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    callback = PassCountLedger(str(tmp_path / "ledger.parquet"), "tiny")
    predict(tmp_path / "one", tiny_folder, Laid(), callback=callback)
    before = (tmp_path / "ledger.parquet").read_bytes()
    with pytest.raises(DataError, match=message):
        predict(tmp_path / "two", tiny_folder, Laid(), callback=callback, sampling=sampling)
    assert (tmp_path / "ledger.parquet").read_bytes() == before
    assert not list((tmp_path / "two" / "store").glob("*.parquet"))


def test_a_blind_run_under_the_name_of_a_seeing_one_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    callback = PassCountLedger(str(tmp_path / "ledger.parquet"), "tiny")
    predict(tmp_path / "one", tiny_folder, Laid(), {"pictures": PICTURES}, callback)
    with pytest.raises(DataError, match=r"showed 1 pictures .* now 0; choose another name"):
        predict(tmp_path / "two", tiny_folder, Laid(), {"pictures": WithoutPictures(PICTURES)}, callback)


def test_more_completions_take_the_place_of_fewer(tiny_folder: Path, tmp_path: Path) -> None:
    """If all questions are asked again; else one probe would hold two kinds of counts."""
    predict(tmp_path, tiny_folder, Laid(), sampling=SamplingParams(n=4, max_tokens=99))
    with pytest.raises(DataError, match="n=4 and now n=8, and 3 of its questions are not asked now"):
        predict(tmp_path, tiny_folder, Laid(), {"texts": TEXTS})
    predict(tmp_path, tiny_folder, Laid())
    ledger = Ledger.read(tmp_path / "ledger.parquet")
    assert ledger.probes["tiny"].n == 8
    assert ledger.column("tiny/strict") == Laid().right


@pytest.mark.parametrize("settings", [{"limit_predict_batches": 1}, {"limit_predict_batches": 0.5}])
def test_a_part_of_the_questions_is_refused(settings: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="only a part of the questions"):
        predict(tmp_path, tiny_folder, Laid(), **settings)
    assert not (tmp_path / "ledger.parquet").exists()


def test_a_question_in_two_benchmarks_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="5 questions more than once"):
        predict(tmp_path, tiny_folder, Laid(), {"a": TEXTS, "b": Mixture([PICTURES, TEXTS])})


def test_greedy_completions_are_all_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="8 times the same"):
        predict(tmp_path, tiny_folder, Laid(), sampling=SamplingParams(n=8, temperature=0))


def test_needs_a_rollout_callback(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[PassCountLedger("l", "tiny")], default_root_dir=tmp_path
    )
    data = BenchmarkDataModule(PromptEncoder(str(tiny_folder), template="plain"), {"texts": TEXTS})
    with pytest.raises(ConfigurationError, match="needs completions"):
        trainer.predict(RolloutModule(), data)


@pytest.mark.parametrize(
    ("times", "n", "message"),
    [
        ({"a": 1}, 8, "1 never counted, such as b"),
        ({"a": 1, "b": 2}, 8, "1 counted twice, such as b"),
        ({"a": 1, "b": 1, "c": 1}, 8, "1 counted but not in the data, such as c"),
        ({"a": 1, "b": 1}, 9, "2 without their 9 completions, such as a, b"),
    ],
)
def test_gaps_and_repeats_are_errors(times: dict[str, int], n: int, message: str) -> None:
    rows = {uid: {"n": 7, "errors": 1} for uid in times}
    with pytest.raises(DataError, match=message):
        check_coverage(times, {"a": 1, "b": 1}, rows, n=n)


def test_whole_counts_pass() -> None:
    check_coverage({"a": 1}, {"a": 1}, {"a": {"n": 7, "errors": 1}}, n=8)
