"""A file a task: what its numbers are called and mean, its pure core where that is small, and the shell that asks the model.

In: a `Bench`. Out: an `Outcome`, whose numbers are those that the file's `TASK` names.
"""
