"""Workarounds for XLA's CPU backend, each behind a plain function.

Every public function here begins with its plain form, the only one that runs on GPU and TPU.
"""
