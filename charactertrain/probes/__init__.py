"""Probes: scripts that ask for one behaviour, what is measured in the replies, and the sets."""
