"""The focal point is the documented mean of faces, corners and entropy."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sd_atelier.lib.data.buckets import crop_geometry
from sd_atelier.lib.data.focal_point import (
    FocalWeights,
    edge_point,
    entropy_point,
    face_boxes,
    face_point,
    focal_point,
    weighted,
)

WIDE, SQUARE = (400, 200), (64, 64)


def plain(size=WIDE, colour="grey"):
    return Image.new("RGB", size, colour)


def with_square(at, size=WIDE, side=24):
    image = plain(size)
    x, y = at[0] * size[0], at[1] * size[1]
    ImageDraw.Draw(image).rectangle([x - side / 2, y - side / 2, x + side / 2, y + side / 2], fill="white")
    return image


def with_noise(left, right, size=WIDE):
    pixels = np.full((size[1], size[0], 3), 128, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], right - left, 1), dtype=np.uint8)
    pixels[:, left:right] = noise
    return Image.fromarray(pixels)


def grey(image):
    return np.asarray(image.convert("L"), np.float32) / 255


def test_the_weights_are_the_documented_ones_and_only_their_ratios_count():
    assert FocalWeights() == FocalWeights(face=0.9, edges=0.5, entropy=0.15)
    points = [(0.9, (0.1, 0.2)), (0.5, (0.5, 0.6)), (0.15, (0.9, 0.4))]
    x = (0.9 * 0.1 + 0.5 * 0.5 + 0.15 * 0.9) / 1.55
    y = (0.9 * 0.2 + 0.5 * 0.6 + 0.15 * 0.4) / 1.55
    assert weighted(points) == pytest.approx((x, y))
    assert weighted([(7 * w, p) for w, p in points]) == pytest.approx((x, y))
    # without a face the rest is renormalised
    assert weighted(points[1:]) == pytest.approx(((0.5 * 0.5 + 0.15 * 0.9) / 0.65, (0.5 * 0.6 + 0.15 * 0.4) / 0.65))


def test_nothing_found_is_the_middle():
    assert focal_point(plain(), SQUARE) == (0.5, 0.5)
    assert focal_point(plain(), SQUARE, detect_faces=lambda pixels: []) == (0.5, 0.5)
    assert weighted([]) == (0.5, 0.5)


def test_faces_count_alike_however_many_and_large_they_are():
    boxes = [(0, 0, 40, 40), (300, 100, 400, 200), (340, 0, 360, 20)]
    thirds = 40 / 3 + (100 + 100 / 3) + 20 / 3
    assert face_point(plain(), lambda pixels: boxes) == pytest.approx(((20 + 350 + 350) / 1200, thirds / 600))


def test_a_face_alone_is_the_focus_and_the_detector_sees_the_picture_as_rgb():
    image = plain((300, 100), (10, 20, 30))
    seen = []

    def detect(pixels):
        seen.append((pixels.shape, pixels.dtype, tuple(pixels[5, 5])))
        return [(30, 10, 60, 40)]

    assert focal_point(image, SQUARE, detect_faces=detect) == pytest.approx((0.15, 0.2))
    assert seen == [((100, 300, 3), np.uint8, (10, 20, 30))]


def test_a_face_pulls_by_its_documented_share():
    image = with_square((0.8, 0.5))
    no_face = focal_point(image, SQUARE)
    analysed = grey(image.convert("L").resize((256, 128), Image.Resampling.BOX))
    edges, entropy = edge_point(analysed), entropy_point(analysed, SQUARE)
    face = focal_point(image, SQUARE, detect_faces=lambda pixels: [(30, 90, 50, 120)])
    for axis in (0, 1):
        rest = 0.5 * edges[axis] + 0.15 * entropy[axis]
        assert no_face[axis] == pytest.approx(rest / 0.65)
        assert face[axis] == pytest.approx((0.9 * (0.1, 0.5)[axis] + rest) / 1.55)


@pytest.mark.parametrize("at", [(0.2, 0.3), (0.5, 0.5), (0.85, 0.7)])
def test_the_corners_of_a_square_mean_its_middle(at):
    assert edge_point(grey(with_square(at))) == pytest.approx(at, abs=0.01)


def test_corners_in_the_lowest_tenth_do_not_count():
    image = with_square((0.3, 0.4))
    for x in range(200, 400, 20):  # a watermark
        ImageDraw.Draw(image).rectangle([x, 187, x + 8, 195], fill="black")
    assert edge_point(grey(image)) == pytest.approx((0.3, 0.4), abs=0.01)
    assert edge_point(grey(image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)))[0] > 0.5


def test_edges_without_corners_are_no_point():
    image = plain()
    ImageDraw.Draw(image).rectangle([0, 0, 150, 200], fill="white")  # one straight edge through the whole picture
    assert edge_point(grey(image)) is None
    assert edge_point(grey(plain())) is None
    assert edge_point(np.zeros((4, 400), np.float32)) is None


@pytest.mark.parametrize(("left", "right"), [(0, 200), (100, 300), (200, 400)])
def test_entropy_finds_the_window_with_most_information(left, right):
    x, y = entropy_point(grey(with_noise(left, right)), SQUARE)
    assert x == pytest.approx((left + right) / 2 / 400, abs=0.03)
    assert y == pytest.approx(0.5)


def test_entropy_has_no_say_where_nothing_can_be_cut_or_told():
    assert entropy_point(grey(with_noise(0, 64, (128, 128))), SQUARE) is None
    assert entropy_point(grey(plain()), SQUARE) is None


def test_of_equally_good_windows_the_middle_counts():
    # the noise is narrower than the window, so every window over all of it is as good
    x, _ = entropy_point(grey(with_noise(180, 220)), SQUARE)
    assert x == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("at", [(0.15, 0.5), (0.5, 0.5), (0.8, 0.5)])
def test_the_cut_contains_what_the_picture_is_about(at):
    image = with_square(at)
    geometry = crop_geometry(image.size, SQUARE, focal_point(image, SQUARE))
    scale = geometry.resized[0] / image.width
    x = at[0] * image.width * scale - geometry.crop_left
    assert 4 <= x <= 60  # of 64
    if at[0] == 0.15:  # far from what a cut in the middle would show
        assert at[0] * image.width * scale < crop_geometry(image.size, SQUARE).crop_left


def test_mirroring_the_picture_mirrors_the_point():
    image = with_square((0.3, 0.4))
    x, y = focal_point(image, SQUARE)
    mirrored = focal_point(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), SQUARE)
    assert mirrored == pytest.approx((1 - x, y), abs=0.01)


def test_what_is_transparent_does_not_attract():
    image = with_square((0.2, 0.5)).convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert focal_point(image, SQUARE) == (0.5, 0.5)


def test_a_weight_of_zero_asks_nothing():
    def detect(pixels):
        raise AssertionError("was asked")

    x, _ = focal_point(with_square((0.2, 0.5)), SQUARE, FocalWeights(face=0, edges=1, entropy=0), detect)
    assert x == pytest.approx(0.2, abs=0.01)


def test_boxes_are_cut_to_the_picture_and_wrong_ones_said():
    assert face_boxes(plain(), lambda pixels: [(-10, 5, 20, 300), (500, 0, 600, 10)]) == [(0, 5, 20, 200)]
    for wrong in ([(1, 2, 3)], [(0, 0, float("nan"), 4)]):
        with pytest.raises(ValueError, match="the face detector gave"):
            face_boxes(plain(), lambda pixels, wrong=wrong: wrong)
    with pytest.raises(ValueError, match="edges must be between 0 and 1e6"):
        FocalWeights(edges=-1)
    with pytest.raises(ValueError, match="all 0"):
        FocalWeights(0, 0, 0)
