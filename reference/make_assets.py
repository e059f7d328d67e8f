"""Writes assets/: the artwork of the scenes' kinds, and what is known of each kind.

    npm pack @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6
    python reference/make_assets.py NOTO.tgz FLUENT.tgz

The drawings are those of the packages, wrapped as documents of their own; path coordinates are
rounded where a drawing is an outsize one. `kinds.txt` beside this file is written by hand: slug (the
icon's key), name, measure ("pair of"), category, colour of the Noto drawing, and what the thing does
or is for. Its order is the order of the kinds: a model of N kinds knows the first N.
"""

import json
import re
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parent / "assets"
OUTSIZE = 30_000  # bytes


def read_icons(package: str) -> dict:
    with tarfile.open(package) as archive:
        return json.load(archive.extractfile("package/icons.json"))


def rounded(body: str) -> str:
    return re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number.group()):.1f}", body)


def document(icons: dict, slug: str) -> str:
    icon = icons["icons"][slug]
    width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
    body = rounded(icon["body"]) if len(icon["body"]) > OUTSIZE else icon["body"]
    spaces = 'xmlns="http://www.w3.org/2000/svg"' + (' xmlns:xlink="http://www.w3.org/1999/xlink"' if "xlink" in body else "")
    return f'<svg {spaces} viewBox="0 0 {width} {height}">{body}</svg>\n'


def main() -> None:
    rows = [line.split("|") for line in (HERE / "kinds.txt").read_text().splitlines()]
    for style, package in zip(("noto", "fluent"), sys.argv[1:3], strict=True):
        icons = read_icons(package)
        (ASSETS / style).mkdir(parents=True, exist_ok=True)
        for slug, *_ in rows:
            (ASSETS / style / f"{slug}.svg").write_text(document(icons, slug))
    fields = ("slug", "name", "measure", "category", "color", "purpose")
    lines = [json.dumps(dict(zip(fields, row, strict=True))) for row in rows]
    (ASSETS / "kinds.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
