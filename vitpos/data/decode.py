"""Decoding an image file to 8-bit RGB pixels, or to the reason why that is impossible."""

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vitpos.data.images import Array

# Common image formats that Pillow decodes itself. Not EPS, for which Pillow starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI", "SGI", "ICO", "TGA")
BACKDROP = 128  # grey, on which black and white shapes are both visible
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF tags and values
_PLANES, _APART, _SAMPLES, _SIGNED = 284, 2, 339, 2


class Decoded(NamedTuple):
    """The contents of an image file."""

    pixels: Array  # (3, H, W)
    deep: bool  # whether its pixels had more than 8 bits
    frames: bool  # whether it has several frames; this is the first


def suffixes() -> set[str]:
    """Returns the suffixes of `FORMATS`, such as ``.png``."""
    return {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}


def decode(file: Path | BinaryIO, formats: tuple[str, ...] = FORMATS) -> Decoded:
    """Decodes an image to RGB, as a viewer shows it.

    It is rotated as its EXIF data says. 16-bit grey is scaled to 8 bits (``value / 257``, rounded), 12-bit grey
    likewise. Transparent areas become grey (128). Of several frames the first is used.

    Args:
        file: A path, or an open file.
        formats: Pillow's names of the formats to try; no other decoder reads the file.

    Returns:
        The pixels, and properties that may need a warning.

    Raises:
        ValueError: The file does not decode, or its pixels are floats or 32-bit integers, whose range is unknown. The
            message does not contain the file name.
    """
    try:
        # Warnings, e.g. about damaged EXIF data, do not concern the pixels: damaged pixels raise an error.
        # Opened here, because Pillow maps files opened by name into memory and shears a TIFF rotated by 90 degrees.
        stream = file.open("rb") if isinstance(file, Path) else nullcontext(file)
        with warnings.catch_warnings(action="ignore"), stream as data, Image.open(data, formats=formats) as opened:
            tags = dict(getattr(opened, "tag_v2", {}))
            if tags.get(_PLANES) == _APART and max(tags.get(_BITS_PER_SAMPLE, (1,))) > 8:
                raise OSError("16-bit channels one after the other, which Pillow misreads; save it interleaved")
            image = _upright(opened)
            frames = getattr(opened, "is_animated", False) and opened.format != "MPO"  # whose second is a preview
            deep = image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PPM")
            if deep:
                image = _eight_bits(image, tags)
            if image.mode not in ("I", "F") and _SIGNED not in tags.get(_SAMPLES, ()):
                return Decoded(_rgb(image), deep, frames)
    except UnidentifiedImageError as error:  # its message contains the repr of a Python object
        raise ValueError("does not decode (it is in none of the supported formats)") from error
    except Exception as error:  # decoders raise various errors for a damaged file
        raise ValueError(f"does not decode ({' '.join(str(error).split()) or type(error).__name__})") from error
    kind = "floats" if image.mode == "F" else "32-bit or signed integers"
    raise ValueError(
        f"holds {kind} (Pillow's mode {image.mode!r}), of unknown range; save it unsigned with 8 or 16 bits"
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, KeyError, TypeError):  # damaged EXIF data
        image.load()
        return image


def _eight_bits(image: Image.Image, tags: dict[int, Any]) -> Image.Image:
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    values = np.asarray(image)
    grey = np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow handles it for 8 bits only
        grey = 255 - grey
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = BACKDROP
    return Image.fromarray(grey)


def _rgb(image: Image.Image) -> Array:
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (BACKDROP,) * 3 + (255,)), above)
    return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
