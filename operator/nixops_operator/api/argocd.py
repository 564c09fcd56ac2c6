"""How Argo CD is to judge our kinds, as text for its ConfigMap `argocd-cm`, from the files in docs/reference/argocd:
`python -m nixops_operator.api.argocd [--check]`, in the checkout.

The form is Argo CD's: docs/operator-manual/health.md and resource_actions.md of its repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from nixops_operator import generated
from nixops_operator.api.group import GROUP

_SOURCES = f"docs/reference/argocd/resource_customizations/{GROUP}"
PATCH = "docs/reference/argocd/argocd-cm.yaml"
_IN_CHART = "helm/nixops-operator/argocd/argocd-cm.yaml"
_NOTE = f"""\
# Generated from {_SOURCES} by `make generate`; do not edit.
"""


def files(checkout: Path) -> dict[str, str]:
    """Path below the checkout → content: a patch for `argocd-cm`, and the same for the chart."""
    data = {}
    for folder in sorted((checkout / _SOURCES).iterdir()):
        kind = f"{GROUP}_{folder.name}"
        actions = folder / "actions"
        definitions = [
            {"name": script.parent.name, "action.lua": script.read_text()}
            for script in sorted(actions.glob("*/action.lua"))
        ]
        discovery = (actions / "discovery.lua").read_text()
        data[f"resource.customizations.actions.{kind}"] = _yaml(
            {"discovery.lua": discovery, "definitions": definitions}
        )
        data[f"resource.customizations.health.{kind}"] = (folder / "health.lua").read_text()
    text = _NOTE + _yaml({"data": data})
    return {PATCH: text, _IN_CHART: text}


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _yaml(value: object) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=1000)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 if --check finds that a file differs, else 0."""
    return generated.main(files(Path()), "nixops_operator.api.argocd", "Argo CD's customizations", arguments)


if __name__ == "__main__":
    sys.exit(main())
