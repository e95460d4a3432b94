"""Words for the notes on a log."""

TORN = "the last line has no line end and may be torn: left out"


def counted(number: int, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "record"), counted(12345, "record"), counted(2, "entry")
    ('1 record', '12 345 records', '2 entries')
    """
    nouns = noun if number == 1 else f"{noun[:-1]}ies" if noun == "entry" else f"{noun}s"
    return f"{number:,} {nouns}".replace(",", " ")
