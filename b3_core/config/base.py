"""What all sections share."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from b3_core.errors import carries_credentials

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _bare(uri: str) -> str:
    """Refuse a URI with a user or key in it: CONFIG is kept by servers, and shown to everybody."""
    if carries_credentials(uri):
        raise PydanticCustomError(
            "credentials",
            "carries credentials, which would be in every log: take them out, and set them in the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
        )
    return uri


#: A path, or a URI without credentials.
Uri = Annotated[str, AfterValidator(_bare)]


class Spec(BaseModel):
    """Base of every section: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
