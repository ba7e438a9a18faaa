"""Run directory layout, the commit protocol, retention and export."""
