"""Families of models: how the ``config.json`` of each says what its shape is."""

from __future__ import annotations

from sandtable_workloads.transformer.families.dense import DENSE, OLDER
from sandtable_workloads.transformer.families.experts import EXPERTS
from sandtable_workloads.transformer.families.family import Family, HfConfig, fields_of, shown
from sandtable_workloads.transformer.families.others import ENCODERS, REFUSED
from sandtable_workloads.transformer.families.towers import TEXT_OF, tower_params

KNOWN: dict[str, Family] = DENSE | EXPERTS | ENCODERS
FAMILIES: dict[str, Family] = KNOWN | {old: KNOWN[name] for old, name in OLDER.items()}

__all__ = ["FAMILIES", "REFUSED", "TEXT_OF", "HfConfig", "fields_of", "shown", "tower_params"]
