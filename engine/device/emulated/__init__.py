"""A device for machines without one: memory of stated size behind a link of stated bandwidth, in real threads."""
