"""What xattn works on when nothing else is named: two small models and film reviews.

All were made for this project: the sentiment model by `xattn.demo.train`, the storyteller by
`xattn.demo.train_stories`, the reviews by hand.
"""

from pathlib import Path

NAME = "xattn.demo.sentiment"
"""What the demo model is called in results, wherever it is installed."""
MODEL = Path(__file__).parent / "sentiment"
"""Folder of the demo model, readable by ``AutoModelForSequenceClassification``."""
STORYTELLER_NAME = "xattn.demo.storyteller"
"""What the demo decoder is called in results, wherever it is installed."""
STORYTELLER = Path(__file__).parent / "storyteller"
"""Folder of the demo decoder, readable by ``AutoModelForCausalLM``."""
REVIEWS = Path(__file__).parent / "reviews.csv"
"""Film-review sentences: id, text, label, rationale (character spans), kind."""
