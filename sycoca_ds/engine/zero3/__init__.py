"""DeepSpeed's ZeRO-3 with less work for the host and the same results: what is gathered together, let go, and done for every weight."""
