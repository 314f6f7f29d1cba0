# SPDX-License-Identifier: Apache-2.0
"""Pictures that two sets share: the same file, the same pixels, or the same picture changed.

A changed picture is found in two steps, on squares of 64 x 64 greys without uniform margins.

1. Candidates. The hash is that of pHash, the 8 x 8 lowest frequencies of the cosine transform of 32 x 32 greys, but
   keeps their values and not just their signs. One picture is hashed whole; the other one in all 8 quarter turns and
   mirrorings, each whole, tilted, and cut on a grid of windows; then the roles are exchanged. The cosine between the
   hashes picks the candidates. Radiographs look alike, so this says little by itself.
2. Confirmation. The affine map between the two is refined (Gauss-Newton, inverse compositional: Baker and Matthews,
   IJCV 56, 2004) until one lies on the other. Their agreement is the correlation of the fine structure, with equal
   local contrast, where they overlap: chest films of two patients share the coarse form, not the detail.

Found within limits: other encodings, sizes and aspects; brightness and contrast; quarter turns and mirroring; tilts up
to about 5 degrees; crops up to about 15% a side (most of them); uniform margins. Not found: larger crops, figures put
together from several, drawings that cover much. Only greys are compared. Shares: `benchmarks/contamination.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medvlt.errors import ConfigurationError

SIDE = 64
"""Side in pixels of the square that stands for a picture."""

PictureKind = Literal["same_picture_bytes", "same_picture_pixels", "near_picture"]

_HASH_SIDE, _FREQUENCIES = 32, 8
_ROUNDS = 8  # of refinement, at each level
_STARTS = 3  # windows from which each pair is refined
_LEVELS = ((3.0, 1.0, 2, 0.45), (2.0, 0.5, 2, 0.5), (2.0, 0.7, 1, -1.0))
"""Blurs between which structure counts, in pixels; pixels pooled into one; agreement below which a pair is given up."""
_OVERLAP, _STRETCH = 0.7, 0.6  # least share laid on one another, largest change of the map (Frobenius norm)
_HASHED = 256  # squares that are hashed together
_MOST_ALIGNED = 256  # pairs of squares that are refined together: more fall out of the processor's cache


@dataclass(frozen=True)
class PictureRule:
    """When two pictures count as the same; see `medvlt.curation.image_matching` for the measures.

    The defaults are measured, see `benchmarks/contamination.py`.

    Args:
        agreement: Correlation of the fine structure from which two pictures match, in (0, 1].
        hash_similarity: Cosine of the hashes that a candidate needs, in [0, 1).
        candidates: Evaluation pictures that are looked at for each training picture, best first, in each of the two
            roles; at least 1.
    """

    agreement: float = 0.77
    hash_similarity: float = 0.7
    candidates: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.agreement <= 1:
            raise ConfigurationError(f"agreement must be in (0, 1], got {self.agreement}")
        if not 0 <= self.hash_similarity < 1:
            raise ConfigurationError(f"hash_similarity must be in [0, 1), got {self.hash_similarity}")
        if self.candidates < 1:
            raise ConfigurationError(f"candidates must be at least 1, got {self.candidates}")


@dataclass(frozen=True, slots=True)
class Picture:
    """What is kept of a picture.

    Attributes:
        md5: Of the encoded file, as hexadecimal digits; None where there is no file, but pixels.
        pixels: SHA-256 of size and pixels as the model would see them, as hexadecimal digits.
        square: Greys without uniform margins, (64, 64), uint8.
    """

    md5: str | None
    pixels: str
    square: NDArray[np.uint8]

    @classmethod
    def of(cls, encoded: bytes | None, image: Image.Image) -> Picture:
        """Describes a picture.

        Args:
            encoded: Its file, if there is one.
            image: The same, decoded by `open_image`.
        """
        pixels = hashlib.sha256(f"{image.width} {image.height} ".encode() + image.tobytes()).hexdigest()
        md5 = None if encoded is None else hashlib.md5(encoded, usedforsecurity=False).hexdigest()
        square = trim(image.convert("L")).resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0)
        return cls(md5, pixels, np.asarray(square))


@dataclass(frozen=True, slots=True)
class PictureMatch:
    """Two pictures that match.

    Attributes:
        train: Position of the training picture, from 0.
        evaluation: Position of the evaluation picture, from 0.
        kind: The strongest way in which they match.
        agreement: See `PictureRule`; 1 for equal pixels.
    """

    train: int
    evaluation: int
    kind: PictureKind
    agreement: float


def trim(image: Image.Image, tolerance: int = 12) -> Image.Image:
    """Returns a grey picture without the rows and columns at its edges that hold one grey only.

    Args:
        image: Mode "L".
        tolerance: Largest difference of greys, 0 to 255, inside one row or column that still counts as uniform;
            re-encoded margins are noisy.
    """
    greys = np.asarray(image)
    rows = np.flatnonzero(np.ptp(greys, axis=1) > tolerance)
    columns = np.flatnonzero(np.ptp(greys, axis=0) > tolerance)
    if len(rows) < 8 or len(columns) < 8:  # hardly anything is to be seen in it
        return image
    return image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


class PictureIndex:
    """Evaluation pictures, to be looked up.

    Holds 28 KB for each: its square (4 KB) and 96 hashes of 63 numbers (24 KB).

    Args:
        pictures: The evaluation pictures, each once.
        rule: When pictures match.
    """

    def __init__(self, pictures: Sequence[Picture], rule: PictureRule | None = None) -> None:
        self.rule = rule or PictureRule()
        self._md5: dict[str | None, list[int]] = defaultdict(list)
        self._pixels: dict[str, list[int]] = defaultdict(list)
        for number, picture in enumerate(pictures):
            if picture.md5 is not None:
                self._md5[picture.md5].append(number)
            self._pixels[picture.pixels].append(number)
        self._squares = _stack(pictures)
        self._hashes = _window_hashes(self._squares)

    def __len__(self) -> int:
        return len(self._squares)

    def find(self, pictures: Sequence[Picture]) -> list[PictureMatch]:
        """Returns every match of some training pictures, by position.

        Args:
            pictures: Training pictures, each once; some hundreds at a time.
        """
        if not pictures or not len(self):
            return []
        found: dict[tuple[int, int], PictureMatch] = {}
        for number, picture in enumerate(pictures):
            for other in self._md5.get(picture.md5, ()):
                found[number, other] = PictureMatch(number, other, "same_picture_bytes", 1.0)
            for other in self._pixels.get(picture.pixels, ()):
                found.setdefault((number, other), PictureMatch(number, other, "same_picture_pixels", 1.0))
        squares = _stack(pictures)
        hashes = _window_hashes(squares)
        for swapped in (False, True):
            # the second time it is the evaluation picture that may be the cut one
            windows, whole = (hashes, self._hashes[0]) if swapped else (self._hashes, hashes[0])
            similarity = _best(windows, whole)
            values, columns = (similarity.T if swapped else similarity).topk(
                min(self.rule.candidates, len(self)), dim=1
            )
            rows, places = torch.nonzero(values >= self.rule.hash_similarity, as_tuple=True)
            others = columns[rows, places]
            new = [(row, other) not in found for row, other in zip(rows.tolist(), others.tolist(), strict=True)]
            rows, others = rows[new], others[new]
            for part, partner in zip(torch.split(rows, _MOST_ALIGNED), torch.split(others, _MOST_ALIGNED), strict=True):
                ours, theirs = squares[part].float(), self._squares[partner].float()
                holder, piece = (part, partner) if swapped else (partner, part)
                starts = torch.einsum("wph,ph->pw", windows[:, holder], whole[piece]).topk(_STARTS, dim=1).indices
                cut, holding = (theirs, ours) if swapped else (ours, theirs)
                scores = agreement(cut, holding, _WINDOWS[starts])
                for row, other, score in zip(part.tolist(), partner.tolist(), scores.tolist(), strict=True):
                    if score >= self.rule.agreement:
                        found[row, other] = PictureMatch(row, other, "near_picture", min(score, 1.0))
        return [found[pair] for pair in sorted(found)]


def agreement(cut: Tensor, whole: Tensor, start: Tensor) -> Tensor:
    """Returns how well the fine structure of pairs of squares agrees once one is laid on the other, (B,), in [-1, 1].

    Args:
        cut: The squares that may show only a part, (B, 64, 64).
        whole: The squares that hold the part, (B, 64, 64).
        start: Affine maps from places in `cut` to places in `whole`, (B, S, 2, 3), in units of half a side from the
            centre; the refinement begins at each of the S. Pairs driven beyond the stated limits have agreement -1.
    """
    count, starts = start.shape[:2]
    scores = torch.full((count,), -1.0)
    pairs = torch.arange(count).repeat_interleave(starts)
    first = maps = start.flatten(0, 1)
    for coarse, fine, shrink, least in _LEVELS:
        scores = torch.full((count,), -1.0)  # a pair that was given up has none
        if not len(pairs):
            break
        alive, place = torch.unique(pairs, return_inverse=True)
        left, right = (_band(F.avg_pool2d(squares[alive], shrink), coarse, fine)[place] for squares in (cut, whole))
        maps = _refine(left, right, maps)
        moved, inside = _sample(right, maps)
        level = _correlation(left.flatten(1), moved.flatten(1), inside.flatten(1))
        change = torch.linalg.matrix_norm(maps[:, :, :2] - first[:, :, :2])
        level = torch.where((inside.flatten(1).mean(1) >= _OVERLAP) & (change <= _STRETCH), level, -1.0)
        scores = scores.scatter_reduce(0, pairs, level, "amax")
        good = (level >= least) & (level == scores[pairs])  # only the best start of a pair goes on
        pairs, maps, first = pairs[good], maps[good], first[good]
    return scores


def _refine(cut: Tensor, whole: Tensor, maps: Tensor) -> Tensor:
    """Returns better maps: each round solves for the small affine change of `cut` that takes away the difference."""
    count, side, _ = cut.shape
    dy, dx = torch.gradient(cut, dim=(1, 2))
    gradient = torch.stack([dx, dy], -1).flatten(1, 2) * (side / 2)  # per half side
    steepest = (gradient.unsqueeze(-1) * _places(side).reshape(1, -1, 1, 3)).flatten(2)  # (B, side^2, 6)
    hessian = steepest.transpose(1, 2) @ steepest
    hessian += 1e-3 * hessian.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(6) + 1e-6 * torch.eye(6)
    solver = torch.linalg.inv(hessian) @ steepest.transpose(1, 2)
    bottom = torch.tensor([0.0, 0.0, 1.0]).expand(count, 1, 3)
    maps = torch.cat([maps, bottom], 1)
    flat = cut.flatten(1)
    for _ in range(_ROUNDS):
        moved, inside = _sample(whole, maps[:, :2])
        mask = inside.flatten(1)
        error = _standard(moved.flatten(1), mask) * _deviation(flat, mask)[:, None] - (
            flat - _mean(flat, mask)[:, None]
        )
        change = (solver @ (error * mask).unsqueeze(-1)).reshape(-1, 2, 3).clamp(-0.2, 0.2)
        maps = maps @ torch.linalg.inv(torch.cat([change + torch.eye(2, 3), bottom], 1))
    return maps[:, :2]


def _places(side: int) -> Tensor:
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], -1)


def _sample(images: Tensor, maps: Tensor, side: int | None = None) -> tuple[Tensor, Tensor]:
    """Returns the images at the mapped places, and where these lie inside, both (B, side, side)."""
    side = side or images.shape[-1]
    grid = (_places(side).flatten(0, 1) @ maps.transpose(1, 2)).reshape(-1, side, side, 2)
    inside = (grid.abs().amax(-1) <= 1).float()
    return F.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0], inside


def _band(squares: Tensor, coarse: float, fine: float) -> Tensor:
    """Returns what lies between two blurs (standard deviations in pixels), with equal local contrast."""
    values = _blur(squares, fine) - _blur(squares, coarse)
    return values / (_blur(values**2, 2 * coarse).clamp_min(0).sqrt() + 2.0)


def _blur(squares: Tensor, sigma: float) -> Tensor:
    side = squares.shape[-1]
    distances = torch.arange(side)[:, None] - torch.arange(side)[None]
    kernel = torch.exp(-0.5 * (distances / sigma) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    return kernel @ squares @ kernel.T


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(1) / mask.sum(1).clamp_min(1)


def _deviation(values: Tensor, mask: Tensor) -> Tensor:
    centred = (values - _mean(values, mask)[:, None]) * mask
    return (centred.square().sum(1) / mask.sum(1).clamp_min(1)).sqrt().clamp_min(1e-4)


def _standard(values: Tensor, mask: Tensor) -> Tensor:
    return (values - _mean(values, mask)[:, None]) / _deviation(values, mask)[:, None]


def _correlation(left: Tensor, right: Tensor, mask: Tensor) -> Tensor:
    return (_standard(left, mask) * _standard(right, mask) * mask).sum(1) / mask.sum(1).clamp_min(1)


def _windows() -> Tensor:
    """Returns the maps (96, 2, 3) from a whole picture to a window of another one: 12 windows in 8 positions."""
    windows = [(1.0, 0.0, 0.0, 0.0), (0.95, 0.0, 0.0, 3.5), (0.95, 0.0, 0.0, -3.5)]
    windows += [(0.8, x, y, 0.0) for x in (-0.1, 0.0, 0.1) for y in (-0.1, 0.0, 0.1)]
    maps = []
    for mirror in (1.0, -1.0):
        for quarter in range(4):
            for scale, x, y, degrees in windows:
                angle = math.radians(degrees + 90 * quarter)
                rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
                maps.append(np.column_stack([scale * rotation @ np.diag([mirror, 1.0]), [x, y]]))
    return torch.tensor(np.array(maps), dtype=torch.float32)


_WINDOWS = _windows()


def _window_hashes(squares: Tensor) -> Tensor:
    """Returns the hashes of every window, (96, pictures, 63), each of length 1; 0 for a picture of one grey.

    Args:
        squares: Greys, (pictures, 64, 64), uint8.
    """
    frequencies = torch.arange(_FREQUENCIES)[:, None] * (torch.arange(_HASH_SIDE)[None] + 0.5) * math.pi / _HASH_SIDE
    cosines = torch.cos(frequencies)
    weights = torch.hypot(*torch.meshgrid(*[torch.arange(_FREQUENCIES).float()] * 2, indexing="ij")).sqrt()
    hashes = torch.zeros(len(_WINDOWS), len(squares), _FREQUENCIES**2 - 1)
    for start in range(0, len(squares), _HASHED):
        greys = squares[start : start + _HASHED].float()
        for window, into in zip(_WINDOWS, hashes[:, start : start + _HASHED], strict=True):
            small, _ = _sample(greys, window.expand(len(greys), 2, 3), _HASH_SIDE)
            values = (cosines @ small @ cosines.T * weights).flatten(1)[:, 1:]
            norm = values.norm(dim=1, keepdim=True)
            into[:] = torch.where(norm > 100, values / norm.clamp_min(1e-6), torch.zeros_like(values))
    return hashes


def _best(windows: Tensor, whole: Tensor) -> Tensor:
    """Returns the best cosine over the windows, (whole pictures, pictures with windows)."""
    best = whole @ windows[0].T
    for hashes in windows[1:]:
        torch.maximum(best, whole @ hashes.T, out=best)
    return best


def _stack(pictures: Sequence[Picture]) -> Tensor:
    if not pictures:
        return torch.zeros(0, SIDE, SIDE, dtype=torch.uint8)
    return torch.from_numpy(np.stack([picture.square for picture in pictures]))
