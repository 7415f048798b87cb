"""The words of the demo stories, by class.

Words of one class are interchangeable in a story, so that a question about one of them can be
answered only from the story. None that may follow an article begins with a vowel: all take "a".
"""

from __future__ import annotations

GIRLS = ("Mia", "Lucy", "Nora", "Clara", "Zoe", "Lena", "Ruby", "Sara", "Lily", "Anna")
BOYS = ("Ben", "Tom", "Max", "Leo", "Sam", "Finn", "Jack", "Noah", "Paul", "Tim")
SYLLABLES = (
    "ba", "bo", "da", "de", "fi", "ga", "ka", "ki", "la", "le", "lo", "ma", "mi", "na", "ni", "no",
    "pa", "ra", "ri", "ro", "sa", "so", "ta", "ti", "to", "va", "vi", "wa", "ya", "za",
)  # fmt: skip
"""What invented names are put together from."""
PETS = ("Rex", "Coco", "Pip", "Dot", "Fluff", "Socks", "Biscuit", "Pepper")
ANIMALS = ("dog", "cat", "rabbit", "duck", "pony", "goat", "mouse", "fox", "bird", "frog")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "pink", "brown")
THINGS = (
    "ball", "kite", "drum", "boat", "doll", "book", "hat", "cup", "bell", "key", "shell", "stone",
    "lamp", "flute", "coin", "basket", "ribbon", "spoon", "ring", "flag",
)  # fmt: skip
PLACES = (
    "park", "beach", "forest", "market", "river", "garden", "lake", "farm", "school", "hill",
    "mill", "castle", "bridge", "barn",
)  # fmt: skip
SPOTS = ("bench", "tree", "bush", "cart", "table", "log", "swing", "fence")
SIDES = ("under", "behind", "near")
FOODS = ("bread", "cheese", "soup", "milk", "cake", "honey", "rice", "pie")
FAULTS = ("broken", "lost", "dirty", "wet")
GEAR = {
    "rainy": ("umbrella", "boots"),
    "snowy": ("boots", "gloves"),
    "cold": ("gloves", "coat"),
    "windy": ("coat", "umbrella"),
}
"""What one takes along in each weather; each suits two, so that it does not tell the weather."""
