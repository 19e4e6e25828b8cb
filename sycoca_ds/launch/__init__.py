"""What commands that run other commands share: `processes` (environment, ports, their end) and `display` (how far they are)."""
