"""The model: encoders, decoders, masking, objectives. `sycoca.SyCoCa` is the whole; everything else is a part of it.

Shape letters used in names: B batch, N patches, K kept patches, H hidden patches, L text tokens, D width, E embed_dim,
P numbers in a patch (patch_size * patch_size * 3), V vocabulary, Q queries, S keys and values.
"""
