"""The command line: ``skerry``."""
