"""What all other folders share: records, protocols, text, child processes, whole files; none of it imports torch."""
