"""What an audit calls a leak: every threshold that its verdict depends on, and none elsewhere.

Shares are of the test set, unless said. A skill is Matthews' correlation of classes, Pearson's of values, and 2 AUROC - 1 of many
outputs: 0 for chance, 1 for all right.
"""

from __future__ import annotations

from typing import Literal

Verdict = Literal["OK", "WARN", "FAIL"]
LEVELS: tuple[Verdict, ...] = ("OK", "WARN", "FAIL")
"""The worst last."""

DUPLICATES = 0.01
"""FAIL above this share of test sequences that are in train too, on either strand."""
TWINS = 0.01
"""FAIL above this share of positional twins: intervals that overlap one of train by ALIKE or more, whatever its label."""
ALIKE = 0.5
"""Share of a test sequence's bases (where its place is known), or of its long k-mers: from here on it is a twin, or near."""
NEAR_WARN, NEAR_FAIL = 0.01, 0.10
"""Shares of near sequences that are neither duplicates nor known twins: repeats and paralogues alone are a few per cent of most test sets
that were drawn from a genome."""
SHORTEST_KMER = 12
"""Shorter ones, of sequences of less than twice that length, are shared by chance: nothing is near then."""
WITHIN = 0.01
"""WARN above this share of sequences that a set holds more than once."""
CONFLICTS = 0.01
"""WARN above this share of all sequences that have another label elsewhere."""
NUISANCE = 0.75
"""FAIL where a look-up of the nearest train sequence, or the length alone, has this skill."""
COMPOSITION = 0.4
"""WARN where composition alone (GC, k-mers, Markov, bases in place) has this skill."""
EASY = 0.75
"""Composition has this skill on the test sequences that share nothing with train: the task is easy (human or worm). Then a twin
counts as a leak only where composition is wrong about it, and a look-up only where it beats composition."""
BEYOND_CHANCE = 2.0
"""A skill counts for nothing below so many times 1 / sqrt(test sequences), about its spread where labels are drawn at random."""
MADE = 0.5
"""FAIL from this share of one class on that is made from another: shuffles of its sequences, or parts of them left in place."""
FEWEST_MADE = 20
"""Sequences of a class: of fewer nothing is said."""
SHORTEST_TO_SHUFFLE = 20
"""Bases: shorter sequences have equal counts by chance."""
KEPT_WORDS, KEPT_LETTERS = 3, 12
"""A sequence is made from another of its length if so many words of so many letters stand where they stand there ..."""
KEPT_LEAST, KEPT_MOST = 0.4, 0.95
"""... and this share of all its letters, at least and at most; more is a duplicate."""
