"""Reports of a day, a week, a month: what was saved against stated baselines, peaks, trades, evidence, availability."""
