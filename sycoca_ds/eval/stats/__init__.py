"""Numbers and what they are worth: means over pictures, intervals, controls, two models on the same pictures. Pure functions.

In: arrays with a value for each picture. Out: numbers.
"""
