"""photpipe, run CCD by CCD."""
