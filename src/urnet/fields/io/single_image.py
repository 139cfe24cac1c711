"""Read fields from PNG, JPEG and BMP files, which hold one plane."""

from pathlib import Path

import numpy as np

from urnet.errors import ImageError
from urnet.fields.io.source import ReadRegion, Scene
from urnet.images.read import MAX_PIXELS, read_image, read_single_image_size


class SingleImageSource:
    """An open PNG, JPEG or BMP file. The first region that is read decodes the whole plane.

    Resolutions in such files describe printers and screens, not the specimen, and are ignored.

    Args:
        path: the file.

    Raises:
        ImageError: not such a file, or too large to decode as a whole.
    """

    def __init__(self, path: Path):
        height, width, dtype, colour = read_single_image_size(path)
        if height * width > MAX_PIXELS:
            raise ImageError(
                f"{path}: {width} x {height} px. PNG, JPEG and BMP files are decoded as a whole, and may have at most "
                f"{MAX_PIXELS:,} px. Save the field as a tiled TIFF",
                code="fields.not_tiled",
            )
        self.path = path
        self.scenes: tuple[Scene, ...] = (Scene("0", height, width, ("0",), 1, dtype, colour, None),)
        self._pixels: np.ndarray | None = None

    @property
    def cached_bytes(self) -> int:
        """Bytes of the decoded plane."""
        return 0 if self._pixels is None else self._pixels.nbytes

    def plane(self, scene: Scene, channel: int, z: int) -> ReadRegion:
        """Return a function that reads regions of the plane."""
        return self._read

    def close(self) -> None:
        """Forget the decoded plane."""
        self._pixels = None

    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        if self._pixels is None:
            self._pixels = read_image(self.path)
        return self._pixels[top : top + height, left : left + width].copy()
