"""Did the demo serve every request and roll back to the same bits? Reads what `lowcloud demo --json` printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> int:
    text = Path(sys.argv[1]).read_text()
    print(text.strip())
    report = json.loads(text)
    wrong = []
    if report["failed"] != 0:
        wrong.append(f"{report['failed']} of {report['served'] + report['failed']} requests failed")
    if report["served"] <= 0:
        wrong.append("no request was served")
    if report["swaps"] <= 0:
        wrong.append("nothing was swapped")
    if report["rollback_identical"] is not True:
        wrong.append("the rollback did not bring back the same bits")
    if not report["bytes_sent"] < report["bytes_whole"]:
        wrong.append(f"{report['bytes_sent']} bytes were sent for {report['bytes_whole']}")
    print("\n".join(wrong) or "the demo served every request")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
