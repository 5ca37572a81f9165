"""What every other room shares: nouns, text, child processes, whole files; importing one costs no torch."""
