"""Writes the schemas beside this file from KubeRay's CRDs; README.md has the command."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

KINDS = {"RayJob": "ray.io_rayjobs.yaml", "RayCluster": "ray.io_rayclusters.yaml"}


def without_descriptions(node: Any) -> Any:
    """A schema without its prose; a property of that name stays."""
    if isinstance(node, list):
        return [without_descriptions(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: without_descriptions(value)
        for key, value in node.items()
        if key != "description" or not isinstance(value, str)
    }


def main(source: Path) -> None:
    """Read the CRDs in `source`."""
    for kind, name in KINDS.items():
        crd = yaml.safe_load((source / name).read_text())
        schema = next(
            version["schema"]["openAPIV3Schema"]
            for version in crd["spec"]["versions"]
            if version["name"] == "v1"
        )
        text = json.dumps(without_descriptions(schema), sort_keys=True, separators=(",", ":"))
        target = Path(__file__).with_name(f"{kind.lower()}.v1.json.gz")
        # mtime=0: the same bytes each time.
        target.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
