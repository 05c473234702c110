"""axe-core on a page in Chromium: what is wrong with it by WCAG 2.2, levels A and AA.

The script comes with axe-playwright-python; Playwright itself is not used.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from tests.support.browser import Page

RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")


def script() -> str:
    """The text of axe-core."""
    found = importlib.util.find_spec("axe_playwright_python")
    assert found is not None and found.origin is not None, "axe-playwright-python is not installed: pip install -e '.[test]'"
    return (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")


async def faults(tab: Page) -> list[str]:
    """A line for each element that breaks a rule: the rule, the element, what is wrong. Frames are left out."""
    await tab.evaluate(f"{script()}; true")
    options = {"runOnly": {"type": "tag", "values": RULES}, "resultTypes": ["violations"], "iframes": False}
    violations = await tab.evaluate(f"axe.run(document, {json.dumps(options)}).then((found) => found.violations)")
    return [
        f"{violation['id']}: {' '.join(map(str, node['target']))}: {' '.join(node['failureSummary'].split())}"
        for violation in violations
        for node in violation["nodes"]
    ]
