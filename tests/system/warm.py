"""Imported by the fork server of test_crash_points: mine once, so that its children start warm."""

import os

from tests.system.test_crash_points import mine, spec_of

if "B3_TEST_PAIRS" in os.environ:
    mine(spec_of("memory://warm", "store", os.environ["B3_TEST_PAIRS"]))
