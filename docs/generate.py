"""Write the table of the spec's fields in docs/spec.md from the contract.

python docs/generate.py            # write
python docs/generate.py --check    # exit 1 when what is committed differs from what would be written
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

from lockstep.contract.spec.fields import FieldRule, kinds_of, meanings_of_sections
from lockstep.contract.spec.validation import CHOICE_RULES, FIELD_RULES
from lockstep.server.spec.validation import CROSS_RULES

PAGE = Path(__file__).parent / "spec.md"
BEGIN = "<!-- spec fields: written by `make docs` -->\n"
END = "<!-- end of the spec fields -->\n"
HEAD = "| field | what | allowed | default |\n|---|---|---|---|\n"


def table() -> str:
    """The table, a row for each field and each part of which there is more to say, in the order of the contract."""
    joined: dict[str, list[str]] = defaultdict(list)
    for rule in CROSS_RULES:
        if rule.limits not in joined[rule.path]:
            joined[rule.path].append(rule.limits)
    rows = {rule.path: row_of_field(rule, joined[rule.path]) for rule in FIELD_RULES}
    choices = {rule.path for rule in CHOICE_RULES}
    for path, (meaning, default) in meanings_of_sections().items():
        kinds = f"exactly one of {', '.join(f'`{kind}`' for kind in kinds_of(path))}" if path in choices else ""
        rows[path] = row(path, meaning, [kinds, *joined[path]], "required" if path in choices else default)
    return BEGIN + HEAD + "".join(rows[path] for path in in_order(rows)) + END


def in_order(rows: dict[str, str]) -> list[str]:
    """Sections before their fields, and sections as the contract has them."""
    sections = list(dict.fromkeys(rule.path.partition(".")[0] for rule in FIELD_RULES))
    return sorted(rows, key=lambda path: (sections.index(path.partition(".")[0]), "." in path))


def row_of_field(rule: FieldRule, joined: list[str]) -> str:
    if rule.required:
        default = "required"
    elif rule.default is None:
        default = rule.default_words or "not set"
    else:
        value = rule.default
        is_whole = isinstance(value, float) and value.is_integer()
        default = f"`{json.dumps(int(value) if is_whole else value)}`"
    return row(rule.path, rule.meaning, [rule.limits, *joined], default)


def row(path: str, meaning: str, allowed: list[str], default: str) -> str:
    return f"| `{path}` | {meaning} | {'; '.join(filter(None, allowed))} | {default} |\n"


def fresh(page: str) -> str:
    """The page with the table as the contract has it now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + table() + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    page = PAGE.read_text()
    if not parser.parse_args().check:
        PAGE.write_text(fresh(page))
        return 0
    if page != fresh(page):
        print("docs/spec.md does not fit the contract; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
