"""About the model: its card, what it is meant for, and what it cannot do."""

import asyncio
from functools import cache

from fastapi import FastAPI
from nicegui import ui

from urnet.bundle.about import model_facts
from urnet.export.model_card import RESEARCH_USE, model_card
from urnet.run_folder import find_run
from urnet.serve.pages.components.layout import frame, text
from urnet.serve.services import Services
from urnet.version import __version__

USE = """Enhances and classifies crops of single white blood cells without stain, and counts them, for research on such
methods. Look at the rejected cells and at the prediction sets, not only at the classes. No decision on a person's
health may rest on it."""

CARD_SECONDS = 60.0
"""For the card to be written the first time, which reads the run's table of cells."""


def add(app: FastAPI, services: Services) -> None:
    """Add the page."""

    @cache
    def card() -> str:
        told = model_card(services.model, find_run(services.run), USE)
        return told.split("\n\n", 2)[2]  # the page says its heading and "research use only" itself

    @ui.page("/about", response_timeout=CARD_SECONDS)
    async def about() -> None:
        told = await asyncio.to_thread(card)
        with frame("About the model", "/about"):
            with ui.element("div").classes("notice warn").props("role=note"):
                text("p", RESEARCH_USE)
            with ui.element("dl").classes("facts"):
                for name, value in (*model_facts(services.model), ("engine", services.engine), ("urnet", __version__)):
                    with ui.element("div"):
                        text("dt", name.capitalize())
                        text("dd", value)
            ui.markdown(told, extras=["tables"]).classes("card-text")
