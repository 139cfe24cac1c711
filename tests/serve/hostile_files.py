"""Files that are small to send and large or slow to decode."""

import io
import struct
import zlib

import numpy as np
import tifffile

SHORT, LONG, ASCII = 3, 4, 2


def chunk(kind: bytes, data: bytes) -> bytes:
    """Write one chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *, before: bytes = b"", bits: int = 8) -> bytes:
    """Write a grey PNG file of the stated size, with any data and extra chunks before it."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    packed = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + packed + chunk(b"IEND", b"")


def tiff(pages: list[list[tuple[int, int, int, bytes | int]]], data: bytes = b"") -> bytes:
    """Write a TIFF file with any directories.

    Args:
        pages: tags of each directory: number, type, count, and the value or its content.
        data: placed at byte 8, where tags may point.
    """
    content = bytearray(b"II*\0\0\0\0\0" + data)
    link = 4  # where the offset of the next directory is written
    for tags in pages:
        values = []
        for number, kind, count, value in tags:
            if isinstance(value, bytes):
                value, start = len(content), value
                content += start
            values.append(struct.pack("<HHII", number, kind, count, value))
        content[link : link + 4] = struct.pack("<I", len(content))
        content += struct.pack("<H", len(tags)) + b"".join(values) + bytes(4)
        link = len(content) - 4
    return bytes(content)


def page(width: int, height: int, size: int, *, compression: int = 8, more=()) -> list[tuple]:
    """Return the tags of a grey page whose only strip is the data at byte 8."""
    tags = [(256, LONG, 1, width), (257, LONG, 1, height), (258, SHORT, 1, 8), (259, SHORT, 1, compression)]
    tags += [(262, SHORT, 1, 1), (273, LONG, 1, 8), (277, SHORT, 1, 1), (278, LONG, 1, height), (279, LONG, 1, size)]
    return sorted([*tags, *more])


def shared_strip(pages: int, width: int, height: int) -> bytes:
    """Write a stack whose pages share one deflated strip of zeros."""
    strip = zlib.compress(bytes(width * height), 9)
    return tiff([page(width, height, len(strip))] * pages, strip)


def late_page(width: int, height: int) -> bytes:
    """Write a small page, followed by a large one."""
    strip = zlib.compress(bytes(width * height), 9)
    small = zlib.compress(bytes(576))
    first = [tag for tag in page(24, 24, len(small)) if tag[0] != 273]
    return tiff([sorted([*first, (273, LONG, 1, 8 + len(strip))]), page(width, height, len(strip))], strip + small)


def sparse_tiles(width: int, height: int, edge: int = 256) -> bytes:
    """Write a tiled page whose tiles are all the same."""
    tile = zlib.compress(bytes(edge * edge), 9)
    count = -(-width // edge) * -(-height // edge)
    tags = [(256, LONG, 1, width), (257, LONG, 1, height), (258, SHORT, 1, 8), (259, SHORT, 1, 8), (262, SHORT, 1, 1)]
    tags += [(277, SHORT, 1, 1), (322, LONG, 1, edge), (323, LONG, 1, edge)]
    tags += [(324, LONG, count, struct.pack("<I", 8) * count), (325, LONG, count, struct.pack("<I", len(tile)) * count)]
    return tiff([tags], tile)


def many_scans(width: int, height: int, scans: int) -> bytes:
    """Write a progressive JPEG file with many empty scans over all blocks."""

    def segment(mark: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, mark, len(data) + 2) + data

    blocks = -(-width // 8) * -(-height // 8)
    runs = -(-blocks // 2**14)  # a code of one bit, and 14 bits for the length of each run of empty blocks
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + bytes(-(-15 * runs // 8))
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xDB, bytes([0]) + bytes([1]) * 64),
            segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0])),
            segment(0xC4, bytes([0x10, 1]) + bytes(15) + bytes([0xE0])),
            scan * scans,
            b"\xff\xd9",
        )
    )


def ome(xml: str, shape: tuple[int, int] = (420, 420)) -> bytes:
    """Write a TIFF file with any OME-XML."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.full(shape, 90, np.uint8), description=xml, metadata=None, compression="zlib")
    return file.getvalue()


_OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{}</OME>'
_IMAGE = (
    '<Image ID="Image:{0}"><Pixels ID="Pixels:{0}" DimensionOrder="XYZCT" Type="uint8" SizeX="420" SizeY="420" '
    'SizeC="1" SizeZ="{1}" SizeT="{2}"><TiffData/></Pixels></Image>'
)
_LAUGHS = "".join(f'<!ENTITY a{k + 1} "{f"&a{k};" * 10}">' for k in range(12))


def slow_and_large() -> dict[str, bytes]:
    """Return files by name, none larger than 2 MB."""
    zeros = zlib.compress(bytes(10**8), 9)
    return {
        "shared_strip.tif": shared_strip(1999, 5000, 4999),
        "late_page.tif": late_page(12_000, 9000),
        "sparse_tiles.tif": sparse_tiles(60_000, 60_000),
        "sparse_field.tif": sparse_tiles(9_900, 9_900),
        "long_strip.tif": tiff([page(24, 24, len(zeros))], zeros),
        "long_tag.tif": tiff([page(24, 24, 576, more=[(700, 1, 2**31, 8)])], zeros),
        "many_scans.jpg": many_scans(4900, 4900, 20_000),
        "long_data.png": png(24, 24, bytes(10**8)),
        "long_text.png": png(24, 24, bytes(600), before=chunk(b"zTXt", b"a\0\0" + zeros)),
        "long_profile.png": png(24, 24, bytes(600), before=chunk(b"iCCP", b"a\0\0" + zeros)),
        "long_profile_16.png": png(24, 24, bytes(1176), before=chunk(b"iCCP", b"a\0\0" + zeros), bits=16),
        "ome_planes.tif": ome(_OME.format(_IMAGE.format(0, 2**31 - 1, 2**31 - 1))),
        "ome_images.tif": ome(_OME.format("".join(_IMAGE.format(number, 1, 1) for number in range(8000)))),
        "ome_laughs.tif": ome(f'<!DOCTYPE OME [<!ENTITY a0 "ha">{_LAUGHS}]>' + _OME.format("<Image>&a12;</Image>")),
        "ome_deep.tif": ome(_OME.format("<a>" * 200_000 + "</a>" * 200_000)),
    }
