"""Measurements of the miniature, one file a part: base, LoRAs, judge."""
