"""HTTP responses of the pages: cached pictures and file downloads."""

from fastapi.responses import Response

CACHED = {"Cache-Control": "private, max-age=86400, immutable"}
"""Headers of pictures that never change under their URL."""


def download(name: str, content: bytes | str, media_type: str) -> Response:
    """Return a file that the browser saves and does not cache.

    Args:
        name: name of the saved file, in ASCII.
        content: content of the file.
        media_type: media type of the file.
    """
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return Response(content, media_type=media_type, headers=headers)
