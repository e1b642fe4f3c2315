"""Every mode and format that people keep images in: as a viewer shows it, or refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from vitpos.data.decode import BACKDROP, FORMATS, decode, suffixes

SHADES = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def file(image, suffix="png", **options):
    image.save(buffer := io.BytesIO(), suffix, **options)
    return io.BytesIO(buffer.getvalue())


def shown(image, suffix="png", **options):
    return decode(file(image, suffix, **options)).pixels.astype(int)


def png(depth, kind, rows, transparency=b""):
    """Writes what Pillow reads and does not write: a PNG of 16 bits a channel."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows.reshape(6, -1))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 6, depth, kind, 0, 0, 0))
    head += chunk(b"tRNS", transparency) if transparency else b""
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("suffix", ["png", "tiff", "ppm", "jpeg2000"])
def test_grey_of_16_bits_is_scaled(suffix):
    found = decode(file(Image.fromarray(SHADES * np.uint16(257)), suffix))
    assert found.deep
    assert (found.pixels == SHADES).all()


def test_grey_of_16_bits_in_every_form():
    deep = SHADES * np.uint16(257)
    assert (shown(Image.fromarray(deep.astype(">u2")), "tiff") == SHADES).all()
    assert (shown(Image.fromarray(deep), "tiff", tiffinfo={262: 0}) == 255 - SHADES).all()  # white is zero
    with_alpha = np.stack([deep, np.full_like(deep, 65535)], axis=-1)
    assert (decode(png(16, 4, with_alpha)).pixels == SHADES).all()
    for kind, channels in ((2, 3), (6, 4)):
        of_all = np.repeat(deep[..., None], channels, axis=-1)
        of_all[..., 3:] = 65535
        assert (decode(png(16, kind, of_all)).pixels == SHADES).all()
    missing = decode(png(16, 0, deep, struct.pack(">H", 257 * 100))).pixels
    assert (missing == np.where(SHADES == 100, BACKDROP, SHADES)).all()


def test_grey_of_12_bits():
    shades = np.array([0, 4095, 2048, 17], dtype=np.uint16)
    a, b, c, d = shades.tolist()
    packed = bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255, c >> 4, (c & 15) << 4 | d >> 8, d & 255])
    tags = [(256, 4, 4), (257, 4, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (279, 4, 6)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    content = b"II*\0" + struct.pack("<I", 14) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert decode(io.BytesIO(content)).pixels[0].tolist() == [[0, 255, 128, 1]]


@pytest.mark.parametrize(
    ("image", "suffix", "words"),
    [
        (Image.fromarray(SHADES / np.float32(255)), "tiff", "holds floats"),
        (Image.fromarray(SHADES / np.float32(255)), "ppm", "holds floats"),
        (Image.fromarray(SHADES.astype(np.int32) * 1000), "tiff", "holds 32-bit or signed integers"),
    ],
)
def test_modes_of_unknown_range_are_refused(image, suffix, words):
    with pytest.raises(ValueError, match=rf"^{words} \(Pillow's mode '[IF]'\), .* save it unsigned with 8 or 16 bits$"):
        decode(file(image, suffix))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"])
def test_modes_of_8_bits(mode):
    grey = Image.fromarray(SHADES)
    if mode == "LAB":
        image = Image.merge("LAB", [grey, Image.new("L", grey.size, 128), Image.new("L", grey.size, 128)])
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert expected.std() > 50
    else:
        image = grey.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "RGBX") else grey.convert(mode)
        expected = np.asarray(grey.convert("1").convert("L")) if mode == "1" else SHADES
    assert np.abs(shown(image, "png" if mode in ("1", "L", "LA", "P") else "tiff") - expected).max() <= 1


@pytest.mark.parametrize("shade", [0, 255])
@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_a_shape_that_is_in_alpha_only_is_seen(mode, shade):
    alpha = Image.fromarray(np.where(SHADES > 100, 255, 0).astype(np.uint8))
    image = Image.new("L", alpha.size, shade).convert("RGB" if mode == "RGBA" else "P" if mode == "PA" else "L")
    image.putalpha(alpha)
    assert image.mode == mode
    assert (shown(image, "tiff") == np.where(SHADES > 100, shade, BACKDROP)).all()


def test_a_transparent_colour_of_a_palette_and_of_rgb():
    expected = np.where(SHADES == 100, BACKDROP, SHADES)
    assert (shown(Image.fromarray(SHADES).convert("P"), transparency=100) == expected).all()
    assert (shown(Image.fromarray(SHADES).convert("RGB"), transparency=(100, 100, 100)) == expected).all()
    assert (shown(Image.fromarray(SHADES), transparency=100) == expected).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpeg", "webp", "tiff", "avif"])
def test_an_image_is_turned_upright(suffix, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    image = Image.fromarray(np.repeat(np.repeat(SHADES, 8, 0), 8, 1))
    image.getexif()[0x112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    options = {} if suffix in ("png", "tiff") else {"quality": 95}
    found = shown(image, suffix, exif=exif.tobytes() if suffix != "tiff" else exif, **options)
    assert found.shape[1:] == expected.shape
    assert np.abs(found - expected).mean() < 8


def test_16_bits_are_turned_upright_too():
    exif = Image.Exif()
    exif[0x112] = 6
    assert (shown(Image.fromarray(SHADES * np.uint16(257)), exif=exif) == np.rot90(SHADES, -1)).all()


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x10"]
)
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_damaged_exif_data_leaves_the_image_as_stored(suffix, exif):
    options = {"lossless": True} if suffix == "webp" else {}
    assert (shown(Image.fromarray(SHADES).convert("RGB"), suffix, exif=b"Exif\0\0" + exif, **options) == SHADES).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "P", "I;16", "CMYK"])
def test_tiff_by_its_name_is_turned_upright(mode, orientation, tmp_path):
    stored = Image.fromarray(SHADES * np.uint16(257)) if mode == "I;16" else Image.fromarray(SHADES).convert(mode)
    path = tmp_path / "x.tiff"
    path.write_bytes(file(stored, "tiff", tiffinfo={274: orientation}).getvalue())  # uncompressed
    exif = (upright := Image.fromarray(SHADES)).getexif()
    exif[274] = orientation
    assert (decode(path).pixels == np.asarray(ImageOps.exif_transpose(upright))).all()


def tiff(samples, kind, planes):
    """Writes what Pillow reads and does not write: a TIFF of the dtype of samples (H, W, C), which are of a kind."""
    height, width, channels = samples.shape
    samples = samples.transpose(2, 0, 1) if planes == 2 else samples
    strips = channels if planes == 2 else 1
    bits = samples.dtype.itemsize * 8
    first = 8 + 2 + 11 * 12 + 4
    far = {258: [bits] * channels, 273: [0] * strips, 279: [samples.nbytes // strips] * strips, 339: [kind] * channels}
    start = first + sum(4 * len(values) for values in far.values())
    far[273] = [start + i * (samples.nbytes // strips) for i in range(strips)]
    one = {256: width, 257: height, 259: 1, 262: 2 if channels == 3 else 1, 277: channels, 278: height, 284: planes}
    entries, tail = b"", b""
    for tag in sorted({**one, **far}):
        values = far.get(tag, [one.get(tag)])
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            tail, packed = tail + packed, struct.pack("<I", first + len(tail))
        entries += struct.pack("<HHI", tag, 4, len(values)) + packed
    tail = tail.ljust(start - first, b"\0")
    return io.BytesIO(b"II*\0" + struct.pack("<IH", 8, 11) + entries + bytes(4) + tail + samples.tobytes())


def test_tiff_that_pillow_misreads_is_refused():
    colours = np.repeat(SHADES[..., None], 3, axis=-1)
    assert (decode(tiff(colours, 1, 1)).pixels == SHADES).all()
    assert (decode(tiff(colours, 1, 2)).pixels == SHADES).all()
    assert (decode(tiff(colours * np.uint16(257), 1, 1)).pixels == SHADES).all()
    with pytest.raises(ValueError, match="interleaved"):
        decode(tiff(colours * np.uint16(257), 1, 2))
    with pytest.raises(ValueError, match="signed integers"):
        decode(tiff(SHADES[..., None].view(np.int8), 2, 1))


@pytest.mark.parametrize("suffix", ["gif", "png", "tiff", "webp"])
def test_the_first_of_several_frames(suffix):
    one, two = Image.fromarray(SHADES).convert("RGB"), Image.new("RGB", (8, 6))
    options = {"lossless": True} if suffix == "webp" else {}
    found = decode(file(one, suffix, save_all=True, append_images=[two], **options))
    assert found.frames
    assert (found.pixels == SHADES).all()


def test_a_photograph_with_a_preview_has_one_frame():
    image = Image.fromarray(SHADES)
    assert not decode(file(image, "mpo", save_all=True, append_images=[image])).frames


@pytest.mark.parametrize("name", sorted(set(FORMATS)))
def test_each_format_is_read(name):
    image = Image.new("RGB", (16, 16), (10, 200, 30))
    if name == "GIF":
        image = image.quantize()
    found = decode(file(image, name)).pixels
    assert np.abs(found.astype(int) - np.array([10, 200, 30])[:, None, None]).max() < 8


@pytest.mark.parametrize("name", ["EPS", "PDF", "PCX", "ICNS", "SPIDER"])
def test_other_formats_are_not_opened_under_any_name(name, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **kwargs: pytest.fail("Ghostscript"))
    content = file(Image.new("L", (16, 16)) if name != "SPIDER" else Image.new("F", (16, 16)), name)
    with pytest.raises(ValueError, match=r"^does not decode \(it is in none of the supported formats"):
        decode(content)
    assert not {".eps", ".ps", ".pdf", ".fits", ".wmf"} & suffixes()


def test_decompression_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match=r"does not decode \(.*decompression bomb"):
        decode(file(Image.fromarray(SHADES)))


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"DIB"}))
def test_damaged_files_are_one_line(name):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = file(Image.fromarray(pixels), name).getvalue()
    for damaged in (content[: len(content) // 3], content[:9], b"", bytes(len(content))):
        with pytest.raises(ValueError, match=r"^does not decode \([^\n]+\)$"):
            decode(io.BytesIO(damaged))
