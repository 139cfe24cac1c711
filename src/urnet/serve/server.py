"""`urnet serve` as a whole: load, listen, answer, stop when told to."""

import hashlib
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from urnet.bundle.model import Model
from urnet.cells.copies import find_padding_tiles
from urnet.cells.read import find_images, read_cells
from urnet.cells.table import TABLE_NAME
from urnet.errors import RunError
from urnet.serve.app import create_app
from urnet.serve.database.lock import lock_database
from urnet.serve.database.store import Store
from urnet.serve.http.auth import MIN_TOKEN_LENGTH, is_loopback, new_token
from urnet.serve.http.connections import connection_options
from urnet.serve.http.proxy import ProxySettings
from urnet.serve.services import Services
from urnet.serve.settings import Settings

TOKEN_VARIABLE = "URNET_TOKEN"
"""Environment variable with the token, for servers that are to keep theirs; else one is made at each start."""

BACKLOG = 128


def serve(
    run: Path,
    settings: Settings,
    *,
    pages: Callable[[FastAPI, Services], None] | None = None,
    cells: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    database: Path = Path("bench.db"),
    engine: str = "auto",
    proxy: ProxySettings | None = None,
    expect: str | None = None,
    echo: Callable[[str], None] = print,
) -> None:
    """Serve a model until the process is told to stop (Ctrl+C, SIGTERM); what runs is finished first.

    Args:
        run: run folder or bundle.
        settings: the limits.
        pages: adds the pages for people; without it only instruments are answered.
        cells: the cells to be labelled.
        host: name or address to listen on.
        port: to listen on; 0 for any that is free.
        database: where labels and corrections are kept.
        engine: what runs the networks.
        proxy: root path, trusted proxies and allowed hosts.
        expect: the first digits of the model's digest; another model is refused.
        echo: told where to find the server, and the token.

    Raises:
        RunError: no model, no such host, the port is taken, or the token is too short.
        CellsError: no cells there.
        StoreError: the database cannot be used, or another server that runs uses it.
    """
    proxy = proxy or ProxySettings()
    token = None if is_loopback(host) and not proxy.is_behind_proxy else _token()
    with ExitStack() as opened:
        listening = opened.enter_context(_bind_socket(host, port))
        services = Services.open(run, settings, engine, expect=expect, cells=cells)
        queue = None if cells is None else read_queue(cells, services.model)
        opened.enter_context(lock_database(database))
        store = services.store = opened.enter_context(closing(Store(database)))  # last: a start that fails leaves none
        store.labels.release_all()
        if queue is not None:
            store.labels.add_cells(*queue)
        instance = _instance(store, port)
        app = create_app(services, token=token, pages=pages, proxy=proxy, instance=instance)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=settings.stop_seconds,
            **connection_options(settings),
        )
        server = uvicorn.Server(config)
        shown = f"[{host}]" if ":" in host else host
        echo(
            f"{services.model.config.name}, engine {services.engine}: http://{shown}:{listening.getsockname()[1]}{proxy.root_path}"
        )
        if token is not None:
            echo(f"token: {token}")
        echo("stop with Ctrl+C")
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it again when all is done
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            echo("stopped")
        finally:
            signal.signal(signal.SIGTERM, before)


def read_queue(cells: Path, model: Model) -> tuple[str, list[dict[str, Any]]]:
    """The name of the labelling queue for the cells of a table or folder, and its rows, without padding.

    Raises:
        CellsError: no cells there.
    """
    config = model.config
    has_table = cells.suffix.lower() == ".csv" or (cells / TABLE_NAME).is_file()
    if has_table:
        found = read_cells(cells, tile=config.tile, image=config.image, labelled=False)
    else:
        found = find_images([cells], config.tile, config.image)
    name = cells.resolve().as_posix()
    padding = find_padding_tiles(found)
    rows = [row for index, row in enumerate(found.table.to_dict("records")) if index not in padding]
    return name, [row | {"path": (found.root.resolve() / row["path"]).as_posix()} for row in rows]


def _instance(store: Store, port: int) -> str:
    """Identify a server among those of a machine: the same at each start, and no secret."""
    told = f"{store.id}\n{store.path.resolve()}\n{port}"
    return hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _token() -> str:
    given = os.environ.get(TOKEN_VARIABLE)
    if given is not None and len(given) < MIN_TOKEN_LENGTH:
        raise RunError(
            f"{TOKEN_VARIABLE} has {len(given)} characters; give {MIN_TOKEN_LENGTH} or more, or leave it out"
        )
    return given or new_token()


def _bind_socket(host: str, port: int) -> socket.socket:
    """The socket, before anything is loaded: a port that is taken is said at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise RunError(f"--host {host}: there is no such host here ({error.strerror})") from None
    listening = socket.socket(family, kind, protocol)
    if os.name == "posix":
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise RunError(f"{host}:{port} cannot be listened on ({error.strerror}); choose another --port") from None
    return listening
