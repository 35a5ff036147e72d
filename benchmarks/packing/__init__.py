"""What ``benchmarks/codec.py`` is made of: frames, and the codecs on trial."""
