# SPDX-License-Identifier: Apache-2.0
"""Puts tables, figures and completions into one page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvlt.curation.card import NOTICE
from medvlt.data.controls import BlankPictures, Blind
from medvlt.data.files import replacing
from medvlt.errors import ConfigurationError
from medvlt.evaluation.analysis import comparable_benchmarks, comparable_means
from medvlt.evaluation.page import tables
from medvlt.evaluation.page.book import cards
from medvlt.evaluation.page.curves import lengths, pass_counts, pass_curves
from medvlt.evaluation.page.figures import Shown, forest, radar
from medvlt.evaluation.page.groups import iterations
from medvlt.evaluation.page.pictures import Thumbnails
from medvlt.evaluation.page.svg import glyph
from medvlt.evaluation.page.text import label, visible
from medvlt.evaluation.page.training import training_figure
from medvlt.evaluation.published import PUBLISHED
from medvlt.evaluation.runs import EvaluationRun
from medvlt.evaluation.scores import ReportData
from medvlt.evaluation.wording import HOW_TO_READ
from medvlt.imports import require

TEMPLATES = Path(__file__).parent / "templates"


def write_page(
    path: Path,
    data: ReportData,
    runs: Sequence[EvaluationRun],
    *,
    training: Sequence[Path] = (),
    title: str = "Evaluation",
    questions: int = 50,
) -> None:
    """Writes the page of a report; the same report gives the same bytes.

    The page asks for nothing outside of itself, and says so to the browser. Without JavaScript it shows everything,
    unfiltered and unsorted.

    Args:
        path: Where to; a file that lies there is replaced.
        data: The numbers.
        runs: The runs behind them, in the order of `data.runs`, with the questions that were compared.
        training: Folders of training runs: their curves, and groups with rewards and advantages.
        title: Of the page.
        questions: Most questions of each benchmark in the rollout book.

    Raises:
        ConfigurationError: If `runs` and `data.runs` differ in number, or `questions` is negative.
        DataError: If a stored completion or a log of training cannot be read, or the page cannot be written.
        MissingExtraError: If matplotlib or jinja2 is not installed.
    """
    if len(runs) != len(data.runs) or not runs:
        raise ConfigurationError(f"expected the runs behind {len(data.runs)} scores, got {len(runs)}; at least one")
    if questions < 0:
        raise ConfigurationError(f"questions of the rollout book must be 0 (none) or above, got {questions}")
    content = render(context(data, runs, training=training, title=title, questions=questions))
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="\n")


def context(
    data: ReportData, runs: Sequence[EvaluationRun], *, training: Sequence[Path], title: str, questions: int
) -> dict[str, Any]:
    """Returns what the template shows."""
    notes: list[str] = []
    shared, own = tables.protocols(runs)
    header, rows = tables.details(data)
    comparable, with_mean = comparable_benchmarks(data), comparable_means(data)
    thumbnails = Thumbnails(run.folder for run in runs)
    book = cards(runs, data, questions, thumbnails, notes)
    if thumbnails.left_out:
        notes.append(f"{thumbnails.left_out:,} thumbnails are left out: the page would be too big.")
    figures: list[Shown | None] = [
        forest(data, PUBLISHED, comparable, with_mean=with_mean),
        radar(data),
        pass_curves(data),
        pass_counts(data),
        lengths(data, runs),
    ]
    of_training: list[str] = []
    curves = training_figure(training, of_training)
    groups = iterations(training, of_training)
    return {
        "title": title,
        "note": NOTICE,
        "baseline": data.baseline,
        "benchmarks": data.benchmarks,
        "runs": [
            {
                "number": number,
                "label": scores.label,
                "glyph": glyph(number),
                "protocol": "; ".join(own[number]),
                "facts": tables.facts(run),
            }
            for number, (scores, run) in enumerate(zip(data.runs, runs, strict=True))
        ],
        "protocol": "; ".join(shared),
        "notes": data.notes,
        "left_out": notes,
        "left_out_of_training": of_training,
        "sections": tables.sections(data, PUBLISHED, comparable, with_mean=with_mean),
        "footnotes": tables.footnotes(PUBLISHED) if comparable else [],
        "comparable": comparable,
        "details": {"header": header, "rows": rows},
        "comparisons": tables.comparisons(data.comparisons),
        "controls": {"header": tables.CONTROLS, "rows": tables.controls(data.controls)},
        "without_pictures": any(item.control in (Blind.name, BlankPictures.name) for item in data.controls),
        "reading": HOW_TO_READ,
        "figures": [figure for figure in figures if figure is not None],
        "training": curves,
        "iterations": groups,
        "failures": data.failures[: tables.FAILURES],
        "more_failures": max(0, len(data.failures) - tables.FAILURES),
        "cards": book,
        "reasons": sorted({answer.reason for card in book for group in card.groups for answer in group.answers}),
    }


def render(values: dict[str, Any]) -> str:
    """Returns the page.

    Every text passes `visible` and is escaped on its way into the page, whatever the template does with it.
    """
    jinja2: Any = require("jinja2", extra="report")
    markup: Any = require("markupsafe", extra="report").Markup
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, markup) else value,
    )
    environment.filters["label"] = label
    script = _asset("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    figures = {shown.name: markup(shown.svg) for shown in [*values["figures"], values["training"]] if shown}
    page: str = environment.get_template("page.html.j2").render(
        **values,
        style=markup(_asset("style.css")),
        script=markup(script),
        script_hash=f"sha256-{digest}",
        drawings=figures,
    )
    return page


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
