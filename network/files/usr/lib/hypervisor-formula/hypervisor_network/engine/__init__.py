"""The course of a change: from staged to confirmed or undone, whatever is killed in between."""
