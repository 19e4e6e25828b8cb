"""What commands that run others share: `processes` (environment, ports, their end), the `guard` around each, `display`."""
