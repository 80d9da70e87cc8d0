"""YAML for configs: a repeated key is an error, and expanding aliases cannot exhaust memory."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yaml import Node

MOST_VALUES = 100_000  # in a config, with its aliases expanded
MERGE = "tag:yaml.org,2002:merge"


def load_yaml(text: str) -> Any:
    """Return the value of a YAML document; None if it is empty.

    Raises
    ------
    yaml.YAMLError
        The text is not valid YAML, a mapping repeats a key, or it has more than `MOST_VALUES` values after expanding
        aliases.
    """
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _num_values(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"it has more than {MOST_VALUES:,} values after expanding aliases")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _num_values(node: "Node", known: dict[int, float]) -> float:
    """Return how many values a node has after expanding aliases, infinite if it contains itself; check its keys."""
    import yaml

    if id(node) not in known:
        known[id(node)] = float("inf")
        children: list[Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            _check_keys(node)
            children = [child for pair in node.value for child in pair]
        known[id(node)] = 1 + sum(_num_values(child, known) for child in children)
    return known[id(node)]


def _check_keys(node: Any) -> None:
    import yaml

    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
            continue
        if (key.tag, key.value) in seen:
            raise yaml.YAMLError(
                f"line {key.start_mark.line + 1}: the key {key.value!r} occurs twice; keep one of them"
            )
        seen.add((key.tag, key.value))
