# SPDX-License-Identifier: Apache-2.0
"""The page as a file: whole, quiet, the same every time, and deaf to what data would have it do."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toy_runs import toy_record, toy_run

from medvlt.data.samples import uids_fingerprint
from medvlt.errors import ConfigurationError
from medvlt.evaluation.analysis import analyse
from medvlt.evaluation.page import write_page
from medvlt.evaluation.page.book import COMPLETIONS, SHORTEST, cards, text_limit
from medvlt.evaluation.page.pictures import Thumbnails
from medvlt.evaluation.page.tables import in_words
from medvlt.evaluation.page.text import TEXT_LIMIT
from medvlt.evaluation.runs import EvaluationRun, read_run, write_run
from medvlt.evaluation.scores import Interval, ReportData
from medvlt.evaluation.wording import HOW_TO_READ, p_text

HOSTILE = (
    "<script>document.title='pwned'</script>", "</script><script>document.title='pwned'</script>",
    "\"' onerror=\"document.title='pwned'\" autofocus onfocus='document.title=1",
    "<img src=x onerror=document.title='pwned'>",
    "</style></title></textarea><svg/onload=document.title='pwned'>", "`${document.title='pwned'}`", "<!-- --!> ]]>",
    "{{ 7 * 7 }} {% raw %}", "javascript:document.title='pwned'", "\u202eevil\u2066", "\x00\x07\x1b[31m\x85\ufffe",
    "\ud800 half", "&lt;script&gt; &#0;", "$\\frac{", "http://example.org/x.png",
)  # fmt: skip
VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """Every element and text of a page, in order; independent of what wrote it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"closes {tag}, which is not open"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("script", "style"):
            self.words += data
        if {"th", "td"} & set(self._open):
            self.tables[-1][-1][-1] = " ".join(f"{self.tables[-1][-1][-1]} {data}".split())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(k.rstrip("_")) == v for k, v in attributes.items())
        ]


def answers(page: Page, **data: str) -> int:
    wanted = {f"data-{name}": value for name, value in data.items()}
    return sum(
        name == "div" and "data-state" in found and wanted.items() <= found.items() for name, found in page.elements
    )


def load(*folders: Path, baseline: bool = False) -> tuple[ReportData, list[EvaluationRun]]:
    runs = [read_run(folder) for folder in folders]
    if baseline:
        return analyse(runs[:-1], baseline=runs[-1], samples=50), runs
    return analyse(runs, baseline=None, samples=50), runs


def hostile_run(folder: Path) -> Path:
    """A run whose every text is an attack; the uids, which name questions, too."""
    records: list[dict[str, Any]] = []
    for number, text in enumerate(HOSTILE):
        record = toy_record("x", number, 0, right=False)
        uid = f"{number}{text}".replace("\ud800", "")  # names are well-formed
        record |= {
            "benchmark": f"b{HOSTILE[0]}",
            "uid": uid,
            "question": text,
            "completion": f"<think>{text}</think>{text}",
        }
        record |= {"options": {"A": text, text: "B"}, "answer_label": "A", "label": text, "reason": text, "error": text}
        record |= {"finish_reason": "error" if number % 2 else text, "picture_ids": [text, "../../../etc/passwd"]}
        record |= {"dataset_name": text, "grader_version": text}
        records.append(record)
    uids = [record["uid"] for record in records]
    name, everything = f"b{HOSTILE[0]}", "".join(HOSTILE)
    about = {
        "label": everything, "model": everything, "checkpoint": everything, "stage": everything, "control": None,
        "sampling": {"n": 1, "temperature": everything}, "seed": everything, "prompt": everything,
        "grader": {"policy": everything, "version": everything}, "limited_to": None, "identity": {},
        "benchmarks": {name: {"questions": len(uids), "uids": uids_fingerprint(uids), "source": everything}},
        "versions": {everything: everything}, "started": everything, "finished": everything,
    }  # fmt: skip
    write_run(folder, {k: _whole(v) for k, v in about.items()}, records)
    return folder


def _whole(value: Any) -> Any:
    return value.replace("\ud800", "") if isinstance(value, str) else value


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportData, list[EvaluationRun]]:
    """A run of ten completions per question and a baseline of one, with pictures."""
    folder = tmp_path_factory.mktemp("two")
    many = toy_run(
        folder / "many", "many", {"a": 9, "b": 4}, n=10, seed=1, share=2, thumbnails=True, failed={("a", 1, 0)}
    )
    one = toy_run(folder / "one", "one", {"a": 9, "b": 4}, seed=2, share=2)
    return load(many, one, baseline=True)


@pytest.fixture(scope="module")
def page(two: tuple[ReportData, list[EvaluationRun]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, *two, title="Two runs", questions=6)
    return path


def test_what_a_reader_looks_for_is_there(page: Path) -> None:
    found = Page(page)
    for text in (
        "Two runs", "Research software, not for clinical use.", "medvlthinker", "robust 1", "temperature 1.0",
        "2026-01-01T00:01:00+00:00", "HTTP 500: no answer", "9 questions", "No published scores stand here",
        "shows 10 of 13 questions", f"shows the first {COMPLETIONS} completions", "2 more completions are left out",
    ):  # fmt: skip
        assert text in found.words, text
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    links = {str(a["href"])[1:] for a in found.all("a")}
    assert links <= set(ids)
    for name in ("forest", "pass", "counts", "lengths"):
        assert f"figure-{name}" in ids
    assert all(a.get("alt") for a in found.all("img"))
    assert len(found.all("caption")) == len(found.all("table"))


def test_every_cell_of_the_tables(tmp_path: Path) -> None:
    made: dict[str, Any] = {"n": 3, "share": 2}
    benchmarks = {"a": 40, "b": 12}
    first = toy_run(tmp_path / "r", "r", benchmarks, accuracy={"a": 0.9, "b": 0.5}, failed={("a", 3, 1)}, **made)
    blind = toy_run(
        tmp_path / "c", "c", benchmarks, accuracy={"a": 0.4, "b": 0}, seed=1, control={"name": "blind"}, **made
    )
    base = toy_run(tmp_path / "base", "base", benchmarks, accuracy=0.3, seed=2, about={"prompt": "plain"}, **made)
    data, runs = load(first, blind, base, baseline=True)
    write_page(tmp_path / "report.html", data, runs, questions=0)
    page = Page(tmp_path / "report.html")
    results, details, compared, controls = page.tables[:4]

    def per_cent(value: float | None, digits: int = 1) -> str:
        return "\u2013" if value is None else f"{100 * value:.{digits}f}"

    def share(found: Interval | None, form: str = "{} {} to {}") -> str:
        return "\u2013" if found is None or found.low == found.high else form.format(*map(per_cent, found))

    def change(found: Interval) -> list[str]:
        value, low, high = (f"{round(100 * one, 1) + 0.0:+.1f}" for one in found)
        return [value, f"{low} to {high}"]

    r, c, b = data.runs
    assert results == [
        ["run", "a", "b", "mean"],
        ["Runs of this report"],
        *(
            [f"{glyph} {run.label} {said}", *(share(s.accuracy) for s in run.benchmarks), share(run.macro)]
            for glyph, run, said in (
                ("\u25cf", r, "prompt medvlthinker"), ("\u25a0", c, "prompt medvlthinker"),
                ("\u25b2", b, "baseline prompt plain"),
            )
        ),
    ]  # fmt: skip
    assert "Sampling n=3, temperature 1.0; grader robust, version 1." in page.words, "what all runs share"
    assert details == [
        ["run", "benchmark", "questions", "n", "chance", "asked format", "cut", "failed", "mean tokens",
         "interval by picture", "majority vote", "pass@n", "SD of repeats", "questions that flip", "MDE"],
        *(
            [run.label, s.benchmark, str(s.questions), "3", "25.0", per_cent(s.format_rate), "0.0", str(s.failed),
             f"{s.mean_tokens:.1f}", share(s.clustered, "{1} to {2}"), share(s.majority, "{} ({} to {})"),
             per_cent(s.pass_at_k[3]), per_cent(s.repeat_std, 2), per_cent(s.flip_rate), per_cent(s.minimum_detectable)]
            for run in data.runs for s in run.benchmarks
        ),
    ]  # fmt: skip
    assert (details[1][5], details[1][7]) == ("99.2", "1")
    assert (details[4][:2], details[4][9]) == ([c.label, "b"], "\u2013"), "nothing varies"
    assert all(s.clustered != s.accuracy for run in data.runs for s in run.benchmarks)
    assert {one.p_adjusted < 0.05 for one in data.comparisons} == {True, False}
    assert all(one.only_run != one.only_baseline for one in data.comparisons)
    assert compared == [
        ["benchmark", "difference", "run better", "baseline better", "p", "p, adjusted", "in words"],
        ["r"],
        *(
            [f"{'mean of benchmarks' if one.benchmark == 'mean' else one.benchmark} {one.questions} questions",
             " ".join(change(one.difference)), str(one.only_run), str(one.only_baseline),
             f"{p_text(one.p_value)} {one.test}", p_text(one.p_adjusted),
             ("\u2713 " if one.p_adjusted < 0.05 else "") + in_words(one)]
            for one in data.comparisons
        ),
    ]  # fmt: skip
    assert [one.run for one in data.comparisons] == ["r"] * 3
    assert controls == [
        ["run", "under the control", "benchmark", "questions", "accuracy lost, points", "95% interval",
         "same choice, %"],
        *(
            ["r", c.label, one.benchmark, str(one.questions), *change(one.difference), per_cent(one.consistency)]
            for one in data.controls
        ),
    ]  # fmt: skip
    assert all(one.difference.value > 0.2 for one in data.controls[:1])
    assert "without pictures does not use them" in page.words
    assert all(text in page.words for text in HOW_TO_READ)


def test_book_holds_what_is_stored(page: Path, two: tuple[ReportData, list[EvaluationRun]]) -> None:
    found, (many, one) = Page(page), two[1]
    cards = found.all("article", class_="card")
    assert Counter(card["data-benchmark"] for card in cards) == {"0": 6, "1": 4}
    assert answers(found, run="0") == 10 * COMPLETIONS
    assert answers(found, run="1") == 10
    shown = [uid for uid in one.benchmarks["a"].uids if f">{uid}<" in page.read_text(encoding="utf-8")]
    right = sum(bool(one.benchmarks[name].select([u]).correct[0, 0]) for name in "b" for u in one.benchmarks["b"].uids)
    right += sum(bool(one.benchmarks["a"].select([uid]).correct[0, 0]) for uid in shown)
    assert answers(found, run="1", state="right") == right
    differ = sum(
        float(many.benchmarks[n].select([u]).scores[0]) != float(one.benchmarks[n].select([u]).scores[0])
        for n, uids in (("a", shown), ("b", one.benchmarks["b"].uids))
        for u in uids
    )
    assert sum("data-changed" in card for card in cards) == differ > 0
    assert len(found.all("img")) == 10


def test_page_asks_for_nothing(page: Path) -> None:
    found, text = Page(page), page.read_text(encoding="utf-8")
    (policy,) = [a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}'" in policy, "the browser would refuse the script"
    assert not {tag for tag, _ in found.elements} & {"link", "iframe", "object", "embed", "base", "video", "audio"}
    loaded = [a[key] for _, a in found.elements for key in ("src", "href", "xlink:href", "action", "data") if key in a]
    assert loaded
    assert all(str(url).startswith(("#", "data:image/jpeg;base64,")) for url in loaded)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_a_page_made_twice_is_the_same(page: Path, two: tuple[ReportData, list[EvaluationRun]], tmp_path: Path) -> None:
    write_page(tmp_path / "again.html", *two, title="Two runs", questions=6)
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_whatever_data_says_is_text(tmp_path: Path) -> None:
    plain, hostile = tmp_path / "plain.html", tmp_path / "hostile.html"
    write_page(plain, *load(toy_run(tmp_path / "toy", "toy", {"x": len(HOSTILE)}, failed={("x", 1, 0)})))
    write_page(hostile, *load(hostile_run(tmp_path / "run")), title="".join(HOSTILE))
    found = Page(hostile)
    assert {tag for tag, _ in found.elements} <= {tag for tag, _ in Page(plain).elements} | {"pre"}
    assert len(found.all("script")) == len(found.all("style")) == len(found.all("title")) == 1
    assert not [key for _, attributes in found.elements for key in attributes if key.startswith("on")]
    for text in ("<script>document.title='pwned'</script>", "{{ 7 * 7 }} {% raw %}", "[U+202E]evil[U+2066]",
                 "[U+0000][U+0007][U+001B][31m[U+0085][U+FFFE]", "[U+D800] half", "&lt;script&gt; &#0;"):  # fmt: skip
        assert text in found.words, text
    assert found.all("img") == []
    assert "root:" not in hostile.read_text(encoding="utf-8")


def picture(form: str = "JPEG", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, format=form)
    return buffer.getvalue()


def test_only_small_whole_jpegs_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    good, cut = picture(), picture(size=(300, 300))
    contents = {
        "0": good, "1": picture("PNG"), "2": b"<svg onload=x>", "3": cut[: len(cut) // 2], "4": b"",
        "5": picture(size=(2000, 8)), "6": good + b"\x00" * 300_000,
    }  # fmt: skip
    for digit, content in contents.items():
        (folder / f"{digit * 16}.jpg").write_bytes(content)
    thumbnails = Thumbnails([tmp_path / "nowhere", tmp_path])
    shown = {digit: thumbnails.url(digit * 16) for digit in "01234567"}
    assert shown == dict.fromkeys("01234567") | {"0": f"data:image/jpeg;base64,{base64.b64encode(good).decode()}"}
    (tmp_path / "secret.jpg").write_bytes(good)
    assert thumbnails.url("../secret") is None
    assert thumbnails.url("0" * 16 + "\n") is None


def test_a_full_page_leaves_thumbnails_out_and_counts_them(
    two: tuple[ReportData, list[EvaluationRun]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medvlt.evaluation.page.pictures.TOTAL_LIMIT", 5_000)
    thumbnails = Thumbnails(run.folder for run in two[1])
    book = cards(two[1], two[0], 50, thumbnails, [])
    missing = sum(url is None for card in book for url in card.pictures)
    assert 0 < missing < 13
    assert thumbnails.left_out == missing


def test_many_completions_are_cut_shorter_than_few() -> None:
    assert text_limit(0) == text_limit(10) == TEXT_LIMIT
    assert text_limit(10**9) == SHORTEST
    assert SHORTEST < text_limit(10_000) < TEXT_LIMIT


def test_another_order_of_options_is_shown(tmp_path: Path) -> None:
    rotated = toy_run(tmp_path / "r", "rotated", {"a": 3}, rotate=1, control={"name": "rotated_options"})
    plain = toy_run(tmp_path / "p", "plain", {"a": 3}, thumbnails=True)
    write_page(tmp_path / "report.html", *load(rotated, plain))
    found = Page(tmp_path / "report.html")
    assert found.words.count("This run saw other options:") == 3
    first = re.search(r'<ol class="options">.*?</ol>', (tmp_path / "report.html").read_text(), flags=re.DOTALL)
    assert first is not None
    assert re.findall(r"<b>(.)</b> <span[^>]*>([^<]*)<", first[0])[0] == ("A", "pneumothorax"), (
        "the card is the plain run's"
    )
    assert found.words.count("Asked under the control rotated_options") == 3
    assert "without pictures" not in found.words, "nobody took them away"


def test_lengths_that_were_not_stored_are_not_shown_as_zero(tmp_path: Path) -> None:
    sampling = {"n": 1, "temperature": None, "top_p": None}
    about = {"lengths": False, "sampling": sampling, "regraded_from": {"label": "old", "grader": {"version": "0"}}}
    plain = toy_run(tmp_path / "p", "plain", {"a": 10})
    imported = toy_run(tmp_path / "i", "imported", {"a": 10}, thumbnails=True, about=about)
    write_page(tmp_path / "one.html", *load(imported))
    found = Page(tmp_path / "one.html")
    assert "tokens \u00b7" not in found.words
    assert "Length against correctness" not in found.words
    assert "label old, grader (version 0)" in found.words
    assert "None" not in found.words
    write_page(tmp_path / "both.html", *load(plain, imported))
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    (_, figure) = text.split('id="figure-lengths"')
    assert "plain" in figure.split("</figure>")[0]
    assert "imported" not in figure.split("</figure>")[0]


def test_no_book_and_bad_calls(two: tuple[ReportData, list[EvaluationRun]], tmp_path: Path) -> None:
    assert cards(two[1], two[0], 0, Thumbnails([]), []) == []
    with pytest.raises(ConfigurationError, match="got -1"):
        write_page(tmp_path / "x.html", *two, questions=-1)
    with pytest.raises(ConfigurationError, match="runs behind 2 scores, got 1"):
        write_page(tmp_path / "x.html", two[0], two[1][:1])
    assert not (tmp_path / "x.html").exists()
