"""The site of the pages in this folder: make docs."""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import version as installed
from pathlib import Path

from sphinx.application import Sphinx

try:
    from pointsweep.config import registry
except ImportError:
    from pointsweep import registry

project = "pointsweep"
author = "the pointsweep authors"
copyright = f"2026, {author}"
version = release = installed("pointsweep")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pointsweep {version}"
myst_heading_anchors = 3  # links such as statistics.md#metrics

autodoc_member_order = "bysource"
default_role = "code"

COMPONENTS = Path(__file__).parent / "_generated" / "components.md"
TITLES = {
    "datasets": "Data sets",
    "tokenizers": "Tokenizers",
    "backbones": "Backbones",
    "methods": "Methods",
    "networks": "Networks",
}
PARTS = {"train": "TrainConfig", "positions": "PositionsConfig", "head": "HeadConfig"}
HEAD = """# Components and their fields

What a sweep file can name, and the fields of each with their defaults: `method: {name: lora, rank: 8}`. Where the numbers come from,
[the page on models](../models.md) says.
"""


def fields_of(config: type) -> list[str]:
    """Return the directive that lists a configuration's fields."""
    lines = ["```{eval-rst}", f".. autoclass:: {config.__module__.removesuffix('.config_part')}.{config.__qualname__}"]
    lines += ["   :members:", "   :undoc-members:", "   :inherited-members: BaseModel, object"]
    return [*lines, "   :exclude-members: problems, model_config, model_post_init", "```\n"]


def part(name: str) -> type:
    """Return the configuration of a part that every trial has."""
    for module in ("pointsweep.config.parts", "pointsweep.config.schema"):
        if importlib.util.find_spec(module) is not None:
            found = getattr(importlib.import_module(module), PARTS[name], None)
            if found is not None:
                return found
    raise AttributeError(PARTS[name])


def write_components(app: Sphinx) -> None:
    """Write the page of all registered components: a new one is documented once it is registered."""
    lines = [HEAD]
    for kind, title in TITLES.items():
        lines.append(f"## {title}\n")
        for name in registry.names(kind):
            lines += [f"### {name}\n", *fields_of(registry.config_class(kind, name))]
    lines.append("## Parts of every trial\n")
    for name in PARTS:
        lines += [f"### {name}\n", *fields_of(part(name))]
    COMPONENTS.parent.mkdir(exist_ok=True)
    text = "\n".join(lines)
    if not COMPONENTS.is_file() or COMPONENTS.read_text() != text:
        COMPONENTS.write_text(text)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_components)
