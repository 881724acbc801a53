"""Which failures Prefect tries again."""

import pytest
from prefect.states import Failed

from b3_core.errors import B3Error, InputError, RefusedError, StoppedError
from tasks.stages import may_pass


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionError("reset"), True),
        (B3Error("died"), True),
        (InputError("norm nan"), False),
        (RefusedError("no such bucket"), False),
        (StoppedError("this run is ending"), False),
    ],
)
def test_what_trying_again_cannot_help_is_not_tried_again(error, again):
    assert may_pass(None, None, Failed(data=error)) is again
