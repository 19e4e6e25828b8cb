"""The three things that are looked at."""
