"""Which containers and codecs are read. FFmpeg is told which it is: it does not guess, nor open what a file names."""

READ = "MP4, MOV, WebM, Matroska, AVI, MPEG, FLV, Ogg and GIF"

CODECS = (
    "av1",
    "libdav1d",
    "ffv1",
    "flv",
    "gif",
    "h263",
    "h264",
    "hevc",
    "libvpx",
    "libvpx-vp9",
    "mjpeg",
    "mpeg1video",
    "mpeg2video",
    "mpeg4",
    "msmpeg4",
    "msmpeg4v2",
    "png",
    "prores",
    "rawvideo",
    "theora",
    "vp8",
    "vp9",
)
"""Under FFmpeg's names of the decoders."""

PREFIXES = {
    b"\x1a\x45\xdf\xa3": "matroska",
    b"FLV\x01": "flv",
    b"OggS": "ogg",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"\0\0\1\xba": "mpeg",
}

BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
"""That a file of boxes begins with."""

STILLS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"jxl ")
"""Main brands of files of boxes that are pictures."""

OTHERS = {
    b"#EXTM3U": "a playlist",
    b"ffconcat": "a list of files",
    b"<?xml": "XML",
    b"<MPD": "a list of files",
    b"[playlist]": "a playlist",
    b"RTSP": "a stream's description",
    b"v=0": "a stream's description",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"ID3": "sound",
    b"fLaC": "sound",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"\x30\x26\xb2\x75": "a Windows Media file",
}
"""What people send instead."""

TS_PACKETS = (188, 192)
"""Bytes of a packet of a transport stream, on disks with a time before each."""


def detect(data: bytes) -> tuple[str | None, str]:
    """FFmpeg's name of the container that begins so; or none, and in words what it is instead."""
    if data[4:8] in BOXES:
        if data[4:8] == b"ftyp" and data[8:12] in STILLS:
            return None, "a picture"
        return "mov", ""
    if data.startswith(b"RIFF"):
        return {b"AVI ": ("avi", ""), b"WEBP": (None, "a WebP picture"), b"WAVE": (None, "sound")}.get(
            data[8:12], (None, "not a clip")
        )
    for size in TS_PACKETS:
        first = size - TS_PACKETS[0]
        if len(data) > first + 2 * size and all(data[first + size * packet] == 0x47 for packet in range(3)):
            return "mpegts", ""
    for prefix, name in PREFIXES.items():
        if data.startswith(prefix):
            return name, ""
    text = data.lstrip(b"\xef\xbb\xbf \t\r\n")
    return None, next((name for prefix, name in OTHERS.items() if text.startswith(prefix)), "not a clip")
