"""The folder of a run and its life: checkpoints, locks, records, pictures, signals."""
