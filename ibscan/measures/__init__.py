"""All measures, each declared in one file of this folder and one line of `MEASURES`.

Importing this imports neither numpy nor torch: a measure's call imports what it computes with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ibscan.core.measure import Measure
from ibscan.core.option import MEASURE, Option, Setting, one_of, settings_of
from ibscan.core.quantity import Dimension, Quantity
from ibscan.measures.binned import BinnedInformation
from ibscan.measures.clustering import Clustering
from ibscan.measures.fit import ProbeFit
from ibscan.measures.local_rank import LocalRank
from ibscan.measures.network import NetworkInformation
from ibscan.measures.readout import ReadoutInformation
from ibscan.measures.representation import Representation
from ibscan.measures.weight_rank import WeightRank

__all__ = ["CHANNELS", "MEASURES", "VERBS", "dimensions", "measure_settings", "quantities"]

# In the order their variables are stored.
MEASURES: tuple[type[Measure], ...] = (
    ProbeFit,
    LocalRank,
    WeightRank,
    BinnedInformation,
    NetworkInformation,
    ReadoutInformation,
    Clustering,
    Representation,
)
# The commands that carry out some of them; `scan` carries out all.
VERBS = tuple(dict.fromkeys(measure.verb for measure in MEASURES if measure.verb))
CHANNELS = tuple(measure.channel for measure in MEASURES if measure.channel)
CHANNEL = Option(
    "Where noise is added: after every hidden layer and propagated (network), or at the measured layer alone "
    "(readout); repeatable. Default: both.",
    MEASURE,
    metavar="|".join(CHANNELS),
    several=True,
    check=one_of(*CHANNELS),
    place=2,
)


def measure_settings() -> tuple[Setting, ...]:
    """Return every option of the measures once: those that all verbs have first, then verb by verb."""
    found: dict[str, Setting] = {}
    for measure in MEASURES:
        own = settings_of(measure, (measure.verb,))
        if measure.channel:
            own += (Setting("channel", "channel", (), CHANNEL, (measure.verb,)),)
        for setting in own:
            known = found.setdefault(setting.name, setting)
            verbs = tuple(dict.fromkeys((*known.verbs, *setting.verbs)))
            found[setting.name] = dataclasses.replace(known, verbs=verbs)

    def order(setting: Setting) -> tuple[bool, int, int]:
        everywhere = set(VERBS) <= set(setting.verbs)
        return not everywhere, VERBS.index(setting.verbs[0]), setting.option.place

    return tuple(sorted(found.values(), key=order))


def quantities() -> tuple[tuple[type[Measure], Quantity], ...]:
    """Return every quantity with its measure, in the order of the file; source and caveat filled in."""
    return tuple(
        (
            measure,
            dataclasses.replace(
                quantity, source=quantity.source or measure.source, caveat=quantity.caveat or measure.caveat
            ),
        )
        for measure in MEASURES
        for quantity in measure.quantities
    )


def dimensions() -> Mapping[str, Dimension]:
    """Return every dimension that quantities have beyond (checkpoint, layer), by name."""
    return {dimension.name: dimension for _, quantity in quantities() for dimension in quantity.over}
