"""Reads models and the files of a run, and shows what is in them; nothing else imports this package."""
