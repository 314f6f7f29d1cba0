# SPDX-License-Identifier: Apache-2.0
"""Families whose answer is only in the picture. Teaching toys, not for clinical use.

Sides are the patient's. The stem of a family never changes and every answer is equally likely, so a model that does not
look can only guess.
"""

from __future__ import annotations

from random import Random

from medvlt.data.phantom.draft import MAX_OPTIONS, Draft, between
from medvlt.data.phantom.placing import place_in_lungs, point_in
from medvlt.data.phantom.scene import LUNGS, NUM_PATIENTS, ORGANS, Lesion, Scene, View, heart

QUADRANTS = ("RUQ", "LUQ", "RLQ", "LLQ")
COUNTS = ("one", "two", "three", "four", "five")
SIDES = ("right", "left")
NORMAL_HEARTS = (0.38, 0.47)
"""Ordinary range of heart width / chest width; above 0.5 the heart counts as enlarged."""


def _draft(question: str, fact: str, choices: tuple[str, ...], truth: int, scene: Scene, guess: int = -1) -> Draft:
    return Draft(question, fact, choices, truth, truth if guess < 0 else guess, repr(scene), scene=scene)


def _scene(
    rng: Random, difficulty: float, view: View, lesions: tuple[Lesion, ...] = (), heart_ratio: float = 0.0
) -> Scene:
    """Returns a scene with a random patient, and noise of 5 to 9 grey levels (up to 20 at full difficulty)."""
    noise_sd = round(rng.uniform(5, between(9, 20, difficulty)), 2)
    return Scene(view, rng.randrange(NUM_PATIENTS), lesions, heart_ratio, noise_sd, rng.getrandbits(48))


def _radius(rng: Random, difficulty: float, low: float = 0.075, high: float = 0.1) -> float:
    """Returns a radius in [low, high], down to half of it at full difficulty."""
    return round(rng.uniform(low, high) * between(1, 0.5, difficulty), 4)


def _contrast(rng: Random, difficulty: float, low: float = 90, high: float = 125) -> float:
    """Returns grey levels of 255 in [low, high], down to 40% of it at full difficulty."""
    return round(rng.uniform(low, high) * between(1, 0.4, difficulty), 2)


def _heart_ratio(rng: Random) -> float:
    return round(rng.uniform(*NORMAL_HEARTS), 4)


def side(rng: Random, pick: int, difficulty: float) -> Draft:
    """Chest film with one nodule: in which lung is it?"""
    truth, ratio = pick % 2, _heart_ratio(rng)
    radius = _radius(rng, difficulty)
    x, y = point_in(rng, LUNGS[SIDES[truth]], radius, avoid=heart(ratio))
    scene = _scene(rng, difficulty, "chest", (Lesion(x, y, radius, _contrast(rng, difficulty)),), ratio)
    return _draft("Chest film: nodule in which lung?", "nodule is", SIDES, truth, scene)


def quadrant(rng: Random, pick: int, difficulty: float) -> Draft:
    """Abdominal film with one stone: in which quadrant is it? The planes cross in the middle of the picture.

    The stone's centre keeps at least 0.13 of the side away from both planes (0.06 at full difficulty).
    """
    truth = pick % 4
    least = between(0.13, 0.06, difficulty)
    across, along = (round(rng.uniform(least, 0.27), 4) for _ in range(2))
    x = 0.5 + across if truth % 2 else 0.5 - across
    y = 0.5 + along if truth >= 2 else 0.5 - along
    lesion = Lesion(x, y, _radius(rng, difficulty), _contrast(rng, difficulty, 80, 115))
    scene = _scene(rng, difficulty, "abdomen", (lesion,))
    return _draft("Abdominal film: stone in which quadrant?", "stone is", QUADRANTS, truth, scene)


def count(rng: Random, pick: int, difficulty: float) -> Draft:
    """Chest film with one to four nodules (five from difficulty 0.5 on): how many? The teacher misses one if he can.

    The nodules of this family are much alike: a small model counts them twice as fast so.
    """
    choices = COUNTS if difficulty >= 0.5 else COUNTS[: MAX_OPTIONS - 1]
    truth, ratio = pick % len(choices), _heart_ratio(rng)
    radii = [_radius(rng, difficulty, 0.062, 0.068) for _ in range(truth + 1)]
    lesions = tuple(
        Lesion(x, y, radius, _contrast(rng, difficulty, 115, 125))
        for (x, y), radius in zip(place_in_lungs(rng, radii, heart(ratio)), radii, strict=True)
    )
    scene = _scene(rng, difficulty, "chest", lesions, ratio)
    return _draft("Chest film: how many nodules?", "nodules are", choices, truth, scene, guess=max(truth - 1, 0))


def larger(rng: Random, pick: int, difficulty: float) -> Draft:
    """Chest film with one nodule in each lung: which lung has the larger one?

    The larger radius is at least 1.6 times the smaller one (1.2 times at full difficulty).
    """
    truth, ratio = pick % 2, _heart_ratio(rng)
    big = _radius(rng, difficulty, 0.085, 0.105)
    small = round(big / (between(1.6, 1.2, difficulty) + 0.3 * rng.random()), 4)
    lesions = []
    for index, name in enumerate(SIDES):
        radius = big if index == truth else small
        x, y = point_in(rng, LUNGS[name], big, avoid=heart(ratio))  # the same places for both sizes
        lesions.append(Lesion(x, y, radius, _contrast(rng, difficulty)))
    scene = _scene(rng, difficulty, "chest", tuple(lesions), ratio)
    return _draft("Chest film: larger nodule in which lung?", "larger is", SIDES, truth, scene)


def tone(rng: Random, pick: int, difficulty: float) -> Draft:
    """Axial CT with one liver lesion: is it darker (hypodense) or brighter (hyperdense) than the liver?"""
    truth, radius = pick % 2, _radius(rng, difficulty, 0.075, 0.095)
    x, y = point_in(rng, ORGANS["liver"], radius)
    contrast = _contrast(rng, difficulty, 60, 90) * (1 if truth else -1)
    scene = _scene(rng, difficulty, "axial", (Lesion(x, y, radius, contrast),))
    return _draft("Axial CT: density of the liver lesion?", "lesion is", ("hypodense", "hyperdense"), truth, scene)


def present(rng: Random, pick: int, difficulty: float) -> Draft:
    """Chest film with one nodule or none. The teacher misses the smaller half of the nodules."""
    truth, ratio = pick % 2, _heart_ratio(rng)
    low, high = 0.065, 0.1
    radius = _radius(rng, difficulty, low, high)
    missed = radius < (low + high) / 2 * between(1, 0.5, difficulty)
    lesions: tuple[Lesion, ...] = ()
    if truth:
        name = SIDES[rng.randrange(2)]
        x, y = point_in(rng, LUNGS[name], radius, avoid=heart(ratio))
        lesions = (Lesion(x, y, radius, _contrast(rng, difficulty)),)
    scene = _scene(rng, difficulty, "chest", lesions, ratio)
    return _draft(
        "Chest film: is there a nodule?", "nodule seen", ("no", "yes"), truth, scene, int(truth and not missed)
    )


def heart_size(rng: Random, pick: int, difficulty: float) -> Draft:
    """Chest film: is the heart enlarged, that is wider than half the inner chest (cardiothoracic ratio above 0.5)?

    Normal hearts have 0.38 to 0.47 and enlarged ones 0.54 to 0.70; at full difficulty 0.44 to 0.49 and 0.51 to 0.56.
    The teacher calls a heart enlarged from a third into the upper range on.
    """
    truth = pick % 2
    low, high = between(0.54, 0.51, difficulty), between(0.70, 0.56, difficulty)
    if truth:
        ratio = round(rng.uniform(low, high), 4)
    else:
        ratio = round(rng.uniform(between(0.38, 0.44, difficulty), between(0.47, 0.49, difficulty)), 4)
    guess = int(ratio > low + (high - low) / 3)
    scene = _scene(rng, difficulty, "chest", (), ratio)
    return _draft("Chest film: heart size?", "heart is", ("normal", "enlarged"), truth, scene, guess)


def organ(rng: Random, pick: int, difficulty: float) -> Draft:
    """Axial CT with one bright lesion: in which of four organs is it?"""
    names = tuple(ORGANS)
    truth, radius = pick % len(names), _radius(rng, difficulty, 0.06, 0.075)
    x, y = point_in(rng, ORGANS[names[truth]], radius)
    lesion = Lesion(x, y, radius, _contrast(rng, difficulty, 75, 90))
    scene = _scene(rng, difficulty, "axial", (lesion,))
    return _draft("Axial CT: bright lesion in which organ?", "lesion is", names, truth, scene)
