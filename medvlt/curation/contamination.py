# SPDX-License-Identifier: Apache-2.0
"""Training questions that are in evaluation sets: found, reported, and left out on request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from medvlt.curation.card import announce, refuse_existing, write_dataset
from medvlt.curation.selection import SelectionReport
from medvlt.curation.text_matching import TextRule
from medvlt.data.samples import SampleSet, Source, uids_fingerprint
from medvlt.errors import ConfigurationError

if TYPE_CHECKING:
    from medvlt.curation.image_matching import PictureRule

Kind: TypeAlias = Literal[
    "exact_text",
    "near_text",
    "same_but_numbers",
    "same_picture_bytes",
    "same_picture_pixels",
    "near_picture",
    "same_wording",
]
"""How a training and an evaluation question match.

- `exact_text`, `near_text`: two questions without pictures, by their texts alone (see `text_matching`).
- `same_but_numbers`: the same, but only their numbers differ, and in value: "Normal GFR is 125?" and "Normal GFR is
  90", or a calculation from a template filled in anew; or indeed a question changed a little.
- `same_picture_bytes`, `same_picture_pixels`, `near_picture`: a picture of the one is a picture of the other, whatever
  is asked of it (see `image_matching`).
- `same_wording`: the texts match, but one of the questions has a picture: "Is there a fracture?" is asked of thousands.
"""

CONTAMINATION: tuple[Kind, ...] = (
    "exact_text",
    "near_text",
    "same_picture_bytes",
    "same_picture_pixels",
    "near_picture",
)
"""Kinds for which a training question is left out by default: all but `same_but_numbers` and `same_wording`."""


@dataclass(frozen=True)
class Pair:
    """A training question, and what it matches in one evaluation set in one way.

    Attributes:
        train_uid: The training question.
        evaluation_set: Name of the evaluation set.
        evaluation_uid: The question of that set that is most like it.
        kind: How they match.
        scores: Of texts: similarity, containment, phrases, letters. Of pictures: agreement, and wording, the likeness
            of the two texts. All in [0, 1].
        train_text: What the training question asks.
        evaluation_text: What the evaluation question asks.
        train_answer: Right answer of the training question, in words.
        evaluation_answer: Right answer of the evaluation question.
        others: How many further questions of the set it matches in this way.
        other_uids: The first 20 of these.
    """

    train_uid: str
    evaluation_set: str
    evaluation_uid: str
    kind: Kind
    scores: Mapping[str, float]
    train_text: str
    evaluation_text: str
    train_answer: str
    evaluation_answer: str
    others: int = 0
    other_uids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pictures:
    """What became of the pictures of one side.

    Attributes:
        read: Pictures read, repeats included.
        different: Different ones among them, by their bytes.
        unreadable: (uid, why) of each that could not be read, and so was not compared.
    """

    read: int
    different: int
    unreadable: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Contamination:
    """What two sides share.

    Attributes:
        pairs: In the order of the training set.
        train_questions: Questions of the training set.
        evaluation_questions: Questions of each evaluation set.
        touched: (evaluation set, kind) to how many of its questions some training question matches.
        wordless: Questions without a single word, which texts cannot find; both sides together.
        train_pictures: The training set's pictures; None if pictures were not compared.
        evaluation_pictures: Those of all evaluation sets together.
    """

    pairs: tuple[Pair, ...]
    train_questions: int
    evaluation_questions: Mapping[str, int]
    touched: Mapping[tuple[str, Kind], int]
    wordless: int = 0
    train_pictures: Pictures | None = None
    evaluation_pictures: Pictures | None = None

    def matched(self, kinds: Iterable[Kind] = CONTAMINATION) -> dict[str, Kind]:
        """Returns the uid of each training question that matches in one of these ways, with the first such way."""
        found: dict[str, Kind] = {}
        for kind in kinds:
            for pair in self.pairs:
                if pair.kind == kind:
                    found.setdefault(pair.train_uid, kind)
        return found

    def rows(self) -> list[tuple[str, Kind, int, int]]:
        """Returns (evaluation set, kind, training questions, evaluation questions) of what was found."""
        counts: dict[tuple[str, Kind], int] = {}
        for pair in self.pairs:  # one for each training question, set and kind
            counts[pair.evaluation_set, pair.kind] = counts.get((pair.evaluation_set, pair.kind), 0) + 1
        return [
            (name, kind, counts[name, kind], self.touched[name, kind])
            for name in self.evaluation_questions
            for kind in get_args(Kind)
            if (name, kind) in counts
        ]


def find_contamination(
    train: SampleSet,
    evaluation: Mapping[str, SampleSet],
    *,
    text: TextRule | None = None,
    picture: PictureRule | None = None,
    compare_pictures: bool = True,
) -> Contamination:
    """Compares every training question with every evaluation question, without going through all pairs.

    Training pictures are read one after the other, and only the digests of most are kept.

    Args:
        train: The training questions.
        evaluation: The evaluation sets by name.
        text: When texts match; by default, the measured rule.
        picture: When pictures match; by default, the measured rule.
        compare_pictures: Whether pictures are compared at all.

    Raises:
        ConfigurationError: If there is no evaluation set.
        MissingExtraError: If rapidfuzz or scipy is not installed.
    """
    if not evaluation:
        raise ConfigurationError("expected at least one evaluation set to compare with, got none; name one")
    from medvlt.curation.contamination_search import Search

    search = Search(train, evaluation)
    ours = theirs = None
    if compare_pictures:
        ours, theirs = search.compare_pictures(picture)
    else:
        search.only_look()
    search.compare_texts(text or TextRule())
    return Contamination(
        pairs=tuple(search.pairs()),
        train_questions=len(train),
        evaluation_questions={name: len(samples) for name, samples in evaluation.items()},
        touched={key: len(positions) for key, positions in search.touched.items()},
        wordless=search.wordless,
        train_pictures=ours,
        evaluation_pictures=theirs,
    )


def decontaminate(
    train: Source,
    evaluation: dict[str, Source],
    report: Path,
    output: Path | None = None,
    drop: list[Kind] | None = None,
    text: TextRule | None = None,
    picture: PictureRule | None = None,
    compare_pictures: bool = True,
    title: str | None = None,
    overwrite: bool = False,
) -> None:
    """Finds training questions that are in evaluation sets, and writes the training set without them if asked.

    Args:
        train: The training questions.
        evaluation: The evaluation sets by name, such as `{medqa: {class_path: JSONLines, ...}}`.
        report: Markdown file to write; all pairs go to the `.jsonl` file beside it.
        output: Folder for the training set without the questions found; by default none is written.
        drop: Kinds of match for which a question is left out; by default all but `same_but_numbers` (the same words
            with other numbers) and `same_wording` (worded alike, about another picture).
        text: When texts match.
        picture: When pictures match.
        compare_pictures: Whether pictures are compared at all.
        title: Name of the written set; by default the folder's.
        overwrite: Whether files and a saved data set that lie there may be replaced.
    """
    from medvlt.curation.contamination_report import summary, write_report
    from medvlt.curation.image_matching import PictureRule

    kinds = tuple(CONTAMINATION if drop is None else dict.fromkeys(drop))
    if unknown := [kind for kind in kinds if kind not in get_args(Kind)]:
        raise ConfigurationError(f"drop: expected kinds out of {', '.join(get_args(Kind))}; got {', '.join(unknown)}")
    report = Path(report)
    if report.suffix != ".md":
        raise ConfigurationError(f"report: expected the name of a Markdown file, ending in .md, got {report}")
    for path in (report, report.with_suffix(".jsonl"), *([] if output is None else [output])):
        refuse_existing(Path(path), overwrite=overwrite)
    text, picture = text or TextRule(), picture or PictureRule()
    samples = train.load()
    sets = {name: source.load() for name, source in evaluation.items()}
    found = find_contamination(samples, sets, text=text, picture=picture, compare_pictures=compare_pictures)
    rules = {"text": asdict(text), "picture": asdict(picture) if compare_pictures else None}
    write_report(found, report, kinds, rules, source=samples.report.source)
    print(summary(found, kinds))
    print(f"report {report}, all pairs {report.with_suffix('.jsonl')}")
    if output is not None:
        _write_clean(samples, sets, found, kinds, rules, output, title=title, overwrite=overwrite)


def _write_clean(
    samples: SampleSet,
    sets: Mapping[str, SampleSet],
    found: Contamination,
    kinds: Sequence[Kind],
    rules: Mapping[str, Any],
    output: Path,
    *,
    title: str | None,
    overwrite: bool,
) -> None:
    matched = found.matched(kinds)
    left_out: dict[str, int] = {}
    for kind in matched.values():
        left_out[kind] = left_out.get(kind, 0) + 1
    kept = [index for index, uid in enumerate(samples.uids) if uid not in matched]
    source = samples.report.source
    report = SelectionReport(
        f"{source}, without contamination", len(samples), len(kept), parts=(samples.report,), left_out=left_out
    )
    unreadable = {
        side: len(looked.unreadable)
        for side, looked in (("train", found.train_pictures), ("evaluation", found.evaluation_pictures))
        if looked is not None
    }
    provenance = {
        "source": source,
        "source_fingerprint": uids_fingerprint(samples.uids),
        "evaluation": {
            name: {"source": part.report.source, "questions": len(part), "fingerprint": uids_fingerprint(part.uids)}
            for name, part in sets.items()
        },
        "dropped_kinds": list(kinds),
        "rules": dict(rules),
        "matches": [
            {"evaluation_set": name, "kind": kind, "train_questions": ours, "evaluation_questions": theirs}
            for name, kind, ours, theirs in found.rows()
        ],
        "unreadable_pictures": unreadable,
    }
    notes = [f"{len(matched):,} of {len(samples):,} questions were left out, as they match one of {', '.join(sets)}."]
    if any(unreadable.values()):
        notes.append(
            f"Pictures that could not be read, and so were not compared: {unreadable['train']:,} of the training set, "
            f"{unreadable['evaluation']:,} of the evaluation sets. The questions about them may be in both."
        )
    if found.train_pictures is None:
        notes.append("Pictures were not compared.")
    facts = write_dataset(
        samples.select(kept, report),
        output,
        title=title or output.resolve().name,
        provenance=provenance,
        notes=notes,
        overwrite=overwrite,
    )
    announce(facts, output)
