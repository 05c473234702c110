"""Head-only training: nothing in the backbone, only what every model trains (tokenizer, class
token, norm, head); Table 3, row 2 of Any2Point.

Source: the linear-probing row of the papers; the tokenizer must train, for the backbone has no
point stem (spec 5).
"""

from __future__ import annotations

from pointsweep.models.methods.base import Method


class HeadOnly(Method):
    """All hooks do nothing."""
