"""Load tests of a served CLIP: scenarios, exact percentiles, dated prices, and a report that can be repeated."""
