"""What one clip may cost."""

from dataclasses import dataclass

MOST_FRAMES = 2_000_000
"""Of a clip: 18 hours at 30 for each second. Each is looked at while they are counted."""


@dataclass(frozen=True)
class ClipLimits:
    """bytes: of its file. processor_seconds: of all that decode it, together. seconds: until it is given up, however
    little of the processor it got. pixels: of each frame, as it is coded. chosen_pixels: of all chosen frames together,
    which are held with 3 bytes for each. memory: bytes of addresses of the process that decodes.
    """

    bytes: int = 4_000_000_000
    processor_seconds: int = 120
    seconds: float = 300.0
    pixels: int = 36_000_000
    chosen_pixels: int = 512_000_000
    memory: int = 2_000_000_000
