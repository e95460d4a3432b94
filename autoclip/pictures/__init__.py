"""Pictures of a page, a notebook or a file: their size, type and colours, and names that cover nothing."""


def need_matplotlib(what: str) -> None:
    """Raise an ImportError that names the extra if matplotlib is missing.

    Args:
        what: the caller, for the message.
    """
    try:
        import matplotlib.figure  # noqa: F401 - only a check
    except ModuleNotFoundError:
        raise ImportError(f"{what} needs matplotlib: pip install 'autoclip-tuner[plot]'") from None
