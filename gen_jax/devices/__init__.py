"""Devices: meshes, shardings, several processes, and how programs are compiled for them."""
