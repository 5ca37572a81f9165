"""The Python face: functions that take live objects, and runs that show, select, draw and convert their numbers."""
