"""open_clip in a process of its own, and what it is asked: the peer that our models are held against."""
