# SPDX-License-Identifier: Apache-2.0
"""Resuming at the end of an epoch, which Lightning 2.6 gets wrong in two cases.

A checkpoint written at the last batch of an epoch (`every_n_train_steps` meets it), or at its end while `max_steps` is
set, resumes as if that epoch were not over: depending on the loader a whole epoch is lost, or the next one is cut short
and `on_train_epoch_start` is not called. Both are the beginning of the next epoch, and are made to look like it.
"""

from __future__ import annotations

from typing import Any


def begin_next_epoch(checkpoint: dict[str, Any]) -> None:
    """Rewrites the loop state of a checkpoint taken after the last batch of an epoch, or before the first, in place.

    Such a checkpoint resumes without the validation that would have followed that batch. Totals (and with them the
    global step) stay; the counts of the current epoch start at zero. Any other checkpoint is left as it is.

    Args:
        checkpoint: As Lightning hands it to `on_load_checkpoint`, before the loops are restored from it.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if loop is None:
        return
    batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
    if epochs["current"]["started"] < epochs["current"]["ready"]:  # written before the first batch of an epoch
        for scope in ("total", "current"):
            epochs[scope] = dict.fromkeys(epochs[scope], epochs[scope]["started"])
        batches["is_last_batch"] = False
        batches["current"] = dict.fromkeys(batches["current"], 0)
        return
    if not batches["is_last_batch"] or batches["current"]["processed"] != batches["current"]["ready"]:
        return
    if (
        batches["total"]["completed"] < batches["total"]["ready"]
    ):  # written inside the last batch, before it was counted
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    batches["is_last_batch"] = False
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["total"] = dict.fromkeys(batches["total"], batches["total"]["ready"])
    for scope in ("total", "current"):
        epochs[scope] = dict.fromkeys(epochs[scope], epochs[scope]["ready"])
