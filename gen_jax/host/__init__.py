"""This machine: files and the arrays in them, the terminal, modules that may be imported."""
