"""The command that serves a model."""

from pathlib import Path
from typing import Annotated

import typer

from urnet.cli.app import ExpectOption, app, out
from urnet.cli.runs import EngineOption


@app.command()
def serve(
    run: Annotated[Path, typer.Argument(help="Run folder or bundle.")],
    cells: Annotated[Path | None, typer.Option(help="Cells to be labelled.")] = None,
    host: Annotated[str, typer.Option(help="Name or address to listen on; any but loopback needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any that is free.", min=0, max=65535)] = 8000,
    database: Annotated[Path, typer.Option(help="Where labels and corrections are kept.")] = Path("bench.db"),
    engine: EngineOption = "auto",
    root_path: Annotated[
        str, typer.Option(help="Path prefix under which a reverse proxy shows the server, such as /urnet.")
    ] = "",
    trusted_proxies: Annotated[
        list[str] | None,
        typer.Option(
            "--trusted-proxy", metavar="ADDRESS", help="Address or network of a proxy whose X-Forwarded headers count."
        ),
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", metavar="NAME", help="Host name besides localhost to answer to."),
    ] = None,
    expect: ExpectOption = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a limit, as max_bytes; several may follow."),
    ] = None,
) -> int:
    """Serve a model on this machine: a web page, and an API for instruments."""
    from urnet.optional_packages import require_packages

    require_packages(("fastapi", "uvicorn", "multipart", "sqlalchemy", "nicegui"), "urnet serve")
    from urnet.serve.settings import read_settings

    settings = read_settings(overrides or ())
    from urnet.serve.http.proxy import ProxySettings

    proxy = ProxySettings.parse(root_path, trusted_proxies or (), allowed_hosts or ())
    from urnet.serve.server import serve as serve_model

    serve_model(
        run,
        settings,
        cells=cells,
        host=host,
        port=port,
        database=database,
        engine=engine,
        proxy=proxy,
        expect=expect,
        echo=_echo,
    )
    return 0


def _echo(line: str) -> None:
    out.print(line)
    out.file.flush()
