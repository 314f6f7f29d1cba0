# SPDX-License-Identifier: Apache-2.0
"""Resuming at the beginning of an optimizer step, whatever the moment at which the checkpoint was written.

Lightning 2.6 restores its counts as they were, and goes wrong in these cases:

- Written at the last batch of an epoch (`every_n_train_steps` meets it), or at its end while `max_steps` is set:
  depending on the loader a whole epoch is lost, or the next one is cut short and `on_train_epoch_start` is not called.
- Written when the epoch was ended early (`max_time`, `EarlyStopping`, `max_steps`): its rest is lost.
- Written inside an optimizer step (`train_time_interval`, `save_on_exception`): gradients are in no checkpoint, so the
  step would be made of its last micro-batches alone.
- Written inside a validation: it would go on in the middle, without the counts of its first part.

So each is rewritten to the state before the first micro-batch of a step. A validation that would have followed is left
out.
"""

from __future__ import annotations

from typing import Any


def begin_at_step(checkpoint: dict[str, Any]) -> None:
    """Rewrites the loop state of a checkpoint, in place, so that training goes on where an optimizer step begins.

    Totals of steps and epochs stay. In the middle of an epoch this needs the state of a `datamodules.ResumableLoader`;
    without one the checkpoint is left as it is there.

    Args:
        checkpoint: As Lightning hands it to `on_load_checkpoint`, before the loops are restored from it.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if loop is None:
        return
    batches, epoch = loop["epoch_loop.batch_progress"], loop["epoch_progress"]["current"]
    validation = loop["epoch_loop.val_loop.batch_progress"]
    validation["total"] = dict.fromkeys(validation["total"], validation["total"]["ready"])
    if epoch["started"] < epoch["ready"]:  # before the first batch of an epoch
        _begin_epoch(loop, after="started")
    elif batches["is_last_batch"] and batches["current"]["processed"] == batches["current"]["ready"]:
        _begin_epoch(loop, after="ready")
    elif batches["current"]["ready"]:  # else nothing has happened since a beginning or a resume
        _continue_epoch(loop)


def _begin_epoch(loop: dict[str, Any], *, after: str) -> None:
    """Sets the counts to between two epochs; `after` counts those that are over."""
    batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
    batches["is_last_batch"] = False
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["total"] = dict.fromkeys(batches["total"], batches["total"]["ready"])
    for scope in ("total", "current"):
        epochs[scope] = dict.fromkeys(epochs[scope], epochs[scope][after])


def _continue_epoch(loop: dict[str, Any]) -> None:
    """Sets the counts and the loader to after the last whole optimizer step of an epoch that goes on."""
    states = loop["state_dict"].get("combined_loader", [])
    if len(states) != 1 or not {"position", "per_step"} <= states[0].keys():
        return
    batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
    processed = batches["current"]["processed"]
    position = processed - processed % states[0]["per_step"]
    states[0]["position"] = position
    total = batches["total"]["ready"] - batches["current"]["ready"] + position
    batches["is_last_batch"] = False
    batches["current"] = dict.fromkeys(batches["current"], position)
    batches["total"] = dict.fromkeys(batches["total"], total)
    for scope in ("total", "current"):
        number = epochs[scope]["ready"]
        epochs[scope] |= {"started": number, "processed": number - 1, "completed": number - 1}
