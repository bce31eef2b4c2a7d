"""A made data set with known faults: every bad input that people have, and beside them what looks odd and is right.

Each picture is different from all others in its coarse structure, so that none but planted duplicates are alike. All of
it follows from the seed.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageFilter

FAULTY_SHARE = 0.25  # of all pictures
PER_FOLDER = 500
_COLOURS = ("amber", "azure", "coral", "crimson", "ivory", "jade", "ochre", "olive", "plum", "silver", "teal", "umber")
_THINGS = ("bench", "bridge", "curtain", "fence", "fountain", "garden", "ladder", "piano", "river", "scarf", "train")
TAGS = tuple(f"{colour} {thing}" for colour in _COLOURS for thing in _THINGS)
Planted = set[tuple[str, str]]  # (what stands over the problem, path below the root with "/")

TRUNCATED, NO_PICTURE, TOO_LARGE = "is truncated or damaged", "is not a picture", "is too large"
ENCODING = "is a caption in another encoding"
_srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


class Place:
    """Where one fault goes: its own random numbers, and names that nobody else has."""

    def __init__(self, root: Path, seed: int, index: int, texture: np.ndarray, longest_px: int) -> None:
        self.rng, self.longest_px = np.random.default_rng([seed, index]), longest_px
        self.root, self.texture = root, texture
        self.stem = f"{index // PER_FOLDER:02d}/{index:05d}"
        self.found: Planted = set()

    def image(self, size: tuple[int, int] | None = None) -> Image.Image:
        """A scene of random coarse structure with fine texture, at least 256 px a side."""
        width, height = size or tuple(int(n) for n in self.rng.integers(256, self.longest_px + 1, 2))
        coarse = Image.fromarray(self.rng.integers(20, 236, (8, 8, 3), dtype=np.uint8))
        scene = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        left, top = (int(self.rng.integers(0, 1025 - n)) for n in (width, height))
        scene += self.texture[top : top + height, left : left + width]
        return Image.fromarray(np.clip(scene, 0, 255, out=scene).astype(np.uint8))

    def encoded(self, image: Image.Image | None = None, format: str = "", **options: object) -> bytes:
        format = format or str(self.rng.choice(["JPEG", "PNG", "WEBP"], p=[0.8, 0.1, 0.1]))
        speed = {"JPEG": {"quality": 88}, "PNG": {"compress_level": 1}, "WEBP": {"quality": 82, "method": 0}}
        file, image = io.BytesIO(), image or self.image()
        if format == "GIF" and image.mode == "RGB":
            image = _palette(image)
        image.save(file, format, **{**speed.get(format, {}), **options})
        return file.getvalue()

    def put(self, name: str, data: bytes) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return name

    def picture(self, data: bytes | None = None, ending: str = "", suffix: str = "", caption: bool = True) -> str:
        """A picture file, with a caption that is right; returns its name."""
        data = data if data is not None else self.encoded()
        kind = {
            b"\xff\xd8": "jpg",
            b"\x89P": "png",
            b"RI": "webp",
            b"GI": "gif",
            b"II": "tif",
            b"MM": "tif",
            b"BM": "bmp",
        }
        name = self.put(f"{self.stem}{suffix}.{ending or kind.get(data[:2], 'png')}", data)
        if caption:
            self.caption(self.tags(), suffix)
        return name

    def tags(self, *more: str, base: str = "1girl, solo", at_most: int = 10) -> str:
        """A caption of 4 to `at_most` tags without a fault, and `more`."""
        own = list(self.rng.choice(TAGS, int(self.rng.integers(4, at_most + 1)), replace=False))
        for tag in more:
            own.insert(int(self.rng.integers(0, len(own) + 1)), tag)
        return ", ".join([base, *own] if base else own)

    def caption(self, text: str | bytes, suffix: str = "", ending: str = "txt") -> str:
        return self.put(f"{self.stem}{suffix}.{ending}", text.encode() if isinstance(text, str) else text)

    def fault(self, heading: str, *names: str) -> None:
        self.found |= {(heading, name) for name in names}


def _png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *extra]
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in (*parts, (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")):
        out += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return out


def _palette(image: Image.Image) -> Image.Image:
    return image.quantize(64, Image.Quantize.FASTOCTREE)


def _tagged(heading: str, *captions: str) -> Callable[[Place], None]:
    """A fault that stands in the tags."""

    def plant(place: Place) -> None:
        name = place.picture(caption=False)
        more = str(place.rng.choice(captions)).split(", ")
        several = heading == "shows two or more people"
        place.caption(place.tags(*more, base="" if several else "1girl, solo"))
        place.fault(heading, name)

    return plant


def _changed(heading: str, *kinds: Callable[[Place], bytes]) -> Callable[[Place], None]:
    """A picture that is not used as it is, or not at all."""

    def plant(place: Place) -> None:
        place.fault(heading, place.picture(kinds[int(place.rng.integers(len(kinds)))](place)))

    return plant


def _worded(heading: str, *encodings: Callable[[str], bytes]) -> Callable[[Place], None]:
    """A caption whose bytes are not UTF-8."""

    def plant(place: Place) -> None:
        place.picture(caption=False)
        encode = encodings[int(place.rng.integers(len(encodings)))]
        place.fault(heading, place.caption(encode(place.tags("caf\u00e9 noir"))))

    return plant


def _cut(format: str, **options: object) -> Callable[[Place], bytes]:
    def made(place: Place) -> bytes:
        data = place.encoded(format=format, **options)
        return data[: int(len(data) * place.rng.choice([0.3, 0.7, 0.95, 0.995]))]

    return made


def _damaged(place: Place) -> bytes:
    data = bytearray(place.encoded(format="PNG"))
    data[data.index(b"IDAT") + 2000] ^= 1
    return bytes(data)


def _several(format: str, **options: object) -> Callable[[Place], bytes]:
    def made(place: Place) -> bytes:
        frames = [place.image((300, 280)) for _ in range(3)]
        frames = list(map(_palette, frames)) if format == "GIF" else frames
        return place.encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)

    return made


def _clear(format: str) -> Callable[[Place], bytes]:
    def made(place: Place) -> bytes:
        image = place.image()
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        return place.encoded(image, format)

    return made


def _grey16(format: str) -> Callable[[Place], bytes]:
    return lambda place: place.encoded(
        Image.fromarray(np.asarray(place.image().convert("L")).astype(np.uint16) * 257), format
    )


def _no_caption(place: Place) -> None:
    place.fault("has no caption", place.picture(caption=False))
    if place.rng.random() < 0.5:
        place.caption(place.rng.choice(["", " \n", "\ufeff"]))


def _large_caption(place: Place) -> None:
    place.fault("has a caption that cannot be read", place.picture(caption=False))
    place.caption(b"x" * ((1 << 20) + 1))


def _two_captions(place: Place) -> None:
    place.picture()
    names = [place.stem + ".txt", place.caption("something else", ending="caption")]
    place.fault("has two captions for a picture, of which .txt counts", *names)


def _alone(place: Place) -> None:
    place.fault("has caption files without a picture", place.caption(place.tags()))


def _other_kind(place: Place) -> None:
    name = place.put(f"{place.stem}.{place.rng.choice(['heic', 'HEIC', 'jxl', 'psd'])}", b"\0\0\0\x18ftypheic")
    place.fault("has pictures of a kind that cannot be read here", name)


def _one_stem(place: Place) -> None:
    names = [place.picture(place.encoded(format="JPEG")), place.picture(place.encoded(format="PNG"))]
    place.fault("has pictures of one name, each used, with one caption for both", *names)


def _equal(place: Place) -> None:
    data = place.encoded()
    place.fault(
        "is the same file as another", *(place.picture(data, suffix=suffix) for suffix in ("", " copy", " (2)"))
    )


def _alike(place: Place) -> None:
    image = place.image()
    turned = Image.Exif()
    turned[0x0112] = 6
    smaller = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)
    other = [
        lambda: place.encoded(smaller, "JPEG", quality=70),
        lambda: place.encoded(image.point(lambda value: min(255, int(value * 1.1 + 5))), "PNG"),
        lambda: place.encoded(image.filter(ImageFilter.GaussianBlur(1.2)), "WEBP"),
        lambda: place.encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=turned),
    ][int(place.rng.integers(4))]()
    names = [place.picture(place.encoded(image)), place.picture(other, suffix=" again")]
    place.fault("shows nearly the same as another", *names)


def _nothing(place: Place) -> None:
    (place.root / place.stem).parent.mkdir(parents=True, exist_ok=True)
    (place.root / f"{place.stem}.png").symlink_to("nowhere.png")
    place.fault("is a link to nothing or not a file", f"{place.stem}.png")


def _circle(place: Place) -> None:
    (place.root / place.stem).parent.mkdir(parents=True, exist_ok=True)
    (place.root / place.stem).symlink_to(place.root, target_is_directory=True)
    place.fault("is a link to a folder that is searched anyway; it is skipped", place.stem)


def _at_once(place: Place) -> None:
    """Several faults of one picture are named one by one."""
    name = place.picture(_cut("JPEG")(place), caption=False)
    # few of its own, so that it is not too long as well
    text = place.tags("blue dress", "dress", "open mouth", "closed mouth", "caf\u00e9 noir", at_most=5)
    place.fault(ENCODING, place.caption(text.encode("cp1252")))
    for heading in (TRUNCATED, "has a tag that another says already", "has tags that contradict each other"):
        place.fault(heading, name)


FAULTS: dict[str, Callable[[Place], None]] = {
    "truncated": _changed(
        TRUNCATED, _cut("JPEG"), _cut("JPEG", progressive=True), _cut("PNG"), _cut("WEBP"), _cut("GIF"), _cut("BMP"),
        _cut("TIFF"),
    ),
    "damaged": _changed(TRUNCATED, _damaged, lambda place: b"BMW is a car", lambda place: b"\x89PNG\r\n\x1a\n"),
    "bomb": _changed(TRUNCATED, lambda place: _png(12000, 12000, 8, 2, b"\0" * 36000)),
    "empty": _changed("is empty", lambda place: b""),
    "no picture": _changed(NO_PICTURE, lambda place: bytes(5000), lambda place: b"<!DOCTYPE html><html>"),
    "huge": _changed(TOO_LARGE, lambda place: _png(60000, 60000, 8, 2, b"\0" * 999)),
    "other kind": _other_kind,
    "link to nothing": _nothing,
    "circle of links": _circle,
    "animated": _changed(
        "is animated", _several("GIF"), _several("WEBP"), _several("PNG", default_image=False)
    ),
    "pages": _changed("is of several pages", _several("TIFF")),
    "cmyk": _changed(
        "is CMYK without a colour profile; its colours are approximate",
        lambda place: place.encoded(place.image().convert("CMYK"), "JPEG"),
    ),
    "16 bits": _changed("has 16 bits a pixel; scaled to 8", _grey16("PNG"), _grey16("TIFF")),
    "alpha": _changed("has transparent parts; they are put on white", _clear("PNG"), _clear("WEBP")),
    "profile": _changed(
        "has a colour profile that cannot be applied and is ignored",
        lambda place: place.encoded(format="PNG", icc_profile=b"no profile" * 20),
    ),
    "encoding": _worded(
        ENCODING,
        lambda text: text.encode("cp1252"),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-16-be"),
        lambda text: text.encode("utf-32"),
        lambda text: text.encode() + b"\x81\xfe",
    ),
    "no caption": _no_caption,
    "large caption": _large_caption,
    "two captions": _two_captions,
    "caption alone": _alone,
    "one stem": _one_stem,
    "equal": _equal,
    "alike": _alike,
    "subsumed": _tagged(
        "has a tag that another says already",
        "hair ornament, star hair ornament", "dress, blue dress", "very long hair, long hair", "blurred sky, sky",
    ),
    "twice": _tagged("has a tag twice", "smile, smile", "white_shirt, white shirt", "Hat, hat"),
    "contradictory": _tagged(
        "has tags that contradict each other", "open mouth, closed mouth", "indoors, outdoors", "day, night",
        "long hair, short hair", "standing, sitting", "shoes, no shoes", "white background, black background",
    ),
    "people": _tagged("shows two or more people", "2girls", "1girl, 1boy", "multiple boys", "crowd"),
    "gaze": _tagged("says where the subject looks", "looking at viewer", "looking at another", "looking away"),
    "blurred": _tagged("has a blurred background", "blurry background", "bokeh"),
    "apart": _tagged("has a verb apart from its thing", "lollipop, holding", "holding, green umbrella"),
    "long": _tagged("has a caption of more than 75 tokens", ", ".join(f"{tag} here" for tag in TAGS[:40])),
    "mirrored": _tagged(
        "is mirrored, and its caption names what is then wrong", "eyepatch", "signature", "english text"
    ),
    "at once": _at_once,
}  # fmt: skip


def _right(place: Place) -> None:
    """What looks odd and has nothing wrong with it."""
    turned = Image.Exif()
    turned[0x0112] = int(place.rng.integers(2, 9))
    opaque = place.image().convert("RGBA")
    kinds: dict[str, tuple[Callable[[], bytes], str]] = {
        "turned": (lambda: place.encoded(format="JPEG", exif=turned), ""),
        "srgb": (lambda: place.encoded(format="PNG", icc_profile=_srgb), ""),
        "opaque": (lambda: place.encoded(opaque, "PNG"), ""),
        "progressive": (lambda: place.encoded(format="JPEG", progressive=True), "JPG"),
        "grey": (lambda: place.encoded(place.image().convert("L"), "JPEG"), "jpeg"),
        "palette": (lambda: place.encoded(_palette(place.image()), "PNG"), ""),
        "another ending": (lambda: place.encoded(format="PNG"), "jpg"),
        "16 bits in colour": (lambda: _rgb16(place), ""),
        "one frame": (lambda: place.encoded(place.image((300, 280)), "GIF"), ""),
    }
    made, ending = kinds[str(place.rng.choice(list(kinds)))]
    suffix = str(place.rng.choice(["", " \u65e5\u672c", " it's 100%", " <b>x</b>"]))
    place.picture(made(), ending, suffix, caption=False)
    words = place.tags()
    text = [words.encode(), words.encode("utf-8-sig"), f"{words}\r\n".encode(), words.replace(", ", ",\n").encode()]
    place.caption(text[int(place.rng.integers(len(text)))], suffix, str(place.rng.choice(["txt", "caption"])))
    place.put(f"{Path(place.stem).parent.as_posix()}/.hidden-{Path(place.stem).name}.png", b"not looked at")


def _rgb16(place: Place) -> bytes:
    values = np.asarray(place.image((280, 260))).astype(">u2") * 257
    return _png(280, 260, 16, 2, b"".join(b"\0" + row.tobytes() for row in values))


@lru_cache(maxsize=2)
def texture(photos: Path | None = None) -> np.ndarray:
    """What makes scenes as hard to compress as photographs, int16 (1024, 1024, 3), of no coarse structure."""
    paths = sorted(photos.rglob("*.jpg")) if photos is not None else []
    if not paths:
        grain = np.random.default_rng(0).normal(0, 40, (1024, 1024, 3))
        fine = Image.fromarray(np.clip(grain + 128, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
        return np.asarray(fine).astype(np.int16) - 128
    out = np.zeros((1024, 1024, 3), np.int16)
    for (top, left), path in zip(itertools.product((0, 512), (0, 512)), itertools.cycle(paths), strict=False):
        with Image.open(path) as image:
            tile = image.convert("RGB").resize((512, 512))
        out[top : top + 512, left : left + 512] = np.asarray(tile).astype(np.int16) - np.asarray(
            tile.filter(ImageFilter.GaussianBlur(8))
        )
    return out


def plant(root: Path, num: int, seed: int = 0, photos: Path | None = None, longest_px: int = 1024) -> Planted:
    """About `num` pictures below `root`, a quarter of them with faults, each kind equally often; returns the faults."""
    surface = texture(photos)
    kinds = [FAULTS[name] for name in FAULTS if name != "circle of links"]
    num_faulty = max(len(kinds), int(num * FAULTY_SHARE))
    work: list[Callable[[Place], object]] = [kinds[i % len(kinds)] for i in range(num_faulty)]
    work += [_right if i % 4 == 0 else Place.picture for i in range(num - num_faulty - 1)] + [FAULTS["circle of links"]]
    order = np.random.default_rng(seed).permutation(num)

    def one(index: int) -> Planted:
        place = Place(root, seed, index, surface, longest_px)
        work[order[index]](place)
        return place.found

    with ThreadPoolExecutor(2) as pool:
        return set().union(*pool.map(one, range(num)))


def num_tokens(caption: str) -> int:
    """As CLIP's tokenizer counts words that it knows, with commas."""
    return len(caption.replace(",", " , ").split())


def write_tokenizer(folder: Path, captions: Iterable[str] = TAGS) -> None:
    """A CLIP tokenizer that knows the words of these captions, most of them as one token."""
    words = {word for caption in captions for word in re.findall("(?<![a-z])[a-z]{2,20}(?![a-z])", caption)}
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = dict.fromkeys([*letters, *(f"{c}</w>" for c in letters)])
    merges: list[str] = []
    for word in sorted(words):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for first, second in _joined(parts):
            if f"{first} {second}" not in merges:
                merges.append(f"{first} {second}")
            vocabulary[first + second] = None
    vocabulary |= dict.fromkeys(["<|startoftext|>", "<|endoftext|>"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")


def _joined(parts: list[str]) -> Iterator[tuple[str, str]]:
    whole = parts[0]
    for part in parts[1:]:
        yield whole, part
        whole += part
