"""The page an evaluation leaves.

In: results.json's content, samples/, the data set. Out: report.html, one file with its pictures inside.
"""
