"""The web application's pages, shown by NiceGUI within the app that answers the API."""

import warnings

from fastapi import FastAPI

from urnet.serve.services import Services


def add_pages(app: FastAPI, services: Services) -> None:
    """Add the pages to an app, after the API's routes.

    Args:
        app: behind whose middleware the pages stand.
        services: what they serve.
    """
    import nicegui
    from nicegui import ui

    from urnet.serve.pages import about, classify, label, review, runs
    from urnet.serve.pages.error_pages import answer_missing
    from urnet.serve.pages.sessions import SessionMiddleware

    # It looks at every object in memory for its server, among them one of torch that warns of being looked at.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.reduce_op`", FutureWarning)
    nicegui.app.state.services = services
    for page in (classify, label, review, runs, about):
        page.add(app, services)
    answer_missing(app)
    app.add_middleware(SessionMiddleware, storage=services.storage, instance=app.state.instance)
    ui.run_with(
        app,
        title="urnet",
        favicon=ICON,
        dark=None,
        language="en-US",
        tailwind=False,
        reconnect_timeout=RECONNECT_SECONDS,
        show_welcome_message=False,
    )


RECONNECT_SECONDS = 30.0
"""How long a page that lost its connection is kept as it is; later it is built again from its session."""

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="16" cy="16" r="13" fill="#9ecae1" '
    'stroke="#08519c" stroke-width="3"/><circle cx="14" cy="17" r="6" fill="#08519c"/></svg>'
)
