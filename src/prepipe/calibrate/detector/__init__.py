"""From raw pixels to those that light would have made, with their variance; masters."""
