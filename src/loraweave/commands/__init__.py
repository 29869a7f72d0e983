"""The commands of `loraweave`: thin shells over the public API; nothing is computed here."""
