# SPDX-License-Identifier: Apache-2.0
"""Traces of a scripted teacher: which are kept, what is written, and that nothing is lost between ranks."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from callbacks import RolloutCallback
from callbacks.traces import TeacherTraces, in_order
from datamodules import BenchmarkDataModule, SFTDataModule
from lightning_modules import RolloutModule, SFTModule
from medvlt.curation.distill import TraceChoice, TraceStatus
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.data.samples import Source
from medvlt.data.sources import SavedDataset
from medvlt.errors import ConfigurationError, DataError
from medvlt.models.loading import Backbone
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.types import Completion, RolloutGroup, RolloutKey, Sample, SamplingParams

TEXTS, PICTURES = 7, 5


class Unreliable(ScriptedEngine):
    """A teacher whose requests fail for the questions in `failing`."""

    def __init__(self, by_uid: dict[str, list[str]], failing: Sequence[str] = ()) -> None:
        super().__init__(by_uid=by_uid)
        self.failing = set(failing)

    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        failed = Completion((), "", (), "error", error="503: busy")
        groups = super().generate(samples, params, keys=keys)
        return [
            replace(group, completions=(failed,) * params.n) if group.sample.uid in self.failing else group
            for group in groups
        ]


def sources() -> dict[str, Source]:
    return {
        "text": Phantom("train", TEXTS, modality="text"),
        "pictures": Phantom("train", PICTURES, modality="picture"),
    }


def script() -> tuple[dict[str, list[str]], list[str]]:
    """Answers by uid: right with its own reasoning, except for one all wrong, one without reasoning, one with tags."""
    samples = [sample for source in sources().values() for sample in source.load()]
    answers = {s.uid: [f"<think> Of {s.uid} </think>\n<answer> {s.answer_label} </answer>"] for s in samples}
    answers[samples[1].uid] = ["<think> x </think>\n<answer> none </answer>"]
    answers[samples[2].uid] = [f"<answer> {samples[2].answer_label} </answer>"]
    answers[samples[8].uid] = [f"<think> a <answer> </think>\n<answer> {samples[8].answer_label} </answer>"]
    return answers, [sample.uid for sample in samples]


def collect(
    folder: Path, output: Path, engine: ScriptedEngine, *, benchmarks: dict[str, Source] | None = None,
    traces: TeacherTraces | None = None, store: Path | None = None, **settings: Any,
) -> None:  # fmt: skip
    sampling = SamplingParams(n=3, max_tokens=200)
    callbacks = [
        RolloutCallback(engine, sampling, store=None if store is None else str(store)),
        traces or TeacherTraces(output, teacher="R1"),
    ]
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=callbacks, default_root_dir=output.parent,
        **settings,
    )  # fmt: skip
    data = BenchmarkDataModule(PromptEncoder(str(folder), template="plain"), benchmarks or sources(), batch_size=2)
    trainer.predict(RolloutModule(), data, return_predictions=False)


def statuses(output: Path) -> dict[str, dict[str, Any]]:
    lines = output.with_name(f"{output.name}.status.jsonl").read_text().splitlines()
    return {record["uid"]: record for record in map(json.loads, lines)}


def provenance(output: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((output / "provenance.json").read_text())
    return record["provenance"]


def test_what_is_right_becomes_a_set_to_train_on(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, uids = script()
    output = tmp_path / "traces"
    collect(tiny_folder, output, ScriptedEngine(by_uid=answers))
    written = SavedDataset(output).load()
    assert list(written.uids) == [uid for number, uid in enumerate(uids) if number not in (1, 2, 8)]
    originals = {sample.uid: sample for source in sources().values() for sample in source.load()}
    for sample in written:
        assert sample.reasoning == f"Of {sample.uid}"
        assert sample.extra["teacher"] == "R1"
        assert sample.extra["teacher_sample"] == 0
        assert "teacher_label" not in sample.extra
        assert len(sample.images) == len(originals[sample.uid].images)
        assert (sample.options, sample.answer_label) == (
            originals[sample.uid].options, originals[sample.uid].answer_label,
        )  # fmt: skip
    table = statuses(output)
    assert list(table) == uids
    assert [table[uids[number]]["status"] for number in (0, 1, 2, 8)] == [
        "trace", "all_wrong", "no_reasoning", "unreadable",
    ]  # fmt: skip
    assert table[uids[8]]["skipped"] == {"reasoning_tags": 3}
    facts = provenance(output)
    assert (facts["teacher"], facts["complete"], facts["completions"]["n"]) == ("R1", True, 3)
    assert facts["counts"]["questions"] == TEXTS + PICTURES
    assert facts["counts"]["requests"] == 3 * (TEXTS + PICTURES)
    assert "every completion wrong" in (output / "README.md").read_text()
    printed = capsys.readouterr().out
    assert "not for clinical use" in printed
    assert "36 completions: 33 right, 0 failed, 6 right and passed over" in printed

    module = SFTModule(Backbone(str(tiny_folder)))
    data = SFTDataModule(SavedDataset(output), PromptEncoder(str(tiny_folder), template="plain"), global_batch_size=4)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=2,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    assert trainer.global_step == 2


def test_failed_requests_are_counted_and_asked_again(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, uids = script()
    output, store = tmp_path / "traces", tmp_path / "store"
    with pytest.raises(DataError, match=r"6 of 36 requests \(16\.7%\) failed.*marked as incomplete.*only the rest"):
        collect(tiny_folder, output, Unreliable(answers, uids[3:5]), store=store)
    assert "6 of 36 requests failed: the set is incomplete" in capsys.readouterr().out
    assert statuses(output)[uids[3]] == {
        "benchmark": "text", "uid": uids[3], "status": "failed", "n": 3, "right": 0, "failed": 3, "sample": None,
        "untagged": False, "skipped": {}, "errors": ["503: busy"],
    }  # fmt: skip
    assert len(SavedDataset(output).load()) == 7
    assert provenance(output)["complete"] is False
    assert "Incomplete" in (output / "README.md").read_text()

    collect(tiny_folder, output, Unreliable(answers), store=store)
    assert len(SavedDataset(output).load()) == 9
    assert provenance(output)["complete"] is True


def test_a_few_failures_are_tolerated_and_told(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, uids = script()
    output = tmp_path / "traces"
    traces = TeacherTraces(output, max_failed_share=0.2)
    collect(tiny_folder, output, Unreliable(answers, uids[3:5]), traces=traces)
    assert provenance(output)["complete"] is False
    assert provenance(output)["teacher"] == str(tiny_folder)
    assert "asks for everything, since the RolloutCallback has no `store`" in " ".join(capsys.readouterr().out.split())


def test_no_trace_at_all(tiny_folder: Path, tmp_path: Path) -> None:
    answers, uids = script()
    output = tmp_path / "traces"
    with pytest.raises(DataError, match=r"no trace for any of 12 questions.*requests failed 12"):
        collect(tiny_folder, output, Unreliable(answers, uids))
    assert not output.exists()
    assert {record["status"] for record in statuses(output).values()} == {"failed"}


def test_a_part_is_called_a_part(tiny_folder: Path, tmp_path: Path) -> None:
    answers, uids = script()
    output = tmp_path / "traces"
    collect(tiny_folder, output, ScriptedEngine(by_uid=answers), limit_predict_batches=1)  # one batch, not all
    assert list(statuses(output)) == [*uids[:2], *uids[7:9]]
    collect(tiny_folder, output, ScriptedEngine(by_uid=answers), limit_predict_batches=2)
    assert list(statuses(output)) == [*uids[:4], *uids[7:11]]
    assert provenance(output)["complete"] is False
    assert provenance(output)["counts"]["questions_not_asked"] == 4
    with pytest.raises(DataError, match="holds a part of an earlier run with 5 traces, and stays"):
        collect(tiny_folder, output, ScriptedEngine(by_uid=answers), limit_predict_batches=1)
    assert len(statuses(output)) == 8
    collect(tiny_folder, output, ScriptedEngine(by_uid=answers))
    with pytest.raises(ConfigurationError, match="is complete, and limit_predict_batches asks only a part"):
        collect(tiny_folder, output, ScriptedEngine(by_uid=answers), limit_predict_batches=1)
    assert provenance(output)["complete"] is True


def snapshot(output: Path) -> dict[str, bytes]:
    """Content of the set's facts and of its status file."""
    files = [output / "provenance.json", output / "README.md", output.with_name(f"{output.name}.status.jsonl")]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("failing", [slice(3, 5), slice(0, None), slice(1, 2)])  # the last had no trace
def test_a_complete_set_outlives_a_failing_rerun(tiny_folder: Path, tmp_path: Path, failing: slice) -> None:
    answers, uids = script()
    output = tmp_path / "traces"
    collect(tiny_folder, output, ScriptedEngine(by_uid=answers))
    before = snapshot(output)
    with pytest.raises(DataError, match=r"holds all of an earlier run with 9 traces, and stays.* no `store`"):
        collect(
            tiny_folder, output, Unreliable(answers, uids[failing]),
            traces=TeacherTraces(output, teacher="R1", max_failed_share=1.0),
        )  # fmt: skip
    assert snapshot(output) == before
    assert len(SavedDataset(output).load()) == 9
    collect(tiny_folder, output, ScriptedEngine(by_uid=answers))  # a complete run replaces it
    assert provenance(output)["complete"] is True


def test_an_incomplete_set_outlives_a_worse_run(tiny_folder: Path, tmp_path: Path) -> None:
    answers, uids = script()
    output = tmp_path / "traces"
    for failing, message in (
        (uids[3:4], r"8 traces there are, marked"),
        (uids[3:6], "a part of an earlier run with 8"),
    ):
        with pytest.raises(DataError, match=message):
            collect(tiny_folder, output, Unreliable(answers, failing))
    assert len(SavedDataset(output).load()) == 8


def test_another_teacher_or_other_questions_need_another_output(tiny_folder: Path, tmp_path: Path) -> None:
    class Never(ScriptedEngine):
        model = "gpt-4o"

        def generate(self, *args: Any, **kwargs: Any) -> list[RolloutGroup]:
            raise AssertionError("nothing is to be sampled")

    answers, _ = script()
    output = tmp_path / "traces"
    named = ScriptedEngine(by_uid=answers)
    named.model = "R1-0528"  # type: ignore[attr-defined]
    collect(tiny_folder, output, named, traces=TeacherTraces(output))
    assert provenance(output)["teacher"] == "R1-0528"
    assert {sample.extra["teacher"] for sample in SavedDataset(output).load()} == {"R1-0528"}
    before = snapshot(output)
    with pytest.raises(ConfigurationError, match=r"written with teacher 'R1-0528', and this run has 'gpt-4o'"):
        collect(tiny_folder, output, Never([""]), traces=TeacherTraces(output))
    with pytest.raises(ConfigurationError, match=r"written with questions '\w{16}', and this run has '\w{16}'"):
        collect(
            tiny_folder, output, Never([""]), traces=TeacherTraces(output, "R1-0528"),
            benchmarks={"text": sources()["text"]},
        )  # fmt: skip
    assert snapshot(output) == before


def test_a_question_of_two_benchmarks_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    again = {"one": sources()["text"], "two": sources()["text"]}
    with pytest.raises(ConfigurationError, match=r"7 questions more than once.*TeacherTraces takes a question once"):
        collect(tiny_folder, tmp_path / "traces", ScriptedEngine(by_uid=script()[0]), benchmarks=again)
    assert not (tmp_path / "traces.status.jsonl").exists()


def test_what_others_wrote_is_not_replaced_and_nothing_is_sampled(tiny_folder: Path, tmp_path: Path) -> None:
    answers, _ = script()
    output = tmp_path / "traces"
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not written by TeacherTraces"):
        collect(tiny_folder, output, ScriptedEngine(by_uid=answers))
    assert (output / "thesis.txt").read_text() == "mine"
    assert not output.with_name("traces.status.jsonl").exists()


def test_settings_are_checked(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_failed_share"):
        TeacherTraces(tmp_path, max_failed_share=1.5)
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[TeacherTraces(tmp_path / "x")])
    data = BenchmarkDataModule(PromptEncoder(str(tiny_folder)), sources())
    with pytest.raises(ConfigurationError, match="TeacherTraces needs completions"):
        trainer.predict(RolloutModule(), data)


def choice(uid: str) -> TraceChoice:
    return TraceChoice("x", uid, TraceStatus.ALL_WRONG, 1, 0, 0)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (["a", "b"], "1 of 3 questions were lost on the way, such as c"),
        (["a", "b", "c", "a"], "1 of 3 questions were asked twice, such as a"),
        (["a", "b", "c", "d"], "1 of 3 questions were not of the data module, such as d"),
    ],
)
def test_every_question_exactly_once(found: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        in_order([choice(uid) for uid in found], ["a", "b", "c"], partial=False)


def test_order_is_that_of_the_questions() -> None:
    found = [choice(uid) for uid in "cab"]
    ordered, missing = in_order(found, ["b", "a", "c"], partial=False)
    assert [one.uid for one in ordered] == ["b", "a", "c"]
    assert missing == 0
    assert in_order(found[:1], ["b", "a", "c"], partial=True) == (found[:1], 2)


def work(rank: int, port: int, folder: Path, output: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    torch.set_num_threads(1)
    strategy = DDPStrategy(process_group_backend="gloo")
    collect(folder, output, ScriptedEngine(by_uid=script()[0]), devices=2, strategy=strategy)
    torch.distributed.destroy_process_group()  # gloo's threads may abort a process that ends without it


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tiny_folder: Path, tmp_path: Path) -> None:
    collect(tiny_folder, tmp_path / "alone", ScriptedEngine(by_uid=script()[0]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, tiny_folder, tmp_path / "both"), nprocs=2)
    one, two = (SavedDataset(tmp_path / name).load() for name in ("alone", "both"))
    assert list(one) == list(two)
    assert statuses(tmp_path / "alone") == statuses(tmp_path / "both")
    assert provenance(tmp_path / "alone") == provenance(tmp_path / "both")
