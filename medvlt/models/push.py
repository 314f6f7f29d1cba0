# SPDX-License-Identifier: Apache-2.0
"""Put a written model folder on the Hugging Face Hub, with the login that is there."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from medvlt.errors import ConfigurationError, DataError

FAILURES = (HfHubHTTPError, OSError, ValueError)
"""What the Hub's client raises: refusals, no network or offline mode, and bad arguments."""

REPLACED = ("*.safetensors", "*.safetensors.index.json", "adapter_*", "config.json", "training_config.yaml")
"""What an older push may have left, and would be loaded or believed beside the new files."""


def check_push(repository: str) -> None:
    """Refuses a push that cannot succeed, before hours of work.

    The token is the one of `hf auth login` or HF_TOKEN; it is read by huggingface_hub alone and never shown.

    Args:
        repository: As "user/name".

    Raises:
        ConfigurationError: If that is no name on the Hub, or there is no valid login.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigurationError(f"push_to={repository!r} is no name on the Hub: {error}") from error
    if repository.count("/") != 1:
        raise ConfigurationError(f"expected push_to as user/name, got {repository!r}")
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise ConfigurationError(
            "push_to needs a login to the Hugging Face Hub and there is none; run `hf auth login`, or set HF_TOKEN"
        ) from error
    except FAILURES as error:
        raise ConfigurationError(
            f"push_to={repository!r}: the Hugging Face Hub does not accept the login or is not reached "
            f"({type(error).__name__}); run `hf auth login`, check the network and HF_HUB_OFFLINE"
        ) from error


def push_folder(folder: Path, repository: str, *, private: bool) -> str:
    """Uploads a folder, in a repository that is made if it is not there.

    Weights and configurations of an older push that the folder does not have are deleted in the same commit.

    Args:
        folder: With all its files.
        repository: As "user/name".
        private: Whether a new repository is seen by its owner alone; one that exists stays as it is.

    Returns:
        Its address.

    Raises:
        DataError: If the upload fails; the folder stays.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type="model",
            commit_message="Written by medvlt export",
            delete_patterns=list(REPLACED),
        )
    except FAILURES as error:
        delete = " ".join(f"--delete '{pattern}'" for pattern in REPLACED)
        raise DataError(
            f"{folder} is written, and could not be uploaded to {repository} ({type(error).__name__}: {error}); try "
            f"again with `hf upload {repository} {folder} . {delete}`"
        ) from error
    return str(address)
