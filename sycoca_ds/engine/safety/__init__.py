"""What keeps a run from harm: of bad numbers (`guard`, `self_test`), of ranks that are gone (`watchdog`), of another run (`run_lock`);
`status` is what it leaves of itself.
"""
