"""A matplotlib figure as inline SVG whose colours follow the page, light or dark."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from xml.etree import ElementTree as ET

import matplotlib.style
from matplotlib.figure import Figure

# Colours that no chart would use by chance stand for the page's CSS variables: matplotlib knows no
# variables, and a fixed colour cannot be right on both a light and a dark page.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
HIGHER, LOWER, NEUTRAL = "#050505", "#060606", "#070707"
ARM_COLOURS = tuple(f"#1010{index:02x}" for index in range(1, 9))
"""Of the arms that are compared with the base, in the order in which they are given out."""
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    HIGHER: "var(--higher)",
    LOWER: "var(--lower)",
    NEUTRAL: "var(--neutral)",
    **{colour: f"var(--arm-{index})" for index, colour in enumerate(ARM_COLOURS, 1)},
}

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-5, 6),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
    "font.size": 10,
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_NUMBER = re.compile(r"-?\d+\.\d+")
_FONT_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
_REFERENCE = re.compile(r"#([\w.-]+)")


@contextmanager
def page_style(name: str) -> Iterator[None]:
    """Draw and save in here: matplotlib's defaults, the page's style, ids unique to `name`."""
    # A name may hold what a model wrote, such as half a character, and the salt is encoded.
    style = {**_STYLE, "svg.hashsalt": ascii(name)}
    with matplotlib.style.context(["default", style]), warnings.catch_warnings():
        # The browser draws the text; that matplotlib's own font lacks a glyph does not matter.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield


def inline_svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element for an HTML page, described by `label`.

    Text stays text. No date, no namespace, no font and no fixed size are left in it. To be called
    within `page_style`.
    """
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    root = ET.fromstring(buffer.getvalue())
    for element in root.iter():
        _plain_names(element)
    referenced = _referenced_ids(root)
    _simplify(root, referenced)
    view_box = _rounded(root.attrib["viewBox"])
    root.attrib.clear()
    root.attrib.update(viewBox=view_box, role="img")
    root.set("aria-label", label)
    return ET.tostring(root, encoding="unicode")


def _plain_names(element: ET.Element) -> None:
    element.tag = element.tag.rpartition("}")[2]
    for name in list(element.attrib):
        element.attrib[name.rpartition("}")[2]] = element.attrib.pop(name)
    element.tail = None
    if element.tag != "text":
        element.text = None


def _referenced_ids(root: ET.Element) -> set[str]:
    values = [
        element.attrib.get(name, "") for element in root.iter() for name in ("href", "clip-path")
    ]
    return {name for value in values for name in _REFERENCE.findall(value)}


def _simplify(parent: ET.Element, referenced: set[str]) -> None:
    children: list[ET.Element] = []
    for child in parent:
        _simplify(child, referenced)
        _clean_attributes(child, referenced)
        if child.tag in {"style", "metadata"} or child.attrib.get("style") == "fill: none":
            continue
        if child.tag in {"g", "defs"} and not child.attrib and (child.tag == "g" or not len(child)):
            children.extend(child)
        else:
            children.append(child)
    parent[:] = children


def _clean_attributes(element: ET.Element, referenced: set[str]) -> None:
    if element.attrib.get("id") not in referenced:
        element.attrib.pop("id", None)
    if element.attrib.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    for name in {"d", "x", "y", "transform", "width", "height"} & element.attrib.keys():
        element.attrib[name] = _rounded(element.attrib[name])
    style = element.attrib.get("style")
    if style is not None:
        element.attrib["style"] = _page_colours(_FONT_FAMILY.sub("", style))


def _rounded(values: str) -> str:
    short = _NUMBER.sub(lambda match: f"{float(match.group()):.2f}".rstrip("0").rstrip("."), values)
    return " ".join(short.split())


def _page_colours(style: str) -> str:
    for colour, variable in _VARIABLES.items():
        style = style.replace(colour, variable)
    return style
