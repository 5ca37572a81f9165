"""Results: from estimates to one self-describing file, and from the file to rows."""
