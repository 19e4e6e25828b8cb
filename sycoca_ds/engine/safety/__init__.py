"""What keeps a run from harm: from bad numbers (`guard`, `self_test`), ranks that are gone (`watchdog`), another run in its folder
(`run_lock`). In: the loop's calls. Out: what a run leaves of itself when it fails (`status`).
"""
