# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: it looks right in light and dark, its script runs, and nothing is complained of."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from toy_runs import toy_run

from medvlt.evaluation.analysis import analyse
from medvlt.evaluation.page import write_page
from medvlt.evaluation.published import BENCHMARKS, QUESTIONS
from medvlt.evaluation.runs import read_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="none of chromium, chromium-browser, google-chrome is installed"),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--hide-scrollbars", "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
)  # fmt: skip
DARK, LIGHT = "0", "1"
ATTACK = "<script>document.title='pwned'</script><img src=x onerror=document.title='pwned'>"

DRIVER = """
addEventListener("load", () => setTimeout(() => {
  const seen = {}, body = document.querySelector("table.results").tBodies[0];
  const order = () => [...body.rows].slice(1).map((row) => row.cells[0].querySelector("bdi").textContent);
  const change = (id, value) => {
    document.getElementById(id).value = value;
    document.getElementById(id).dispatchEvent(new Event("input", { bubbles: true }));
  };
  const shown = () => [...document.querySelectorAll("#cards > .card")].filter((card) => !card.hidden).length;
  const heads = document.querySelector("table.results").querySelectorAll("thead button");
  seen.given = order();
  heads[heads.length - 1].click(); seen.best = order();
  heads[heads.length - 1].click(); seen.worst = order();
  heads[heads.length - 1].click(); seen.again = order();
  body.querySelector(".kind button").click(); seen.folded = [...body.rows].filter((row) => row.hidden).length;
  body.querySelector(".kind button").click(); seen.unfolded = [...body.rows].filter((row) => row.hidden).length;
  seen.all = shown();
  change("f-outcome", "failed"); seen.failed = shown();
  change("f-outcome", "changed"); seen.changed = shown();
  change("f-outcome", "right"); change("f-run", "1"); seen.right = shown();
  seen.groups = [...document.querySelectorAll(".group")].filter((g) => !g.hidden && g.dataset.run !== "1").length;
  change("f-outcome", ""); change("f-run", ""); change("f-text", "A/3"); seen.text = shown();
  change("f-text", ""); change("f-benchmark", "1"); seen.benchmark = shown();
  change("f-benchmark", ""); change("f-reason", "empty"); seen.reason = shown();
  change("f-reason", "");
  const width = (selector) => {
    const box = document.querySelector(selector);
    return [box.scrollWidth, box.clientWidth];
  };
  seen.wide = width("#wide > .scroll");
  seen.narrow = width("#narrow .drawing");
  const letters = [...document.querySelectorAll("#narrow svg text")];
  seen.letters = Math.min(...letters.map((text) => text.getBoundingClientRect().height));
  const cards = document.querySelectorAll("#cards > .card");
  cards[0].focus();
  cards[0].dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true }));
  seen.next = document.activeElement === cards[1];
  seen.count = document.getElementById("f-count").textContent;
  document.body.setAttribute("data-seen", JSON.stringify(seen));
}));
"""


def six(folder: Path) -> tuple[str, str]:
    """Returns the table of results and the forest plot of a run of all six benchmarks, published rows included."""
    run = read_run(toy_run(folder / "six", "MedVLThinker-7B-RL_m23k", dict.fromkeys(BENCHMARKS, 12)))
    data = analyse([run], baseline=None, samples=50)
    (scores,) = data.runs
    whole = tuple(replace(score, questions=QUESTIONS[score.benchmark]) for score in scores.benchmarks)
    write_page(folder / "six.html", replace(data, runs=(replace(scores, benchmarks=whole),)), [run], title="six")
    text = (folder / "six.html").read_text(encoding="utf-8")
    table = re.search(r'<div class="scroll"[^>]*>\s*<table class="results.*?</table>\s*</div>', text, flags=re.DOTALL)
    figure = re.search(r'<figure id="figure-forest".*?</figure>', text, flags=re.DOTALL)
    assert table is not None
    assert figure is not None
    assert "MedVLThinker-3B-SFT_m23k-RL_PMC" in table[0]
    return table[0], figure[0]


def browse(profile: Path, address: str, *flags: str) -> tuple[str, list[str]]:
    """Returns what the browser printed, and what the page had it complain of."""
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *flags, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def screenshot(folder: Path, address: str, theme: str) -> npt.NDArray[np.int64]:
    """Returns the top of the page, (height, width, colour), as it is with a system of this theme."""
    path = folder / "shot.png"
    _, complaints = browse(
        folder / "profile", address, f"--blink-settings=preferredColorScheme={theme}", "--window-size=1280,1600",
        f"--screenshot={path}",
    )  # fmt: skip
    assert complaints == []
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.int64)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    benchmarks = {"a": 8, "b": 5, ATTACK: 3}
    run = toy_run(folder / "1", ATTACK, benchmarks, accuracy=0.8, thumbnails=True, failed={("a", 2, 0), ("b", 1, 0)})
    worst, base = (toy_run(folder / k, k, benchmarks, accuracy=v, seed=5) for k, v in (("worst", 0.1), ("base", 0.5)))
    runs = [read_run(path) for path in (run, worst, base)]
    data = analyse(runs[:-1], baseline=runs[-1], samples=50)
    write_page(folder / "report.html", data, runs, title=ATTACK)
    return folder / "report.html"


def test_light_and_dark(page: Path, tmp_path: Path) -> None:
    light = screenshot(tmp_path, page.as_uri(), LIGHT)
    dark = screenshot(tmp_path, page.as_uri(), DARK)
    chosen = screenshot(tmp_path, f"{page.as_uri()}?theme=dark", LIGHT)
    assert (light[-1, 0] > 230).all()
    assert (dark[-1, 0] < 40).all()
    assert (chosen == dark).mean() > 0.98, "the theme that is asked for wins over the system's; only its menu differs"
    for shot in (light, dark):
        paper = shot[-1, 0]
        middle = np.abs(shot[:, 320:960] - paper).max(axis=2)
        assert 0.01 < (middle > 100).mean() < 0.5, "there is content, and it is no blot"
        assert (middle[:, :] > 180).any(), "with strong contrast"
        assert (np.abs(shot[:, :40] - paper).max(axis=2) == 0).all(), "and nothing hangs over the edge"


def test_script_runs_and_data_does_not(page: Path, tmp_path: Path) -> None:
    dom, complaints = browse(tmp_path, f"{page.as_uri()}?outcome=failed", "--dump-dom")
    assert complaints == []
    assert 'data-script="ran"' in dom
    title = re.search(r"<title>(.*?)</title>", dom, flags=re.DOTALL)
    assert title is not None
    assert unescape(title[1]) == ATTACK
    cards = re.findall(r'<article class="card"[^>]*>', dom)
    assert len(cards) == 16
    assert sum("hidden" not in card for card in cards) == 2
    assert "2 of 16 questions." in dom


def test_sorting_folding_filters_and_keys(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # it would refuse our driver, too
    table, figure = six(page.parent)
    text = text.replace(
        "<script>", f'<div id="wide">{table}</div><div id="narrow" style="width: 440px">{figure}</div><script>'
    )
    text = text.replace("</body>", f"<script>{DRIVER}</script></body>")
    (tmp_path / "driven.html").write_text(text, encoding="utf-8")
    dom, complaints = browse(
        tmp_path / "profile", (tmp_path / "driven.html").as_uri(), "--dump-dom", "--window-size=1280,1000"
    )
    assert complaints == []
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found is not None
    seen: dict[str, Any] = json.loads(unescape(found[1]))
    assert seen["given"] == seen["again"] == [ATTACK, "worst", "base"]
    assert seen["best"] == [ATTACK, "base", "worst"]
    assert seen["worst"] == ["worst", "base", ATTACK]
    assert (seen["folded"], seen["unfolded"]) == (3, 0)
    runs = [read_run(page.parent / name) for name in ("1", "worst", "base")]
    right = [np.concatenate([answers.correct[:, 0] for answers in run.benchmarks.values()]) for run in runs]
    assert seen["all"] == 16
    assert seen["failed"] == 2
    assert seen["reason"] == 2
    assert seen["changed"] == int((np.ptp(np.stack(right).astype(int), axis=0) > 0).sum())
    assert seen["right"] == int(right[1].sum())
    assert seen["groups"] == 0
    assert seen["text"] == 1
    assert seen["benchmark"] == 5
    assert seen["next"] is True
    assert seen["count"] == "16 of 16 questions."
    assert seen["wide"][0] <= seen["wide"][1], "the table of the six benchmarks fits into 1,280 pixels"
    assert seen["narrow"][0] > seen["narrow"][1], "a figure in a narrow page scrolls"
    assert seen["letters"] > 8, "rather than have letters that are too small"
