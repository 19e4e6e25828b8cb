"""What commands that run other commands share: `processes` (environment, ports, their end; the `guard` around each) and `display` (how
far they are)."""
