"""A checkpoint's numbers beside those that the paper prints, in its tables.

In: a folder that `evaluate.py --suite paper` has left or is filling. Out: paper.html, paper.md and paper.json in it.

    tables   what the paper prints, and what each cell is measured by here
    cells    results.json of the sets -> paper.json's content
    page     paper.json's content -> page and Markdown
"""
