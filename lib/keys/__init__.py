"""Names of layers: from the spelling of a host's modules to the names in files, one model family a file."""
