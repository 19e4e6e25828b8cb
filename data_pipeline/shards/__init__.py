"""Tars and what is known of them: the contract between the two halves of this repository.

In: DIR/shards/*.tar, downloaded, or a mirror's (`adopt`). Out: DIR/manifest/, an index a shard and one table of shards
(`manifest`), which is all that training and evaluation read.

    tarwalk, of a mirror mirror_tars (members of a tar, nothing executed or followed) -> samples (which of them make a sample)
    -> verify -> mark
"""
