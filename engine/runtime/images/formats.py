"""Which formats are read, told by the first bytes of a file."""

from enum import StrEnum

from engine.runtime.images.limits import MAX_PIXELS


class Format(StrEnum):
    """Under Pillow's names. Of several frames or pages, the first is read."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WEBP"
    GIF = "GIF"
    BMP = "BMP"
    TIFF = "TIFF"
    AVIF = "AVIF"
    JPEG2000 = "JPEG2000"
    PPM = "PPM"

    def max_pixels(self) -> int:
        """A decoder of JPEG 2000 holds 4 bytes for each number."""
        return MAX_PIXELS // 2 if self is Format.JPEG2000 else MAX_PIXELS


READ = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 and PPM"

PREFIXES = {
    b"\xff\xd8\xff": Format.JPEG,
    b"\x89PNG\r\n\x1a\n": Format.PNG,
    b"GIF87a": Format.GIF,
    b"GIF89a": Format.GIF,
    b"BM": Format.BMP,
    b"II*\0": Format.TIFF,
    b"MM\0*": Format.TIFF,
    b"II+\0": Format.TIFF,
    b"MM\0+": Format.TIFF,
    b"\0\0\0\x0cjP  \r\n\x87\n": Format.JPEG2000,
    b"\xffO\xffQ": Format.JPEG2000,
    **{b"P%d" % kind: Format.PPM for kind in range(1, 7)},
    b"Pf": Format.PPM,
}

OTHERS = {
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"<svg": "an SVG",
    b"<?xml": "XML",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"8BPS": "a Photoshop file",
    b"\0\0\1\0": "an icon",
}
"""What people send instead."""

BOXES = {b"avif": Format.AVIF, b"avis": Format.AVIF, b"heic": "a HEIC", b"heix": "a HEIC", b"mif1": "a HEIF"}
"""By the brand of a file of boxes."""


def detect(data: bytes) -> Format | str:
    """The format, or in words what these bytes are instead."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Format.WEBP
    if data[4:8] == b"ftyp":
        # The main brand of an AVIF may be that of all still pictures; then it is among the others.
        brands = [data[place : place + 4] for place in (8, *range(16, min(len(data), data[3] + (data[2] << 8)), 4))]
        found = [BOXES[brand] for brand in brands if brand in BOXES]
        return next(
            (brand for brand in found if isinstance(brand, Format)),
            f"{found[0]} picture" if found else "a video and not a picture",
        )
    for prefix, format in PREFIXES.items():
        if data.startswith(prefix):
            return format
    others = (name for prefix, name in OTHERS.items() if data.startswith(prefix))
    return next((f"{name} and not a picture" for name in others), "not a picture")
