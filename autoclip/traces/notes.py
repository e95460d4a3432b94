"""Words for the notes on a log."""


def counted(number: int, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "record"), counted(12345, "record")
    ('1 record', '12 345 records')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}".replace(",", " ")
