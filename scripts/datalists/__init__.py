"""Datalists: where cases come from, what their files say, and who is in them."""
