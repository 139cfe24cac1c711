"""Start the web application, listen for requests, and stop in order.

Heavy packages are imported after the first message, so that the user sees at once that the server is starting.
"""

import hashlib
import os
import random
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from urnet.errors import RunError, list_first
from urnet.names import name_key
from urnet.serve.http.proxy import ProxySettings
from urnet.serve.settings import Settings

if TYPE_CHECKING:
    from urnet.serve.database.store import Store
    from urnet.serve.services import Services

TOKEN_VARIABLE = "URNET_TOKEN"
"""Environment variable with the token; without it, each start makes a new token."""

ORDER_SEED = 0
"""Seed of the random order in which cells are labelled without a model."""


def serve(
    run: Path | None,
    settings: Settings,
    *,
    cells: Path | None = None,
    classes: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    database: Path = Path("labels.db"),
    engine: str = "auto",
    proxy: ProxySettings | None = None,
    expect: str | None = None,
    echo: Callable[[str], None] = print,
) -> None:
    """Serve the web application until the process is stopped (Ctrl+C, SIGTERM); running requests are finished first.

    Args:
        run: run folder or bundle; none to label cells without a model.
        settings: limits of the server.
        cells: cells to be labelled.
        classes: classes that labellers choose from, without a model; the page can change them.
        host: name or address to listen on.
        port: port to listen on; 0 for any free port.
        database: file with labels and corrections.
        engine: name of the engine that runs the networks.
        proxy: root path, trusted proxies and allowed hosts.
        expect: first digits of the model's digest; another model is refused.
        echo: prints the messages about the start, with the address and the token.

    Raises:
        RunError: neither a run nor cells are given, the run holds no model, the host does not exist, the port is in
            use, or the token is too short.
        CellsError: there are no cells.
        StoreError: the database cannot be used, or another server uses it.
    """
    proxy = proxy or ProxySettings()
    if run is None and cells is None:
        raise RunError(
            "nothing to serve: give a run folder, or --cells with the cells to be labelled", code="serve.nothing"
        )
    if run is not None and classes:
        raise RunError(
            f"--classes {','.join(classes)}: the model names the classes; leave out --classes or the run",
            code="labels.classes_of_model",
        )
    with ExitStack() as opened:
        bound = opened.enter_context(closing(_bind_socket(host, port)))
        address = _address(host, bound.getsockname()[1], proxy)
        content = ", ".join(
            f"{name} {value}" for name, value in (("model", run), ("cells", cells), ("database", database)) if value
        )
        echo(f"Starting the web application: {content}, address {address}")

        from uvicorn import Config

        from urnet.serve.app import create_app
        from urnet.serve.database.labels import clean_class_names
        from urnet.serve.database.lock import lock_database
        from urnet.serve.database.store import Store
        from urnet.serve.http.connections import Server, connection_options
        from urnet.serve.pages import add_pages

        clean_class_names(classes)  # a start that fails creates no file
        token = _choose_token(host, proxy)
        services = _open_services(run, settings, engine, expect, cells)
        opened.enter_context(lock_database(database))
        services.store = opened.enter_context(closing(Store(database)))  # last, likewise
        for note in _fill_queue(services, classes):
            echo(note)
        instance = _identify(services.store, port)
        config = Config(
            create_app(services, token=token, pages=add_pages, proxy=proxy, instance=instance),
            log_config=None,
            access_log=False,
            lifespan="on",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=settings.stop_seconds,
            **connection_options(settings),
        )

        def announce() -> None:
            engine = f", engine {services.engine}" if services.has_model else ""
            page = "" if services.has_model else "/label"  # the only page that works without a model
            echo(f"{services.title}{engine}: {address}{page}")
            if token is not None:
                echo(f"token: {token}")
            echo("stop with Ctrl+C")

        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it again after its stop
        try:
            Server(config, announce).run(sockets=[bound])
        except KeyboardInterrupt:
            echo("stopped")
        finally:
            signal.signal(signal.SIGTERM, before)


def _open_services(
    run: Path | None, settings: Settings, engine: str, expect: str | None, cells: Path | None
) -> "Services":
    """Load the model and open the cells to be labelled, as far as they are given."""
    from urnet.serve.cell_images import CellImages
    from urnet.serve.services import Services

    services = Services(settings) if run is None else Services.open(run, settings, engine, expect=expect)
    if cells is not None:
        model = services.model if services.has_model else None
        services.images = CellImages.open(cells, model=model, run=run)
    return services


def _fill_queue(services: "Services", classes: Sequence[str]) -> list[str]:
    """Add new cells to the labelling queue: in random order where no model will rank them.

    Args:
        services: the services.
        classes: classes for a queue that has none. Without these, its classes are the labels that earlier servers
            with a model have stored.

    Returns:
        Notes: other cells have labels but these have none; the queue has other classes already.
    """
    store, images = services.store, services.images
    notes: list[str] = []
    assert store is not None
    store.labels.release_all()
    if images is None:
        return notes
    rows = images.queue_rows()
    if not services.has_model:
        random.Random(ORDER_SEED).shuffle(rows)
    store.labels.add_cells(images.name, rows)
    labelled = store.labels.list_labelled_queues()
    if labelled and images.name not in labelled:
        notes.append(
            f"note: {store.path} has no labels of these cells, but of {list_first(labelled, 3)}. Labels belong to the "
            "path of the cells: if you moved them, move them back"
        )
    if not services.has_model:
        notes += _add_classes(services, images.name, classes)
    return notes


def _add_classes(services: "Services", queue: str, classes: Sequence[str]) -> list[str]:
    """Add classes to a queue that has none; return a note if it has others already."""
    from urnet.serve.database.models import NOT_A_CELL

    assert services.store is not None
    if saved := services.label_classes():
        keys = {name_key(name) for name in saved}
        if unused := [name for name in classes if name_key(name) not in keys]:
            return [
                f"note: {services.store.path} has the classes {', '.join(saved)} for these cells. Not added: "
                f"{', '.join(unused)}. Change the classes on the page Label"
            ]
        return []
    used = [label for label in services.store.labels.progress(queue).labels if label != NOT_A_CELL]
    services.add_label_classes(classes or used)
    return []


def _identify(store: "Store", port: int) -> str:
    """Return the identifier of a server among those of a machine: the same at each start, and not secret."""
    text = f"{store.id}\n{store.path.resolve()}\n{port}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _choose_token(host: str, proxy: ProxySettings) -> str | None:
    """Return the token that clients need; none for a server that only this machine reaches.

    Raises:
        RunError: the token in the environment is too short.
    """
    from urnet.serve.http.auth import MIN_TOKEN_LENGTH, is_loopback, new_token

    if is_loopback(host) and not proxy.is_behind_proxy:
        return None
    token = os.environ.get(TOKEN_VARIABLE)
    if token is not None and len(token) < MIN_TOKEN_LENGTH:
        raise RunError(
            f"{TOKEN_VARIABLE} has {len(token)} characters; give {MIN_TOKEN_LENGTH} or more, or unset it",
            code="serve.short_token",
        )
    return token or new_token()


def _address(host: str, port: int, proxy: ProxySettings) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}{proxy.root_path}"


def _bind_socket(host: str, port: int) -> socket.socket:
    """Reserve the port, so that a port in use is reported at once; the server listens when it can answer.

    Raises:
        RunError: the host does not exist, or the port is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise RunError(
            f"--host {host}: no such host ({error.strerror}); give a name or address of this machine",
            code="serve.no_host",
        ) from None
    bound = socket.socket(family, kind, protocol)
    if os.name == "posix":
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise RunError(
            f"{host}:{port} cannot be used ({error.strerror}); choose another --port", code="serve.port_in_use"
        ) from None
    return bound
