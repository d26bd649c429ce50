"""What the card beside a recipe's tables (`hyena-ds prep task`) says of their labels.

TRAIN.csv.gz --card.json in its directory, if it lists the file--> strand
"""

from __future__ import annotations

import json
from pathlib import Path

CARD = "card.json"
_MOST_BYTES = 1 << 22


def is_of_one_strand(table: str | Path) -> bool:
    """Whether a card says that labels of a table are of the strand that a sequence is written on; False where none says so."""
    file = Path(table).parent / CARD
    try:
        with file.open("rb") as stream:
            card = json.loads(stream.read(_MOST_BYTES))
        return Path(table).name in card["files"] and card["strand"] == "forward"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
