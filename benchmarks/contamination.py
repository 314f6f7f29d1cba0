# SPDX-License-Identifier: Apache-2.0
"""Planted near-duplicates of questions and pictures: how many `medvlt data decontaminate` finds, by kind of change.

    python benchmarks/contamination.py --data ../shared/data [--seed 3] [--plants 100] [--speed] [--pairs out.jsonl]

Texts: evaluation questions are changed and hidden among real training questions. A plant counts as found if it is
matched with its own original: as `exact_text` or `near_text`, for which a question is left out by default, or as
`same_but_numbers`, which is reported and kept. The two are counted apart: a plant with other numbers in the same words
is meant to be of the second sort. Pictures: each changed picture is looked up among all originals, and must be matched
with its own one. Beside it stand the usual checks: the reference's (fuzzy ratio of at least 95 between the whole
prompt, options included, and the bare evaluation question), the same ratio of the questions, equal pixels, and pHash.
What is matched between the sets or among the pictures and was not planted is listed, to be looked at.

The data folder holds `text_mcq_{name}.jsonl` of six sets and pictures in `vqa_images`. `--generated` takes generated
questions and pictures instead: toys made of few templates, which show that it runs and say little about recall.
`--speed` times 100,000 made-up questions against 8,000. Seconds are processor seconds of one thread. Research software,
not for clinical use.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageEnhance, ImageOps

from medvlt.curation.image_matching import Picture, PictureIndex
from medvlt.curation.text_matching import match_texts
from medvlt.data.decode import open_image
from medvlt.data.phantom import Phantom
from medvlt.data.sources import JSONLines
from medvlt.types import Sample

TEXT_SETS = ("medqa_train", "medqa_dev_5opt", "medmcqa_dev", "mmlu_medical_test", "medxpertqa_text", "pubmedqa_train")
SYNONYMS = {
    "man": "gentleman", "woman": "lady", "physician": "doctor", "presents": "comes in", "patient": "individual",
    "because of": "due to", "following": "listed", "most likely": "most probable", "diagnosis": "disorder",
    "boy": "male child", "girl": "female child", "treatment": "therapy", "shows": "reveals", "brought": "taken",
    "caused": "produced", "disease": "illness", "drug": "medication", "history of": "background of",
    "used": "employed", "increased": "raised", "decreased": "lowered", "cause": "reason", "common": "frequent",
    "seen": "found", "false": "incorrect", "true": "correct",
}  # fmt: skip
ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def spelled(number: int) -> str:
    if number >= 100:
        return str(number)
    rest = f"-{ONES[number % 10]}" if number % 10 else ""
    return ONES[number] if number < 20 else TENS[number // 10] + rest


SMALL = re.compile(r"(?<![\w.,:/])\d{1,2}(?![\w]|[.,:/]\d)")  # whole numbers below 100 that stand alone


def spelled_out(text: str, rng: random.Random) -> str:
    """Every whole number below 100 in words; of questions that hold one."""
    return SMALL.sub(lambda match: spelled(int(match[0])), text)


def numbers_changed(text: str, rng: random.Random) -> str:
    """One number changed by 1 to 3, each further one with a probability of one half; of questions that hold one."""
    found = list(re.finditer(r"\d+", text))
    sure = rng.randrange(len(found))
    for place, match in reversed(list(enumerate(found))):
        if place == sure or rng.random() < 0.5:
            number = int(match[0])
            other = number + rng.choice([-3, -2, -1, 1, 2, 3] if number > 3 else [1, 2, 3])
            text = text[: match.start()] + str(other) + text[match.end() :]
    return text


def typing_errors(text: str, rng: random.Random) -> str:
    """A letter exchanged, left out or changed in one word of ten, at least in one."""
    found = text.split(" ")
    long = [place for place, word in enumerate(found) if len(word) >= 4]
    for place in rng.sample(long, max(1, len(found) // 10)) if len(long) > len(found) // 10 else long:
        word, at = found[place], rng.randrange(1, len(found[place]) - 2)
        found[place] = rng.choice(
            (
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + word[at + 1 :],
                word[:at] + rng.choice("aeioustrn") + word[at + 1 :],
            )
        )
    return " ".join(found)


def reordered(text: str, rng: random.Random) -> str:
    """Sentences, else clauses, else halves, in another order."""
    parts = re.split(r"(?<=[.?!])\s+", text)
    parts = parts if len(parts) > 1 else re.split(r",\s+", text)
    if len(parts) == 1:
        parts = re.findall(r"\S+", text)
        return " ".join(parts[len(parts) // 2 :] + parts[: len(parts) // 2])
    turn = rng.randrange(1, len(parts))
    return " ".join(parts[turn:] + parts[:turn])


def case_and_punctuation(text: str, rng: random.Random) -> str:
    """Capitals without punctuation, or small letters with hard blanks and other quotes."""
    if rng.random() < 0.5:
        return re.sub(r"[,.;:?()-]", " ", text).upper()
    return "  " + text.replace("'", "\u2019").replace(" ", "\u00a0 ").lower() + " ..."


def truncated(text: str, rng: random.Random) -> str:
    """The first or the last 30% of the words cut off; of questions of at least 15 words."""
    found = text.split()
    cut = round(len(found) * 0.3)
    return " ".join(found[cut:] if rng.random() < 0.5 else found[: len(found) - cut])


def synonyms(text: str, rng: random.Random) -> str:
    """26 frequent words and phrases exchanged wherever they stand; of questions that hold one."""
    for word, other in SYNONYMS.items():
        text = re.sub(rf"\b{word}\b", other, text)
    return text


def wrapped(text: str, rng: random.Random) -> str:
    """Inside a prompt, with instructions before it and options behind; of questions of at least 8 words."""
    return (
        "Read the text and choose the best answer. Explain your reasoning step by step. Question: "
        f"{text} Options: A. aspirin B. heparin C. watchful waiting D. none of these"
    )


TextChange = Callable[[str, random.Random], str]
TEXT_CLASSES: dict[str, tuple[TextChange, Callable[[str], bool]]] = {
    "numbers in words": (spelled_out, lambda text: bool(SMALL.search(text))),
    "other numbers": (numbers_changed, lambda text: bool(re.search(r"\d", text))),
    "typing errors": (typing_errors, lambda text: any(len(word) >= 4 for word in text.split(" "))),
    "reordered": (reordered, lambda text: len(text.split()) >= 8),
    "case and punctuation": (case_and_punctuation, lambda text: True),
    "truncated": (truncated, lambda text: len(text.split()) >= 15),
    "synonyms": (synonyms, lambda text: synonyms(text, random.Random()) != text),
    "wrapped in a prompt": (wrapped, lambda text: len(text.split()) >= 8),
}


def jpeg(image: Image.Image, rng: random.Random) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=rng.randint(30, 90))
    return Image.open(buffer).convert("RGB")


def resized(image: Image.Image, rng: random.Random) -> Image.Image:
    scale = rng.uniform(0.5, 2)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, rng: random.Random) -> Image.Image:
    left, top, right, bottom = (rng.uniform(0.05, 0.15) for _ in range(4))
    w, h = image.size
    return image.crop((round(w * left), round(h * top), round(w * (1 - right)), round(h * (1 - bottom))))


def turned(image: Image.Image, rng: random.Random) -> Image.Image:
    return image.transpose(
        rng.choice((Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270))
    )


def mirrored(image: Image.Image, rng: random.Random) -> Image.Image:
    return image.transpose(rng.choice((Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)))


def brightness(image: Image.Image, rng: random.Random) -> Image.Image:
    brighter = ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.4))
    return ImageEnhance.Contrast(brighter).enhance(rng.uniform(0.7, 1.4))


def tilted(image: Image.Image, rng: random.Random) -> Image.Image:
    return image.rotate(rng.choice((-1, 1)) * rng.uniform(2, 5), Image.Resampling.BICUBIC)


def bordered(image: Image.Image, rng: random.Random) -> Image.Image:
    width = round(min(image.size) * rng.uniform(0.02, 0.1))
    return ImageOps.expand(image, width, rng.choice(("white", "black")))


PICTURE_CLASSES: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "JPEG, quality 30 to 90": jpeg,
    "resized, 50 to 200%": resized,
    "cropped, 5 to 15% a side": cropped,
    "turned by 90, 180 or 270 degrees": turned,
    "mirrored": mirrored,
    "brightness and contrast, 70 to 140%": brightness,
    "tilted by 2 to 5 degrees": tilted,
    "border of 2 to 10%": bordered,
}


def shares(total: int, names: list[str]) -> dict[str, int]:
    """The plants dealt out over the classes as evenly as it goes."""
    return {name: total // len(names) + (place < total % len(names)) for place, name in enumerate(names)}


def show(title: str, rows: dict[str, list[tuple[bool, ...]]], asked: int, methods: tuple[str, ...]) -> None:
    planted = sum(map(len, rows.values()))
    print(f"\n{title}: {planted} planted of {asked} asked for", end="")
    print("" if planted == asked else "; too few questions are fit for some of the changes")
    print(f"\n| change | planted | {' | '.join(methods)} |\n|---|---|{'---|' * len(methods)}")
    for name, found in [*rows.items(), ("all", list(itertools.chain(*rows.values())))]:
        counts = (f"{sum(hits)} ({sum(hits) / len(found):.0%})" for hits in zip(*found, strict=True))
        print(f"| {name} | {len(found)} | {' | '.join(counts)} |")


def text_plants(sets: dict[str, list[Sample]], seed: int, count: int) -> dict[str, list[tuple[bool, ...]]]:
    from rapidfuzz.fuzz import ratio

    train, *others = sets.values()
    evaluation = list(itertools.chain(*others))
    rng = random.Random(seed)
    plants = []
    for name, number in shares(count, list(TEXT_CLASSES)).items():
        change, fits = TEXT_CLASSES[name]
        pool = [place for place, sample in enumerate(evaluation) if fits(sample.question)]
        plants += [
            (name, place, change(evaluation[place].question, rng)) for place in rng.sample(pool, min(number, len(pool)))
        ]
    texts = [sample.question for sample in train] + [text for *_, text in plants]
    matches = {
        (match.train, match.evaluation): match.numbers_only
        for match in match_texts(texts, [sample.question for sample in evaluation])
    }
    rows: dict[str, list[tuple[bool, ...]]] = defaultdict(list)
    for number, (name, place, text) in enumerate(plants):
        sample = evaluation[place]
        prompt = text + "\n" + "\n".join(f"{label}. {option}" for label, option in sample.options.items())
        rows[name].append(
            (
                matches.get((len(train) + number, place)) is False,
                matches.get((len(train) + number, place)) is True,
                ratio(text, sample.question) >= 95,
                ratio(prompt, sample.question) >= 95,
            )
        )
    return rows


def picture_plants(images: list[Image.Image], seed: int, count: int) -> dict[str, list[tuple[bool, ...]]]:
    import imagehash

    pictures = [Picture.of(None, image) for image in images]
    index = PictureIndex(pictures)
    hashes = [imagehash.phash(image) for image in images]
    rng = random.Random(seed)
    rows: dict[str, list[tuple[bool, ...]]] = defaultdict(list)
    for name, number in shares(count, list(PICTURE_CLASSES)).items():
        chosen = [rng.randrange(len(images)) for _ in range(number)]
        changed = [PICTURE_CLASSES[name](images[place], rng) for place in chosen]
        matches = {(m.train, m.evaluation) for m in index.find([Picture.of(None, image) for image in changed])}
        for row, (place, image) in enumerate(zip(chosen, changed, strict=True)):
            distance = imagehash.phash(image) - hashes[place]
            same = Picture.of(None, image).pixels == pictures[place].pixels
            rows[name].append(((row, place) in matches, distance <= 10, same))
    return rows


def unplanted_texts(sets: dict[str, list[Sample]]) -> Iterator[dict[str, Any]]:
    for (one, left), (other, right) in itertools.combinations(sets.items(), 2):
        for match in match_texts([s.question for s in left], [s.question for s in right]):
            first, second = left[match.train], right[match.evaluation]
            scores = [round(value, 3) for value in (match.similarity, match.containment, match.phrases, match.letters)]
            yield {
                "sets": [one, other], "exact": match.exact, "numbers_only": match.numbers_only, "scores": scores,
                "uids": [first.uid, second.uid],
                "texts": [first.question, second.question],
            }  # fmt: skip


def made_up(real: list[str], count: int, rng: random.Random) -> list[str]:
    """Texts of real words in which each word follows another one as it does somewhere in the real texts."""
    following: dict[str, list[str]] = defaultdict(list)
    for text in real:
        chain = ["", *text.split(), ""]
        for word, after in itertools.pairwise(chain):
            following[word].append(after)
    texts = []
    for _ in range(count):
        words = [rng.choice(following[""])]
        while words[-1] and len(words) < 250:
            words.append(rng.choice(following[words[-1]]))
        texts.append(" ".join(words).strip())
    return texts


def text_speed(real: list[str]) -> None:
    rng = random.Random(0)
    train, evaluation = made_up(real, 100_000, rng), made_up(real, 8_000, rng)
    print(f"\n100,000 against 8,000 made-up questions, {sum(len(t.split()) for t in train) / 1e5:.0f} words each:")
    for size in (10_000, 100_000):
        start = time.process_time()
        found = sum(1 for _ in match_texts(train[:size], evaluation))
        seconds = time.process_time() - start
        print(f"{size:,}: {seconds:.0f} s, {seconds / size * 1000:.2f} s for 1,000 training questions, {found} matches")


def read(data: Path | None) -> tuple[dict[str, list[Sample]], dict[str, Image.Image]]:
    if data is None:
        sets = {
            "train": list(Phantom("train", 600, modality="text").load()),
            "test": list(Phantom("test", 300, modality="text").load()),
        }
        generated = Phantom("test", 200, modality="picture", image_pixels=224).load()
        return sets, {sample.uid: open_image(sample.images[0]) for sample in generated}
    sets = {name: list(JSONLines(path=data / f"text_mcq_{name}.jsonl").load()) for name in TEXT_SETS}
    files = sorted(path for path in (data / "vqa_images").rglob("*") if path.is_file())
    return sets, {path.relative_to(data).as_posix(): open_image(path) for path in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--data", type=Path, help="folder of the real sets")
    origin.add_argument("--generated", action="store_true", help="generated questions and pictures instead")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--plants", type=int, default=100, help="of each sort")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--pairs", type=Path, help="JSON Lines of the matches that nobody planted")
    arguments = parser.parse_args()
    if arguments.data is not None:
        needed = [arguments.data / f"text_mcq_{name}.jsonl" for name in TEXT_SETS] + [arguments.data / "vqa_images"]
        if missing := [str(path) for path in needed if not path.exists()]:
            parser.error(f"--data: expected {', '.join(missing)}; give the folder that has them, or --generated")
    torch.set_num_threads(1)
    sets, images = read(arguments.data)
    names, pictures = list(images), list(images.values())
    print(
        f"{sum(map(len, sets.values())):,} questions of {len(sets)} sets, {len(images)} pictures"
        f"{', generated' if arguments.generated else ''}; seed {arguments.seed}"
    )
    show(
        "Texts", text_plants(sets, arguments.seed, arguments.plants), arguments.plants,
        ("left out", "`same_but_numbers`", "ratio >= 95, question", "ratio >= 95, prompt with options (the reference)"),
    )  # fmt: skip
    show(
        "Pictures", picture_plants(pictures, arguments.seed, arguments.plants), arguments.plants,
        ("found", "pHash within 10 bits", "same pixels"),
    )  # fmt: skip

    start = time.process_time()
    unplanted = list(unplanted_texts(sets))
    compared = sum(len(a) for a, _ in itertools.combinations(sets.values(), 2))
    seconds = time.process_time() - start
    print(f"\nMatches of texts that nobody planted: {len(unplanted)} ({seconds / compared * 1000:.2f} s for 1,000)")
    for pair in sorted(unplanted, key=lambda pair: pair["scores"], reverse=True)[:50]:
        kind = "exact" if pair["exact"] else "same_but_numbers" if pair["numbers_only"] else "near"
        print(f"- {' / '.join(pair['sets'])} {pair['scores']} {kind}")
        print("\n".join(f"  - {' '.join(text.split())[:150]}" for text in pair["texts"]))
    start = time.process_time()
    described = [Picture.of(None, image) for image in pictures]
    middle = time.process_time()
    matches = PictureIndex(described).find(described)
    end = time.process_time()
    print(
        f"\nMatches among the {len(pictures)} pictures, of {len(pictures) * (len(pictures) - 1) // 2:,} pairs ("
        f"{(middle - start) / len(pictures) * 1000:.1f} s to hash 1,000, {(end - middle) / len(pictures) * 1000:.1f} s "
        "to look them up)"
    )
    for match in matches:
        if match.train < match.evaluation:
            print(f"- {names[match.train]} / {names[match.evaluation]}: {match.kind} {match.agreement:.3f}")
    if arguments.pairs:
        arguments.pairs.write_text("".join(json.dumps(pair) + "\n" for pair in unplanted))
    if arguments.speed:
        text_speed([sample.question for samples in sets.values() for sample in samples])


if __name__ == "__main__":
    main()
