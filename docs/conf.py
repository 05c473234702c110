"""The site of the pages in this folder: make docs."""

from __future__ import annotations

from importlib.metadata import version as installed
from pathlib import Path

from sphinx.application import Sphinx

from pointsweep.config import registry
from pointsweep.config.schema import UNNAMED

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
NOT_FIELDS = (
    "canonical, model_config, model_copy, model_post_init, problems, replace, "
    "revision, to_dict"
)
HEAD = """# Components and their fields

What a sweep file can name, and the fields of each with their defaults:
`method: {name: lora, rank: 8}`. [The page on models](../models.md) says where the numbers come
from.
"""


def fields_of(config: type) -> list[str]:
    """Return the directive that lists a configuration's fields."""
    lines = [
        "```{eval-rst}",
        f".. autoclass:: {config.__module__}.{config.__qualname__}",
    ]
    lines += [
        "   :members:",
        "   :undoc-members:",
        "   :inherited-members: BaseModel, object",
    ]
    return [*lines, f"   :exclude-members: {NOT_FIELDS}", "```\n"]


def write_components(app: Sphinx) -> None:
    """Write the page of all registered components: a new one is documented once it is
    registered.
    """
    lines = [HEAD]
    for kind, title in TITLES.items():
        lines.append(f"## {title}\n")
        for name in registry.names(kind):
            lines += [f"### {name}\n", *fields_of(registry.config_class(kind, name))]
    lines.append("## Parts of every trial\n")
    for name, config in UNNAMED.items():
        lines += [f"### {name}\n", *fields_of(config)]
    COMPONENTS.parent.mkdir(exist_ok=True)
    text = "\n".join(lines)
    if not COMPONENTS.is_file() or COMPONENTS.read_text() != text:
        COMPONENTS.write_text(text)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_components)
