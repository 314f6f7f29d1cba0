# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from medvlt.data.decode import image_size, open_image
from medvlt.data.images import ImageLimits, image_token_count, prepare_image, target_size
from medvlt.errors import ConfigurationError

SIDE = st.integers(1, 4000)
TOKENS = st.integers(1, 3000)


def resized_by_transformers(width: int, height: int, limits: ImageLimits) -> tuple[int, int]:
    high, wide = smart_resize(height, width, 28, limits.min_pixels, limits.max_pixels)
    return wide, high


@given(width=SIDE, height=SIDE, low=TOKENS, high=TOKENS)
@example(width=6000, height=30, low=4, high=100)  # the rule overshoots max_pixels
@example(width=29, height=28, low=4, high=5)  # the rule never settles
@example(width=1, height=200, low=1, high=2)
def test_size_is_transformers_and_final(width: int, height: int, low: int, high: int) -> None:
    assume(low * 1.1 <= high and max(width, height) <= 200 * min(width, height))
    limits = ImageLimits(low * 784, high * 784)
    size = target_size(width, height, limits)
    assert resized_by_transformers(*size, limits) == size
    assert target_size(*size, limits) == size
    assert size[0] % 28 == size[1] % 28 == 0
    assert limits.min_pixels <= size[0] * size[1] <= limits.max_pixels
    assert image_token_count(width, height, limits) == size[0] * size[1] // 784
    first = resized_by_transformers(width, height, limits)
    assert size == first or resized_by_transformers(*first, limits) != first


@given(width=SIDE, height=SIDE)
def test_default_limits_are_those_of_transformers(width: int, height: int) -> None:
    assume(max(width, height) <= 200 * min(width, height))
    limits = ImageLimits()
    assert target_size(width, height, limits) == resized_by_transformers(width, height, limits)


def test_tight_grid_is_the_nearest() -> None:
    assert target_size(6000, 30, ImageLimits(4 * 784, 100 * 784)) == (2800, 28)
    assert target_size(29, 28, ImageLimits(784 * 4, 784 * 4)) == (56, 56)
    assert target_size(27, 20, ImageLimits(784 * 2, 784 * 3)) == (56, 28)  # 1:2 is nearer to 27:20 than 1:3
    assert target_size(20, 27, ImageLimits(784 * 2, 784 * 3)) == (28, 56)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (201, 1), (-28, -28)])
def test_impossible_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="sides must be"):
        target_size(*size, ImageLimits())


@pytest.mark.parametrize(("low", "high"), [(0, 784), (1568, 784), (800, 1500), (1, 783), (1117 * 784,) * 2])
def test_impossible_limits(low: int, high: int) -> None:
    with pytest.raises(ConfigurationError, match="784"):
        ImageLimits(low, high)


def test_prepared_picture_is_not_resized_again(shared_data: Path) -> None:
    limits = ImageLimits(4 * 784, 64 * 784)
    path = shared_data / "vqa_images" / "medvlthinker_assets" / "slake_closed.jpg"
    prepared = prepare_image(path, limits)
    assert (prepared.mode, prepared.size) == ("RGB", target_size(*image_size(path), limits))
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}, do_normalize=False
    )
    features = processor(images=[prepared], return_tensors="np")
    rows, columns = features["image_grid_thw"][0, 1:].tolist()
    assert (columns * 14, rows * 14) == prepared.size
    # patches undone: (row block, column block, row in block, column in block, channel, time, y, x)
    patches = features["pixel_values"].reshape(rows // 2, columns // 2, 2, 2, 3, 2, 14, 14)[:, :, :, :, :, 0]
    pixels = patches.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * 14, columns * 14, 3)
    assert np.abs(pixels * 255 - np.asarray(prepared)).max() < 1e-3


def test_resizing_is_bicubic_and_once() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 150, 3), dtype=np.uint8))
    limits = ImageLimits()
    assert prepare_image(image, limits).tobytes() == image.resize((140, 112), Image.Resampling.BICUBIC).tobytes()
    fitting = image.resize((140, 112))
    assert prepare_image(fitting, limits).tobytes() == fitting.tobytes()


def test_real_pictures_stay_inside_the_limits(shared_data: Path) -> None:
    limits = ImageLimits(4 * 784, 256 * 784)
    paths = sorted((shared_data / "vqa_images" / "mmmu").iterdir())
    assert paths
    for path in paths:
        assert open_image(path).size == image_size(path)
        assert 4 <= image_token_count(*image_size(path), limits) <= 256
