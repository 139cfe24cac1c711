"""HTML of objects in notebooks."""

from collections.abc import Mapping
from html import escape


def format_facts(title: str, facts: Mapping[str, object]) -> str:
    """Format a title and named facts as an HTML table; both are escaped."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f"<strong>{escape(title)}</strong><table>{rows}</table>"
