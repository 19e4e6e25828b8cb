"""What strangers send: servers and pictures that do harm, and some that only look like it."""
