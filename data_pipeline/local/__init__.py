"""Pictures that are on this machine already, with their captions, straight into shards: no server, no download.

In: a folder of pictures, and a csv, tsv or jsonl of captions, or NAME.txt beside NAME.jpg, or folders that are called like classes.
Out: DIR/shards/*.tar as the download leaves them, DIR/pictures.json (what was left out before a picture was opened), download.json
and left_out.jsonl, for verification, marks and report.

    captions (which file has which captions) -> listing (which of these files are taken) -> packing (pictures into tars)
"""
