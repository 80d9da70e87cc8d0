"""Fit the classifier that tells captions of sounds from other English, and measure it on what it has not seen.

    apt-get install wordnet-base
    python benchmarks/general_text.py                # measure the classifier that is shipped
    python benchmarks/general_text.py --fit          # fit it anew, write clapcur/methods/heard_words.csv, measure

Fitted to the training captions of AudioCaps, and to half of WordNet's glosses with their example sentences. Measured
on captions of another corpus (Clotho, all of it), on AudioCaps' test captions, on the other half of the glosses, and on
the licences that Debian ships, which are prose of another kind.
"""

import argparse
import csv
import hashlib
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from clapcur.data.text_corpus import split
from clapcur.methods.hearing import WEIGHTS, fit, read_weights, write_weights

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
WORDNET, LICENCES = Path("/usr/share/wordnet"), Path("/usr/share/common-licenses")


def captions_of(path: Path) -> list[str]:
    """Return the distinct captions of a table, in the order of their texts."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if name.startswith("caption")]
    return sorted({" ".join(row[name].split()) for row in rows for name in columns if row[name]})


def glosses() -> tuple[list[str], list[str]]:
    """Return WordNet's glosses and example sentences in two halves, by a hash of each gloss."""
    halves: tuple[set[str], set[str]] = (set(), set())
    for name in ("noun", "verb", "adj", "adv"):
        with open(WORDNET / f"data.{name}", encoding="utf-8") as file:
            for line in file:
                if not line.startswith("  ") and " | " in line:
                    gloss = line.split(" | ", 1)[1].strip()
                    half = int(hashlib.sha256(gloss.encode()).hexdigest()[0], 16) % 2
                    halves[half].update(part.strip(' "') for part in gloss.split(";") if len(part.split()) >= 3)
    return sorted(halves[0]), sorted(halves[1])


def licence_sentences() -> Iterator[str]:
    """Yield the sentences of the licences that Debian ships."""
    for path in sorted(LICENCES.iterdir()):
        if path.is_file() and not path.is_symlink():
            for paragraph in path.read_text(errors="ignore").split("\n\n"):
                yield from (text for text in split(" ".join(paragraph.split())) if 3 <= len(text.split()) <= 30)


def passed(texts: Iterable[str], least: float) -> tuple[int, int]:
    """Return how many texts pass the classifier, and how many there are."""
    hearing = read_weights(WEIGHTS)
    scores = [hearing.score(text) for text in texts]
    return sum(score >= least for score in scores), len(scores)


def main() -> None:
    """Fit where asked, and print the table of docs/corpora.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit the classifier anew")
    parser.add_argument("--data", type=Path, default=DATA)
    arguments = parser.parse_args()
    captions = arguments.data / "captions"
    training, held_out = glosses()
    if arguments.fit:
        write_weights(fit(captions_of(captions / "audiocaps" / "train.csv"), training), WEIGHTS)
    clotho = sorted({text for path in (captions / "clotho").glob("*.csv") for text in captions_of(path)})
    known = set(captions_of(captions / "audiocaps" / "train.csv"))
    heard = {
        "Clotho, all captions": clotho,
        "AudioCaps, test captions": [
            text for text in captions_of(captions / "audiocaps" / "test.csv") if text not in known
        ],
    }
    others = {"WordNet, the other half": held_out, "licences": sorted(set(licence_sentences()))}
    print(
        f"| text | sentences | {' | '.join(f'kept at {least}' for least in (0.3, 0.5, 0.7))} |\n|---|---|---|---|---|"
    )
    for name, texts in (heard | others).items():
        shares = [passed(texts, least)[0] / len(texts) for least in (0.3, 0.5, 0.7)]
        print(f"| {name} | {len(texts):,} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |")
    rng = random.Random(0)
    mixed = rng.sample(clotho, 2000), rng.sample(held_out, 20_000)
    (right, all_right), (wrong, _) = (passed(texts, 0.5) for texts in mixed)
    print(
        f"\n2,000 captions of Clotho among 20,000 glosses, at 0.5: precision {100 * right / (right + wrong):.1f} %, "
        f"recall {100 * right / all_right:.1f} %"
    )


if __name__ == "__main__":
    main()
