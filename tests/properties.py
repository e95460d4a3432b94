"""How many examples a property is tried with, and which."""

from hypothesis import settings


def pinned(examples: int) -> settings:
    """So many examples, the same in every run; under `--hypothesis-profile=nightly` those of the profile, new ones."""
    if settings.get_current_profile_name() == "nightly":
        return settings()
    return settings(derandomize=True, deadline=None, max_examples=examples)
