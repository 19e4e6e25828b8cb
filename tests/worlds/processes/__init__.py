"""Processes that tests start, watch and end: launches, ranks forked from a warm process, terminals and browsers."""
