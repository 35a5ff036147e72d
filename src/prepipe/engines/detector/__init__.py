"""What is known of the detector: masters made, kept and chosen, tables, corrections."""
