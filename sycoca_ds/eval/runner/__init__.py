"""Running the model: what every task asks of it, by all ranks, kept on disk.

In: a live model, pictures, what a task needs beside them. Out: arrays with a row for each sample.
"""
