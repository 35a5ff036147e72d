"""The reference catalogue on disk: built once, read by the CCDs of a night."""
