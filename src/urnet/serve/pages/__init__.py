"""Pages of the web application, built with NiceGUI in the app of the API."""

import warnings

from fastapi import FastAPI

from urnet.serve.services import Services


def add_pages(app: FastAPI, services: Services) -> None:
    """Add the pages to an app, after the API's routes.

    Args:
        app: the app, whose middleware protects the pages too.
        services: the services that the pages call.
    """
    import nicegui
    from nicegui import ui

    from urnet.serve.pages import about, classify, label, review, runs
    from urnet.serve.pages.error_pages import install_error_pages
    from urnet.serve.pages.sessions import SessionMiddleware

    # NiceGUI inspects every object in memory at its start, among them one of torch that then warns.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.reduce_op`", FutureWarning)
    nicegui.app.state.services = services
    for page in (classify, label, review, runs, about):
        page.add(app, services)
    install_error_pages(app)
    app.add_middleware(SessionMiddleware, storage=services.storage, instance=app.state.instance)
    ui.run_with(
        app,
        title="urnet",
        favicon=ICON,
        dark=None,
        language="en-US",
        tailwind=False,
        reconnect_timeout=RECONNECT_S,
        show_welcome_message=False,
    )


RECONNECT_S = 30.0
"""Time for which a disconnected page keeps its state, in seconds. Later it is rebuilt from its session."""

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="16" cy="16" r="13" fill="#9ecae1" '
    'stroke="#08519c" stroke-width="3"/><circle cx="14" cy="17" r="6" fill="#08519c"/></svg>'
)
"""Icon of the pages in browser tabs (SVG)."""
