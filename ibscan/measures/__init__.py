"""One file a measure: frozen parameters and one pure call."""
