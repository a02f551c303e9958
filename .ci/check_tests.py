"""Did every test run? Reads pytest's JUnit report: where `.ci/run` runs, nothing has a reason to be skipped."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def main() -> int:
    report = ElementTree.parse(Path(sys.argv[1])).getroot()
    cases = list(report.iter("testcase"))
    skipped = [case for case in cases if case.find("skipped") is not None]
    for case in skipped:
        reason = case.find("skipped")
        message = "" if reason is None else reason.get("message", "")
        print(f"skipped: {case.get('classname')}::{case.get('name')}: {message}")
    print(f"{len(cases) - len(skipped)} tests ran, {len(skipped)} were skipped")
    return 1 if skipped or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
