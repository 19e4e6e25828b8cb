"""What became of the rows: numbers and a page.

In: the records of curation, download and verification. Out: DIR/funnel.json and DIR/funnel.html, of several folders also their sum.

    outcomes (shards' sidecars and stats), contents (kept samples) -> funnel, projection -> page with charts; total; command
"""
