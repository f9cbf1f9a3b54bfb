#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""nbd_bench: what does an NBD server pay for a request?  fio's nbd engine reads 4 KiB at random
places of the same cached file, over a unix socket, from each server in turn.

  read-1    one connection, 32 requests in flight
  read-4    four connections, 32 requests in flight on each
  read-qd1  one connection, one request at a time; server and client each on a processor of their
            own.  What it measures is above all how fast this machine wakes a processor.

The client costs more than any of the servers, and it takes processors from them: what tells servers
apart is cpu_ns_per_op, the processor time of the server (user and system, with all threads and
children of it, from /proc/PID/stat) for each request."""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

PROGRAM = '@NBD_PROGRAM@'
TMPFS = 0x01021994
TICK_NS = 1_000_000_000 // os.sysconf('SC_CLK_TCK')
CASES = {
    # name: connections, requests in flight on each, pinned
    'read-1': (1, 32, False),
    'read-4': (4, 32, False),
    'read-qd1': (1, 1, True),
}
METRICS = {'ops_per_s': '1/s', 'cpu_ns_per_op': 'ns', 'p50_ns': 'ns', 'p99_ns': 'ns'}


def fail(message, status=1):
    print(f'nbd_bench: {message}', file=sys.stderr)
    sys.exit(status)


# ---- Servers -----------------------------------------------------------------------------------


class Server:
    """A server that is running.  It is started and ended by its process number."""

    def __init__(self, name, directory, file, args):
        self.name = name
        self.socket = os.path.join(directory, name + '.sock')
        self.log = open(os.path.join(directory, name + '.log'), 'w+', encoding='utf-8')
        self.child = None
        self.pid = None
        try:
            self.start(directory, file, args)
        except BaseException:
            self.stop()
            raise

    def start(self, directory, file, args):
        command = COMMANDS[self.name](self.socket, file, directory, args)
        self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log,
                                      stderr=self.log)
        self.pid = self.child.pid
        if self.name == 'nbd-server':  # goes into the background, and writes its number
            self.child.wait(20)
            self.pid = int(wait_for(lambda: read(os.path.join(directory, 'nbd-server.pid')), self))
        wait_for(self.listens, self)

    def listens(self):
        with socket.socket(socket.AF_UNIX) as s:
            return s.connect_ex(self.socket) == 0

    def uri(self):
        return f'nbd+unix:///bench?socket={self.socket}'

    def said(self):
        self.log.seek(0)
        return self.log.read().strip() or 'it said nothing'

    def tree(self):
        """The server and its children."""
        pids = [self.pid]
        for pid in pids:
            for task in tasks(pid):
                pids += [int(c) for c in read(f'/proc/{pid}/task/{task}/children').split()]
        return pids

    def cpu_ns(self):
        """Processor time so far, with that of children that have ended."""
        ticks = 0
        for pid in self.tree():
            fields = read(f'/proc/{pid}/stat').rpartition(')')[2].split()
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
        return ticks * TICK_NS

    def pin(self, cpu):
        """All threads onto one processor; None: back onto all."""
        cpus = {cpu} if cpu is not None else ALL_CPUS
        for pid in self.tree():
            for task in tasks(pid):
                try:
                    os.sched_setaffinity(int(task), cpus)
                except OSError:
                    pass  # a thread that has just ended, or a worker of the kernel's

    def stop(self):
        if self.pid is not None:
            try:
                os.kill(self.pid, signal.SIGTERM)
                if self.child.pid == self.pid:
                    self.child.wait(20)
            except subprocess.TimeoutExpired:
                os.kill(self.pid, signal.SIGKILL)
                self.child.wait()
            except ProcessLookupError:
                pass
        self.log.close()


def read(path):
    try:
        with open(path, encoding='utf-8', errors='replace') as f:
            return f.read()
    except (FileNotFoundError, ProcessLookupError):
        return ''


def tasks(pid):
    """The threads of a process; none once it has ended."""
    try:
        return os.listdir(f'/proc/{pid}/task')
    except FileNotFoundError:
        return []


def wait_for(cond, server):
    until = time.monotonic() + 20
    while True:
        value = cond()
        if value:
            return value
        if server.child.poll() not in (None, 0) or time.monotonic() > until:
            fail(f'{server.name} did not start: {server.said()}')
        time.sleep(0.01)


def ours(sock, file, directory, args, threads=1):
    options = '&' + args.options.replace(',', '&') if args.options else ''
    return [args.program, '--threads', str(threads), '--export',
            f'bench=file://{file}?read-only=on{options}', '--unix', sock]


def nbd_server(sock, file, directory, args):
    config = os.path.join(directory, 'nbd-server.conf')
    with socket.socket() as s:  # it wants a port as well: one that is free
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    with open(config, 'w', encoding='utf-8') as f:
        f.write(f'[generic]\nunixsock = {sock}\nlistenaddr = 127.0.0.1\nport = {port}\n'
                f'[bench]\nexportname = {file}\nreadonly = true\n')
    return ['nbd-server', '-C', config, '-p', os.path.join(directory, 'nbd-server.pid')]


COMMANDS = {
    'aioctx': ours,
    'aioctx-2': lambda sock, file, d, args: ours(sock, file, d, args, 2),
    'nbdkit': lambda sock, file, d, args: ['nbdkit', '-f', '-r', '-U', sock, 'file', file],
    'qemu-nbd': lambda sock, file, d, args: ['qemu-nbd', '-r', '-t', '-f', 'raw', '-x', 'bench',
                                             '-e', '8', '--aio=io_uring', '-k', sock, file],
    'nbd-server': nbd_server,
}
OURS = ('aioctx', 'aioctx-2')


# ---- Runs --------------------------------------------------------------------------------------


def run_fio(server, case, ms, pin):
    """Returns the requests, and what fio says of them."""
    jobs, depth, _ = CASES[case]
    command = ['fio', '--name=bench', '--ioengine=nbd', f'--uri={server.uri()}', '--rw=randread',
               '--bs=4k', '--norandommap', '--thread', f'--numjobs={jobs}', '--group_reporting',
               f'--iodepth={depth}', '--time_based', f'--runtime={ms}ms',
               '--output-format=json']
    if pin is not None:
        command.append(f'--cpus_allowed={pin}')
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=60 + ms / 1000,
                          cwd=os.path.dirname(server.socket))
    try:
        job = json.loads(done.stdout[done.stdout.index('{'):])['jobs'][0]
    except (ValueError, KeyError, IndexError):
        fail(f'fio against {server.name}: {done.stdout.strip()}\n{server.said()}')
    if done.returncode != 0 or job['error']:
        fail(f'fio against {server.name}: error {job["error"]}\n{server.said()}')
    return job['read']


def measure(server, case, args):
    """One run: a value for each metric."""
    pinned = CASES[case][2] or args.pin
    cpus = sorted(ALL_CPUS)
    server.pin(cpus[0] if pinned else None)
    before = server.cpu_ns()
    result = run_fio(server, case, args.run_ms, cpus[-1] if pinned else None)
    if not result['total_ios']:
        fail(f'{server.name} answered nothing in {args.run_ms} ms; expected a longer --run-ms')
    if server.name == 'nbd-server':  # a child for each connection, counted once it has ended
        wait_for(lambda: len(server.tree()) == 1, server)
    ios = result['total_ios']
    percentile = result['clat_ns'].get('percentile', {})
    return {
        'ops_per_s': result['iops'],
        'cpu_ns_per_op': (server.cpu_ns() - before) / ios,
        'p50_ns': percentile.get('50.000000', 0),
        'p99_ns': percentile.get('99.000000', 0),
    }


def median(rows, metric):
    return statistics.median(r[metric] for r in rows)


def show(case, samples, peers, out):
    """A table: medians, and ours as multiples of the best peer's."""
    jobs, depth, _ = CASES[case]
    best_ops = max((median(samples[p], 'ops_per_s') for p in peers), default=None)
    best_cpu = min((median(samples[p], 'cpu_ns_per_op') for p in peers), default=None)
    print(f'\nnbd_bench: {case}   (to_best: ops_per_s, cpu_to_best: cpu_ns_per_op, '
          'of the best other server)')
    print(f'  {"n":<10} {"depth":>7}  {"impl":<14}' + ''.join(f' {m:>13}' for m in METRICS) +
          f' {"to_best":>12} {"cpu_to_best":>12}')
    for name, rows in samples.items():
        values = {m: median(rows, m) for m in METRICS}
        ratios = {}
        if name in OURS and peers:
            ratios = {'to_best': values['ops_per_s'] / best_ops,
                      'cpu_to_best': values['cpu_ns_per_op'] / best_cpu if best_cpu else 0}
        print(f'  {jobs:<10} {depth:>7}  {name:<14}' +
              ''.join(f' {v:>13.0f}' for v in values.values()) +
              ''.join(f' {ratios[r]:>12.2f}' if ratios else f' {"-":>12}'
                      for r in ('to_best', 'cpu_to_best')))
        if out:
            for metric, value in [*values.items(), *ratios.items()]:
                unit = METRICS.get(metric, 'of the best peer')
                out.write(json.dumps({'bench': 'nbd_bench', 'case': case, 'impl': name,
                                      'threads': 1, 'n': jobs, 'metric': metric, 'unit': unit,
                                      'value': value}) + '\n')


# ---- The program -------------------------------------------------------------------------------


def make_file(args, directory):
    """The file to read, in the page cache, and on a file system where that is what is measured."""
    path = args.file
    if not path:
        path = os.path.join(directory, 'disk')
        with open(path, 'wb') as f:
            for _ in range(4 if args.smoke else 256):
                f.write(os.urandom(1 << 20))
    kind = subprocess.run(['stat', '-f', '-c', '%t', path], stdout=subprocess.PIPE, text=True,
                          check=False).stdout.strip()
    if not kind:
        fail(f'--file: cannot open {path}')
    if int(kind, 16) == TMPFS:
        fail(f'{path} is in memory (tmpfs): io_uring hands its reads to kernel threads; expected a '
             'file on a real file system (--file, or TMPDIR)')
    with open(path, 'rb') as f:
        while f.read(1 << 20):
            pass
    return os.path.abspath(path)


def choose(what, text, known):
    """The names in @text, or all that are @known."""
    names = text.split(',') if text else list(known)
    for name in names:
        if name not in known:
            fail(f'--{what}: there is no {name}; expected some of {", ".join(known)}', 2)
    return names


def options():
    parser = argparse.ArgumentParser(prog='nbd_bench', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=int, metavar='N', help='timed runs, of which the median '
                        'counts; servers take turns (5)')
    parser.add_argument('--run-ms', type=int, metavar='N', help='how long a run lasts, in '
                        'milliseconds; the time of processors is counted in steps of '
                        f'{TICK_NS // 1000000} ms (1500)')
    parser.add_argument('--case', metavar='LIST', help=f'of {", ".join(CASES)} (all)')
    parser.add_argument('--impl', metavar='LIST', help=f'of {", ".join(COMMANDS)} (what is '
                        'installed; aioctx-2 has two iothreads, and is for several connections)')
    parser.add_argument('--pin', action='store_true', help='the server on the first processor and '
                        'fio on the last, in every case')
    parser.add_argument('--file', metavar='FILE', help='the file to read (one of 256 MiB in '
                        '/var/tmp)')
    parser.add_argument('--options', metavar='LIST', default='', help='more options of our file '
                        'driver, such as registered=on')
    parser.add_argument('--program', metavar='FILE', default=PROGRAM, help='aioctx-nbd (that of '
                        'this build)')
    parser.add_argument('--json', metavar='FILE', help='write the results there, one JSON object '
                        'a line')
    parser.add_argument('--smoke', action='store_true', help='a second of everything, to check '
                        'results and not speed')
    args = parser.parse_args()
    args.runs = args.runs or (1 if args.smoke else 5)
    args.run_ms = args.run_ms or (300 if args.smoke else 1500)
    if args.runs < 1 or not 10 <= args.run_ms <= 60000:
        fail('expected --runs of at least 1, and --run-ms from 10 to 60000', 2)
    args.case = choose('case', args.case, CASES)
    args.wanted = args.impl is not None
    if args.smoke and not args.wanted:
        args.impl = 'aioctx'
    args.impl = choose('impl', args.impl, COMMANDS)
    return args


def have_nbd_engine():
    return shutil.which('fio') and 'uri' in subprocess.run(
        ['fio', '--enghelp=nbd'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False).stdout


def bench(args, directory, out):
    file = make_file(args, directory)
    servers = {}
    try:
        for name in args.impl:
            if name in OURS or shutil.which(name):
                servers[name] = Server(name, directory, file, args)
            elif args.wanted:
                fail(f'{name} is not installed')
            else:
                print(f'nbd_bench: {name} is not installed, and left out')
        for case in args.case:
            here = {n: s for n, s in servers.items()
                    if n != 'aioctx-2' or CASES[case][0] > 1 or args.wanted}
            samples = {name: [] for name in here}
            for server in here.values():
                if not args.smoke:
                    run_fio(server, case, max(100, args.run_ms // 4), None)  # warm
            for _ in range(args.runs):
                for name, server in here.items():
                    samples[name].append(measure(server, case, args))
            show(case, samples, [n for n in here if n not in OURS], out)
    finally:
        for server in servers.values():
            server.stop()


def main():
    args = options()
    if not have_nbd_engine():
        print('nbd_bench: skipped: there is no fio with an nbd engine (Debian package fio)')
        return 77
    out = open(args.json, 'w', encoding='utf-8') if args.json else None
    base = os.environ.get('TMPDIR') or '/var/tmp'
    with tempfile.TemporaryDirectory(prefix='nbd-bench-', dir=base) as directory:
        bench(args, directory, out)
    if out:
        out.close()
    return 0


ALL_CPUS = os.sched_getaffinity(0)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
try:
    sys.exit(main())
except KeyboardInterrupt:
    sys.exit(130)
