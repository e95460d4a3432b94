"""Integrations whose framework is not installed."""

import re
import subprocess
import sys

import pytest

# None in sys.modules is a module that cannot be imported, installed or not.
IMPORT = """
import sys
names = ["lightning", "pytorch_lightning", "transformers", "tensorflow", "keras", "deepspeed"]
sys.modules.update(dict.fromkeys(names))
try:
    import autoclip.integrations.{integration}
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.parametrize("integration", ["lightning", "transformers", "tensorflow", "deepspeed"])
def test_an_integration_without_its_framework_names_the_extra(integration):
    code = IMPORT.format(integration=integration)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    hint = re.escape(f"pip install 'autoclip-tuner[{integration}]'")
    message = rf"autoclip.integrations.{integration} needs {integration}[.a-z]*: {hint}"
    assert re.fullmatch(message, result.stdout.strip()), result.stderr
