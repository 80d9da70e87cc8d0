"""Words for sounds: captions in several phrasings, for the classes of `sounds` and for sounds of other kinds.

A sound has noun phrases ("a barking dog") and clauses ("a dog barks"); a caption is one of them in a template. The
words of a class name occur in its phrases, so that a text encoder that was trained on captions knows them.
"""

import numpy as np

NOUN_TEMPLATES = (
    "{}",
    "the sound of {}",
    "{} in the distance",
    "{} close to the microphone",
    "a recording of {}",
    "one can hear {}",
    "there is {} somewhere nearby",
    "{} and some background noise",
    "a short clip with {}",
)

CLAUSE_TEMPLATES = (
    "{}",
    "{} in the distance",
    "{} nearby",
    "somewhere {}",
    "{} again and again",
    "{} as a person listens",
    "{} and little else is heard",
    "in the background {}",
    "{} in a noisy place",
)

CLASS_PHRASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "dog bark": (
        ("a dog bark", "a barking dog", "the bark of a dog", "the barking of a hound"),
        ("a dog barks", "a dog is barking", "a puppy yaps", "a hound barks loudly"),
    ),
    "siren": (
        ("a siren", "a wailing siren", "the siren of an ambulance", "a police siren"),
        ("a siren wails", "a siren rises and falls", "an ambulance siren sounds", "a siren blares"),
    ),
    "rain": (
        ("rain", "falling rain", "heavy rain on a roof", "a downpour"),
        ("rain is falling", "rain pours down", "rain drops patter", "it rains steadily"),
    ),
    "clock tick": (
        ("a clock tick", "a ticking clock", "the tick of a clock", "the tick tock of a wall clock"),
        ("a clock ticks", "a clock is ticking", "a clock goes tick tock", "an old watch ticks"),
    ),
    "church bell": (
        ("a church bell", "a tolling bell", "the bell of a church", "bell strokes from a tower"),
        ("a church bell tolls", "a bell is struck", "church bells ring", "a large bell resounds"),
    ),
    "car horn": (
        ("a car horn", "the horn of a car", "honking", "the horn of a vehicle"),
        ("a car honks", "a car horn blows", "a driver honks the horn", "cars honk in traffic"),
    ),
    "engine idling": (
        ("an engine idling", "an idling engine", "a motor at idle", "the idling of a truck engine"),
        ("an engine idles", "an engine is idling", "a motor rumbles", "a diesel engine chugs"),
    ),
    "crackling fire": (
        ("a crackling fire", "the crackling of a fire", "a campfire", "burning wood"),
        ("a fire crackles", "a fire is crackling", "wood snaps in the flames", "a campfire burns"),
    ),
    "door knock": (
        ("a door knock", "a knock on a door", "knocking at the door", "raps on wood"),
        ("someone knocks on a door", "a door is knocked", "a fist raps on wood", "a visitor knocks"),
    ),
    "bird chirp": (
        ("a bird chirp", "a chirping bird", "the chirp of a bird", "birdsong"),
        ("a bird chirps", "birds are chirping", "a bird sings", "a small bird tweets"),
    ),
    "footsteps": (
        ("footsteps", "footsteps on gravel", "the steps of a walker", "the footsteps of a person"),
        ("someone walks", "footsteps go by", "a person walks on gravel", "footsteps come closer"),
    ),
    "phone ringing": (
        ("a phone ringing", "a ringing phone", "the ringing of a telephone", "a ringtone"),
        ("a phone rings", "a phone is ringing", "a telephone rings", "a phone call comes in"),
    ),
    "sea waves": (
        ("sea waves", "waves of the sea", "the surf on a beach", "ocean waves"),
        ("sea waves roll in", "waves break on the shore", "the sea surges", "waves wash over sand"),
    ),
    "wind": (
        ("wind", "gusts of wind", "a howling wind", "a stormy wind"),
        ("the wind blows", "wind is howling", "the wind whistles", "a gust of wind rises"),
    ),
    "frog croak": (
        ("a frog croak", "a croaking frog", "the croak of a frog", "a toad"),
        ("a frog croaks", "frogs are croaking", "a frog calls", "a toad croaks"),
    ),
    "keyboard typing": (
        ("keyboard typing", "typing on a keyboard", "the keys of a keyboard", "a clacking keyboard"),
        ("someone types on a keyboard", "fingers type", "keys clack", "a clerk is typing"),
    ),
}

# Sounds that belong to no class; the first five are what the distractors of `sounds` resemble.
OTHER_PHRASES: tuple[tuple[str, str], ...] = (
    ("the voice of a man", "people talk"),
    ("slow music", "someone plays chords on a guitar"),
    ("bursts of static", "a radio hisses"),
    ("a rising test tone", "a tone sweeps"),
    ("the beeping of a machine", "a machine beeps"),
    ("a crying baby", "a baby cries"),
    ("applause", "an audience claps"),
    ("laughter", "children laugh"),
    ("a passing train", "a train rattles by"),
    ("a jet aircraft", "a plane takes off"),
    ("a helicopter", "a helicopter hovers"),
    ("a chainsaw", "a chainsaw cuts a log"),
    ("a vacuum cleaner", "a vacuum cleaner hums"),
    ("a sewing machine", "a sewing machine runs"),
    ("a meowing cat", "a cat meows"),
    ("a crowing rooster", "a rooster crows"),
    ("a grazing cow", "a cow moos"),
    ("bleating sheep", "a sheep bleats"),
    ("a buzzing fly", "a bee buzzes"),
    ("thunder", "thunder roars"),
    ("a gunshot", "a gun is fired"),
    ("fireworks", "fireworks explode"),
    ("breaking glass", "a glass shatters"),
    ("a squeaking hinge", "a gate creaks"),
    ("a power drill", "a worker drills"),
    ("a hammer", "a carpenter hammers"),
    ("a boiling kettle", "water boils"),
    ("frying food", "bacon sizzles"),
    ("a flushing toilet", "a toilet flushes"),
    ("a running tap", "water runs into a sink"),
    ("a violin", "a violinist plays"),
    ("a drum", "a drummer plays"),
    ("a choir", "a choir sings"),
    ("a snoring man", "a man snores"),
    ("a sneeze", "a woman sneezes"),
    ("a bouncing ball", "a ball bounces"),
    ("a skateboard", "a skateboard rolls"),
    ("a lawn mower", "a mower cuts the grass"),
    ("a turning page", "someone turns a page"),
    ("coins on a table", "coins drop"),
)


def phrasings(nouns: tuple[str, ...], clauses: tuple[str, ...]) -> list[str]:
    """Return every caption from the templates with some noun phrases and clauses."""
    return [template.format(noun) for template in NOUN_TEMPLATES for noun in nouns] + [
        template.format(clause) for template in CLAUSE_TEMPLATES for clause in clauses
    ]


def num_class_captions() -> int:
    """Count the phrasings that every class has."""
    return min(len(phrasings(*words)) for words in CLASS_PHRASES.values())


def num_other_captions() -> int:
    """Count the phrasings of sounds outside all classes."""
    return len(OTHER_PHRASES) * (len(NOUN_TEMPLATES) + len(CLAUSE_TEMPLATES))


def class_captions(name: str, num_captions: int, rng: np.random.Generator) -> list[str]:
    """Draw captions of a class; none is repeated before every phrasing has been drawn.

    Parameters
    ----------
    name : str
        Name of the class.
    num_captions : int
    rng : numpy Generator
    """
    return _draw(phrasings(*CLASS_PHRASES[name]), num_captions, rng)


def other_captions(num_captions: int, rng: np.random.Generator) -> list[str]:
    """Draw captions of sounds outside all classes; none is repeated before every one has been drawn."""
    nouns, clauses = zip(*OTHER_PHRASES, strict=True)
    return _draw(phrasings(nouns, clauses), num_captions, rng)


def _draw(captions: list[str], num_captions: int, rng: np.random.Generator) -> list[str]:
    rounds = -(-num_captions // len(captions))
    order = np.concatenate([rng.permutation(len(captions)) for _ in range(max(1, rounds))])
    return [captions[index] for index in order[:num_captions]]
