"""The demo: the whole loop on one machine, all of it real. ``skerry-sim demo`` runs it."""
