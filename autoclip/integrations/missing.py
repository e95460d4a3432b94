"""The error of an integration whose framework is not installed."""


def missing(integration: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """The error to raise if a framework is missing: it also names the extra to install.

    Args:
        integration: module in `autoclip.integrations`, and name of the extra.
        error: of the framework's import.
    """
    return ModuleNotFoundError(
        f"autoclip.integrations.{integration} needs {error.name}: pip install 'autoclip-tuner[{integration}]'",
        name=error.name,
    )
