"""What models cost and how much they read: the catalog of the settings. Nothing here is guessed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from core.domain.status import Usage

OTHERS = "*"
"""The entry for models that have none of their own."""
_PER = 1_000_000


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One model: prices in US dollars per million tokens, its window in tokens. None: unknown."""

    input: float | None = None
    cached_input: float | None = None
    """None: like the rest of the input."""
    output: float | None = None
    context_window: int | None = None
    max_output: int | None = None
    """The longest answer that may be asked of it, in tokens."""

    @property
    def priced(self) -> bool:
        """Whether a response of it can be given a price."""
        return self.input is not None and self.output is not None

    def cost(self, usage: Usage) -> float | None:
        """US dollars for `usage`; None if the prices are not known. Reasoning is part of the output. Tokens
        that a server counted in its total alone cost as much as the dearest of the model."""
        if self.input is None or self.output is None:
            return None
        cached = min(usage.cached, usage.input)
        rate = self.input if self.cached_input is None else self.cached_input
        told = (usage.input - cached) * self.input + cached * rate + usage.output * self.output
        rest = max(usage.total - usage.input - usage.output, 0) * max(self.input, self.output)
        return (told + rest) / _PER

    def most(self, given: int, answer: int) -> float | None:
        """US dollars that `given` tokens of input and `answer` of output can cost at most."""
        if self.input is None or self.output is None:
            return None
        return (given * max(self.input, self.cached_input or 0.0) + answer * self.output) / _PER


def entry_of(catalog: Mapping[str, ModelEntry], model: str) -> ModelEntry:
    """What the catalog says of `model`: its own entry, else that of the others, else nothing."""
    return catalog.get(model) or catalog.get(OTHERS) or ModelEntry()


def unpriced(catalog: Mapping[str, ModelEntry], models: Iterable[str]) -> list[str]:
    """Those of `models` that have no price, each once, sorted."""
    return sorted({model for model in models if not entry_of(catalog, model).priced})
