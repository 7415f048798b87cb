"""The words of the demo stories, by class.

Words of one class are interchangeable in a story, so that a question about one of them can be
answered only from the story. None that may follow an article begins with a vowel: all take "a".
"""

from __future__ import annotations

GIRLS = (
    "Mia", "Lucy", "Nora", "Clara", "Zoe", "Maya", "Lena", "Ruby", "Sara", "Tess", "Vera", "Kim",
    "Lily", "Molly", "Polly", "Hanna", "Nina", "Rosa", "Ida", "Anna", "Ella", "Emma", "Amy", "Jana",
)  # fmt: skip
BOYS = (
    "Ben", "Tom", "Max", "Leo", "Sam", "Finn", "Jack", "Noah", "Paul", "Hugo", "Tim", "Karl",
    "Luke", "Peter", "Ravi", "Theo", "Will", "Bruno", "Jonas", "Otto", "Adam", "Omar", "Oscar",
    "Yusuf",
)  # fmt: skip
SYLLABLES = (
    "ba", "bo", "da", "de", "fi", "ga", "ka", "ki", "la", "le", "lo", "ma", "mi", "na", "ni", "no",
    "pa", "ra", "ri", "ro", "sa", "so", "ta", "ti", "to", "va", "vi", "wa", "ya", "za",
)  # fmt: skip
"""What invented names are put together from."""
PETS = (
    "Rex", "Coco", "Pip", "Dot", "Bobo", "Fluff", "Socks", "Patch", "Biscuit", "Pepper", "Shadow",
    "Spot", "Buddy", "Muffin", "Ginger", "Tiger",
)  # fmt: skip
ANIMALS = (
    "dog", "cat", "rabbit", "duck", "pony", "hen", "goat", "mouse", "fox", "bird", "frog", "lamb",
    "squirrel", "turtle",
)  # fmt: skip
COLOURS = (
    "red", "blue", "green", "yellow", "black", "white", "pink", "brown", "grey", "purple",
    "golden", "silver",
)  # fmt: skip
THINGS = (
    "ball", "kite", "drum", "boat", "doll", "book", "hat", "scarf", "cup", "bell", "key", "shell",
    "feather", "stone", "lamp", "flute", "coin", "button", "basket", "bucket", "ribbon", "marble",
    "puppet", "spoon", "brush", "whistle", "ring", "top", "blanket", "pencil", "bag", "clock",
    "mirror", "rope", "train", "flag",
)  # fmt: skip
PLACES = (
    "park", "beach", "forest", "market", "river", "garden", "lake", "farm", "school", "library",
    "meadow", "hill", "mill", "harbour", "village", "castle", "bridge", "barn", "playground",
    "station", "bakery", "museum", "pond", "lighthouse",
)  # fmt: skip
SPOTS = (
    "bench", "tree", "bush", "cart", "table", "log", "ladder", "swing", "slide", "fence",
    "barrel", "wheel", "tent", "plank",
)  # fmt: skip
SIDES = ("under", "behind", "beside", "near")
FOODS = (
    "bread", "cheese", "soup", "milk", "cake", "honey", "corn", "rice", "pie", "carrots", "nuts",
    "berries",
)  # fmt: skip
FAULTS = ("broken", "lost", "torn", "dirty", "wet", "stolen")
SIZES = ("big", "small", "little", "tiny", "huge")
MOODS = ("kind", "brave", "clever", "cheerful", "curious", "quiet")
GEAR = {
    "rainy": ("umbrella", "boots"),
    "snowy": ("boots", "gloves"),
    "cold": ("gloves", "coat"),
    "windy": ("coat", "jacket"),
    "foggy": ("jacket", "lantern"),
    "gloomy": ("lantern", "umbrella"),
}
"""What one takes along in each weather; each suits two, so that it does not tell the weather."""
