"""How pages' own addresses answer: pictures that browsers keep, files that they save."""

from fastapi.responses import Response

CACHED = {"Cache-Control": "private, max-age=86400, immutable"}
"""Of pictures whose address names them for good."""


def saved_as(name: str, content: bytes | str, kind: str) -> Response:
    """A file for the browser to save, which it does not keep besides.

    Args:
        name: what it is called there, in ASCII.
        content: of it.
        kind: media type.
    """
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return Response(content, media_type=kind, headers=headers)
