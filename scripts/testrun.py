# SPDX-License-Identifier: MIT
"""Builds configurations of aioctx, runs their tests and counts GoogleTest cases.

Used by scripts/check and scripts/check-all.  A test program is asked for its cases before it runs,
so that one which crashes or hangs cannot lose any: the case that it died in is failed, and so is
every case that never got its turn.  Tests that are no GoogleTest programs count as one case each.
"""

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS_AT_ONCE = 3

# The exit statuses differ from GoogleTest's 1, so that a leak beside a failed case counts too.
SANITIZER_ENV = {
    'ASAN_OPTIONS': 'exitcode=99:detect_leaks=1:detect_stack_use_after_return=1:'
                    'strict_string_checks=1',
    'UBSAN_OPTIONS': 'print_stacktrace=1:halt_on_error=1',
    # liburcu as the distribution builds it is not instrumented; our wrapper announces its edges.
    # At the end of each process, of which tests start thousands, a second is waited by default.
    'TSAN_OPTIONS': 'ignore_noninstrumented_modules=1:halt_on_error=1:second_deadlock_stack=1:'
                    'atexit_sleep_ms=50',
}
LINE = re.compile(r'^\[\s*(RUN|OK|FAILED|SKIPPED)\s*\] ([\w/]+\.[\w/]+)')


class Config:
    """One way to build and to run the tests."""

    def __init__(self, name, build, options=(), suite=None, compiler=None, env=None, slower=1):
        self.name = name          # as the report shows it
        self.build = ROOT / build
        self.options = list(options)
        self.suite = suite        # only the tests of this suite; None: all
        self.compiler = compiler  # (C, C++), or None for the default
        self.env = dict(env or {})
        self.slower = slower      # how much longer than plain tests may take


class Result:
    """The cases of one configuration."""

    def __init__(self):
        self.passed, self.failed, self.skipped = [], [], []

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def line(self):
        text = f'{len(self.passed)} passed, {len(self.failed)} failed'
        return text + (f', {len(self.skipped)} skipped' if self.skipped else '')


def say(text):
    print(text, flush=True)


# ---- Building ----------------------------------------------------------------------------------


def build(config, jobs, nice=0):
    """Configures and builds; returns None, or the output when that failed."""
    env = dict(os.environ)
    if config.compiler:
        env['CC'], env['CXX'] = config.compiler
    options = ['-Dtests=enabled', *config.options]
    if (config.build / 'build.ninja').exists():
        setup = ['meson', 'configure', str(config.build), *options]
    else:
        setup = ['meson', 'setup', str(config.build), str(ROOT), *options]
    ninja = ['nice', '-n', str(nice), 'ninja', '-C', str(config.build), '-j', str(jobs)]
    # The build files first: they say what the tests of a suite need.
    for command in (setup, [*ninja, 'build.ninja'], ninja):
        if command is ninja and config.suite:
            command = [*ninja, *targets_of(config)]
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, text=True,
                              errors='replace', stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            return f'$ {" ".join(command)}\n{done.stdout}'
    return None


def introspect(config, what):
    text = subprocess.run(['meson', 'introspect', what, str(config.build)], check=True,
                          stdout=subprocess.PIPE, text=True).stdout
    return json.loads(text)


def targets_of(config):
    """What has to be built for the tests of the configuration's suite, for ninja."""
    needed = {id for test in tests_of(config) for id in test['depends']}
    files = [f for t in introspect(config, '--targets') if t['id'] in needed for f in t['filename']]
    return sorted(os.path.relpath(f, config.build) for f in files)


def tests_of(config):
    """The tests that meson knows, as its introspection describes them; by priority: those that
    take longest have the highest."""
    tests = [t for t in introspect(config, '--tests')
             if config.suite is None or any(s.split(':')[-1] == config.suite for s in t['suite'])]
    return sorted(tests, key=lambda t: -t['priority'])


# ---- Running one program -----------------------------------------------------------------------


def without_aslr():
    """A prefix that turns address randomisation off, where that is allowed: with the many random
    bits of newer kernels, ThreadSanitizer's shadow of gcc 12 cannot always be mapped."""
    prefix = ['setarch', '-R']
    if shutil.which('setarch'):
        if subprocess.run([*prefix, 'true'], stderr=subprocess.DEVNULL).returncode == 0:
            return prefix
    return []


def run(command, env, cwd, timeout_s):
    """Runs a command in a process group of its own; returns its exit status and its output.  The
    status is negative for a signal, and None when its time was up and the group was killed."""
    with tempfile.TemporaryFile('w+', errors='replace') as out:
        process = subprocess.Popen(command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # Also what a test left running behind it.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        out.seek(0)
        return status, out.read()


def list_cases(command, env, cwd):
    """The names of a GoogleTest program's cases; None when it cannot even list them."""
    status, text = run([*command, '--gtest_list_tests'], env, cwd, 60)
    if status != 0:
        return None
    names, suite = [], ''
    for line in text.splitlines():
        word = line.split('#')[0].strip()
        if line.startswith('  ') and suite:
            names.append(suite + word)
        elif re.fullmatch(r'[\w/]+\.', word):
            suite = word
    return names


def parse_json(path):
    """What a GoogleTest program reported: name -> 'OK', 'FAILED' or 'SKIPPED'."""
    seen = {}
    for suite in json.loads(path.read_text())['testsuites']:
        for case in suite['testsuite']:
            name = f'{suite["name"]}.{case["name"]}'
            if case.get('failures'):
                seen[name] = 'FAILED'
            else:
                ran = case['status'] == 'RUN' and case['result'] == 'COMPLETED'
                seen[name] = 'OK' if ran else 'SKIPPED'
    return seen


def parse_log(text):
    """The same from the output of a program that died: a case that began and did not end reads
    'RUN'."""
    return {m[2]: m[1] for m in map(LINE.match, text.splitlines()) if m}


def describe(status):
    if status is None:
        return 'timed out'
    return f'killed by {signal.Signals(-status).name}' if status < 0 else f'exit status {status}'


def run_gtest(test, command, env, timeout_s):
    """Runs one GoogleTest program; returns its result and, when it failed, what to show."""
    result, name = Result(), test['name']
    cases = list_cases(command, env, test['workdir'])
    if cases is None:
        result.failed.append(f'{name} (cannot list its cases)')
        return result, run([*command, '--gtest_list_tests'], env, test['workdir'], 60)[1]

    with tempfile.TemporaryDirectory(prefix='aioctx-check-') as scratch:
        report = Path(scratch) / 'report.json'
        status, text = run([*command, f'--gtest_output=json:{report}'], env, test['workdir'],
                           timeout_s)
        died = not report.exists()
        seen = parse_log(text) if died else parse_json(report)

    for case in cases:
        state = seen.get(case)
        if state == 'OK':
            result.passed.append(case)
        elif state == 'SKIPPED':
            result.skipped.append(case + skip_reason(text, case))
        elif state == 'FAILED':
            result.failed.append(case)
        elif state == 'RUN':
            result.failed.append(f'{case} ({name}: {describe(status)})')
        else:
            result.failed.append(f'{case} ({name}: {describe(status)} before it could run)')
    if not died and status != (1 if result.failed else 0):
        # A leak found at exit, or a death after the last case.
        result.failed.append(f'{name} (after its last case: {describe(status)})')
    elif died and not result.failed:
        result.failed.append(f'{name} (left no report: {describe(status)})')
    return result, text if result.failed else None


def skip_reason(text, case):
    """What a test gave GTEST_SKIP(), as ': reason', or nothing."""
    found = re.search(rf'\[ RUN +\] {re.escape(case)}\n.*?: Skipped\n(.*?)\n', text, re.DOTALL)
    return f': {found[1]}' if found and found[1].strip() else ''


def run_plain(test, command, env, timeout_s):
    """Runs a test that is no GoogleTest program: one case, meson's conventions (77: skipped)."""
    result, name = Result(), test['name']
    status, text = run(command, env, test['workdir'], timeout_s)
    if status == 0:
        result.passed.append(name)
    elif status == 77:
        result.skipped.append(name)
    else:
        result.failed.append(f'{name} ({describe(status)})')
    return result, text if result.failed else None


# ---- Running a configuration -------------------------------------------------------------------


def run_tests(config, tests, jobs):
    """Runs the tests, @jobs at a time; prints a line each, and the output of those that failed."""
    prefix = without_aslr() if 'b_sanitize=thread' in ' '.join(config.options) else []
    todo, total, lock = queue.SimpleQueue(), Result(), threading.Lock()
    for test in tests:
        todo.put(test)

    def worker():
        while True:
            try:
                test = todo.get_nowait()
            except queue.Empty:
                return
            env = {**os.environ, **SANITIZER_ENV, **config.env, **test['env']}
            is_gtest = test.get('protocol') == 'gtest'
            began = time.monotonic()
            result, text = (run_gtest if is_gtest else run_plain)(
                test, [*prefix, *test['cmd']], env, test['timeout'] * config.slower)
            with lock:
                total.add(result)
                say(f'  {test["name"]:<24} {result.line():<36} {time.monotonic() - began:6.1f} s')
                if text is not None:
                    say(f'---- output of {test["name"]} ({config.name})\n{text.rstrip()}\n----')

    threads = [threading.Thread(target=worker) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return total


def check(config, output):
    """Runs the tests of a configuration whose build ended with @output; returns its result."""
    result = Result()
    if output is not None:
        say(output)
        result.failed.append(f'{config.name}: the build')
        return result
    say(f'== {config.name}: testing')
    return run_tests(config, tests_of(config), TESTS_AT_ONCE)


def check_all(configs, jobs):
    """Builds the configurations one after the other, and runs the tests of each meanwhile: tests
    wait a lot, and a build behind them takes only the processor time that they leave."""
    built, results = queue.SimpleQueue(), []

    def builder():
        for i, config in enumerate(configs):
            began = time.monotonic()
            try:
                output = build(config, jobs, nice=19 if i else 0)
            except OSError as error:
                output = str(error)
            say(f'== {config.name}: built in {config.build.relative_to(ROOT)}/ '
                f'({time.monotonic() - began:.0f} s)')
            built.put(output)

    say(f'== building {", ".join(c.name for c in configs)}')
    threading.Thread(target=builder, daemon=True).start()
    for config in configs:
        results.append((config.name, check(config, built.get())))
    return results


def report(results):
    """Prints the failed and skipped cases, a line per configuration and, last, the total.
    Returns the exit status: 0 when something ran and nothing failed."""
    total = Result()
    for _, result in results:
        total.add(result)
    say('')
    for what in ('skipped', 'failed'):
        for name, result in results:
            for case in getattr(result, what):
                say(f'{what}: [{name}] {case}')
    say('')
    for name, result in results:
        say(f'{name:<28} {result.line()}')
    say(total.line())
    return 0 if total.passed and not total.failed else 1


def main_guard(main):
    """Calls main(); Ctrl-C ends the run without a stack trace."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say('interrupted')
        os._exit(130)
