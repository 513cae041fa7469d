"""Which scan to draw next, drafts to draw on, corrections read back, and when further labels stop paying."""
