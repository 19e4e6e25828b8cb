"""The processes of a run: how they meet, what they stand in, when they end.

In: the launcher's environment. Out: a `Runtime` that every other part of the engine is given.
"""
