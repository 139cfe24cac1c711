"""Tables as text, and their rendering as Markdown, LaTeX and HTML."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

CHANCE = "°"
"""Mark of a difference that could be chance."""

SIMULATED_NOTE = "Simulated images ({}): images from a microscope can give other figures."


@dataclass(frozen=True)
class TableData:
    """A table as text.

    Attributes:
        title: title above the table.
        header: one or two rows with one text per column. The first column names the rows, the others have figures. In
            the first of two rows a text spans the empty ones to its right.
        rows: one text per cell. In a row that is shorter than the header the last cell spans the rest. A row of one
            cell is a heading for the rows below it.
        notes: sentences below the table.
        warnings: sentences above the table; a page has them above its first table.
    """

    title: str
    header: list[list[str]]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def to_markdown(table: TableData) -> str:
    """Render a table as GitHub-flavoured Markdown with aligned columns."""
    rows = [[_markdown(text) for text in row] for row in table.rows]
    rows = [[f"**{row[0]}**"] if len(row) == 1 else row for row in rows]
    columns = len(table.header[-1])
    heads = [", ".join(filter(None, texts)) for texts in zip(*map(_spread, table.header), strict=True)]
    whole = [row + [""] * (columns - len(row)) for row in [[_markdown(text) for text in heads], *rows]]
    full = [row for row, given in zip(whole, [table.header[-1], *rows], strict=True) if len(given) == columns]
    widths = [
        max(3, *(len(row[k]) for row in full), *(len(row[0]) * (k == 0) for row in whole)) for k in range(columns)
    ]

    def line(cells: Sequence[str]) -> str:
        aligned = [cells[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(cells[1:], widths[1:], strict=True))]
        return f"| {' | '.join(aligned)} |"

    rule = line(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    notes = [_markdown(note) + "\n" for note in table.notes]
    warnings = [f"**{_markdown(warning)}**\n" for warning in table.warnings]
    parts = [f"### {_markdown(table.title)}\n", *warnings, line(whole[0]), rule, *map(line, whole[1:]), "", *notes]
    return "\n".join(parts).rstrip() + "\n"


def to_latex(table: TableData) -> str:
    """Render a table as a LaTeX float; it needs the packages booktabs and fontenc with T1."""
    columns = len(table.header[-1])
    body: list[str] = []
    for row in table.rows:
        *cells, last = [_latex(text) for text in row]
        if not cells:
            body += [*[r"\addlinespace"] * bool(body), rf"\multicolumn{{{columns}}}{{l}}{{\textit{{{last}}}}} \\"]
            continue
        if len(row) < columns:
            last = rf"\multicolumn{{{columns - len(cells)}}}{{l}}{{{last}}}"
        body.append(" & ".join([*cells, last]) + r" \\")
    heads = []
    for row in table.header[:-1]:
        texts = [rf"\multicolumn{{{n}}}{{c}}{{{_latex(text)}}}" if n > 1 else _latex(text) for text, n in _spans(row)]
        heads.append(" & ".join(texts) + r" \\")
    heads.append(" & ".join(map(_latex, table.header[-1])) + r" \\")
    notes = [r"\par\smallskip\raggedright\footnotesize " + " ".join(map(_latex, table.notes))] if table.notes else []
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_latex(' '.join([table.title, *(f'({warning})' for warning in table.warnings)]))}}}",
            rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
            r"\toprule",
            *heads,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
            r"\end{table}",
            "",
        ]
    )


def to_html(table: TableData) -> str:
    """Render a table as an HTML element without its title, with the notes as caption.

    CSS classes: `n` for figures, `paper` for those of the paper, `incomplete` for rows without figures, `group` for
    headings.
    """
    *upper, lower = table.header
    caption = html.escape(" ".join(table.notes))
    lines = ["<table>", *([f"<caption><span>{caption}</span></caption>"] if caption else []), "<thead>"]
    skip = 0
    for row in upper:
        spans = _spans(row)
        skip = [bool(text) for text, _ in spans].index(True)  # columns with one name for both rows
        heads = [_head(lower[k], k > 0, 'rowspan="2"') for k in range(skip)]
        heads += [_head(text, True, f'colspan="{count}"', "colgroup") for text, count in spans[skip:]]
        lines.append(f"<tr>{''.join(heads)}</tr>")
    lines += [
        f"<tr>{''.join(_head(text, k > 0) for k, text in enumerate(lower) if k >= skip)}</tr>",
        "</thead>",
        "<tbody>",
    ]
    kinds = ["n paper" if text.lower().startswith("paper") else "n" for text in lower]
    for row in table.rows:
        first, *rest = [html.escape(text) for text in row]
        if not rest:
            lines.append(f'<tr class="group"><th scope="colgroup" colspan="{len(lower)}">{first}</th></tr>')
        elif len(row) < len(lower):
            cells = [f"<td>{text}</td>" for text in rest[:-1]]
            cells.append(f'<td colspan="{len(lower) - len(rest)}">{rest[-1]}</td>')
            lines.append(f'<tr class="incomplete"><th scope="row">{first}</th>{"".join(cells)}</tr>')
        else:
            cells = [f'<td class="{kinds[k]}">{INTERVAL.sub(SOFT, text)}</td>' for k, text in enumerate(rest, 1)]
            lines.append(f'<tr><th scope="row">{first}</th>{"".join(cells)}</tr>')
    return "\n".join([*lines, "</tbody>", "</table>", ""])


INTERVAL = re.compile(r"\([^()]+\)")
SOFT = r'<span class="interval">\g<0></span>'
MARKDOWN = re.compile(r"([\\`*<|\[\]])")
LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "–": "--",
        "−": "$-$",
        "×": r"$\times$",
        CHANCE: r"$^\circ$",
    }
)


def _spans(row: Sequence[str]) -> list[tuple[str, int]]:
    """List the texts of an upper header row with the number of columns that each spans."""
    spans: list[tuple[str, int]] = []
    for column, text in enumerate(row):
        if text or column < 2:
            spans.append((text, 1))
        else:
            spans[-1] = (spans[-1][0], spans[-1][1] + 1)
    return spans


def _spread(row: Sequence[str]) -> list[str]:
    """Repeat each text of an upper header row over the columns that it spans."""
    return [text for text, count in _spans(row) for _ in range(count)]


def _head(text: str, figure: bool, reach: str = "", scope: str = "col") -> str:
    attributes = [f'scope="{scope}"', *['class="n"'] * figure, *[reach] * bool(reach)]
    return f"<th {' '.join(attributes)}>{html.escape(text)}</th>"


def _markdown(text: str) -> str:
    return MARKDOWN.sub(r"\\\1", single_line(text))


def _latex(text: str) -> str:
    return text.translate(LATEX)


def single_line(text: object) -> str:
    """Put a text on one line."""
    return " ".join(str(text).split())
