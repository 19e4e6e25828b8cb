"""Downstream evaluation of a saved checkpoint: a file a task with a pure core, `suite` which runs them, `report` which
shows them."""
