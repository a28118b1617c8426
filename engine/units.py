"""Sizes in bytes as people write them."""

import re

UNITS = {"": 10**9, "gb": 10**9, "gib": 1 << 30, "mb": 10**6, "mib": 1 << 20}


def read_size(text: str) -> int:
    """`80GB`, `24GiB` or `24` (GB) -> bytes. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text)
    if match is None or match[2].lower() not in UNITS:
        raise ValueError(f"{text!r} is not a size such as 80GB or 24GiB")
    return int(float(match[1]) * UNITS[match[2].lower()])


def size_text(size: int) -> str:
    """Bytes in words."""
    value, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
