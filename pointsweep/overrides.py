"""What the command line sets: `KEY=VALUE` in Hydra's grammar, its words read as those of a file. The only file with hydra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pointsweep import scalars


@dataclass(frozen=True)
class Override:
    """One override. `delete`: `~KEY`, which takes the key out."""

    text: str
    key: str
    value: Any = None
    delete: bool = False


def parse(text: str) -> Override:
    """Return what an override says. Raises ValueError if it is none, or gives several values."""
    from hydra.core.override_parser.overrides_parser import create_functions
    from hydra.core.override_parser.overrides_visitor import HydraErrorListener, HydraOverrideVisitor
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException
    from hydra.grammar.gen.OverrideLexer import CommonTokenStream, InputStream, OverrideLexer
    from hydra.grammar.gen.OverrideParser import OverrideParser

    class Visitor(HydraOverrideVisitor):  # type: ignore[misc]
        """Hydra's reading of lists, mappings and quotes, with the scalars of YAML 1.2."""

        def visitPrimitive(self, ctx: Any) -> Any:
            word = super().visitPrimitive(ctx)
            if isinstance(word, QuotedString):
                return word
            return scalars.value_of(self.written(ctx, word))

        def visitDictKey(self, ctx: Any) -> str:
            return self.written(ctx, super().visitDictKey(ctx))

        def written(self, ctx: Any, word: Any) -> str:
            """Return a word as it stands on the command line; Hydra has unescaped the texts."""
            return word if isinstance(word, str) else ctx.getText().strip()

    listener = HydraErrorListener()
    lexer = OverrideLexer(InputStream(text))
    parser = OverrideParser(CommonTokenStream(lexer))
    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(listener)
    try:
        found = Visitor(create_functions()).visit(parser.override())
        found.input_line = text
        found.validate()
    except HydraException as error:
        raise ValueError(f"not an override: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError("not an override: it is nested too deeply") from error
    if found.package is not None:
        raise ValueError("not an override: a sweep file has no packages, so @ has no meaning here")
    if found.is_sweep_override():
        raise ValueError("one value only; to vary a key use an axis: +axes.KEY=[...]")
    return Override(text, found.key_or_group, found.value(), found.is_delete())
