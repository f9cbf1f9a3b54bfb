#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Searches one model with spin, and compares what comes out with what should.

usage: run.py MODEL OUTCOME [MACRO]

OUTCOME is `holds`, or the kind of error that a broken variant must run into: `assertion`,
`invalid-end-state` or `acceptance-cycle`.  With the macro LIVENESS the search is one for acceptance
cycles under weak fairness; MACRO may be several, joined by `+`.

pan, the checker that spin generates, exits 0 on errors too, so its report is read.  A model holds
when the search was exhaustive, found no error, and reached every statement of the model: a property
of what never happens proves nothing.  Exits 0 when the outcome is the expected one, 77 when spin or
the compiler is missing, and else 1, with the trail that leads to the error.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = Path(__file__).resolve().parent
DEPTH = 1000000    # steps; a search that comes this far is not exhaustive
MEMORY_MB = 1024
TRAIL_LINES = 120  # the last ones are shown

ERRORS = {
    'assertion': re.compile(r'^pan:\d+: assertion violated.*', re.M),
    'invalid-end-state': re.compile(r'^pan:\d+: invalid end state.*', re.M),
    'acceptance-cycle': re.compile(r'^pan:\d+: acceptance cycle.*', re.M),
}


def compiler():
    return os.environ.get('CC', 'cc').split()


def fail(text):
    print(text)
    sys.exit(1)


def run(command, cwd):
    """Runs a command; returns all that it printed, and its exit status."""
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors='replace')
    return done.stdout, done.returncode


def must_run(command, cwd):
    text, status = run(command, cwd)
    if status != 0:
        fail(f'$ {" ".join(command)}\n{text}exit status {status}')
    return text


def outcome_of(report):
    """What the search came to, and pan's line about it."""
    for kind, pattern in ERRORS.items():
        found = pattern.search(report)
        if found:
            return kind, found[0]
    if re.search(r'^pan:\d+: ', report, re.M):
        return 'another error', re.search(r'^pan:\d+: .*', report, re.M)[0]
    return 'holds', ''


def number(pattern, report):
    found = re.search(pattern, report, re.M)
    return int(found[1]) if found else None


def why_not_exhaustive(report):
    """None, or what is missing in the report of a search that found no error."""
    if number(r'errors: (\d+)', report) != 0:
        return 'it does not say "errors: 0"'
    if 'Full statespace search for:' not in report or 'Bit statespace' in report:
        return 'it was not a search of the full state space'
    for sign in ('Search not completed', 'max search depth too small', 'reached -DMEMLIM bound',
                 'out of memory', 'hash conflicts resolved by omission'):
        if sign in report:
            return f'"{sign}"'
    return None


def unreached(report):
    """The statements that no execution came to; the end of an endless process is none."""
    lines = re.findall(r'^\t[\w.]+:\d+, state \d+, ".*"$', report, re.M)
    return [line.strip() for line in lines if not line.endswith('"-end-"')]


def show_trail(model, defines, scratch):
    text, _ = run(['spin', '-t', '-p', '-g', *defines, model], scratch)
    lines = text.splitlines()
    print(f'The last steps that lead to it (spin -t -p -g {" ".join(defines)} {model}):')
    print('\n'.join(lines[-TRAIL_LINES:]))


def check(name, expected, macros, scratch):
    defines = [f'-D{macro}' for macro in macros]
    liveness = 'LIVENESS' in macros
    model = f'{name}.pml'
    for source in MODELS.glob('*.pml'):
        shutil.copy(source, scratch)  # pan writes its trail beside the model
    must_run(['spin', '-a', *defines, model], scratch)
    # An error is found soon: the compiler takes most of the time there.
    must_run([*compiler(), '-O1' if expected == 'holds' else '-O0', '-w', f'-DMEMLIM={MEMORY_MB}',
              *(['-DNFAIR=3'] if liveness else ['-DSAFETY']), '-o', 'pan', 'pan.c'], scratch)
    hash_bits = 24 if expected == 'holds' else 20
    report, status = run(['./pan', f'-m{DEPTH}', f'-w{hash_bits}',
                          *(['-a', '-f'] if liveness else [])], scratch)

    kind, line = outcome_of(report)
    states = number(r'^\s*(\d+) states, stored', report)
    depth = number(r'depth reached (\d+)', report)
    print(f'{model} {" ".join(defines)}: {line or kind}; {states} states, depth {depth}')
    if status != 0 or not states:
        fail(f'{report}pan: exit status {status}')
    if kind != expected:
        if kind != 'holds':
            show_trail(model, defines, scratch)
        fail(f'{report}expected: {expected}; found: {kind}')
    if expected == 'holds':
        why, dead = why_not_exhaustive(report), unreached(report)
        if why:
            fail(f'{report}the search proves nothing: {why}')
        if dead:
            fail('the model holds, but these statements never ran:\n' + '\n'.join(dead))


def main():
    if len(sys.argv) not in (3, 4) or sys.argv[2] not in ('holds', *ERRORS):
        print(__doc__)
        return 2
    for program in ('spin', compiler()[0]):
        if not shutil.which(program):
            print(f'{program} is not installed')
            return 77
    macros = sys.argv[3].split('+') if len(sys.argv) == 4 else []
    text = (MODELS / f'{sys.argv[1]}.pml').read_text()
    for macro in macros:
        if not re.search(rf'^#ifn?def {macro}$|^#if .*\({macro}\)', text, re.M):
            fail(f'{sys.argv[1]}.pml has no variant {macro}')
    with tempfile.TemporaryDirectory(prefix='aioctx-model-') as scratch:
        check(sys.argv[1], sys.argv[2], macros, scratch)
    return 0


sys.exit(main())
