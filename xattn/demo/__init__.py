"""What xattn works on when nothing else is named: a small sentiment model and film reviews.

Both were made for this project: the model by `xattn.demo.train`, the reviews by hand.
"""

from pathlib import Path

NAME = "xattn.demo.sentiment"
"""What the demo model is called in results, wherever it is installed."""
MODEL = Path(__file__).parent / "sentiment"
"""Folder of the demo model, readable by ``AutoModelForSequenceClassification``."""
REVIEWS = Path(__file__).parent / "reviews.csv"
"""Film-review sentences: id, text, label, rationale (character spans), kind."""
STORIES = Path(__file__).parent / "stories"
