# SPDX-License-Identifier: Apache-2.0
"""The generated set as a source, and as text to train a tokenizer on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from medvlt.data.drops import ReadReport
from medvlt.data.phantom.compose import Reasoning, Settings, sample_at
from medvlt.data.phantom.families import ModalityChoice, choose_families
from medvlt.data.phantom.streams import SPLITS, Split
from medvlt.data.samples import BuiltSamples, SampleSet, Source
from medvlt.errors import ConfigurationError
from medvlt.types import Sample

_GRID_PIXELS = 28  # a patch of 14 pixels, merged two by two: the model resizes to multiples of this


class Phantom(Source):
    """Generated questions about drawn pictures and clinical numbers, with traces. Teaching toys, not for clinical use.

    There is no end: a larger set begins with the smaller one, because a sample depends on its position and the settings
    alone. Splits never share a value (heart rate, score, drawn scene), whatever the seeds. Validation and test
    use all numbered values of an answer before any comes again. Samples, pictures included, are made when they are
    asked for.

    `answer_label` and `answer` are always right. With `reasoning="teacher"` the trace argues for the letter in
    `extra["teacher_label"]`, which may be wrong: supervised targets should end in that letter, since a trace and its
    answer belong together. `extra["family"]` names the family, `dataset_name` is `phantom_text` or `phantom_picture`.

    Args:
        split: "train" (about 60% of all values), "validation" or "test" (20% each).
        size: Number of samples, at least 1.
        seed: Other seeds give other questions out of the values of the split.
        modality: "text", "picture", or both in turns.
        families: Names out of `medvlt.data.phantom.TEXT_FAMILIES` and `PICTURE_FAMILIES`; None means all.
        difficulty: 0 is what a tiny model learns: answers of one word, strong large lesions. Towards 1 values come
            close to the cut-offs and lesions get small and faint; from 0.5 on, numbers as options and more classes.
        reasoning: "exact" traces, those of the simulated "teacher", or "none".
        teacher_share: Share of the questions, in [0, 1], in which the teacher follows rules of his own (shifted
            cut-offs, a nodule missed); in the others, and where his rule agrees, he is right.
        image_pixels: Side of the square pictures; a multiple of 28, at least 56.
        shuffle_options: Whether options come in random order; if not, in the order of the family.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        seed: int = 0,
        modality: ModalityChoice = "both",
        families: Sequence[str] | None = None,
        difficulty: float = 0.0,
        reasoning: Reasoning = "exact",
        teacher_share: float = 0.6,
        image_pixels: int = 84,
        shuffle_options: bool = True,
    ) -> None:
        for name, valid, rule, value in (
            ("split", split in SPLITS, f"one of {SPLITS}", split),
            ("size", size >= 1, "at least 1", size),
            ("difficulty", 0 <= difficulty <= 1, "in [0, 1]", difficulty),
            ("reasoning", reasoning in get_args(Reasoning), f"one of {get_args(Reasoning)}", reasoning),
            ("teacher_share", 0 <= teacher_share <= 1, "in [0, 1]", teacher_share),
            (
                "image_pixels",
                image_pixels >= 2 * _GRID_PIXELS and image_pixels % _GRID_PIXELS == 0,
                f"a multiple of {_GRID_PIXELS}, at least {2 * _GRID_PIXELS}",
                image_pixels,
            ),
        ):
            if not valid:
                raise ConfigurationError(f"Phantom {name} must be {rule}, got {value!r}")
        self.size = size
        self.settings = Settings(
            split=split,
            seed=seed,
            families=tuple(choose_families(modality, families).items()),
            difficulty=difficulty,
            reasoning=reasoning,
            teacher_share=teacher_share,
            image_pixels=image_pixels,
            shuffle_options=shuffle_options,
        )

    def load(self) -> SampleSet:
        """Returns the samples, none of them made yet."""
        name = f"Phantom {self.settings.split} (seed {self.settings.seed})"
        return SampleSet(PhantomSamples(self.settings, self.size), ReadReport(name, read=self.size, kept=self.size))


@dataclass(frozen=True)
class PhantomSamples(BuiltSamples):
    """Samples that are generated whenever they are asked for.

    Attributes:
        settings: What to generate.
        size: Number of samples.
    """

    settings: Settings
    size: int

    def __len__(self) -> int:
        return self.size

    def build(self, index: int) -> Sample:
        """Returns the sample, its picture drawn."""
        return sample_at(self.settings, index)

    def light(self, index: int) -> Sample:
        """Returns the sample without its picture."""
        return sample_at(self.settings, range(self.size)[index], with_picture=False)


def phantom_corpus(
    size: int = 4000,
    seed: int = 0,
    modality: ModalityChoice = "both",
    families: Sequence[str] | None = None,
    difficulty: float = 0.0,
) -> Iterator[str]:
    """Yields the text of training questions: options, trace and answer in the tags a model is asked for.

    Meant for training a small tokenizer on. No pictures are drawn.

    Args:
        size: Number of texts.
        seed: As for `Phantom`.
        modality: As for `Phantom`.
        families: As for `Phantom`.
        difficulty: As for `Phantom`.
    """
    samples = Phantom("train", size, seed, modality, families, difficulty).load()
    for index in range(len(samples)):
        sample = samples.light(index)
        options = "\n".join(f"{letter}. {text}" for letter, text in sample.options.items())
        yield (
            f"{sample.question}\n{options}\n"
            f"<think> {sample.reasoning} </think>\n<answer> {sample.answer_label} </answer>"
        )
