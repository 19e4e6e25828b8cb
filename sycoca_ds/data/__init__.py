"""Feeding: which sample when (`plan`), reading and decoding (`loader`, `transforms`), text to ids (`tokenizer`)."""
