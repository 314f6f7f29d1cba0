# SPDX-License-Identifier: Apache-2.0
"""Write what a checkpoint holds as an ordinary model folder, which transformers, vLLM and further runs load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from rich.console import Console
from safetensors import SafetensorError

from medvlt.data.encoder import PromptEncoder
from medvlt.data.files import replacing
from medvlt.errors import ConfigurationError, DataError
from medvlt.models.checkpoints import read_stored
from medvlt.models.loading import Backbone
from medvlt.models.model_card import CARD, CONFIG, CardFacts, model_card
from medvlt.models.model_folder import copy_files, merged_weights, save_adapter, save_model
from medvlt.models.push import check_push, push_folder
from medvlt.models.restore import read_base, restore_policy, trained_encoder, unknown_base
from medvlt.models.verify_export import (
    Answer,
    ExportCheck,
    answers,
    check_prompts,
    check_transformers,
    check_vllm,
    load_adapter,
    load_written,
    tolerance,
)

ExportDtype: TypeAlias = Literal["auto", "float32", "bfloat16"]
"""Of the written weights; "auto" is the narrowest that holds all stored ones exactly."""


def export(
    checkpoint: str | Path,
    output: str | Path,
    base: str | None = None,
    dtype: ExportDtype = "auto",
    adapter: bool = False,
    check: ExportCheck = "transformers",
    push_to: str | None = None,
    private: bool = True,
) -> None:
    """Writes the policy of a checkpoint as an ordinary model folder, adapters merged.

    The folder has the weights as safetensors under their Hub names, the tokenizer, chat template, picture settings
    and generation settings of the base, a model card and the configuration of the run. transformers and vLLM load it,
    and `backbone.name` of another run may name it. Everything is done in main memory, in one process. Trained weights
    are the float32 ones of the optimizer, also where DeepSpeed's forward used bfloat16. Adapters on four-bit weights
    are merged into the floats that those stand for.

    Args:
        checkpoint: File or folder that `medvlt fit` wrote, under any strategy.
        output: Folder to make; it must not exist, or be empty.
        base: Folder or Hub name of the model that was trained, if it is no longer where the run found it. For adapters
            its weights are compared with the fingerprint in the checkpoint; where that has none, another name on the
            Hub is refused, a folder is taken, and the card says so.
        dtype: Of the weights; "auto" rounds nothing.
        adapter: Write the LoRA adapters alone, for `PeftModel.from_pretrained(base, output)`.
        check: Load what was written and compare its answers to a text and a picture with the policy's: "transformers",
            "vllm", "both" or "none". It takes the memory of one more model for a while, and minutes for 7B on a CPU.
        push_to: Upload the folder to this repository on the Hugging Face Hub, as user/name, with the login that is
            there. The card tells where base and checkpoint lay, and the configuration holds the paths of the run.
        private: Whether a repository that `push_to` makes is seen by its owner alone.

    Raises:
        ConfigurationError: If the folder is not empty, the checkpoint is not ours or not complete, or the base does
            not fit it.
        DataError: If the folder cannot be written; nothing is left of it.
        VerificationError: If what was written does not answer as the policy does; nothing is left of it.
    """
    target = Path(output)
    _check_settings(target, adapter=adapter, check=check, push_to=push_to)
    stored = read_stored(Path(checkpoint))
    settings = stored.backbone
    if adapter and settings.lora is None:
        raise ConfigurationError(
            f"adapter=true writes LoRA adapters alone, and {checkpoint} has none: all weights were trained; leave "
            "it out"
        )
    place = (settings.name, settings.revision) if base is None else (base, None)
    start = read_base(*place, weights=stored.adapters_only or adapter)
    doubt = unknown_base(stored, start) if stored.adapters_only or adapter else ""
    if doubt:
        _say(f"warning: {doubt}")
    encoder = trained_encoder(stored, start)
    wanted = None if dtype == "auto" else getattr(torch, dtype)
    policy = restore_policy(stored, start)
    computed = policy.base.lm_head.weight.dtype
    expected = [] if check == "none" else answers(policy, encoder)
    try:
        with replacing(target, overwrite=True) as temporary:  # an empty folder at most, as checked above
            if adapter:
                written = save_adapter(temporary, policy, start, wanted)
            else:
                written = save_model(temporary, merged_weights(policy, wanted), start.config)
            del policy  # before another copy is loaded
            copy_files(start.folder, temporary)
            card = model_card(CardFacts(target.name, stored, start, encoder, written, adapter, doubt))
            (temporary / CARD).write_text(card, encoding="utf-8")
            if stored.record.get("config"):
                (temporary / CONFIG).write_text(str(stored.record["config"]), encoding="utf-8")
            adapter_of = replace(settings, name=str(start.folder), revision=None) if adapter else None
            for line in verify(temporary, expected, encoder, check, computed, written, adapter_of):
                _say(line)
    except SafetensorError as error:
        raise DataError(f"cannot write {target}: {error}; check that the disk has space") from error
    _say(f"wrote the {'adapter' if adapter else 'model'} of {checkpoint} at step {stored.step} to {target}")
    if push_to is not None:
        _say(f"uploaded it to {push_folder(target, push_to, private=private)}")


def verify(
    folder: Path,
    expected: Sequence[Answer],
    encoder: PromptEncoder,
    check: ExportCheck,
    computed: torch.dtype,
    written: torch.dtype,
    adapter_of: Backbone | None = None,
) -> list[str]:
    """Has a written folder answer, and compares.

    Args:
        folder: With all its files.
        expected: The policy's answers; not used with "none".
        encoder: That of the policy.
        check: By which library.
        computed: The type in which the policy answered.
        written: That of the written weights.
        adapter_of: The base in a folder here, with the type and the quantisation it was trained in, if the written
            folder has adapters alone.

    Returns:
        What was found, a line for each library.

    Raises:
        VerificationError: If the folder answers otherwise.
    """
    if check == "none":
        return []
    found = []
    theirs = replace(encoder, model=str(folder))
    coarse = [] if adapter_of is None or adapter_of.quantization is None else [getattr(torch, adapter_of.dtype)]
    bound = tolerance(computed, written, *coarse)  # four-bit layers compute in that type
    check_prompts(expected, encoder, theirs)
    if check in ("transformers", "both"):
        model = load_written(folder) if adapter_of is None else load_adapter(folder, adapter_of, computed)
        found.append(check_transformers(model, expected, theirs, bound=bound))
        del model
    if check in ("vllm", "both"):
        found.append(check_vllm(expected, theirs, bound=bound, dtype=written))
    return found


def _check_settings(target: Path, *, adapter: bool, check: ExportCheck, push_to: str | None) -> None:
    """Refuses what cannot succeed before anything is read."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigurationError(f"{target} exists and is not empty; choose another folder or delete it first")
    if check in ("vllm", "both"):
        if adapter:
            raise ConfigurationError(
                f"check={check!r} asks vLLM, which cannot load adapters of every component; use check=transformers "
                "with adapter=true, or export the merged model"
            )
        from medvlt.rollout.vllm_start import import_vllm

        import_vllm()
    if push_to is not None:
        check_push(push_to)


def _say(line: str) -> None:
    Console().print(line, soft_wrap=True, markup=False, highlight=False)
