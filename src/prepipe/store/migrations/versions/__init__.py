"""One module a revision; `schema.HEAD` names the last."""
