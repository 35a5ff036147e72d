"""Parts of the benchmark of where work runs."""
