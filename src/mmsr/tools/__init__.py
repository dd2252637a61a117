"""The tools of the episode: text search, picture search, grounding, summaries; local and live behind one interface."""
