"""From a request to a result: inputs found, networks made, cells measured, files written."""
