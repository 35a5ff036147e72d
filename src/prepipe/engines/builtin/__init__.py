"""The built-in engine: a CCD from raw pixels to image, weight, mask, WCS and source table."""
