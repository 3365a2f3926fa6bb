"""The folder of a run and what happens in it: checkpoints, locks, records, images, signals."""
