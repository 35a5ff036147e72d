"""From pixels to sources: background, cosmic rays, detection, profiles, measurement."""
