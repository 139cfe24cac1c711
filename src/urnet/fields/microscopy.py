"""Fields in CZI, ND2 and LIF, through bioio (extra `microscopy`), which is imported only when such a file is opened."""

from pathlib import Path

import numpy as np

from urnet.errors import ImageError
from urnet.fields.source import DEPTHS, Region, Scene, checked
from urnet.fields.tiff_metadata import square
from urnet.images.read import decoding

SUFFIXES = frozenset({".czi", ".nd2", ".lif"})
"""Names of the formats that are left to bioio (lower case)."""

WHOLE = 256 * 2**20
"""Bytes of a plane up to which it is read once and kept; larger ones are read in regions."""


class BioioSource:
    """An open CZI, ND2 or LIF file.

    Raises:
        ImageError: the extra is not installed, the file is damaged, or its pixels are of an unsupported kind.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise ImageError(f"{path}: no such file")
        try:
            from bioio import BioImage
            from bioio_base.exceptions import UnsupportedFileFormatError
        except ImportError:
            raise ImageError(self._advice("needs bioio, which is not installed")) from None
        with decoding(path):
            try:
                self._image = BioImage(path)
            except UnsupportedFileFormatError as error:
                why = " ".join(str(error).split())[:160]
                raise ImageError(self._advice(f"no installed reader takes it ({why})")) from None
            self.scenes = tuple(scene for index in range(len(self._image.scenes)) for scene in self._scenes_of(index))

    def close(self) -> None:
        """Let the reader go; it holds no open handle between reads."""
        del self._image

    def plane(self, scene: Scene, channel: int, z: int) -> Region:
        """How regions of one plane are read."""
        index, time = scene.address
        order = "YXS" if scene.colour else "YX"
        small = scene.height * scene.width * np.dtype(scene.dtype).itemsize * (3 if scene.colour else 1) <= WHOLE
        kept: list[np.ndarray] = []

        def region(top: int, left: int, height: int, width: int) -> np.ndarray:
            with decoding(self.path):
                if not kept:
                    self._image.set_scene(index)
                    lazy = self._image.get_image_dask_data(order, T=time, C=channel, Z=z)
                    if not small:
                        part = lazy[top : top + height, left : left + width]
                        return self._values(part.compute(scheduler="synchronous"), scene)
                    kept.append(lazy.compute(scheduler="synchronous"))
                return self._values(kept[0][top : top + height, left : left + width], scene)

        return region

    def _values(self, pixels: np.ndarray, scene: Scene) -> np.ndarray:
        pixels = pixels[..., :3] if scene.colour else pixels
        return checked(self.path, pixels.astype(scene.dtype))

    def _scenes_of(self, index: int) -> list[Scene]:
        image = self._image
        image.set_scene(index)
        sizes = dict(image.dims.items())
        dtype = np.dtype(image.dtype)
        depth = "float32" if dtype.kind == "f" or dtype == np.int16 else dtype.name
        if depth not in DEPTHS:
            raise ImageError(f"{self.path}: pixels are {dtype}; use 8- or 16-bit integers or floating point")
        names = [str(name).strip() for name in image.channel_names or []]
        if len(names) != sizes["C"]:
            names = [""] * sizes["C"]
        sides = image.physical_pixel_sizes
        pixel = square([np.nan if side is None else float(side) for side in (sides.X, sides.Y)])
        own, times = str(image.scenes[index]), sizes["T"]
        several = len(image.scenes) > 1
        return [
            Scene(
                name=(f"{own} t{t}" if several else f"t{t}") if times > 1 else own,
                height=sizes["Y"],
                width=sizes["X"],
                channels=tuple(name or str(number) for number, name in enumerate(names)),
                planes=sizes["Z"],
                dtype=depth,
                colour=sizes.get("S", 1) >= 3,
                pixel_um=pixel,
                address=(index, t),
            )
            for t in range(times)
        ]

    def _advice(self, found: str) -> str:
        return (
            f"{self.path}: reading {self.path.suffix.lower()[1:].upper()} {found}; "
            'run `pip install "urnet[microscopy]"`, or export the field as an OME-TIFF'
        )
