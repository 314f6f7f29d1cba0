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
out. As the samples of a step do not depend on how it is cut, the counts, which are of micro-batches, are rewritten too
where a step has others now than when the checkpoint was written.
"""

from __future__ import annotations

from typing import Any


def begin_at_step(checkpoint: dict[str, Any], per_step: int | None = None) -> None:
    """Rewrites the loop state of a checkpoint, in place, so that training goes on where an optimizer step begins.

    Totals of steps and epochs stay. In the middle of an epoch this needs the state of a `datamodules.ResumableLoader`;
    without one the checkpoint is left as it is there.

    Args:
        checkpoint: As Lightning hands it to `on_load_checkpoint`, before the loops are restored from it.
        per_step: Micro-batches of this rank that make an optimizer step from now on; None for as many as before.
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
    if per_step is not None:
        _cut_steps(loop, per_step)


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
    loader = _loader_state(loop)
    if loader is None:
        return
    batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
    processed = batches["current"]["processed"]
    position = processed - processed % loader["per_step"]
    loader["position"] = position
    total = batches["total"]["ready"] - batches["current"]["ready"] + position
    batches["is_last_batch"] = False
    batches["current"] = dict.fromkeys(batches["current"], position)
    batches["total"] = dict.fromkeys(batches["total"], total)
    for scope in ("total", "current"):
        number = epochs[scope]["ready"]
        epochs[scope] |= {"started": number, "processed": number - 1, "completed": number - 1}


def _cut_steps(loop: dict[str, Any], per_step: int) -> None:
    """Sets the counts, which are of whole steps, and the loader to steps of another number of micro-batches."""
    loader = _loader_state(loop)
    if loader is None:
        return
    before = loader["per_step"]
    batches = loop["epoch_loop.batch_progress"]
    for scope in ("total", "current"):
        batches[scope] = {name: count // before * per_step for name, count in batches[scope].items()}
    loader |= {"position": loader["position"] // before * per_step, "per_step": per_step}


def _loader_state(loop: dict[str, Any]) -> dict[str, Any] | None:
    """The state of the one `datamodules.ResumableLoader`."""
    states: list[dict[str, Any]] = loop["state_dict"].get("combined_loader", [])
    return states[0] if len(states) == 1 and {"position", "per_step"} <= states[0].keys() else None
