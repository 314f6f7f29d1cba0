# SPDX-License-Identifier: Apache-2.0
"""The README of an exported folder: what the model is, how it was made and is asked, and what it is not for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCardData, metadata_load

from medvlt import __version__
from medvlt.curation.card import cell, markdown_table
from medvlt.data.encoder import PromptEncoder
from medvlt.models.checkpoints import StoredCheckpoint
from medvlt.models.quantization import KEPT
from medvlt.models.restore import Base
from medvlt.rollout.store_identity import flat
from medvlt.types import Sample

CARD, CONFIG = "README.md", "training_config.yaml"
"""Files with the card, and with the whole configuration of the run."""

NOTICE = (
    "> Research software, **not for clinical use**. This model must not be used to diagnose, treat or advise. It "
    "answers with confidence where it is wrong."
)

LIMITS = """\
- Trained to answer multiple-choice questions in the form above; other wordings, languages and open questions were \
not trained and may do worse.
- A chain of thought that reads well is no evidence that the answer is right, and need not be how it was found.
- Knowledge and biases of the base and of the training data remain. No group of patients, device or hospital was \
tested for in particular.
- The metrics are those of the run, at this checkpoint; measure on data of your own before you rely on anything."""

QUESTION = Sample(
    "example",
    "Which vitamin is missing in scurvy?",
    {"A": "Vitamin A", "B": "Vitamin B1", "C": "Vitamin C", "D": "Vitamin D"},
    "C",
    "Vitamin C",
)
"""Stands for a question in the snippet."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class CardFacts:
    """What the card of a folder needs to know beside the checkpoint.

    Attributes:
        title: Name of the folder.
        stored: The checkpoint.
        base: The model that was trained.
        encoder: Of the prompts that were trained.
        dtype: Of the written weights.
        adapter: Whether the folder has adapters alone.
        doubt: What could not be made sure of the base; see `medvlt.models.restore.unknown_base`.
    """

    title: str
    stored: StoredCheckpoint
    base: Base
    encoder: PromptEncoder
    dtype: torch.dtype
    adapter: bool
    doubt: str = ""


def model_card(facts: CardFacts) -> str:
    """Returns the whole README; texts from files and settings are shown as they are, whatever Markdown they hold."""
    record = facts.stored.record
    sections = [
        front_matter(facts),
        f"# {cell(facts.title)}",
        NOTICE,
        _origin(facts),
        f"## Use\n\n{_fenced(snippet(facts), 'python')}",
        _prompt(facts),
        _data(record.get("data")),
        _metrics(record.get("metrics")),
        _recipe(record),
        f"## Licence\n\n{_licence(facts.base)}",
        f"## Limits\n\n{LIMITS}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def front_matter(facts: CardFacts) -> str:
    """Returns the YAML that the Hub reads; what is not known is left out."""
    theirs = base_metadata(facts.base.folder)
    base = facts.base.name if _HUB_NAME.fullmatch(facts.base.name) and not Path(facts.base.name).exists() else None
    data = ModelCardData(
        base_model=base or theirs.get("base_model"),
        library_name="peft" if facts.adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["medical", "vision-language", "reasoning", "not-for-clinical-use", "medvlt"],
        **{name: theirs[name] for name in ("license", "license_name", "license_link") if theirs.get(name)},
    )
    return f"---\n{data.to_yaml()}\n---"


def base_metadata(folder: Path) -> dict[str, Any]:
    """Returns the front matter of a base's own card, empty if it has none that can be read."""
    try:
        found = metadata_load(folder / CARD)
    except (OSError, ValueError, yaml.YAMLError):  # no card, or somebody's broken one
        return {}
    return found if isinstance(found, dict) else {}


def snippet(facts: CardFacts) -> str:
    """Returns Python that loads the folder it is run in and asks it the example question with a picture."""
    limits, wording = facts.encoder.images, facts.encoder.wording
    if facts.adapter:
        lines = _adapter_lines(facts)
    else:
        lines = [
            "from PIL import Image",
            "from transformers import AutoModelForImageTextToText, AutoProcessor",
            "",
            'folder = "."  # this folder, or its name on the Hub',
            'model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")',
        ]
    lines += [
        f"processor = AutoProcessor.from_pretrained({'base, revision=revision' if facts.adapter else 'folder'})",
        "processor.image_processor.size = "
        f'{{"shortest_edge": {limits.min_pixels}, "longest_edge": {limits.max_pixels}}}  # areas, as in training',
        "",
        f"prompt = {wording.prompt_text(QUESTION)!r}",
        'picture = Image.new("RGB", (336, 336))  # yours; leave it out for a question of text',
        'content = [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]',
        'messages = [{"role": "user", "content": content}]',
    ]
    if wording.system is not None:
        system = f'{{"role": "system", "content": [{{"type": "text", "text": {wording.system!r}}}]}}'
        lines.append(f"messages.insert(0, {system})")
    lines += [
        "inputs = processor.apply_chat_template(",
        '    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"',
        ").to(model.device)",
        "output = model.generate(**inputs, max_new_tokens=2048)",
        'print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "\n".join(lines)


def _adapter_lines(facts: CardFacts) -> list[str]:
    """Returns the lines that load base and adapters; the base in four bits where it was trained so."""
    settings = facts.stored.backbone
    kinds, options = "AutoModelForImageTextToText, AutoProcessor", [f"dtype={settings.dtype!r}"]
    lines = [
        f"base, revision = {facts.base.name!r}, {facts.base.revision!r}",
        'folder = "."  # this folder, or its name on the Hub',
    ]
    if settings.quantization is not None:
        kinds += ", BitsAndBytesConfig"
        options.append("quantization_config=four_bits")
        lines += [
            "four_bits = BitsAndBytesConfig(  # as in training",
            f"    load_in_4bit=True, bnb_4bit_quant_type={settings.quantization!r}, bnb_4bit_use_double_quant=True,",
            f"    bnb_4bit_compute_dtype={settings.dtype!r}, llm_int8_skip_modules={KEPT!r},",
            ")",
        ]
    return [
        "from peft import PeftModel",
        "from PIL import Image",
        f"from transformers import {kinds}",
        "",
        *lines,
        f"model = AutoModelForImageTextToText.from_pretrained(base, revision=revision, {', '.join(options)})",
        "model = PeftModel.from_pretrained(model, folder)",
    ]


def _origin(facts: CardFacts) -> str:
    stored, base = facts.stored, facts.base
    revision = "" if base.revision is None else f" at revision {_code(base.revision)}"
    settings = stored.backbone
    parts = f"all weights but {', '.join(settings.freeze)}" if settings.freeze else "all weights"
    if settings.lora is not None:
        parts = f"LoRA adapters of rank {settings.lora.rank} on {', '.join(settings.lora.components)}"
        parts += ", this folder" if facts.adapter else ", merged"
    lines = [
        f"- base: {_code(base.name)}{revision}",
        f"- checkpoint: {_code(str(stored.path))}, optimizer step {stored.step}",
        f"- trained: {parts}",
        f"- dtype: {str(facts.dtype).removeprefix('torch.')}",
    ]
    if settings.quantization is not None:
        kind = settings.quantization
        lines.append(
            f"- base in four bits: trained on a base in {kind}, through bitsandbytes; load it so for these adapters"
            if facts.adapter
            else f"- base in four bits: weights of the language model come from {kind} ones, with the adapters added"
        )
    if facts.doubt:
        lines.append(f"- not known: {cell(facts.doubt)}")
    if stored.record.get("module"):
        lines.append(f"- method: {_code(str(stored.record['module']))}")
    if stored.record.get("base"):
        lines.append(f"- fingerprint of the base's weights: {_code(str(stored.record['base']))}")
    lines.append(f"- written by `medvlt export`, medvlt {__version__}")
    return "\n".join(lines)


def _prompt(facts: CardFacts) -> str:
    wording, limits = facts.encoder.wording, facts.encoder.images
    known = "" if facts.stored.record.get("prompt") else (
        "The checkpoint does not say which wording was trained; this is the default of medvlt.\n\n"
    )  # fmt: skip
    system = "left to the chat template" if wording.system is None else f"\n\n{_fenced(wording.system, 'text')}"
    return (
        f"## Prompt\n\n{known}The wording that was trained, for an example; the chat template of this folder goes "
        f"around it:\n\n{_fenced(wording.prompt_text(QUESTION), 'text')}\n\n"
        f"System message: {system}\n\n"
        f"Pictures come before the text, each sized to {limits.min_pixels:,} to {limits.max_pixels:,} pixels."
    )


def _data(data: Any) -> str:
    if not isinstance(data, Mapping) or not data:
        return ""
    rows = [(name, str(value)) for name, value in flat(data)]
    return f"## Data\n\n{markdown_table(('what', 'value'), rows)}"


def _metrics(metrics: Any) -> str:
    if not isinstance(metrics, Mapping) or not metrics:
        return ""
    rows = [(name, f"{value:.6g}" if isinstance(value, float) else str(value)) for name, value in metrics.items()]
    return f"## Metrics at the checkpoint\n\n{markdown_table(('metric', 'value'), sorted(rows))}"


def _recipe(record: Mapping[str, Any]) -> str:
    run = [
        f"{name}: {cell(record[key])}"
        for name, key in (("strategy", "strategy"), ("ranks", "world_size"), ("medvlt", "version"))
        if record.get(key)
    ]
    config = str(record.get("config") or "").strip()
    if not run and not config:
        return ""
    details = f"<details>\n<summary>{CONFIG}</summary>\n\n{_fenced(config, 'yaml')}\n\n</details>" if config else ""
    return "\n\n".join(part for part in ("## Recipe", ", ".join(run), details) if part)


def _licence(base: Base) -> str:
    theirs = base_metadata(base.folder)
    named = theirs.get("license_name") or theirs.get("license")
    known = (
        f"The base is under {cell(named)}, which holds for these weights as well"
        + (f" ({cell(theirs['license_link'])})." if theirs.get("license_link") else ".")
        if named
        else "The base's card names no licence; find out which one it has before you use or share these weights."
    )
    return f"{known} Training data have licences of their own, which may forbid commercial use or sharing."


def _code(text: str) -> str:
    """Returns a text as inline code; no backtick in it ends the code."""
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{ticks}{pad}{' '.join(text.split(chr(10)))}{pad}{ticks}"


def _fenced(text: str, language: str) -> str:
    """Returns a text as a block of code; no line in it ends the block."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
