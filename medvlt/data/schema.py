# SPDX-License-Identifier: Apache-2.0
"""The stored record of a question, checked, to and from `Sample`.

A record is a mapping with the columns of the published MedVLThinker sets: `images` (list or null), `question`,
`options` (a string that holds a JSON object, or a mapping), `answer_label`, `answer`, `reasoning`, `dataset_name`,
`dataset_index` and `pass_count`. A column of any other name travels in `Sample.extra`. Null, NaN and a column that is
not there mean the same, and so do a null and an empty list of pictures, since file formats cannot keep these apart.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from medvlt.data.drops import DropReason, RecordError
from medvlt.data.fields import int_field, options_field, parse_json, text_field
from medvlt.data.prompts import TEACHER_LABEL
from medvlt.types import ImageSource, Sample

Record: TypeAlias = Mapping[str, Any]
"""One stored row: a line of JSON, or a row of a table, in Python values."""

FIELDS = (
    "images",
    "question",
    "options",
    "answer_label",
    "answer",
    "reasoning",
    "dataset_name",
    "dataset_index",
    "pass_count",
)
"""Columns of the record that are fields of `Sample`, in the order in which they are written."""

UID_COLUMN = "uid"
"""Written only where a sample's uid is not the one its content gives, as after shuffling options."""

PACKED_COLUMN = "extra_json"
"""Holds, as one JSON object, extra values that a table has no column type for."""

SPECIAL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Texts that the tokenizer turns into control tokens: in a question they would break the turn or the pictures."""

_PICTURE_COLUMN = re.compile(r"(image|img|picture|figure|photo)s?([_ -]?(path|file|file[_ -]?name|name|url)s?)?", re.I)
_TAG = re.compile(r"</?(?:think|answer)>", re.I)


def sample_uid(
    dataset_name: str, dataset_index: int | str, question: str, options: Mapping[str, str], answer: str
) -> str:
    """Returns `dataset_name:dataset_index:h`, with h the first 8 hex digits of SHA-256 over the wording.

    The wording is the question, the options in order and the answer. Pictures are left out: their bytes differ from one
    file format to another.

    Example:
        >>> sample_uid("toy", 7, "Is it?", {"A": "yes", "B": "no"}, "yes")
        'toy:7:2dd8b609'
    """
    wording = json.dumps([question, list(options.items()), answer], ensure_ascii=False)
    digest = hashlib.sha256(wording.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{dataset_name}:{dataset_index}:{digest[:8]}"


def parse_record(
    record: Record, *, dataset_name: str | None, row: int, open_questions: bool = False, light: bool = False
) -> Sample:
    """Returns the sample that a record describes.

    What can be filled in without a guess is filled in: the answer from its label, the label from an answer that equals
    exactly one option. Reasoning stored as `<think>...</think>`, with or without an answer block behind it, becomes the
    text between the tags; the sample is written back that way.

    Args:
        record: The row; see the module.
        dataset_name: Name used where the record has none.
        row: Position in the source, from 0; stands in for a missing `dataset_index`.
        open_questions: Whether a question without options is allowed.
        light: Whether the column `images` was left out on purpose.

    Raises:
        RecordError: If the record cannot be used; its `reason` says why.
    """
    present = {key: value for key, value in record.items() if not _is_null(value)}
    question = text_field(present, "question")
    if question is None:
        raise RecordError(DropReason.NO_QUESTION, f"`question` must hold text, got {record.get('question')!r:.80}")
    options = options_field(present.get("options"))
    if not options and not open_questions:
        raise RecordError(
            DropReason.OPEN_QUESTION, "no options; set open_questions=true on the source to keep open questions"
        )
    label, answer = _label_and_answer(options, text_field(present, "answer_label"), text_field(present, "answer"))
    reasoning = _reasoning(text_field(present, "reasoning"))
    _refuse_special_tokens((question, answer, reasoning or "", *options.values()))
    name = text_field(present, "dataset_name") or dataset_name or ""
    index = _dataset_index(present.get("dataset_index"), row)
    extra = {k: v for k, v in present.items() if k not in FIELDS and k not in (UID_COLUMN, PACKED_COLUMN)}
    extra |= _packed(present.get(PACKED_COLUMN))
    _check_extra(extra, options, pictures=bool(present.get("images")) or light)
    return Sample(
        uid=text_field(present, UID_COLUMN) or sample_uid(name, index, question, options, answer),
        question=question,
        options=options,
        answer_label=label,
        answer=answer,
        images=_images(present.get("images")),
        reasoning=reasoning,
        dataset_name=name,
        dataset_index=index,
        pass_count=int_field(present, "pass_count", default=-1),
        extra=extra,
    )


def to_record(sample: Sample) -> dict[str, Any]:
    """Returns the stored form of a sample; `parse_record` gives the sample back.

    Options become a JSON string with their order and their letters outside ASCII kept. Pictures stay what they are
    (path, bytes or decoded): how they are stored is the writer's affair. No pictures are null, as in the published
    sets.
    """
    record: dict[str, Any] = {field: getattr(sample, field) for field in FIELDS}
    record["images"] = list(sample.images) or None
    record["options"] = json.dumps(dict(sample.options), ensure_ascii=False)
    content_uid = sample_uid(sample.dataset_name, sample.dataset_index, sample.question, sample.options, sample.answer)
    if sample.uid != content_uid:
        record[UID_COLUMN] = sample.uid
    return record | {key: value for key, value in sample.extra.items() if key not in FIELDS}


def _is_null(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _label_and_answer(options: Mapping[str, str], label: str | None, answer: str | None) -> tuple[str | None, str]:
    if label is not None:
        label = label.strip()
        if label not in options:
            letters = ", ".join(options) or "none, the question is open"
            raise RecordError(DropReason.BAD_LABEL, f"answer_label {label!r:.40} is not a label; labels: {letters}")
        if answer is None:
            return label, options[label]
        if options[label].strip() != answer.strip():
            raise RecordError(
                DropReason.ANSWER_MISMATCH,
                f"answer_label {label!r} stands for {options[label]!r:.80}, but answer is {answer!r:.80}",
            )
        return label, answer
    if answer is None:
        raise RecordError(DropReason.NO_ANSWER, "neither `answer_label` nor `answer` holds a value")
    if not options:
        return None, answer
    matches = [letter for letter, text in options.items() if text.strip() == answer.strip()]
    if not matches:  # more than one is impossible: options differ
        raise RecordError(DropReason.BAD_LABEL, f"no answer_label, and answer {answer!r:.80} is none of the options")
    return matches[0], answer


def _dataset_index(value: object, row: int) -> int | str:
    """A whole number may be stored as text or float, where a table mixes it with names or with nulls."""
    if value is None:
        return row
    if isinstance(value, str):
        short_number = value.isascii() and value.isdigit() and len(value) < 19  # fits 64 bits
        return int(value) if short_number and str(int(value)) == value else value
    return int_field({"dataset_index": value}, "dataset_index", default=row)


def _images(value: object) -> tuple[ImageSource, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise RecordError(DropReason.BAD_FIELD, f"`images` must be a list or null, got {type(value).__name__}")
    return tuple(_image(item) for item in value)


def _image(item: object) -> ImageSource:
    if isinstance(item, Mapping):  # the storage of `datasets.Image`
        item = item.get("bytes") or item.get("path")
    if isinstance(item, str) and item.strip():
        return Path(item)
    if isinstance(item, bytes | Path | Image.Image):
        return item
    raise RecordError(DropReason.BAD_FIELD, f"a picture must be a path, bytes or a decoded picture, got {item!r:.80}")


def _packed(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    parsed = parse_json(value) if isinstance(value, str) else None
    if not isinstance(parsed, dict):
        raise RecordError(DropReason.BAD_FIELD, f"`{PACKED_COLUMN}` must hold a JSON object, got {value!r:.80}")
    return parsed


def _reasoning(text: str | None) -> str | None:
    if text is None or not (tags := _TAG.findall(text)):
        return text
    thought, _, rest = (part.strip() for part in text.partition("</think>"))
    wrapped = thought.startswith("<think>") and tags[:2] == ["<think>", "</think>"]
    answered = rest.startswith("<answer>") and rest.endswith("</answer>") and len(tags) == 4
    if not wrapped or not (answered or not rest):
        raise RecordError(
            DropReason.REASONING_TAGS,
            "`reasoning` must be plain text, or one <think>...</think> with at most one <answer>...</answer> behind "
            f"it, got {text!r:.80}; remove the tags",
        )
    return thought.removeprefix("<think>").strip() or None


def _check_extra(extra: Mapping[str, Any], options: Mapping[str, str], *, pictures: bool) -> None:
    if (teacher := extra.get(TEACHER_LABEL)) and teacher not in list(options):
        labels = ", ".join(options) or "none, the question is open"
        raise RecordError(
            DropReason.BAD_LABEL, f"`{TEACHER_LABEL}` must be one of the labels ({labels}), got {teacher!r:.40}"
        )
    for name, value in extra.items():
        if value and not pictures and _PICTURE_COLUMN.fullmatch(name):
            raise RecordError(
                DropReason.BAD_FIELD,
                f"`{name}` names a picture, but pictures are read from `images` alone; rename the column to images, "
                "as a list",
            )


def _refuse_special_tokens(texts: tuple[str, ...]) -> None:
    for text in texts:
        if "<|" in text:
            for token in SPECIAL_TOKENS:
                if token in text:
                    raise RecordError(
                        DropReason.SPECIAL_TOKEN, f"the text holds the control token {token}; remove or respell it"
                    )
