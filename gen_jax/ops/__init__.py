"""What XLA's CPU backend needs help with, each behind one plain function.

Every public function here opens with its plain form, which is all that runs on GPU and TPU.
"""
