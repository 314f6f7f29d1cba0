# SPDX-License-Identifier: Apache-2.0
"""Curves of training, from what the loggers of Lightning wrote."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlt.errors import DataError
from medvlt.evaluation.page.figures import Shown, legend
from medvlt.evaluation.page.groups import FOLDER
from medvlt.evaluation.page.svg import colour, grid
from medvlt.evaluation.page.text import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = dict[str, list[tuple[int, float]]]
"""Name of a number to its (step, value), in order of steps."""

CURVES = {
    "train/reward": "reward",
    "train/accuracy": "accuracy, training",
    "val/accuracy": "accuracy, validation",
    "train/reward_std": "reward: deviation in a group",
    "train/frac_reward_zero_std": "groups that teach nothing",
    "train/format_rate": "asked format",
    "train/completions/mean_length": "mean length, tokens",
    "train/completions/clipped_ratio": "cut at the token limit",
    "train/entropy": "entropy, nats per token",
    "train/kl": "KL from the reference model",
    "train/loss": "loss",
    "train/clip_ratio/region_mean": "tokens clipped by the ratio",
    "train/sampling/sampling_logp_difference/mean": "log-prob: sampler against trainer",
    "lr-AdamW": "learning rate",
}
"""What is drawn, of what is there: name in the logger to title."""

POINTS = 600
"""Points of a curve that are drawn; of more, evenly spread ones."""

LOGS = 8
"""Logs of one report that are drawn."""


def training_figure(folders: Sequence[Path], notes: list[str]) -> Shown | None:
    """Returns the curves of some training runs, a panel for each number; None without folders.

    Args:
        folders: Each with `metrics.csv` files of CSVLogger or event files of TensorBoard, at any depth; one that kept
            only its completions has no curves.
        notes: Where to add what was left out.

    Raises:
        DataError: If a folder holds neither, or a file cannot be read.
    """
    logs = [log for folder in folders for log in read_logs(folder, notes)]
    if len(logs) > LOGS:
        notes.append(f"Training curves: the first {LOGS} of {len(logs)} logs are drawn.")
    logs = logs[:LOGS]
    shown = [name for name in CURVES if any(name in curves for _, curves in logs)]
    if not shown:
        return None
    by_title = {CURVES[name]: name for name in shown}

    def draw(axes: Axes, title: str) -> None:
        for number, (_, curves) in enumerate(logs):
            points = thinned(curves.get(by_title[title], []))
            marks = "o" if len(points) == 1 else ""
            axes.plot([x for x, _ in points], [y for _, y in points], color=colour(number), marker=marks, linewidth=1.2)
        axes.set_xlabel("step")

    return Shown(
        "training",
        "Training curves",
        f"As logged, not smoothed; of more than {POINTS} points of a curve, evenly spread ones are drawn.",
        f"{len(shown)} numbers over the steps of {len(logs)} training runs: {', '.join(by_title)}.",
        grid("training", list(by_title), draw, height=1.9),
        legend({number: name for number, (name, _) in enumerate(logs)}),
        ("log", "number", "first", "last", "steps"),
        tuple(
            (label(name, 80), CURVES[key], f"{points[0][1]:.4g}", f"{points[-1][1]:.4g}", f"{points[-1][0]:,}")
            for name, curves in logs
            for key in shown
            if (points := curves.get(key))
        ),
    )


def read_logs(folder: Path, notes: list[str]) -> list[tuple[str, Curves]]:
    """Returns the logs of a folder: name and curves.

    Args:
        folder: Searched at any depth; event files of TensorBoard count only where there is no `metrics.csv`.
        notes: Where to add that TensorBoard is missing.

    Raises:
        DataError: If there is none and no completions either, or one cannot be read.
    """
    found = sorted(folder.rglob("metrics.csv"))
    if found:
        return [(_name(folder, path), read_csv(path)) for path in found]
    events = sorted({path.parent for path in folder.rglob("events.out.tfevents.*")})
    if not events and any(path.is_dir() for path in folder.rglob(FOLDER)):
        return []
    if not events:
        raise DataError(
            f"{folder} holds nothing of a training run; expected metrics.csv of Lightning's CSVLogger, event files of "
            f"TensorBoard, or {FOLDER}/, at any depth; give another folder to training, or none"
        )
    if importlib.util.find_spec("tensorboard") is None:
        notes.append(
            f"Warning: the curves of {folder.name} are event files, which only the package tensorboard reads; run: "
            "pip install tensorboard"
        )
        return []
    return [(_name(folder, path / "events"), read_events(path)) for path in events]


def read_csv(path: Path) -> Curves:
    """Returns the curves of one `metrics.csv`; cells that are empty or not finite are left out.

    Raises:
        DataError: If it is not such a file.
    """
    rows: list[tuple[int, Mapping[str, str]]] = []
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                rows.append((int(row["step"] or number), row))
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise DataError(
            f"cannot read {path} as the log of a training run ({type(error).__name__}: {error}); expected a file of "
            "Lightning's CSVLogger with a column `step`"
        ) from error
    return {
        name: points for name in CURVES if (points := _finite((step, _number(row.get(name))) for step, row in rows))
    }


def read_events(folder: Path) -> Curves:
    """Returns the curves of the event files of one folder."""
    reader: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    log = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    log.Reload()
    there = set(log.Tags()["scalars"])
    return {
        name: points
        for name in CURVES
        if name in there and (points := _finite((int(event.step), float(event.value)) for event in log.Scalars(name)))
    }


def thinned(points: Sequence[tuple[int, float]], most: int = POINTS) -> list[tuple[int, float]]:
    """Returns evenly spread points, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def _finite(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    return sorted(((step, value) for step, value in points if math.isfinite(value)), key=lambda point: point[0])


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def _name(folder: Path, path: Path) -> str:
    inside = path.parent.relative_to(folder).as_posix()
    return folder.name if inside == "." else f"{folder.name}/{inside}"
