"""What is tested in this run: by day a part of a grid, whose processes then do no more than that part."""

from __future__ import annotations

import pytest


def wanting(request: pytest.FixtureRequest, fixture: str) -> list[pytest.Function]:
    """The tests of the fixture's file that run and ask for it, in their order."""
    return [item for item in request.session.items if item.path == request.path and fixture in getattr(item, "fixturenames", ())]
