"""The paper's sets in miniature, in the layouts in which they are published, quirks included."""
