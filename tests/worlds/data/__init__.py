"""Catalogues, shards and data set folders, small, written by hand or drawn."""
