"""Steps of `prefect deploy`: what prefect.yaml takes from a CONFIG."""

from typing import Any

from b3_core.config import load_config
from b3_core.errors import InputError


def read_config(file: str) -> dict[str, Any]:
    """Read CONFIG for the deployments that run it.

    Parameters
    ----------
    file
        Path of the YAML file; relative data paths in it are made absolute.

    Returns
    -------
    dict
        ``name`` of the CONFIG, and ``spec``, what it says as JSON: defaults stay out of it, so
        that a form shows what was chosen.

    Raises
    ------
    InputError
        No file is named, or it is no valid CONFIG.
    """
    if not file:
        raise InputError(
            "no CONFIG is named to deploy",
            expected="its path in the environment variable B3_CONFIG",
            remedy="run: python -m deployments.bootstrap CONFIG",
        )
    spec = load_config(file)
    return {"name": spec.name, "spec": spec.model_dump(mode="json", exclude_unset=True)}
