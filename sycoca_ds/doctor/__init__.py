"""`sycoca doctor`: what this machine has and lacks for data, training and evaluation, and what to do about each red line.

facts (asked of this machine, as `launch check` asks other hosts) -> lines (what they mean; plain functions) -> command (shown)
"""
