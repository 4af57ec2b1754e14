"""How much a run is worth, and its place in a partition's queue. Pure.

A value is a class and a number inside it; together they make a level, and smaller levels go first. The queue's score is
the level and, inside it, the virtual time at which the run's tenant is due (see ``admission/fair_share.py``). Scores
are whole numbers below 2**53, so that sorted sets, Lua and Python all mean the same one.
"""

from typing import Final, NamedTuple, Self

CLASSES: Final = ("critical", "high", "normal", "low", "best_effort")
"""The classes by rank: 0 is the most valuable."""
HIGHEST_NUMBER: Final = 99
DEFAULT_NUMBER: Final = 50
LEVELS_A_CLASS: Final = HIGHEST_NUMBER + 1
LEVELS: Final = len(CLASSES) * LEVELS_A_CLASS
LEVEL_SPAN: Final = 2**43
"""Scores of one level: virtual times from 0 to below this."""
LATEST: Final = LEVEL_SPAN - 1
CLASS_SPAN: Final = LEVELS_A_CLASS * LEVEL_SPAN
"""Scores of one class: from ``rank * CLASS_SPAN`` to below ``(rank + 1) * CLASS_SPAN``."""


class Value(NamedTuple):
    """A class by its rank, and a number inside it from 0 to 99; higher numbers go first."""

    rank: int
    number: int = DEFAULT_NUMBER

    @classmethod
    def parse(cls, text: object) -> Self:
        """The value that a job says, as in ``high`` or ``high:80``.

        Raises:
            ValueError: it is none.
        """
        name, colon, digits = text.partition(":") if isinstance(text, str) else (None, "", "")
        if name not in CLASSES:
            raise ValueError(
                f"{text!r:.60} is no value: give a class ({', '.join(CLASSES)}), or a class and a number from 0 to "
                f"{HIGHEST_NUMBER}, as in high:80"
            )
        if not colon:
            return cls(CLASSES.index(name))
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 2):
            raise ValueError(
                f"{text!r:.60}: the number inside a class must be whole, from 0 to {HIGHEST_NUMBER}, as in {name}:80"
            )
        return cls(CLASSES.index(name), int(digits))

    @property
    def level(self) -> int:
        """Its place in the order of all values, 0 for the first."""
        return self.rank * LEVELS_A_CLASS + HIGHEST_NUMBER - self.number

    @property
    def name(self) -> str:
        """The class."""
        return CLASSES[self.rank]

    def __str__(self) -> str:
        return self.name if self.number == DEFAULT_NUMBER else f"{self.name}:{self.number}"


def value_of_level(level: int) -> Value:
    """The value whose level it is."""
    rank, place = divmod(level, LEVELS_A_CLASS)
    return Value(rank, HIGHEST_NUMBER - place)


def rank_of_level(level: int) -> int:
    """The rank of a level's class."""
    return level // LEVELS_A_CLASS


def score_of(level: int, start: int) -> int:
    """The place in the queue of a run of that level whose tenant is due at that virtual time."""
    return level * LEVEL_SPAN + start


def level_of_score(score: int) -> int:
    """The level of a place in the queue."""
    return score // LEVEL_SPAN


def start_of_score(score: int) -> int:
    """The virtual time of a place in the queue."""
    return score % LEVEL_SPAN


def rank_of_score(score: int) -> int:
    """The rank of the class of a place in the queue."""
    return score // CLASS_SPAN
