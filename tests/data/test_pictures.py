"""Pictures: every kind of file is loaded right or refused by name, whatever the host has set in Pillow."""

from __future__ import annotations

import io
import random
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, features
from sd_atelier.lib.data import pictures
from sd_atelier.lib.data.buckets import crop_geometry
from sd_atelier.lib.data.headers import extensions
from sd_atelier.lib.data.pictures import PictureError, check, load, read_header

PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "photos"
LIMIT = 200.0
AVIF = "AVIF" in Image.registered_extensions().values()
LOSSLESS = {"png": {}, "bmp": {}, "tif": {}, "webp": {"lossless": True}}


def scene(width: int = 60, height: int = 40) -> np.ndarray:
    """No symmetry, sharp edges and gradients: any wrong turn, channel or scale shows."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)
    pixels[: height // 4, : width // 4] = (255, 0, 0)
    return pixels


def saved(path: Path, image: Image.Image | np.ndarray, **options) -> Path:
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def pixels_of(path: Path) -> np.ndarray:
    """Loaded at its own size, so that nothing is resized."""
    return load(path, read_header(path).size, False, LIMIT).pixels


def png(width: int, height: int, depth: int, color: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand: what Pillow does not write."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    parts = [header, *chunks, data, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def tiff(values: np.ndarray, order: str, photometric: int = 1) -> bytes:
    """A grey TIFF by hand, of the values' own type; order "<" or ">"."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    bits, form = values.dtype.itemsize * 8, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: height,
        279: len(data),
        339: form,
    }
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = 8 + len(data)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return head + data + struct.pack(order + "H", len(tags)) + entries + b"\0\0\0\0"


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


# what each orientation does to an array of rows and columns
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_files_load_to_the_last_bit(tmp_path, kind):
    path = saved(tmp_path / f"a.{kind}", scene(), **LOSSLESS[kind])
    assert read_header(path).size == (60, 40)
    np.testing.assert_array_equal(pixels_of(path), scene())


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["png", "webp", "jpg", "tif", "tif_lzw"])
def test_exif_orientation_is_applied_to_size_and_pixels(tmp_path, kind, orientation):
    path = tmp_path / f"a.{kind[:4].rstrip('_')}"
    if kind.startswith("tif"):
        options = {"tiffinfo": {0x0112: orientation}, "compression": "tiff_lzw" if kind == "tif_lzw" else None}
    else:
        options = {"exif": exif(orientation), "lossless": True, "quality": 100, "subsampling": 0}
    saved(path, scene(), **options)
    upright = UPRIGHT[orientation](scene())
    header = read_header(path)
    assert header.orientation == orientation
    assert header.size == upright.shape[1::-1]
    difference = np.abs(pixels_of(path).astype(int) - upright.astype(int))
    # JPEG loses a little also at quality 100; any wrong turn is off by 40 and more
    assert difference.mean() < 1 if kind == "jpg" else difference.max() == 0


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_an_impossible_orientation_means_upright(tmp_path, value):
    path = saved(tmp_path / "a.png", scene(), exif=exif(value))
    assert read_header(path).orientation == 1
    np.testing.assert_array_equal(pixels_of(path), scene())


@pytest.mark.parametrize(
    "block", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff\0\0", b"II*\0\x08\0\0\0\xff\xff", b"junk" * 9]
)
def test_a_broken_exif_block_means_upright(tmp_path, block):
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 1, 8, 0, [b"\x01\x02"], (b"eXIf", block)))
    assert read_header(path).orientation == 1
    assert pixels_of(path)[0, :, 0].tolist() == [1, 2]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (60, 40), (59, 41), (500, 37)])
@pytest.mark.parametrize("bucket", [(64, 64), (32, 96), (128, 64)])
def test_the_bucket_is_the_middle_of_the_covering_picture(tmp_path, size, bucket):
    path = saved(tmp_path / "a.png", scene(*size))
    picture = load(path, bucket, False, LIMIT)
    assert picture.pixels.shape == (bucket[1], bucket[0], 3) and picture.pixels.dtype == np.uint8
    assert picture.geometry == crop_geometry(size, bucket)
    (w, h), left, top = picture.geometry
    if w * h < 4_000_000:
        filter = Image.Resampling.BICUBIC if w > size[0] or h > size[1] else Image.Resampling.LANCZOS
        whole = np.asarray(Image.fromarray(scene(*size)).resize((w, h), filter))
        expected = whole[top : top + bucket[1], left : left + bucket[0]].astype(int)
        assert np.abs(picture.pixels.astype(int) - expected).mean() < 1


def test_shrinking_averages_and_flat_colours_stay(tmp_path):
    checker = np.indices((512, 512)).sum(0) % 2 * 255
    grey = load(saved(tmp_path / "a.png", checker.astype(np.uint8)), (64, 64), False, LIMIT).pixels
    assert grey.min() >= 120 and grey.max() <= 135
    flat = np.full((33, 70, 3), (10, 200, 90), np.uint8)
    for bucket in ((16, 16), (128, 64)):
        assert (load(saved(tmp_path / "b.png", flat), bucket, False, LIMIT).pixels == (10, 200, 90)).all()


def test_grey_bilevel_palette_and_opaque_alpha_equal_their_rgb(tmp_path):
    image = Image.fromarray(scene())
    for mode in ("1", "L", "P", "LA", "RGBA"):
        expected = np.asarray(image.convert(mode).convert("RGB"))
        path = saved(tmp_path / f"{mode}.png", image.convert(mode))
        np.testing.assert_array_equal(pixels_of(path), expected, err_msg=mode)
        assert load(path, (32, 32), True, LIMIT).mask is None, mode


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_put_on_white_and_is_the_mask(tmp_path, mode):
    image = Image.fromarray(scene()).convert(mode)
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, 30:], alpha[:, 45:] = 255, 128
    image.putalpha(Image.fromarray(alpha))
    path = saved(tmp_path / "a.png", image)
    picture = load(path, (60, 40), True, LIMIT)
    base, part = np.asarray(image.convert("RGB")).astype(float), alpha[..., None] / 255
    np.testing.assert_allclose(picture.pixels, base * part + 255 * (1 - part), atol=1)
    np.testing.assert_allclose(picture.mask, alpha / 255, atol=1e-6)
    assert picture.mask.dtype == np.float32
    without = load(path, (60, 40), False, LIMIT)
    assert without.mask is None
    np.testing.assert_array_equal(without.pixels, picture.pixels)
    assert any("white" in note for note in without.notes)


def test_the_mask_is_cut_like_the_picture_and_stays_within_0_and_1(tmp_path):
    image = Image.fromarray(scene(400, 100)).convert("RGBA")
    alpha = np.zeros((100, 400), np.uint8)
    alpha[:, 200:] = 255
    image.putalpha(Image.fromarray(alpha))
    path = saved(tmp_path / "a.png", image, exif=exif(8))
    mask = load(path, (32, 64), True, LIMIT).mask
    assert mask.shape == (64, 32) and mask.min() >= 0 and mask.max() <= 1
    # turned to the left: what was right is now above
    assert (mask[:30] == 1).all() and (mask[34:] == 0).all()


def test_a_mask_finer_than_the_bucket_is_averaged(tmp_path):
    image = Image.fromarray(scene(256, 256)).convert("RGBA")
    image.putalpha(Image.fromarray((np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)))
    mask = load(saved(tmp_path / "a.png", image), (32, 32), True, LIMIT).mask
    np.testing.assert_allclose(mask, 0.5, atol=0.02)


def test_a_picture_without_anything_opaque_is_said(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("RGBA", (20, 20), (9, 9, 9, 0)))
    picture = load(path, (16, 16), True, LIMIT)
    assert (picture.mask == 0).all() and (picture.pixels == 255).all()
    assert any("nothing of it is trained" in note for note in picture.notes)


@pytest.mark.parametrize(("kind", "transparency"), [("gif", 1), ("png", 1), ("png", bytes([255, 0, 128, 255]))])
def test_a_transparent_palette_colour_becomes_white(tmp_path, kind, transparency):
    image = Image.new("P", (4, 1))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 50, 50, 50])
    image.putdata([0, 1, 2, 3])
    picture = load(saved(tmp_path / f"a.{kind}", image, transparency=transparency), (4, 1), True, LIMIT)
    assert picture.pixels[0, 0].tolist() == [200, 0, 0] and picture.pixels[0, 1].tolist() == [255, 255, 255]
    assert picture.pixels[0, 3].tolist() == [50, 50, 50]
    expected = [1, 0, 1, 1] if transparency == 1 else [1, 0, 128 / 255, 1]
    np.testing.assert_allclose(picture.mask[0], expected, atol=1e-6)


def test_a_transparent_colour_of_grey_and_rgb_in_8_and_16_bits_becomes_white(tmp_path):
    path = tmp_path / "a.png"
    for depth, color, row, key in (
        (8, 0, b"\x10\x80", b"\0\x80"),
        (8, 2, b"\x10\x20\x30\x80\x90\xa0", b"\0\x80\0\x90\0\xa0"),
        (16, 0, b"\x10\x00\x80\x00", b"\x80\x00"),
        (16, 2, b"\x10\x00\x20\x00\x30\x00\x80\x01\x90\x02\xa0\x03", b"\x80\x01\x90\x02\xa0\x03"),
    ):
        path.write_bytes(png(2, 1, depth, color, [row], (b"tRNS", key)))
        picture = load(path, (2, 1), True, LIMIT)
        expected = [0x10, 0x20, 0x30] if color == 2 else [0x10] * 3
        assert picture.pixels[0].tolist() == [expected, [255, 255, 255]], (depth, color)
        assert picture.mask[0].tolist() == [1, 0], (depth, color)


RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(8, 32)


@pytest.mark.parametrize("write", ["png", "tiff little", "tiff big", "tiff lzw", "tiff signed", "tiff 0 is white"])
def test_16_bits_are_scaled_and_never_clipped(tmp_path, write):
    path = tmp_path / ("a.png" if write == "png" else "a.tif")
    expected = np.arange(256).reshape(8, 32)
    if write == "png":
        path.write_bytes(png(32, 8, 16, 0, [row.astype(">u2").tobytes() for row in RAMP]))
    elif write == "tiff lzw":
        saved(path, RAMP, compression="tiff_lzw")
    elif write == "tiff signed":
        path.write_bytes(tiff((RAMP // 2).astype(np.int16), "<"))
        expected = np.rint(RAMP // 2 * (255 / 65535)).astype(int)
    elif write == "tiff 0 is white":
        path.write_bytes(tiff(RAMP, "<", photometric=0))
        expected = 255 - expected
    else:
        path.write_bytes(tiff(RAMP, "<" if write == "tiff little" else ">"))
    picture = load(path, (32, 8), False, LIMIT)
    for channel in range(3):
        np.testing.assert_array_equal(picture.pixels[..., channel], expected)
    assert any("scaled to 8" in note for note in picture.notes)


def test_16_bit_colour_keeps_its_range(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 1, 16, 2, [struct.pack(">6H", 0, 0x8000, 0xFFFF, 0x1234, 0xFF00, 0x00FF)]))
    assert pixels_of(path)[0].tolist() == [[0, 128, 255], [0x12, 255, 0]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.float32([[0, 0.5, 1]]), [0, 128, 255]),
        (np.float32([[0, 128, 255]]), [0, 128, 255]),
        (np.float32([[0, 32768, 65535]]), [0, 128, 255]),
        (np.float32([[-1, 0, 1]]), [0, 128, 255]),
        (np.float32([[0, 0.5e6, 1e6]]), [0, 128, 255]),
        (np.float32([[-7, -7, -7]]), [0, 0, 0]),
        (np.int32([[0, 128, 255]]), [0, 128, 255]),
        (np.int32([[0, 32768, 65535]]), [0, 128, 255]),
        (np.int32([[-100, 0, 100]]), [0, 128, 255]),
        (np.int32([[0, 1 << 29, 1 << 30]]), [0, 128, 255]),
    ],
)
def test_float_and_32_bit_pixels_are_scaled_and_never_clipped(tmp_path, values, expected):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(values, "<"))
    picture = load(path, (3, 1), False, LIMIT)
    np.testing.assert_allclose(picture.pixels[0, :, 0].astype(int), expected, atol=1)
    assert any("8 bits" in note for note in picture.notes)


def test_values_that_are_not_finite_are_named(tmp_path):
    path = tmp_path / "a.tif"
    for bad in (np.nan, np.inf):
        path.write_bytes(tiff(np.float32([[0, bad]]), "<"))
        with pytest.raises(PictureError, match=r"a\.tif.*not finite"):
            load(path, (8, 8), False, LIMIT)


@pytest.mark.parametrize("kind", ["tif", "jpg"])
def test_cmyk_keeps_its_colours_and_is_said(tmp_path, kind):
    image = Image.new("CMYK", (64, 16))
    image.paste((0, 255, 255, 0), (32, 0, 64, 16))
    path = saved(tmp_path / f"a.{kind}", image, **({"quality": 100, "subsampling": 0} if kind == "jpg" else {}))
    picture = load(path, (64, 16), False, LIMIT)
    assert picture.pixels[:, :16].min() >= 250
    assert np.abs(picture.pixels[:, 48:].astype(int) - (255, 0, 0)).max() <= 5
    assert any("CMYK" in note for note in picture.notes)


def test_the_first_frame_counts_and_it_is_said(tmp_path):
    first, second = Image.fromarray(scene()), Image.new("RGB", (60, 40), "black")
    for kind, options in (("gif", {}), ("png", {}), ("webp", {"lossless": True}), ("tif", {})):
        path = saved(tmp_path / f"a.{kind}", first, save_all=True, append_images=[second] * 2, **options)
        header = read_header(path)
        with Image.open(path) as opened:
            # the oracle; Pillow may merge equal frames when it writes
            assert header.num_frames == opened.n_frames > 1, kind
        assert any("only the first is used" in text for text in header.warnings), kind
        assert any("only the first is used" in note for note in load(path, (60, 40), False, LIMIT).notes), kind
        difference = np.abs(pixels_of(path).astype(int) - scene().astype(int)).mean()
        assert difference < (12 if kind == "gif" else 0.01), kind


def test_a_gif_whose_first_frame_reaches_beyond_its_canvas_is_as_large_as_the_frame(tmp_path):
    path = saved(tmp_path / "a.gif", scene())
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack("<HH", 10, 90)
    path.write_bytes(data)
    assert read_header(path).size == (60, 90)
    assert check(path, LIMIT) == []


def test_a_phone_picture_with_a_second_view_is_a_plain_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(scene()).save(path, format="MPO", save_all=True, append_images=[Image.new("RGB", (60, 40))])
    header = read_header(path)
    assert (header.format, header.num_frames, header.size) == ("JPEG", 1, (60, 40))
    assert load(path, (60, 40), False, LIMIT).pixels.std() > 30


@pytest.mark.skipif(not AVIF, reason="this Pillow has no AVIF")
def test_avif_loads_where_pillow_can(tmp_path):
    path = saved(tmp_path / "a.avif", scene(), exif=exif(6), quality=100)
    assert ".avif" in extensions()
    assert read_header(path).size == (40, 60)
    assert np.abs(pixels_of(path).astype(int) - UPRIGHT[6](scene()).astype(int)).mean() < 6


def foreign_profile() -> bytes:
    """sRGB with red and blue exchanged, under another name."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)
    return profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


@pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow has no LittleCMS")
@pytest.mark.parametrize("kind", ["png", "tif", "jpg", "webp"])
def test_an_embedded_profile_is_converted_to_srgb(tmp_path, kind):
    options = {"lossless": True} if kind == "webp" else {"quality": 100} if kind == "jpg" else {}
    path = saved(
        tmp_path / f"a.{kind}", Image.new("RGB", (16, 16), (255, 0, 0)), icc_profile=foreign_profile(), **options
    )
    assert np.abs(pixels_of(path).astype(int) - (0, 0, 255)).max() <= 4


@pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow has no LittleCMS")
def test_an_srgb_profile_changes_no_bit(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("converted from sRGB to sRGB")

    monkeypatch.setattr(ImageCms, "profileToProfile", refuse)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(pixels_of(saved(tmp_path / "a.png", scene(), icc_profile=srgb)), scene())


@pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow has no LittleCMS")
def test_alpha_survives_the_conversion_of_colours(tmp_path):
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 128))
    picture = load(saved(tmp_path / "b.png", image, icc_profile=foreign_profile()), (16, 16), True, LIMIT)
    assert np.abs(picture.pixels.astype(int) - (127, 127, 255)).max() <= 2
    np.testing.assert_allclose(picture.mask, 128 / 255, atol=1e-6)


def test_a_broken_profile_is_ignored_and_said(tmp_path):
    path = saved(tmp_path / "a.png", scene(), icc_profile=b"no profile" * 20)
    picture = load(path, (60, 40), False, LIMIT)
    np.testing.assert_array_equal(picture.pixels, scene())
    assert any("colour profile" in note and "ignored" in note for note in picture.notes)


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name, data, reason in (
        ("empty.png", b"", "is empty"),
        ("zeros.jpg", bytes(5000), "begins with zeros"),
        ("page.jpg", b"<!DOCTYPE html><html>", "not a picture of a known kind"),
        ("text.bmp", b"BMW is a car", "cannot be read"),
        ("short.png", b"\x89PNG\r\n\x1a\n", "header is broken"),
        ("vector.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture of a known kind"),
        ("folder.png", None, "cannot be opened"),
        ("missing.png", None, "cannot be opened"),
    ):
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        for call in (read_header, lambda p: load(p, (8, 8), False, LIMIT)):
            with pytest.raises(PictureError) as error:
                call(path)
            assert error.value.path == path and reason in error.value.reason and str(path) in str(error.value)
        assert len(check(path, LIMIT)) == 1


def huge_files() -> dict[str, bytes]:
    def encoded(format: str, **options) -> bytearray:
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, format, **options)
        return bytearray(file.getvalue())

    gif, bmp, jpeg = encoded("GIF"), encoded("BMP"), encoded("JPEG")
    gif[6:10] = b"\xff\xff\xff\xff"
    bmp[18:26] = struct.pack("<ii", 60000, 60000)
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = b"\xff\xdc\xff\xdc"
    webp = encoded("WEBP", exif=exif(1))
    webp[24:30] = b"\xfe\x3f\0\xfe\x3f\0"
    far = tiff(np.zeros((4, 4), np.uint8), "<")
    far = far.replace(struct.pack("<HHII", 256, 4, 1, 4), struct.pack("<HHII", 256, 4, 1, 60000))
    far = far.replace(struct.pack("<HHII", 257, 4, 1, 4), struct.pack("<HHII", 257, 4, 1, 60000))
    return {
        "PNG": png(60000, 60000, 8, 2, [b"\0"]),
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
        "JPEG": bytes(jpeg),
        "WEBP": bytes(webp),
        "TIFF": far,
    }


@pytest.mark.parametrize("format", huge_files())
@pytest.mark.parametrize("host_limit", [None, 100])
def test_huge_dimensions_are_refused_before_anything_is_allocated(tmp_path, monkeypatch, format, host_limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", host_limit)
    path = tmp_path / "a.bin"
    path.write_bytes(huge_files()[format])
    start = time.perf_counter()
    reasons = check(path, LIMIT)
    assert time.perf_counter() - start < 1
    assert len(reasons) == 1 and "data.max_megapixels" in reasons[0], reasons


def test_the_limit_is_ours_and_exact(tmp_path):
    path = saved(tmp_path / "a.png", scene(100, 100))
    assert check(path, 0.01) == []
    assert "0.01 MP" in check(path, 0.0099)[0]


def test_a_large_picture_in_next_to_no_bytes_is_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(12000, 12000, 8, 2, [b"\0" * 36000]))
    assert "the header is damaged" in check(path, LIMIT)[0]


@pytest.mark.parametrize("host_limit", [None, 10])
@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_pillows_own_limit_counts_neither_way_and_is_left_as_it_was(tmp_path, monkeypatch, kind, host_limit):
    path = saved(tmp_path / f"a.{kind}", scene())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", host_limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_header(path).size == (60, 40)
        assert load(path, (16, 16), False, LIMIT).pixels.std() > 10
    assert host_limit == Image.MAX_IMAGE_PIXELS


FULL = {
    "png": ("png", {}),
    "jpg": ("jpg", {"quality": 95}),
    "progressive": ("jpg", {"quality": 95, "progressive": True}),
    "webp": ("webp", {"quality": 95}),
    "webp lossless": ("webp", {"lossless": True}),
    "gif": ("gif", {}),
    "bmp": ("bmp", {}),
    "tif": ("tif", {}),
    "tif lzw": ("tif", {"compression": "tiff_lzw"}),
}


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize("accepts_truncated", [False, True])
def test_truncated_files_are_named_also_in_a_host_that_accepts_them(tmp_path, monkeypatch, kind, accepts_truncated):
    ending, options = FULL[kind]
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    whole = saved(tmp_path / f"a.{ending}", noise, **options).read_bytes()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", accepts_truncated)
    path = tmp_path / f"cut.{ending}"
    for part in (0.01, 0.3, 0.7, 0.95, 0.99):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(PictureError, match="cut"):
            load(path, (64, 64), False, LIMIT)
        assert len(check(path, LIMIT)) == 1
        assert accepts_truncated == ImageFile.LOAD_TRUNCATED_IMAGES
    path.write_bytes(whole)
    assert check(path, LIMIT) == []


def test_many_threads_leave_pillows_switches_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    good = saved(tmp_path / "good.tif", scene(200, 200))
    cut = tmp_path / "cut.jpg"
    saved(cut, scene(200, 200), quality=95)
    cut.write_bytes(cut.read_bytes()[:-400])
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda path: check(path, LIMIT), [good, cut] * 200))
    assert all(not fine and faults for fine, faults in zip(results[::2], results[1::2], strict=True))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_damaged_png_is_named_and_a_damaged_comment_is_not(tmp_path):
    path = tmp_path / "a.png"
    data = bytearray(png(60, 40, 8, 2, [row.tobytes() for row in scene()], (b"tEXt", b"Comment\0hello")))
    position = data.index(b"IDAT") + 300
    data[position] ^= 1
    path.write_bytes(data)
    assert check(path, LIMIT) == ["is damaged: wrong checksum in its IDAT part"]
    data[position] ^= 1
    path.write_bytes(data)
    assert check(path, LIMIT) == []
    path.write_bytes(data[:-12])
    assert check(path, LIMIT) == ["is truncated"]


def test_a_header_that_the_pixels_contradict_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", scene())
    real = pictures.parse_header

    def wrong(path, file):
        header = real(path, file)
        return type(header)(**{**header.__dict__, "size": (40, 60)})

    monkeypatch.setattr(pictures, "parse_header", wrong)
    assert "by its header" in check(path, LIMIT)[0]


def test_reading_headers_decodes_nothing(tmp_path, monkeypatch):
    paths = [saved(tmp_path / f"a.{kind}", scene(), exif=exif(6)) for kind in ("png", "jpg", "webp", "tif")]
    paths += [saved(tmp_path / "b.gif", scene()), saved(tmp_path / "b.bmp", scene())]

    def refuse(*_, **__):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    for path in paths:
        assert read_header(path).size in {(60, 40), (40, 60)}


def originals() -> list[tuple[str, bytes]]:
    rgb = Image.fromarray(scene(53, 37))
    rgba = rgb.convert("RGBA")
    rgba.putalpha(rgb.getchannel(0))
    grey16 = Image.fromarray(scene(53, 37)[..., 0].astype(np.uint16) * 257)
    two = {"save_all": True, "append_images": [rgb.transpose(Image.Transpose.ROTATE_180)]}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    out = []
    for image, format, options in (
        (rgb, "PNG", {"icc_profile": profile}),
        (rgba, "PNG", {"exif": exif(6)}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (grey16, "PNG", {}),
        (rgb, "JPEG", {"exif": exif(6)}),
        (rgb, "JPEG", {"progressive": True, "icc_profile": foreign_profile()}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "WEBP", {"exif": exif(6)}),
        (rgba, "WEBP", {"lossless": True}),
        (rgb, "WEBP", two),
        (rgb.convert("P"), "GIF", {}),
        (rgb, "GIF", {**two, "disposal": 2}),
        (rgb, "BMP", {}),
        (rgb.convert("P"), "BMP", {}),
        (rgb, "TIFF", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgba, "TIFF", {"compression": "tiff_deflate"}),
        (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        (Image.fromarray(scene(53, 37)[..., 0].astype(np.float32)), "TIFF", {}),
        (rgb, "TIFF", {**two, "tiffinfo": {0x0112: 8}}),
        *([(rgb, "AVIF", {})] if AVIF else []),
    ):
        file = io.BytesIO()
        image.save(file, format, **options)
        out.append((format, file.getvalue()))
    return out


def with_right_sums(data: bytes) -> bytes:
    """A PNG whose checksums fit what it holds, so that the mutation reaches the decoder."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        length = int.from_bytes(out[at : at + 4], "big")
        if at + 12 + length > len(out):
            break
        out[at + 8 + length : at + 12 + length] = struct.pack(">I", zlib.crc32(out[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(out)


def mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    kind = rng.choice(["bits", "cut", "header", "splice", "tiny", "word"])
    if kind == "bits":
        for _ in range(rng.choice([1, 1, 3, 20])):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del out[rng.randrange(len(out)) :]
    elif kind == "header":
        for _ in range(rng.choice([1, 2, 4])):
            out[rng.randrange(min(64, len(out)))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
    elif kind == "splice":
        at = rng.randrange(len(out))
        out[at : at + rng.randrange(30)] = rng.randbytes(rng.randrange(30))
    elif kind == "tiny":
        del out[rng.randrange(40) :]
    else:
        at = rng.randrange(len(out) - 4)
        out[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\x2e\xe0", b"\xe0\x2e\0\0"])
    return bytes(out)


@pytest.mark.filterwarnings("ignore")
def test_two_thousand_mutated_pictures_load_or_are_named_each_within_two_seconds(tmp_path):
    rng = random.Random(7)
    sources = originals()
    loaded = named = 0
    for number in range(2000):
        format, data = rng.choice(sources)
        data = mutated(data, rng)
        if format == "PNG" and rng.random() < 0.7:
            data = with_right_sums(data)
        path = tmp_path / f"{number % 20}.{format.lower()}"
        path.write_bytes(data)
        start = time.perf_counter()
        try:
            picture = load(path, (64, 48), True, LIMIT)
        except PictureError as error:
            assert error.path == path and error.reason
            named += 1
        else:
            assert picture.pixels.shape == (48, 64, 3)
            assert picture.mask is None or picture.mask.shape == (48, 64)
            loaded += 1
        assert time.perf_counter() - start < 2, (number, format)
    assert loaded > 300 and named > 300


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photographs at {PHOTOS}")
def test_photographs_load_as_pillow_sees_them():
    paths = sorted(PHOTOS.rglob("*.jpg"))
    assert paths
    for path in paths:
        assert check(path, LIMIT) == []
        with Image.open(path) as image:
            assert read_header(path).size == image.size
            np.testing.assert_array_equal(pixels_of(path), np.asarray(image.convert("RGB")))
