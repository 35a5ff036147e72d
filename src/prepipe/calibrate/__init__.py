"""The science, as pure functions on arrays: no file, no database, no configuration in here."""
