"""What ``benchmarks/calibrate.py`` is made of: simulated fields, peers, accuracy."""
