# SPDX-License-Identifier: Apache-2.0
"""What a stored completion depends on, in values that can be written down and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from medvlt.data.prompts import PromptTemplate, chat_messages
from medvlt.errors import DataError
from medvlt.types import ImageSource, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from medvlt.data.encoder import PromptEncoder

BLOCKS, BLOCK_BYTES = 4, 1024
"""How much of each stored tensor is read: blocks at even distances, the first and the last among them."""

VALUES = 1024
"""How many values of each tensor are read, at even distances."""

_REPLY_FIELDS = ("target_format", "answer_only_format")


def short_hash(*parts: str | bytes) -> str:
    """Returns the first 16 hex digits of the sha256 over the parts and their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:16]


def folder_fingerprint(folder: Path) -> str:
    """Returns a hash of the weights in a model folder, or "" if it has none; the same for every copy of the folder.

    sha256 over name, type, shape and 4 evenly spaced blocks of 1 KiB of every tensor in `*.safetensors`, however the
    tensors are spread over files. Every tensor is looked at, since training may move some of them alone; of one that
    it moves, nearly every value.

    Raises:
        DataError: If a file is no safetensors file.
    """
    tensors: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")  # the format: length, JSON header, data
                header = json.loads(file.read(length))
                for name, tensor in header.items():
                    if name != "__metadata__":
                        first, last = tensor["data_offsets"]
                        blocks = _blocks(file, 8 + length + first, last - first)
                        tensors[name] = short_hash(f"{tensor['dtype']}{tensor['shape']}", *blocks)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            raise DataError(
                f"{path} is no safetensors file ({type(error).__name__}: {error}); copy it again"
            ) from error
    return short_hash(*(part for item in sorted(tensors.items()) for part in item)) if tensors else ""


def _blocks(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    if size <= BLOCKS * BLOCK_BYTES:
        file.seek(start)
        yield file.read(size)
        return
    for number in range(BLOCKS):
        file.seek(start + (size - BLOCK_BYTES) * number // (BLOCKS - 1))
        yield file.read(BLOCK_BYTES)


def model_identity(name: str, revision: str | None = None) -> str:
    """Returns what tells the weights of a model from others.

    The fingerprint of its folder, or of its snapshot in the cache of the Hub; where neither is here, name and revision.

    Args:
        name: Folder or Hub name.
        revision: Branch, tag or commit on the Hub.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError

        try:
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (OSError, HFValidationError):
            folder = Path(name)
    found = folder_fingerprint(folder) if folder.is_dir() else ""
    return found or f"{name}@{revision or 'main'}"


class FingerprintedWeights:
    """A stream of weights whose fingerprint is taken while it passes.

    The fingerprint is a hash of name, type, shape and 1,024 evenly spaced values of every tensor, the same on every
    rank and device.

    Args:
        weights: Names and full tensors.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self._source = weights
        self._tensors: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        import torch

        for name, tensor in self._source:
            flat = tensor.detach().reshape(-1)
            values = flat[:: max(1, flat.numel() // VALUES)].cpu()
            content = values.contiguous().view(torch.uint8).numpy().tobytes()
            self._tensors[name] = short_hash(f"{tensor.dtype}{tuple(tensor.shape)}", content)
            yield name, tensor

    @property
    def fingerprint(self) -> str:
        """Hash of what has passed so far, whatever the order."""
        return short_hash(*(part for item in sorted(self._tensors.items()) for part in item))


def weights_fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Returns the fingerprint of a whole stream of weights; see `FingerprintedWeights`."""
    stream = FingerprintedWeights(weights)
    for _ in stream:
        pass
    return stream.fingerprint


def encoder_identity(encoder: PromptEncoder) -> dict[str, Any]:
    """Returns what of a prompt does not depend on the question: wording, pixel limits, chat template and vocabulary."""
    wording = {name: value for name, value in asdict(encoder.wording).items() if name not in _REPLY_FIELDS}
    tokenizer = ""
    if encoder.model:
        vocabulary = json.dumps(sorted(encoder.tokenizer.get_vocab().items(), key=lambda item: item[1]))
        tokenizer = short_hash(str(encoder.tokenizer.chat_template), vocabulary)
    return {"template": wording, "images": asdict(encoder.images), "tokenizer": tokenizer}


def prompt_digest(template: PromptTemplate, sample: Sample) -> str:
    """Returns a hash of all that a question puts into its prompt: wording, options in their order, pictures.

    Pictures count by their contents, so that a file and the same bytes in memory are equal; one that cannot be read
    counts as such, and its completions are errors anyway.
    """
    messages = json.dumps(chat_messages(template, sample), ensure_ascii=True, sort_keys=True)
    return short_hash(messages, *(part for picture in sample.images for part in _content(picture)))


def _content(picture: ImageSource) -> tuple[str | bytes, ...]:
    if isinstance(picture, bytes):
        return ("encoded", picture)
    if isinstance(picture, Path):
        try:
            return ("encoded", picture.read_bytes())
        except OSError:
            return ("unreadable", "")
    return (f"decoded {picture.mode} {picture.size}", picture.tobytes())


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns "field: value here, value there" for every field that two identities do not share; dots join names."""
    old, new = ({name: _shown(value) for name, value in flat(values)} for values in (stored, now))
    return [
        f"{name}: {_cut(old.get(name, 'nothing'))} in the store, {_cut(new.get(name, 'nothing'))} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every value of nested mappings with its name; dots join names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
