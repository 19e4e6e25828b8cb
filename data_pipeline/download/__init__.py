"""From canonical rows to tars, by img2dataset under supervision.

In: DIR/canonical/. Out: DIR/shards/*.tar with a sidecar and stats each, and download.json (`record`).

    job (which shards are missing, outages, attempts) -> supervise (one start, watched) -> img2dataset_job (inside that start)
    -> safe_downloader (in img2dataset's place), whose every URL goes through the room `fetch`
"""
