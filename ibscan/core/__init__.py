"""The nouns that every other room shares; importing them costs neither numpy nor torch."""
