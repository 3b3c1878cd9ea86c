"""Picture files to upright RGB images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from fqgan.errors import UnreadableError, UserError

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

MAX_PIXELS = 2**27
"""Pixels of a picture at most, read from its header before anything is decoded: 400 MB as RGB. Pictures of a
100-megapixel camera pass; a small file that claims more would take a loader process's memory."""


def decode_image(data: Path | bytes, name: str) -> Image.Image:
    """Decode a file or its bytes to RGB (see `to_rgb`).

    `UnreadableError` with `name` for a broken picture, `UserError` where the file cannot be read in the first place.
    """
    try:
        with Image.open(data if isinstance(data, Path) else io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels are more than the {MAX_PIXELS} allowed")
            return _fast_jpeg(image) or to_rgb(image)
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except UnidentifiedImageError:
        raise UnreadableError(f"{name} is no picture in a format that Pillow reads") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error and more on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        # an error number is the system's: storage that fails is no fault of the picture
        kind = UserError if isinstance(error, OSError) and error.errno else UnreadableError
        raise kind(f"{name} cannot be read as a picture: {reason}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB: the first frame, upright after its EXIF orientation, transparency over white,
    16-bit grey scaled to 8 bits."""
    image = _upright(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255; it holds 16-bit files as "I;16" or, from PGM, as "I"
        values = np.clip(np.asarray(image, dtype=np.float64), 0, 65535)
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _fast_jpeg(image: ImageFile.ImageFile) -> Image.Image | None:
    """A colour JPEG, just opened, by the package simplejpeg if it is installed: the same pixels, a little sooner for
    small pictures and in half of Pillow's time for large ones. None for all else: Pillow turns pictures, and says what
    is wrong with broken ones."""
    if simplejpeg is None or image.format != "JPEG" or image.mode != "RGB" or not image.fp:
        return None
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return None
        image.fp.seek(0)
        pixels = simplejpeg.decode_jpeg(image.fp.read(), "RGB")
    except Exception:
        return None
    return Image.fromarray(pixels) if pixels.shape[1::-1] == image.size else None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data; if the pixels are broken too, loading them below says so
        image.load()
        return image
