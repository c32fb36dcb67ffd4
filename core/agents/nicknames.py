"""Short, friendly names: trees, then small animals of the wood. Never used twice in a swarm."""

from __future__ import annotations

from collections.abc import Iterator

from core.safety.text import ordinal

_POOL = """
alder ash aspen balsa beech birch briar cedar cherry clover cypress elder elm ember fern fir gorse
hawthorn hazel heath hemlock holly iris ivy juniper larch laurel lilac linden lotus maple mimosa
moss myrtle oak olive osier poplar quince reed rowan rue sage sedge sorrel spruce sumac tamarack
teak thistle thyme walnut willow yarrow yew badger bittern bunting crane curlew dipper dunnock egret
falcon finch gannet goshawk grebe harrier heron hoopoe ibis jackdaw jay kestrel kite lapwing lark
linnet marten merlin newt nuthatch osprey otter ouzel owl petrel pipit plover polecat puffin quail
rail raven robin rook ruff shrike siskin skua snipe starling stoat swallow swift tern thrush vole
wagtail warbler weasel wren
"""
NAMES = tuple(_POOL.split())


def nicknames() -> Iterator[str]:
    """Every name once, then every name again as a 2nd, a 3rd …, for ever."""
    yield from NAMES
    generation = 2
    while True:
        for name in NAMES:
            yield f"{name} the {ordinal(generation)}"
        generation += 1
