"""Run one guest in this process, by the agent's engine alone: no supervisor, no sandbox, no cloud.

`python -m tests.examples.run_guest CODE KIND PROGRAM`, where PROGRAM is JSON with args, env and directories. The exit
status is the guest's. The tests of the examples start it (see `guest.py`), so that a guest can be killed like any
process.
"""

from __future__ import annotations

import json
import sys

from agent.sandbox.engine import CodeKind, Directory, Engine, Program

MEMORY_BYTES = 64 << 20


def main() -> int:
    code_path, kind_text, program_text = sys.argv[1:]
    kind: CodeKind = "component" if kind_text == "component" else "core"
    wanted = json.loads(program_text)
    program = Program(
        args=tuple(wanted["args"]),
        env=wanted["env"],
        directories=tuple(Directory(*directory) for directory in wanted["directories"]),
        memory_bytes=wanted.get("memory_bytes", MEMORY_BYTES),
        tcp=True,
        udp=True,
    )
    engine = Engine()
    ended = engine.prepare(engine.load(code_path, kind), program).run(lambda: None)
    if ended.reason:
        print(ended.reason, file=sys.stderr)
    return ended.exit_code


if __name__ == "__main__":
    sys.exit(main())
