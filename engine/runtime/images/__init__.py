"""Pictures that strangers send: which are read, what each may cost, and how its numbers become colours."""

from engine.runtime.images.opening import ImageSource, open_image
from engine.runtime.images.source import read_source

__all__ = ["ImageSource", "open_image", "read_source"]
