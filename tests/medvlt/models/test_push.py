# SPDX-License-Identifier: Apache-2.0
"""Uploading: what is asked of the Hub's client, and what is refused before anything is done. The Hub is not reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects

from medvlt.errors import ConfigurationError, DataError
from medvlt.models import push
from medvlt.models.export import export


class FakeHub:
    """Notes what is asked of it."""

    asked: list[tuple[str, Any]]
    failure: tuple[str, Exception] | None

    def __call__(self) -> FakeHub:
        return self

    def __init__(self, failure: tuple[str, Exception] | None = None) -> None:
        self.asked, self.failure = [], failure

    def _note(self, name: str, values: Any) -> None:
        if self.failure is not None and self.failure[0] == name:
            raise self.failure[1]
        self.asked.append((name, values))

    def whoami(self) -> dict[str, str]:
        self._note("whoami", None)
        return {"name": "user"}

    def create_repo(self, repository: str, **options: Any) -> str:
        self._note("create_repo", (repository, options))
        return f"https://huggingface.co/{repository}"

    def upload_folder(self, **options: Any) -> None:
        names = {path.name for path in Path(options["folder_path"]).iterdir()}
        self._note("upload_folder", options | {"names": names})


def test_a_folder_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(push, "HfApi", hub)
    (tmp_path / "README.md").write_text("card")
    push.check_push("user/name")
    assert push.push_folder(tmp_path, "user/name", private=True) == "https://huggingface.co/user/name"
    (_, (repository, options)), (_, uploaded) = hub.asked[1:]
    assert (repository, options) == ("user/name", {"repo_type": "model", "private": True, "exist_ok": True})
    assert (uploaded["repo_id"], uploaded["folder_path"], uploaded["names"]) == ("user/name", tmp_path, {"README.md"})
    older = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json", "config.json"]
    kept = [".gitattributes", "tokenizer.json", "notes.md"]
    assert list(filter_repo_objects(older + kept, allow_patterns=uploaded["delete_patterns"])) == older


@pytest.mark.parametrize(
    ("repository", "failure", "message"),
    [
        ("name", None, "expected push_to as user/name, got 'name'"),
        ("user/a name", None, "is no name on the Hub"),
        ("user/name", LocalTokenNotFoundError("no token"), "needs a login .* run `hf auth login`"),
        ("user/name", OfflineModeIsEnabled("offline"), r"is not reached \(OfflineModeIsEnabled\)"),
    ],
)
def test_what_cannot_be_pushed_is_refused_first(
    repository: str, failure: Exception | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the checkpoint is even looked for."""
    monkeypatch.setattr(push, "HfApi", FakeHub(None if failure is None else ("whoami", failure)))
    with pytest.raises(ConfigurationError, match=message):
        export(tmp_path / "nowhere.ckpt", tmp_path / "model", push_to=repository)


def test_a_failed_upload_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "HfApi", FakeHub(("upload_folder", OSError("connection lost"))))
    with pytest.raises(
        DataError,
        match=r"is written, and could not be uploaded .*connection lost.*`hf upload user/name .* --delete '\*\.safe",
    ):
        push.push_folder(tmp_path, "user/name", private=False)
