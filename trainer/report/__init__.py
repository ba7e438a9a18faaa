"""The report of a run as one HTML page, made from the files of its run directory."""
