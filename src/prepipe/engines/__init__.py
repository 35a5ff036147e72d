"""What can reduce a CCD."""
