"""Running a model: processes (`runtime`), DeepSpeed's configuration (`policy`), the loop, checkpoints, monitoring."""
