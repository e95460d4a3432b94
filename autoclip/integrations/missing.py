"""What an integration says where its framework is not installed."""


def missing(integration: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """The error to raise in place of one that only names a module: it names the extra too.

    Args:
        integration: module in `autoclip.integrations`, and name of the extra.
        error: of the framework's import.
    """
    return ModuleNotFoundError(
        f"autoclip.integrations.{integration} needs {error.name}: pip install 'autoclip-tuner[{integration}]'",
        name=error.name,
    )
