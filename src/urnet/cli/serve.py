"""Commands that open the web application."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from urnet.cli.app import ExpectOption, app, out, print_error
from urnet.cli.runs import EngineOption

HostOption = Annotated[
    str, typer.Option(help="Host name or address to listen on. Other hosts than this one need a token.")
]
PortOption = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)]
DatabaseOption = Annotated[
    Path | None, typer.Option(help="SQLite file with labels and corrections; labels.db when not given.")
]
RootPathOption = Annotated[
    str, typer.Option(help="Path prefix under which a reverse proxy shows the server, such as /urnet.")
]
TrustedProxyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--trusted-proxy", metavar="ADDRESS", help="Address or network of a proxy whose X-Forwarded headers count."
    ),
]
AllowedHostOption = Annotated[
    list[str] | None, typer.Option("--allowed-host", metavar="NAME", help="Further host name of the server.")
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a limit, such as max_bytes. Can be repeated."),
]

OLD_DATABASE = Path("bench.db")
"""Default database of version 0.1.0."""


@app.command()
def label(
    cells: Annotated[Path, typer.Argument(help="Cells to be labelled: a cells table (CSV), or a folder of crops.")],
    classes: Annotated[
        str, typer.Option(metavar="A,B,…", help="Classes to choose from; the page can change them.")
    ] = "",
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    database: DatabaseOption = None,
    root_path: RootPathOption = "",
    trusted_proxies: TrustedProxyOption = None,
    allowed_hosts: AllowedHostOption = None,
    overrides: LimitOption = None,
) -> int:
    """Open the web application to label cells.

    No model is needed.
    """
    names = [name.strip() for name in classes.split(",") if name.strip()]
    return _serve(
        None,
        cells,
        names,
        host=host,
        port=port,
        database=database,
        root_path=root_path,
        trusted_proxies=trusted_proxies,
        allowed_hosts=allowed_hosts,
        overrides=overrides,
    )


@app.command()
def serve(
    run: Annotated[Path | None, typer.Argument(help="Run folder or bundle; none to label cells.")] = None,
    cells: Annotated[Path | None, typer.Option(help="Cells to be labelled.")] = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    database: DatabaseOption = None,
    engine: EngineOption = "auto",
    root_path: RootPathOption = "",
    trusted_proxies: TrustedProxyOption = None,
    allowed_hosts: AllowedHostOption = None,
    expect: ExpectOption = None,
    overrides: LimitOption = None,
) -> int:
    """Open the web application of a model.

    Instruments can use its HTTP API.
    """
    return _serve(
        run,
        cells,
        (),
        host=host,
        port=port,
        database=database,
        engine=engine,
        root_path=root_path,
        trusted_proxies=trusted_proxies,
        allowed_hosts=allowed_hosts,
        expect=expect,
        overrides=overrides,
    )


def _serve(
    run: Path | None,
    cells: Path | None,
    classes: Sequence[str],
    *,
    host: str,
    port: int,
    database: Path | None,
    root_path: str,
    trusted_proxies: list[str] | None,
    allowed_hosts: list[str] | None,
    overrides: list[str] | None,
    engine: str = "auto",
    expect: str | None = None,
) -> int:
    from urnet.optional_packages import require_packages

    require_packages(("fastapi", "uvicorn", "multipart", "sqlalchemy", "nicegui"), "The web application")
    from urnet.serve.http.proxy import ProxySettings
    from urnet.serve.server import serve as serve_application
    from urnet.serve.settings import read_settings

    settings = read_settings(overrides or ())
    serve_application(
        run,
        settings,
        cells=cells,
        classes=classes,
        host=host,
        port=port,
        database=database or _default_database(),
        engine=engine,
        proxy=ProxySettings.parse(root_path, trusted_proxies or (), allowed_hosts or ()),
        expect=expect,
        echo=_echo,
    )
    return 0


def _default_database() -> Path:
    """Return `labels.db`, or the database that version 0.1.0 left in this folder."""
    default = Path("labels.db")
    if OLD_DATABASE.is_file() and not default.exists():
        print_error(f"{OLD_DATABASE} is used; later versions use only {default}. Rename the file", 0)
        return OLD_DATABASE
    return default


def _echo(line: str) -> None:
    out.print(line)
    out.file.flush()
