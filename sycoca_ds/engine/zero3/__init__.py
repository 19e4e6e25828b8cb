"""DeepSpeed's ZeRO-3 with less work for the host and the same results.

In: DeepSpeed's classes, before an engine is made (`policy.build_engine`). Out: the same classes, by other ways: `blocks` (what is
gathered together), `release` (what is let go), `upkeep` (what is done for every weight).
"""
