"""What a person sees: tables, a listing, a progress line."""
