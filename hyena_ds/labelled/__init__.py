"""Sequences with targets: reading them, splitting them, and judging predictions of them. Takes no torch."""

from hyena_ds.labelled.reading import read_labelled
from hyena_ds.labelled.sets import Interval, LabelledSet

__all__ = ["Interval", "LabelledSet", "read_labelled"]
