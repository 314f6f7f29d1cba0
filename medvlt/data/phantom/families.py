# SPDX-License-Identifier: Apache-2.0
"""The list of all families, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from medvlt.data.phantom import calculations, pictures, thresholds
from medvlt.data.phantom.draft import Draw, Modality
from medvlt.errors import ConfigurationError

ModalityChoice: TypeAlias = Literal["text", "picture", "both"]

TEXT_FAMILIES: dict[str, Draw] = {
    "heart_rate": thresholds.heart_rate,
    "bmi_class": thresholds.bmi_class,
    "temperature": thresholds.temperature,
    "potassium": thresholds.potassium,
    "coma_score": calculations.coma_score,
    "arterial_pressure": calculations.arterial_pressure,
    "shock_index": calculations.shock_index,
    "rr_interval": calculations.rr_interval,
    "sodium": thresholds.sodium,
    "blood_ph": thresholds.blood_ph,
    "egfr": thresholds.egfr,
    "hemoglobin": thresholds.hemoglobin,
    "anion_gap": calculations.anion_gap,
    "maintenance_fluids": calculations.maintenance_fluids,
}

PICTURE_FAMILIES: dict[str, Draw] = {
    "side": pictures.side,
    "quadrant": pictures.quadrant,
    "count": pictures.count,
    "tone": pictures.tone,
    "present": pictures.present,
    "larger": pictures.larger,
    "heart_size": pictures.heart_size,
    "organ": pictures.organ,
}

FAMILIES: dict[Modality, dict[str, Draw]] = {"text": TEXT_FAMILIES, "picture": PICTURE_FAMILIES}


def choose_families(modality: ModalityChoice, names: Sequence[str] | None) -> dict[Modality, tuple[str, ...]]:
    """Returns the names of the wanted families, by modality; a modality without any is left out.

    Args:
        modality: What kinds of questions are wanted.
        names: Families wanted; None means all of the modality.

    Raises:
        ConfigurationError: If a name is unknown, named twice, or not of the modality, or if none is named.
    """
    if modality not in ("text", "picture", "both"):
        raise ConfigurationError(f'Phantom modality must be "text", "picture" or "both", got {modality!r}')
    kinds: tuple[Modality, ...] = ("text", "picture") if modality == "both" else (modality,)
    known = [name for kind in kinds for name in FAMILIES[kind]]
    wanted = known if names is None else list(names)
    wrong = [name for name in wanted if name not in known]
    if wrong or not wanted or len(set(wanted)) < len(wanted):
        fault = f"got unknown {wrong}" if wrong else f"each at most once and at least one, got {wanted}"
        raise ConfigurationError(
            f"Phantom families for modality {modality!r} must be out of {known}: {fault}; "
            "correct `families`, or leave it out for all of them"
        )
    chosen: dict[Modality, tuple[str, ...]] = {
        kind: tuple(name for name in FAMILIES[kind] if name in wanted) for kind in kinds
    }
    return {kind: chosen[kind] for kind in kinds if chosen[kind]}
