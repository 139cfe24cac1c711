"""The page About: the model, its card, its intended use and its limits."""

import asyncio
from functools import cache

from fastapi import FastAPI
from nicegui import ui

from urnet.bundle.about import model_facts
from urnet.export.model_card import RESEARCH_USE, model_card
from urnet.run_folder import find_run
from urnet.serve.pages.components.elements import fact_list, model_needed, notice
from urnet.serve.pages.components.layout import page_frame
from urnet.serve.services import Services
from urnet.version import __version__

INTENDED_USE = """Enhances and classifies crops of single unstained white blood cells, and counts them. For research on
such methods only. Check the rejected cells and the prediction sets, not only the predicted classes. Do not base medical
decisions on the results."""

CARD_TIMEOUT_S = 60.0
"""Time in which the card must be ready, in seconds. The first request reads the cells table of the run."""


def add(app: FastAPI, services: Services) -> None:
    """Add the page to the app."""

    @cache
    def card() -> str:
        markdown = model_card(services.model, find_run(services.run), INTENDED_USE)
        return markdown.split("\n\n", 2)[2]  # the page has its own title and its own notice on research use

    @ui.page("/about", response_timeout=CARD_TIMEOUT_S)
    async def about() -> None:
        markdown = await asyncio.to_thread(card) if services.has_model else ""
        with page_frame("About the model", "/about", styles="about.css"):
            if not services.has_model:
                model_needed()
                return
            notice(RESEARCH_USE, warn=True).props("role=note")
            values = (*model_facts(services.model), ("engine", services.engine), ("urnet", __version__))
            fact_list({name.capitalize(): value for name, value in values})
            ui.markdown(markdown, extras=["tables"]).classes("card-text")
